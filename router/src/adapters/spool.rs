//! The file into which an upload is taken before anybody knows whether it is an adapter. It removes itself. A few at a time: each
//! holds disk space of the size of an adapter.

use std::io;

use tempfile::NamedTempFile;
use tokio::sync::OwnedSemaphorePermit;

/// Uploads at once; more are told to wait.
pub const UPLOADS: usize = 4;

/// Why there is no file.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// All places are taken.
    #[error("too many adapters are being uploaded")]
    Busy,
    /// The disk says no.
    #[error("the upload cannot be stored")]
    Io(#[from] io::Error),
}

/// The file.
#[derive(Debug)]
pub struct Spool {
    file: NamedTempFile,
    _place: OwnedSemaphorePermit,
}

impl Spool {
    /// `file`, for as long as it has its place.
    pub fn new(file: NamedTempFile, place: OwnedSemaphorePermit) -> Self {
        Self { file, _place: place }
    }

    /// The file once more, at its beginning.
    pub fn open(&self) -> io::Result<std::fs::File> {
        self.file.reopen()
    }
}
