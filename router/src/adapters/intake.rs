//! Reads an adapter's files and says whether they are usable with a model. Blocking and heavy: it reads and hashes gigabytes
//! where an adapter has them, so the [`Registry`](super::registry::Registry) lets few run at once, off the runtime.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use shoal_common::adapter::{self, AdapterError, BadBundle, Bundle, FilesError, Geometry};
use shoal_common::ids::Generation;

use super::spool::Spool;

/// Where an adapter's files are.
#[derive(Debug)]
pub enum Payload {
    /// In a PEFT directory.
    Directory(PathBuf),
    /// In a request that was taken off the wire.
    Upload {
        /// `adapter_config.json`
        config: Vec<u8>,
        /// `adapter_model.safetensors`; removed when dropped.
        weights: Spool,
    },
}

/// An adapter's files in memory.
#[derive(Debug)]
pub struct Files {
    /// `adapter_config.json`
    pub config: Vec<u8>,
    /// `adapter_model.safetensors`
    pub weights: Vec<u8>,
}

/// What a check found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The identity of the content.
    pub generation: Generation,
    /// Largest rank.
    pub rank: u32,
    /// Bytes of the bundle.
    pub bytes: u64,
}

/// Why files are no usable adapter. The texts name files of the adapter and never a path of this machine.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// What they hold.
    #[error(transparent)]
    Content(#[from] AdapterError),
    /// They make no bundle.
    #[error(transparent)]
    Bundle(#[from] BadBundle),
    /// They cannot be read.
    #[error("{}", told(.0))]
    Files(#[from] FilesError),
    /// Both together are too large.
    #[error("the adapter has {bytes} bytes; the limit is {limit}")]
    TooLarge {
        /// How many.
        bytes: u64,
        /// `limits.adapter_bytes`
        limit: u64,
    },
}

impl From<io::Error> for Unusable {
    fn from(source: io::Error) -> Self {
        Self::Files(FilesError::Io { path: PathBuf::new(), source })
    }
}

fn told(error: &FilesError) -> String {
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    match error {
        FilesError::Missing { file, .. } => format!("{file} is missing"),
        FilesError::Pickle { path } => {
            let rest = error.to_string();
            let rest = rest.strip_prefix(&path.display().to_string()).unwrap_or_default();
            format!("{}{rest}", name(path))
        }
        FilesError::NotAFile { path } => format!("{} is not a regular file; links are not followed", name(path)),
        FilesError::TooLarge { path, bytes, limit } => {
            format!("{} has {bytes} bytes; the limit is {limit}", name(path))
        }
        FilesError::Io { path, source } => {
            format!("{} cannot be read: {}", name(path), source.kind()).trim().to_owned()
        }
    }
}

impl Payload {
    /// Reads the files, of `limit` bytes together at most.
    pub fn read(self, limit: u64) -> Result<Files, Unusable> {
        let (config, weights) = match self {
            Self::Directory(path) => adapter::read_directory(&path, limit)?,
            Self::Upload { config, weights } => {
                let mut bytes = Vec::new();
                weights.open()?.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
                (config, bytes)
            }
        };
        let bytes = (config.len() + weights.len()) as u64;
        if bytes > limit {
            return Err(Unusable::TooLarge { bytes, limit });
        }
        Ok(Files { config, weights })
    }
}

impl Files {
    /// The two as one.
    pub fn bundle(&self) -> Bundle<'_> {
        Bundle { config: &self.config, weights: &self.weights }
    }

    /// Checks them against a model of `geometry`, and names them.
    pub fn check(&self, geometry: &Geometry) -> Result<Facts, Unusable> {
        let bundle = self.bundle();
        let rank = adapter::check(&bundle, geometry)?.rank();
        let header = bundle.header()?.len();
        let bytes = (header + self.config.len() + self.weights.len()) as u64;
        Ok(Facts { generation: bundle.generation()?, rank, bytes })
    }
}

/// Checks a stored bundle against a model of `geometry`.
pub fn check_stored(blob: &Path, geometry: &Geometry) -> Result<(), Unusable> {
    let bytes = fs::read(blob)?;
    adapter::check(&Bundle::parse(&bytes)?, geometry)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;

    use tokio::sync::Semaphore;

    use super::*;
    use crate::testing::{GEOMETRY, golden};

    #[test]
    fn a_directory_and_an_upload_of_the_same_files_are_one_generation() {
        let directory = golden("tiny/tiny-qv");
        let read = Payload::Directory(directory.clone()).read(1 << 20).unwrap().check(&GEOMETRY).unwrap();
        let place = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        let weights = Spool::new(tempfile::NamedTempFile::new().unwrap(), place);
        weights.open().unwrap().write_all(&fs::read(directory.join("adapter_model.safetensors")).unwrap()).unwrap();
        let config = fs::read(directory.join("adapter_config.json")).unwrap();
        let sent = Payload::Upload { config, weights }.read(1 << 20).unwrap().check(&GEOMETRY).unwrap();
        assert_eq!((read, read.rank), (sent, 4));
        assert_eq!(read.bytes, 12 + 1080 + 16352);
    }

    #[test]
    fn no_more_is_read_than_the_limit_allows() {
        let payload = || Payload::Directory(golden("tiny/tiny-qv"));
        assert!(payload().read(1080 + 16352).is_ok());
        assert!(matches!(payload().read(1080 + 16351), Err(Unusable::TooLarge { bytes: 17432, limit: 17431 })));
        assert!(payload().read(100).is_err());
    }

    #[test]
    fn a_reason_names_the_file_and_no_path() {
        let dir = tempfile::tempdir().unwrap();
        let reason = |dir: &Path| Payload::Directory(dir.to_owned()).read(1 << 20).unwrap_err().to_string();
        assert_eq!(reason(dir.path()), "adapter_config.json is missing");
        fs::write(dir.path().join("adapter_config.json"), "{}").unwrap();
        fs::write(dir.path().join("adapter_model.bin"), "pickle").unwrap();
        let pickle = reason(dir.path());
        assert!(pickle.starts_with("adapter_model.bin: ") && pickle.contains("safetensors"), "{pickle}");
        let link = dir.path().join("adapter_model.safetensors");
        std::os::unix::fs::symlink("/etc/hostname", link).unwrap();
        assert!(reason(dir.path()).starts_with("adapter_model.safetensors is not a regular file"));
        for text in [reason(dir.path()), pickle] {
            assert!(!text.contains(&*dir.path().to_string_lossy()), "{text}");
        }
    }

    #[test]
    fn an_adapter_of_another_model_is_told_from_a_broken_one() {
        let check = |dir: &str| Payload::Directory(golden(dir)).read(1 << 30).unwrap().check(&GEOMETRY);
        assert!(
            matches!(check("adapters/upper"), Err(Unusable::Content(error)) if error.kind() == adapter::Fault::WrongBase)
        );
        let nan = check("bad-adapters/config-alpha-nan").unwrap_err();
        assert!(matches!(nan, Unusable::Content(error) if error.kind() == adapter::Fault::Malformed));
    }
}
