//! The promises of opening a model, on the tiny golden model in both formats, on files made wrong on purpose, and on the
//! real default model.

mod blocks;
mod builder;
mod families;
mod goldens;
mod malformed_gguf;
mod malformed_hf;
mod tokenizers;
mod values;

use std::path::{Path, PathBuf};

use super::bytes::FileBytes;
use super::{ModelFile, WeightsError};

/// A file or directory of the golden fixtures.
fn golden(relative: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/golden")).join(relative)
}

fn open(relative: &str) -> ModelFile {
    ModelFile::open(&golden(relative)).unwrap()
}

/// Opens a GGUF file that is in memory only.
fn open_gguf(content: &[u8]) -> Result<ModelFile, WeightsError> {
    super::gguf::model(Path::new("in-memory.gguf"), FileBytes::copy_of(content))
}

/// A copy of the tiny Hugging Face directory that a test may change.
fn copy_of_tiny() -> tempfile::TempDir {
    copy_of("tiny/base")
}

/// A copy of a golden directory that a test may change.
fn copy_of(directory: &str) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(golden(directory)).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    copy
}

/// Reads every tensor of a model that was opened: what has been accepted must be usable.
fn read_all(model: &ModelFile) {
    for name in model.config.tensor_names() {
        let [rows, cols] = model.config.tensor_shape(name);
        assert_eq!(model.tensor_f32(name).unwrap().len(), rows * cols);
    }
}
