//! What is wrong with a configuration: one [`Fault`] per place, all of them in one [`ConfigError`]. Owns their wording
//! on the screen; never decides what a fault is.

use std::fmt;
use std::path::PathBuf;

/// Everything that is wrong with a configuration, in the order of the sections. Never empty.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    /// The faults.
    pub faults: Vec<Fault>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.faults.len() {
            1 => writeln!(f, "1 fault in the configuration")?,
            count => writeln!(f, "{count} faults in the configuration")?,
        }
        self.faults.iter().try_for_each(|fault| write!(f, "\n{fault}"))
    }
}

/// One thing that is wrong, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Who said it.
    pub place: Place,
    /// The setting, such as `worker[1].slots`; empty where the file as a whole is meant.
    pub key: String,
    /// What is wrong.
    pub reason: String,
    /// What to do.
    pub remedy: String,
}

/// Who said a setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// The configuration file.
    File(PathBuf),
    /// An environment variable, by name.
    Environment(String),
    /// A flag, as typed.
    Flag(String),
    /// Nobody: the setting is missing and there is no file it could be missing from.
    Nowhere,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::File(path) if self.key.is_empty() => writeln!(f, "{}", path.display())?,
            Place::File(path) => writeln!(f, "{}: {}", path.display(), self.key)?,
            Place::Environment(variable) => writeln!(f, "{variable} in the environment")?,
            Place::Flag(flag) if self.key.is_empty() => writeln!(f, "{flag}")?,
            Place::Flag(flag) => writeln!(f, "{flag} ({})", self.key)?,
            Place::Nowhere => writeln!(f, "{} (no configuration file)", self.key)?,
        }
        // A parser's message has several lines; they stay below their heading.
        for line in self.reason.trim_end().lines() {
            writeln!(f, "    {line}")?;
        }
        writeln!(f, "    -> {}", self.remedy)
    }
}
