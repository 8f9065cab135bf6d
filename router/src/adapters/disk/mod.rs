//! Adapters on the router's disk, `data_dir/adapters/`: the bundle of every generation as `blobs/<generation>.adapter`, and
//! `catalogue.json`, which says what the names point at. Each file is written beside its place, synced and renamed into it,
//! so that a crash leaves the old one or the new one. What is found broken is reported and skipped. Every function blocks.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use shoal_common::adapter::{BadBundle, Bundle};
use shoal_common::ids::{Digest, Generation, Name};
use tempfile::NamedTempFile;

use super::record::{self, Record};

/// How a blob's file name ends.
const EXTENSION: &str = "adapter";

/// Why the directory cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The file system says no.
    #[error("the adapters' directory {} cannot be used", path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Another process has it.
    #[error("another router uses {}; give each its own data_dir (--data-dir)", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
}

/// The files. Holds the directory's lock until dropped.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    _lock: File,
}

/// The durable catalogue. One at a time changes it.
#[derive(Debug)]
pub struct Ledger {
    root: PathBuf,
    records: BTreeMap<Name, Record>,
}

/// A record of an earlier life, and what is wrong with its blob.
#[derive(Debug)]
pub struct Restored {
    /// The record.
    pub record: Record,
    /// Why its bytes cannot be had; absent where they are there in full length.
    pub damage: Option<&'static str>,
}

impl Store {
    /// Opens `data_dir/adapters/`, made if it is not there, and tells what it holds.
    pub fn open(data_dir: &Path) -> Result<(Self, Ledger, Vec<Restored>), DiskError> {
        let root = data_dir.join("adapters");
        let fail = |source| DiskError::Io { path: root.clone(), source };
        for dir in [root.clone(), root.join("blobs"), root.join("incoming")] {
            DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(fail)?;
        }
        let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(root.join("lock"));
        let lock = lock.map_err(fail)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(DiskError::Locked { path: root }),
            Err(TryLockError::Error(source)) => return Err(fail(source)),
        }
        let store = Self { root: root.clone(), _lock: lock };
        let (records, whole) = record::read(&root).map_err(fail)?;
        store.tidy(&records, whole).map_err(fail)?;
        let restored = records.iter().map(|record| store.restored(record)).collect();
        let records = records.into_iter().map(|record| (record.name.clone(), record)).collect();
        Ok((store, Ledger { root, records }, restored))
    }

    /// A new file beside the blobs. It removes itself unless it is [settled](Store::settle).
    pub fn spool(&self) -> io::Result<NamedTempFile> {
        NamedTempFile::new_in(self.root.join("incoming"))
    }

    /// A synced file of the bundle's bytes.
    pub fn write(&self, bundle: &Bundle<'_>) -> io::Result<NamedTempFile> {
        let header = bundle.header().map_err(|bad: BadBundle| io::Error::other(bad))?;
        let mut file = self.spool()?;
        for part in [&header[..], bundle.config, bundle.weights] {
            file.write_all(part)?;
        }
        file.as_file().sync_all()?;
        Ok(file)
    }

    /// Makes a written file the blob of `generation`.
    pub fn settle(&self, file: NamedTempFile, generation: Generation) -> io::Result<()> {
        file.persist(self.blob(generation)).map_err(|error| error.error)?;
        sync_dir(&self.root.join("blobs"))
    }

    /// Where the blob of `generation` is.
    pub fn blob(&self, generation: Generation) -> PathBuf {
        self.root.join("blobs").join(format!("{generation}.{EXTENSION}"))
    }

    /// Whether the blob of `generation` is what its name says.
    pub fn verify(&self, generation: Generation) -> io::Result<bool> {
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(File::open(self.blob(generation))?)?;
        Ok(Digest(*hasher.finalize().as_bytes()) == generation.0)
    }

    /// Removes the blob of `generation`.
    pub fn remove(&self, generation: Generation) -> io::Result<()> {
        fs::remove_file(self.blob(generation))
    }

    fn restored(&self, record: &Record) -> Restored {
        let damage = match fs::metadata(self.blob(record.generation)) {
            Ok(metadata) if metadata.len() == record.bytes => None,
            Ok(_) => Some("its stored copy has another length than it had; register it again"),
            Err(_) => Some("its stored copy is gone; register it again"),
        };
        Restored { record: record.clone(), damage }
    }

    /// Removes what an earlier life left unfinished, and blobs that no name points at: nobody can ask for them any more. Where
    /// the catalogue itself was damaged they stay, for a person to look at.
    fn tidy(&self, records: &[Record], catalogue: record::Wholeness) -> io::Result<()> {
        for entry in fs::read_dir(self.root.join("incoming"))? {
            fs::remove_file(entry?.path())?;
        }
        if catalogue == record::Wholeness::Damaged {
            return Ok(());
        }
        let known: BTreeSet<PathBuf> = records.iter().map(|record| self.blob(record.generation)).collect();
        for entry in fs::read_dir(self.root.join("blobs"))? {
            let path = entry?.path();
            let is_blob = path.extension().is_some_and(|extension| extension == EXTENSION);
            if is_blob && !known.contains(&path) {
                fs::remove_file(&path)?;
            }
        }
        Ok(())
    }
}

impl Ledger {
    /// Records what a name points at. On an error the file says what it said before.
    pub fn put(&mut self, record: Record) -> io::Result<()> {
        let name = record.name.clone();
        let before = self.records.insert(name.clone(), record);
        self.save().inspect_err(|_| self.put_back(name, before))
    }

    /// Removes a name. On an error the file says what it said before.
    pub fn remove(&mut self, name: &Name) -> io::Result<()> {
        let Some(before) = self.records.remove(name) else { return Ok(()) };
        self.save().inspect_err(|_| self.put_back(name.clone(), Some(before)))
    }

    fn put_back(&mut self, name: Name, before: Option<Record>) {
        match before {
            Some(record) => drop(self.records.insert(name, record)),
            None => drop(self.records.remove(&name)),
        }
    }

    fn save(&self) -> io::Result<()> {
        let mut file = NamedTempFile::new_in(self.root.join("incoming"))?;
        file.write_all(&record::encode(self.records.values()))?;
        file.as_file().sync_all()?;
        file.persist(self.root.join(record::FILE)).map_err(|error| error.error)?;
        sync_dir(&self.root)
    }
}

/// A rename is durable once its directory is.
fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests;
