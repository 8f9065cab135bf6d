//! Reading a directory: what is opened, and what is not.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;

use tempfile::TempDir;

use crate::adapter::bundle::MAX_CONFIG;
use crate::adapter::{FilesError, read_directory};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";

fn directory(files: &[(&str, &str)]) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, content) in files {
        fs::write(directory.path().join(name), content).unwrap();
    }
    directory
}

fn refused(directory: &Path) -> FilesError {
    read_directory(directory, 100).expect_err("it must be refused")
}

#[test]
fn a_directory_is_its_two_files() {
    let directory = directory(&[(CONFIG, "{}"), (WEIGHTS, "weights"), ("README.md", "x"), ("adapter_model.bin", "x")]);
    let expected = (b"{}".to_vec(), b"weights".to_vec());
    assert_eq!(read_directory(directory.path(), 7).unwrap(), expected);
    // The way to it may be a link: that is the choice of whoever names it.
    let link = directory.path().join("link");
    symlink(directory.path(), &link).unwrap();
    assert_eq!(read_directory(&link, 7).unwrap(), expected);
}

#[test]
fn a_file_that_is_missing_is_named() {
    let empty = directory(&[]);
    assert!(matches!(refused(empty.path()), FilesError::Missing { file: CONFIG, .. }));
    let config = directory(&[(CONFIG, "{}")]);
    assert!(matches!(refused(config.path()), FilesError::Missing { file: WEIGHTS, .. }));
    assert!(matches!(refused(&empty.path().join("nowhere")), FilesError::Missing { file: CONFIG, .. }));
    let file = directory(&[("file", "")]);
    assert!(matches!(refused(&file.path().join("file")), FilesError::Io { .. }));
}

#[test]
fn a_pickle_is_never_opened() {
    let directory = directory(&[(CONFIG, "{}")]);
    symlink("/nowhere", directory.path().join("adapter_model.bin")).unwrap();
    let error = refused(directory.path());
    assert!(matches!(error, FilesError::Pickle { .. }));
    assert!(error.to_string().contains("never loaded") && error.to_string().contains("safetensors"), "{error}");
}

#[test]
fn what_is_too_large_is_not_read() {
    let directory = directory(&[(CONFIG, "{}"), (WEIGHTS, "weights")]);
    assert!(matches!(read_directory(directory.path(), 6), Err(FilesError::TooLarge { bytes: 7, limit: 6, .. })));
    // A terabyte that takes no room on disk, and would take all of it in memory.
    fs::File::create(directory.path().join(WEIGHTS)).unwrap().set_len(1 << 40).unwrap();
    assert!(matches!(refused(directory.path()), FilesError::TooLarge { bytes, .. } if bytes == 1 << 40));
    fs::write(directory.path().join(CONFIG), vec![b' '; MAX_CONFIG + 1]).unwrap();
    assert!(matches!(refused(directory.path()), FilesError::TooLarge { bytes, .. } if bytes == MAX_CONFIG as u64 + 1));
}

#[test]
fn only_regular_files_are_read() {
    for name in [CONFIG, WEIGHTS] {
        let other = if name == CONFIG { WEIGHTS } else { CONFIG };
        let assert_refused = |make: &dyn Fn(&Path)| {
            let directory = directory(&[(other, "{}"), ("elsewhere", "{}")]);
            let path = directory.path().join(name);
            make(&path);
            let error = refused(directory.path());
            assert!(matches!(&error, FilesError::NotAFile { path: named } if *named == path), "{error}");
        };
        assert_refused(&|path| symlink("/dev/zero", path).unwrap());
        assert_refused(&|path| symlink("elsewhere", path).unwrap());
        assert_refused(&|path| symlink(path, path).unwrap());
        assert_refused(&|path| fs::create_dir(path).unwrap());
        assert_refused(&|path| drop(UnixListener::bind(path).unwrap()));
        // Nobody writes to this pipe: to wait for its content would be to wait for ever.
        assert_refused(&|path| assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success()));
    }
}
