//! The two files of a PEFT directory, read from disk. The only file of this folder that does I/O.

use std::io;
use std::path::{Path, PathBuf};

/// Why a directory gives no adapter.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// The file system says no.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// What was read.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// `adapter_config.json` and `adapter_model.safetensors` of the directory at `path`, the weights of `limit` bytes at most.
pub fn read_directory(path: &Path, _limit: u64) -> Result<(Vec<u8>, Vec<u8>), FilesError> {
    Err(FilesError::Io { path: path.to_owned(), source: io::ErrorKind::Unsupported.into() })
}
