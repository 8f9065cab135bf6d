//! A whole file in memory, its first byte aligned to 8. Called by the readers of each format.
//!
//! Files are read, not mapped: a mapping can change after it was checked and hashed, and faults when the file is
//! truncated under it. What was checked is what is computed with.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::error::WeightsError;

/// Bytes per word of the buffer: the alignment that the quantised block types need at most.
const WORD: usize = size_of::<u64>();

/// The content of a file.
pub(super) struct FileBytes {
    words: Vec<u64>,
    len: usize,
}

impl std::fmt::Debug for FileBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileBytes").field("len", &self.len).finish()
    }
}

impl FileBytes {
    /// Reads the regular file at `path`, which must not change its length meanwhile.
    pub(super) fn read(path: &Path) -> Result<Self, WeightsError> {
        let failed = |source| WeightsError::Read { path: path.to_owned(), source };
        let (mut file, bytes) = open_regular(path).map_err(failed)?;
        let out_of_memory = || WeightsError::OutOfMemory { path: path.to_owned(), bytes };
        let len = usize::try_from(bytes).map_err(|_| out_of_memory())?;
        let mut content = Self::zeroed(len).map_err(|_| out_of_memory())?;
        file.read_exact(content.as_mut()).map_err(failed)?;
        match file.read(&mut [0]).map_err(failed)? {
            0 => Ok(content),
            _ => Err(failed(io::Error::other("the file grew while it was read"))),
        }
    }

    fn zeroed(len: usize) -> Result<Self, std::collections::TryReserveError> {
        let count = len.div_ceil(WORD);
        let mut words = Vec::new();
        words.try_reserve_exact(count)?;
        words.resize(count, 0);
        Ok(Self { words, len })
    }

    /// A copy of `content`, aligned as a file's.
    #[cfg(test)]
    pub(super) fn copy_of(content: &[u8]) -> Self {
        let mut copy = Self::zeroed(content.len()).unwrap();
        copy.as_mut().copy_from_slice(content);
        copy
    }

    /// The content.
    pub(super) fn as_slice(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[..self.len]
    }

    fn as_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.words)[..self.len]
    }
}

/// Reads a small text-like file of at most `limit` bytes; `None` where there is none.
pub(super) fn read_small(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, WeightsError> {
    let failed = |source| WeightsError::Read { path: path.to_owned(), source };
    let file = match open_regular(path) {
        Ok((file, _)) => file,
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(failed(source)),
    };
    let mut content = Vec::new();
    file.take(limit + 1).read_to_end(&mut content).map_err(failed)?;
    if content.len() as u64 > limit {
        return Err(WeightsError::FileTooLarge { path: path.to_owned(), limit });
    }
    Ok(Some(content))
}

/// Opens a file and tells its length. A pipe or a device would block or never end.
fn open_regular(path: &Path) -> io::Result<(File, u64)> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    Ok((file, metadata.len()))
}
