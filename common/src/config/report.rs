//! Collects faults while the sections are checked, and knows where each value came from. Used by `source` and `check`;
//! never stops at the first fault.

use std::path::{Path, PathBuf};

use config::Value;

use super::fault::{ConfigError, Fault, Place};

/// The faults found so far, and what is needed to tell where a value came from.
#[derive(Debug)]
pub(super) struct Report {
    file: Option<PathBuf>,
    home: Option<PathBuf>,
    faults: Vec<Fault>,
}

impl Report {
    /// An empty report over `file`; `home` is what `~/` means.
    pub(super) fn new(file: Option<&Path>, home: Option<PathBuf>) -> Self {
        Self { file: file.map(Path::to_owned), home, faults: Vec::new() }
    }

    pub(super) fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// The place of what is missing from the file.
    pub(super) fn file_place(&self) -> Place {
        self.file.clone().map_or(Place::Nowhere, Place::File)
    }

    /// Who said `value`, found under `key`. The file's values carry no origin, flags carry themselves.
    pub(super) fn place(&self, value: &Value, key: &str) -> Place {
        match value.origin() {
            None => self.file_place(),
            Some(flag) if flag.starts_with("--") => Place::Flag(flag.to_owned()),
            Some(_) => Place::Environment(format!("SHOAL__{}", key.replace('.', "__").to_uppercase())),
        }
    }

    pub(super) fn add(&mut self, place: Place, key: &str, reason: impl Into<String>, remedy: impl Into<String>) {
        self.faults.push(Fault { place, key: key.to_owned(), reason: reason.into(), remedy: remedy.into() });
    }

    /// A fault of `value`, found under `key`.
    pub(super) fn fault(&mut self, value: &Value, key: &str, reason: impl Into<String>, remedy: impl Into<String>) {
        self.add(self.place(value, key), key, reason, remedy);
    }

    /// A fault of a key that is absent.
    pub(super) fn missing(&mut self, key: &str, reason: impl Into<String>, remedy: impl Into<String>) {
        self.add(self.file_place(), key, reason, remedy);
    }

    /// What a path means: `~/` is the home directory; a file's relative paths begin at the file, so that a cluster's
    /// directory can be moved, all others at the working directory.
    pub(super) fn resolve(&self, path: &str, value: &Value) -> PathBuf {
        if let (Some(rest), Some(home)) = (path.strip_prefix("~/"), &self.home) {
            return home.join(rest);
        }
        match (value.origin(), self.file.as_deref().and_then(Path::parent)) {
            (None, Some(directory)) => directory.join(path),
            _ => PathBuf::from(path),
        }
    }

    /// `value` where nothing is wrong, else everything that is. There is always the one or the other.
    pub(super) fn finish<T>(self, value: Option<T>) -> Result<T, ConfigError> {
        value.filter(|_| self.faults.is_empty()).ok_or(ConfigError { faults: self.faults })
    }
}
