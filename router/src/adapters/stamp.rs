//! What the two files of a PEFT directory look like from outside: enough to know that they changed, without reading them.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use shoal_common::adapter::files;

/// The files of a PEFT directory.
pub const FILES: [&str; 2] = [files::CONFIG, files::WEIGHTS];

/// Sizes, times and inodes of the two files, or why they have none. Equal stamps: nobody has written to them or replaced them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Stamp(String);

impl Stamp {
    /// The stamp of the directory at `path`; neither it nor its files need be there.
    pub fn of(path: &Path) -> Self {
        let files = FILES.map(|file| match fs::symlink_metadata(path.join(file)) {
            Ok(metadata) => of_file(&metadata),
            Err(error) => error.kind().to_string(),
        });
        Self(files.join(", "))
    }
}

fn of_file(metadata: &Metadata) -> String {
    format!("{}.{:09}-{}-{}", metadata.mtime(), metadata.mtime_nsec(), metadata.size(), metadata.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_written_replaced_or_removed_changes_the_stamp() {
        let dir = tempfile::tempdir().unwrap();
        let write = |file: usize, text: &str| fs::write(dir.path().join(FILES[file]), text).unwrap();
        let mut seen = Vec::new();
        let mut differs = |what: &str| {
            let stamp = Stamp::of(dir.path());
            assert!(!seen.contains(&stamp), "{what} was not noticed");
            seen.push(stamp);
        };
        differs("the empty directory");
        write(0, "{}");
        differs("the first file");
        write(1, "weights");
        differs("the second file");
        write(1, "weights, longer");
        differs("a longer file");
        let other = dir.path().join("other");
        fs::write(&other, "weights, longer").unwrap();
        fs::rename(&other, dir.path().join(FILES[1])).unwrap();
        differs("a replacement of the same size");
        fs::remove_file(dir.path().join(FILES[0])).unwrap();
        differs("a removal");
        fs::write(dir.path().join("README.md"), "hello").unwrap();
        assert!(seen.contains(&Stamp::of(dir.path())), "another file counts");
    }
}
