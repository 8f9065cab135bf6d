//! The two files of a PEFT directory, read from disk. The only file of this folder that does I/O; blocking, so not for a thread
//! of the runtime.
//!
//! The directory is the caller's choice, and may be reached by a symbolic link. The files in it are not: each must be a regular
//! file itself. A link would read some other file of this machine in the adapter's name, and a pipe or a device has no end.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::bundle::MAX_CONFIG;
use super::error::PICKLE;

/// PEFT's configuration.
pub const CONFIG: &str = "adapter_config.json";
/// PEFT's weights.
pub const WEIGHTS: &str = "adapter_model.safetensors";
/// The weights as PEFT wrote them before safetensors.
const PICKLED: &str = "adapter_model.bin";

/// Why a directory gives no adapter.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// One of the two files is not there.
    #[error("{} has no {file}", directory.display())]
    Missing {
        /// Where it was looked for.
        directory: PathBuf,
        /// Its name.
        file: &'static str,
    },
    /// The weights are there as a pickle only.
    #[error("{}: {PICKLE}", path.display())]
    Pickle {
        /// The pickle.
        path: PathBuf,
    },
    /// It is something else than a file.
    #[error("{} is not a regular file; symbolic links are not followed", path.display())]
    NotAFile {
        /// What it is.
        path: PathBuf,
    },
    /// It is larger than allowed.
    #[error("{} has {bytes} bytes, {limit} is the limit", path.display())]
    TooLarge {
        /// Which file.
        path: PathBuf,
        /// How many it has.
        bytes: u64,
        /// How many it may have.
        limit: u64,
    },
    /// The file system says no.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// What was to be read.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// `adapter_config.json` and `adapter_model.safetensors` of the directory at `path`, the weights of `limit` bytes at most. Sizes
/// are looked at before anything is read. What the files hold is not.
pub fn read_directory(path: &Path, limit: u64) -> Result<(Vec<u8>, Vec<u8>), FilesError> {
    let config = open(path, CONFIG)?;
    let weights = open(path, WEIGHTS);
    if let Err(FilesError::Missing { .. }) = weights
        && path.join(PICKLED).symlink_metadata().is_ok()
    {
        return Err(FilesError::Pickle { path: path.join(PICKLED) });
    }
    // Both are known to be there and to fit before either is read.
    let (config, weights) = (config.sized(MAX_CONFIG as u64)?, weights?.sized(limit)?);
    Ok((config.read()?, weights.read()?))
}

/// A file that is open, and its path for what may be said of it.
struct Opened {
    file: File,
    path: PathBuf,
}

/// A file that fits.
struct Fitting {
    opened: Opened,
    bytes: u64,
    limit: u64,
}

fn open(directory: &Path, name: &'static str) -> Result<Opened, FilesError> {
    let path = directory.join(name);
    // A link is an error, and a pipe that nobody writes to does not wait.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    match OpenOptions::new().read(true).custom_flags(flags).open(&path) {
        Ok(file) => Ok(Opened { file, path }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(FilesError::Missing { directory: directory.to_owned(), file: name })
        }
        // What open(2) says of a link, and of a socket.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ELOOP | libc::ENXIO)) => {
            Err(FilesError::NotAFile { path })
        }
        Err(source) => Err(FilesError::Io { path, source }),
    }
}

impl Opened {
    fn sized(self, limit: u64) -> Result<Fitting, FilesError> {
        let metadata = self.file.metadata().map_err(|source| FilesError::Io { path: self.path.clone(), source })?;
        if !metadata.is_file() {
            return Err(FilesError::NotAFile { path: self.path });
        }
        let bytes = metadata.len();
        if bytes > limit {
            return Err(FilesError::TooLarge { path: self.path, bytes, limit });
        }
        Ok(Fitting { opened: self, bytes, limit })
    }
}

impl Fitting {
    fn read(self) -> Result<Vec<u8>, FilesError> {
        let Self { opened: Opened { file, path }, bytes, limit } = self;
        let mut content = Vec::new();
        let read = |content: &mut Vec<u8>| {
            content.try_reserve_exact(usize::try_from(bytes).map_err(|_| io::ErrorKind::FileTooLarge)?)?;
            // It may grow meanwhile, and still not beyond the limit.
            file.take(limit.saturating_add(1)).read_to_end(content)
        };
        match read(&mut content) {
            Ok(_) if content.len() as u64 > limit => {
                Err(FilesError::TooLarge { path, bytes: content.len() as u64, limit })
            }
            Ok(_) => Ok(content),
            Err(source) => Err(FilesError::Io { path, source }),
        }
    }
}
