//! What lies in the watched directory: every directory in it is an adapter of that name. Blocking.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use shoal_common::ids::Name;

/// What was found.
#[derive(Debug, Default)]
pub struct Scan {
    /// The directories, by the names they have.
    pub found: BTreeMap<Name, PathBuf>,
    /// Directories whose names are none for an adapter.
    pub strange: BTreeSet<String>,
}

/// Looks into `directory`. A link to a directory counts as one; what begins with a dot does not, so that an adapter can be
/// made ready under such a name and renamed when it is whole.
pub fn scan(directory: &Path) -> io::Result<Scan> {
    let mut scan = Scan::default();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let text = entry.file_name().to_string_lossy().into_owned();
        if text.starts_with('.') || !entry.path().is_dir() {
            continue;
        }
        match Name::new(text.as_str()) {
            Ok(name) => drop(scan.found.insert(name, entry.path())),
            Err(_) => drop(scan.strange.insert(text)),
        }
    }
    Ok(scan)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_and_links_to_them_are_adapters_and_nothing_else_is() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a", "b.v2", ".half-copied", "two words"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        fs::write(dir.path().join("file"), "").unwrap();
        std::os::unix::fs::symlink("a", dir.path().join("linked")).unwrap();
        std::os::unix::fs::symlink("nowhere", dir.path().join("dangling")).unwrap();
        let scan = scan(dir.path()).unwrap();
        assert_eq!(scan.found.keys().map(Name::as_str).collect::<Vec<_>>(), ["a", "b.v2", "linked"]);
        assert_eq!(scan.strange.iter().collect::<Vec<_>>(), ["two words"]);
        assert!(super::scan(&dir.path().join("none")).is_err());
    }
}
