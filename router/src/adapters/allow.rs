//! Which directories of this machine a request may name: those within `router.adapters` and `router.adapter_paths`, after
//! every link has been followed. Outside of them a request does not even learn what exists. Blocking.

use std::path::{Component, Path, PathBuf};

/// Why a path is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathRefusal {
    /// There is no such place on this server.
    #[error(
        "this server takes no adapters by path: its operator names the directories in router.adapter_paths; upload the \
         files with PUT /v1/adapters/NAME instead"
    )]
    NoPaths,
    /// It is outside, or cannot be judged.
    #[error("must be an absolute path within router.adapters or router.adapter_paths of the server")]
    Outside,
    /// It is inside, and nothing is there.
    #[error("there is no such directory")]
    NoDirectory,
}

/// The directories that may be named.
#[derive(Clone, Debug, Default)]
pub struct Allowed(Vec<PathBuf>);

impl Allowed {
    /// Those within `roots`.
    pub fn new(roots: impl IntoIterator<Item = PathBuf>) -> Self {
        Self(roots.into_iter().collect())
    }

    /// The directory that `path` leads to, without links.
    pub fn resolve(&self, path: &str) -> Result<PathBuf, PathRefusal> {
        if self.0.is_empty() {
            return Err(PathRefusal::NoPaths);
        }
        let path = Path::new(path);
        let plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
        if !path.is_absolute() || !plain {
            return Err(PathRefusal::Outside);
        }
        let roots: Vec<PathBuf> = self.0.iter().filter_map(|root| root.canonicalize().ok()).collect();
        match path.canonicalize() {
            Ok(real) if !roots.iter().any(|root| real.starts_with(root)) => Err(PathRefusal::Outside),
            Ok(real) if real.is_dir() => Ok(real),
            Ok(_) => Err(PathRefusal::NoDirectory),
            Err(_) if self.0.iter().chain(&roots).any(|root| path.starts_with(root)) => Err(PathRefusal::NoDirectory),
            Err(_) => Err(PathRefusal::Outside),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn only_directories_within_the_listed_ones_can_be_named() {
        let dir = tempfile::tempdir().unwrap();
        let at = |rest: &str| dir.path().join(rest).to_string_lossy().into_owned();
        for made in ["in/a/b", "out/secret", "in-too"] {
            fs::create_dir_all(dir.path().join(made)).unwrap();
        }
        fs::write(dir.path().join("in/file"), "").unwrap();
        symlink(dir.path().join("out/secret"), dir.path().join("in/leads-out")).unwrap();
        symlink("a", dir.path().join("in/leads-in")).unwrap();
        let allowed = Allowed::new([dir.path().join("in"), dir.path().join("gone")]);
        for inside in ["in/a", "in/a/b", "in/leads-in", "in"] {
            assert!(allowed.resolve(&at(inside)).is_ok_and(|path| path.is_dir()), "{inside} was refused");
        }
        for nothing in ["in/none", "in/file", "in/file/x"] {
            assert_eq!(allowed.resolve(&at(nothing)), Err(PathRefusal::NoDirectory), "{nothing}");
        }
        for outside in ["out/secret", "out/none", "in-too", "in/../out/secret", "in/leads-out", "in/../in/a", "."] {
            assert_eq!(allowed.resolve(&at(outside)), Err(PathRefusal::Outside), "{outside}");
        }
        for strange in ["", ".", "in/a", "../in", "a\0b", "/proc/self/root", "/", "~", "file:///etc"] {
            assert_eq!(allowed.resolve(strange), Err(PathRefusal::Outside), "{strange:?}");
        }
    }

    #[test]
    fn without_a_list_no_path_is_looked_at() {
        assert_eq!(Allowed::default().resolve("/"), Err(PathRefusal::NoPaths));
    }
}
