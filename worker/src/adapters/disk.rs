//! Adapters on this machine's disk: one file for each, `<generation in hex>.adapter`, in a directory of the worker's own. A file
//! appears whole or not at all: it is written under another name, hashed on the way, synced and renamed; and it is hashed
//! again whenever it is read. Called by the store, on blocking threads. Which files are here, and for how long, is the book's.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use shoal_common::ids::{Digest, Generation};

/// Ending of whole files.
const WHOLE: &str = "adapter";
/// Ending of files that are being written.
const PART: &str = "part";

/// Why a file could not be written.
#[derive(Debug, thiserror::Error)]
pub(super) enum WriteError {
    /// The device, or the user's share of it, is full.
    #[error("the disk is full")]
    Full(#[source] io::Error),
    /// The file system failed.
    #[error("the file cannot be written")]
    Failed(#[source] io::Error),
    /// What was written is not what the name says.
    #[error("the content has another hash")]
    Corrupt,
}

impl From<io::Error> for WriteError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                Self::Full(error)
            }
            _ => Self::Failed(error),
        }
    }
}

/// Why a file could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    /// It is not there, or it holds something else than it should: it can be fetched again.
    #[error("the file is damaged")]
    Damaged,
    /// The file system failed.
    #[error("the file cannot be read")]
    Failed(#[source] io::Error),
}

/// A file of an earlier life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) generation: Generation,
    pub(super) bytes: u64,
    used: SystemTime,
}

/// The directory.
#[derive(Debug)]
pub(super) struct Disk {
    directory: PathBuf,
    /// Names of parts are never used twice.
    parts: AtomicU64,
    quota: Quota,
}

impl Disk {
    /// The files in `directory`, which is made when the first one is written.
    pub(super) fn new(directory: PathBuf, quota: Quota) -> Self {
        Self { directory, parts: AtomicU64::new(0), quota }
    }

    /// What is here, least recently used first; what was not finished is deleted. Meant for the start of the directory's one
    /// worker: another one that writes at this moment loses its part, and must begin anew.
    pub(super) fn scan(&self) -> io::Result<Vec<Found>> {
        let entries = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry?;
            let (path, metadata) = (entry.path(), entry.metadata()?);
            if !metadata.is_file() {
                continue;
            }
            if path.extension().is_some_and(|ending| ending == PART) {
                fs::remove_file(&path)?;
            } else if let Some(generation) = named(&path) {
                let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                found.push(Found { generation, bytes: metadata.len(), used });
            }
        }
        found.sort_unstable_by_key(|found| (found.used, found.generation));
        Ok(found)
    }

    /// Begins to write the file of `generation`.
    pub(super) fn begin(&self, generation: Generation) -> Result<Part, WriteError> {
        fs::create_dir_all(&self.directory)?;
        let whole = self.path(generation);
        let number = self.parts.fetch_add(1, Ordering::Relaxed);
        let path = whole.with_extension(format!("{}-{number}.{PART}", std::process::id()));
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        Ok(Part { generation, file, path, whole, hasher: blake3::Hasher::new(), quota: self.quota.clone() })
    }

    /// The content of `generation`, `bytes` of it, after a check of its hash.
    pub(super) fn read(&self, generation: Generation, bytes: u64) -> Result<Vec<u8>, ReadError> {
        let file = match File::open(self.path(generation)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(ReadError::Damaged),
            file => file.map_err(ReadError::Failed)?,
        };
        let length = file.metadata().map_err(ReadError::Failed)?.len();
        if length != bytes {
            return Err(ReadError::Damaged);
        }
        let mut content = Vec::with_capacity(usize::try_from(bytes).map_err(|_| ReadError::Damaged)?);
        (&file).take(bytes).read_to_end(&mut content).map_err(ReadError::Failed)?;
        if Digest::of(&content) != generation.0 {
            return Err(ReadError::Damaged);
        }
        // For the order at the next start; whoever cannot write here has no say in it.
        let _ = file.set_modified(SystemTime::now());
        Ok(content)
    }

    /// The file of `generation`, if it has its `bytes`. Its hash is not checked: whoever it is sent to does that.
    pub(super) fn open(&self, generation: Generation, bytes: u64) -> io::Result<File> {
        let file = File::open(self.path(generation))?;
        if file.metadata()?.len() == bytes { Ok(file) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    /// Deletes the file of `generation`; one that is not there is as good as deleted.
    pub(super) fn remove(&self, generation: Generation) -> io::Result<()> {
        match fs::remove_file(self.path(generation)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn path(&self, generation: Generation) -> PathBuf {
        self.directory.join(format!("{generation}.{WHOLE}"))
    }
}

/// The generation that a file is named after.
fn named(path: &Path) -> Option<Generation> {
    let hex = path.file_name()?.to_str()?.strip_suffix(WHOLE)?.strip_suffix('.')?;
    // Only as we write it: one content has one file.
    hex.parse().ok().map(Generation).filter(|generation| generation.to_string() == hex)
}

/// A file in the making. Deleted when dropped before [`Part::finish`].
#[derive(Debug)]
pub(super) struct Part {
    generation: Generation,
    file: File,
    path: PathBuf,
    whole: PathBuf,
    hasher: blake3::Hasher,
    quota: Quota,
}

impl Part {
    /// Appends.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        self.hasher.update(bytes);
        self.quota.take(bytes.len() as u64)?;
        Ok(self.file.write_all(bytes)?)
    }

    /// Makes it the whole file, if it is what it is named after.
    pub(super) fn finish(self) -> Result<(), WriteError> {
        if *self.hasher.finalize().as_bytes() != self.generation.0.0 {
            return Err(WriteError::Corrupt);
        }
        self.file.sync_all()?;
        fs::rename(&self.path, &self.whole)?;
        // The name must outlive a power cut as the content does.
        if let Some(directory) = self.whole.parent() {
            File::open(directory)?.sync_all()?;
        }
        Ok(())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // Nothing is there after it was finished; what cannot be deleted now is deleted at the next start.
        let _ = fs::remove_file(&self.path);
    }
}

/// Bytes that may still be written, over all files. Without one the device itself says when it is full; tests make a full disk
/// with it.
#[derive(Clone, Debug, Default)]
pub(super) struct Quota(Option<Arc<AtomicU64>>);

impl Quota {
    fn take(&self, bytes: u64) -> io::Result<()> {
        let Some(left) = &self.0 else { return Ok(()) };
        let taken = left.fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| left.checked_sub(bytes));
        taken.map(drop).map_err(|_| io::ErrorKind::StorageFull.into())
    }

    /// So many bytes from now on.
    #[cfg(test)]
    pub(super) fn of(bytes: u64) -> Self {
        Self(Some(Arc::new(AtomicU64::new(bytes))))
    }

    /// Somebody has made room.
    #[cfg(test)]
    pub(super) fn free(&self, bytes: u64) {
        self.0.as_ref().unwrap().fetch_add(bytes, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generation(content: &[u8]) -> Generation {
        Generation(Digest::of(content))
    }

    fn write(disk: &Disk, content: &[u8]) {
        let mut part = disk.begin(generation(content)).unwrap();
        content.chunks(3).for_each(|chunk| part.write(chunk).unwrap());
        part.finish().unwrap();
    }

    fn files(directory: &Path) -> usize {
        fs::read_dir(directory).map_or(0, Iterator::count)
    }

    #[test]
    fn what_was_written_is_found_and_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let disk = Disk::new(directory.path().join("deep/below"), Quota::default());
        assert_eq!(disk.scan().unwrap(), []);
        write(&disk, b"one");
        write(&disk, b"another");
        let again = Disk::new(directory.path().join("deep/below"), Quota::default());
        let mut found: Vec<_> = again.scan().unwrap().iter().map(|found| (found.generation, found.bytes)).collect();
        found.sort_unstable();
        let mut expected = [(generation(b"one"), 3), (generation(b"another"), 7)];
        expected.sort_unstable();
        assert_eq!(found, expected);
        assert_eq!(again.read(generation(b"another"), 7).unwrap(), b"another");
        again.remove(generation(b"another")).unwrap();
        again.remove(generation(b"another")).unwrap();
        assert!(matches!(again.read(generation(b"another"), 7), Err(ReadError::Damaged)));
    }

    #[test]
    fn the_least_recently_read_is_found_first() {
        let directory = tempfile::tempdir().unwrap();
        let disk = Disk::new(directory.path().to_owned(), Quota::default());
        for (content, age) in [(b"a", 30), (b"b", 20), (b"c", 10)] {
            write(&disk, content);
            let file = File::options().write(true).open(disk.path(generation(content))).unwrap();
            file.set_modified(SystemTime::now() - std::time::Duration::from_secs(age)).unwrap();
        }
        disk.read(generation(b"a"), 1).unwrap();
        let found: Vec<_> = disk.scan().unwrap().iter().map(|found| found.generation).collect();
        assert_eq!(found, [b"b", b"c", b"a"].map(|content| generation(content)));
    }

    #[test]
    fn a_part_is_never_seen_and_leaves_nothing_behind() {
        let directory = tempfile::tempdir().unwrap();
        let disk = Disk::new(directory.path().to_owned(), Quota::of(10));
        let mut dropped = disk.begin(generation(b"dropped")).unwrap();
        dropped.write(b"drop").unwrap();
        assert!(matches!(disk.read(generation(b"dropped"), 4), Err(ReadError::Damaged)));
        drop(dropped);
        let mut other = disk.begin(generation(b"this")).unwrap();
        other.write(b"that").unwrap();
        assert!(matches!(other.finish(), Err(WriteError::Corrupt)));
        let mut full = disk.begin(generation(b"full")).unwrap();
        assert!(matches!(full.write(b"full"), Err(WriteError::Full(_))));
        drop(full);
        assert_eq!(files(directory.path()), 0);
        // A process that was killed could not clean up; the next one does.
        std::mem::forget(disk.begin(generation(b"killed")).unwrap());
        assert_eq!(files(directory.path()), 1);
        assert_eq!(disk.scan().unwrap(), []);
        assert_eq!(files(directory.path()), 0);
    }

    #[test]
    fn a_file_that_is_not_what_its_name_says_is_damaged() {
        let directory = tempfile::tempdir().unwrap();
        let disk = Disk::new(directory.path().to_owned(), Quota::default());
        for damage in [&b"CONTENT"[..], b"conten", b"content and more"] {
            write(&disk, b"content");
            fs::write(disk.path(generation(b"content")), damage).unwrap();
            assert!(matches!(disk.read(generation(b"content"), 7), Err(ReadError::Damaged)), "{damage:?}");
        }
    }

    #[test]
    fn only_files_with_a_generation_s_name_are_ours() {
        let directory = tempfile::tempdir().unwrap();
        let hex = generation(b"x").to_string();
        let names = ["notes.txt", "adapter", "00.adapter", &format!("{}.adapter", hex.to_uppercase()), &hex];
        names.iter().for_each(|name| fs::write(directory.path().join(name), b"x").unwrap());
        fs::create_dir(directory.path().join(format!("{hex}.adapter"))).unwrap();
        let disk = Disk::new(directory.path().to_owned(), Quota::default());
        assert_eq!(disk.scan().unwrap(), []);
        assert_eq!(files(directory.path()), names.len() + 1, "what is not ours is left alone");
    }
}
