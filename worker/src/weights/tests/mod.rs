//! The promises of opening a model, on the tiny golden model in both formats and on the real default model.

mod goldens;

use std::path::PathBuf;

use super::ModelFile;

/// A file or directory of the golden fixtures.
fn golden(relative: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/golden")).join(relative)
}

fn open(relative: &str) -> ModelFile {
    ModelFile::open(&golden(relative)).unwrap()
}
