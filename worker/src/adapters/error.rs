//! Why a group does not get its adapter. Small and cloned: one failure of a flight is told to everybody who waits for it; its
//! causes are in the log.

use shoal_common::wire::hello::AdapterState;
use shoal_common::wire::message::GroupFailure;

/// Why an adapter could not be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AcquireError {
    /// What it holds cannot be used with this model. It is not tried again until the router says that it was removed.
    #[error("the adapter cannot be used: {0}")]
    Quarantined(Reason),
    /// It is not here, and another attempt may go better.
    #[error("the adapter is not available: {0}")]
    Unavailable(#[from] Unavailable),
}

impl From<&AcquireError> for GroupFailure {
    fn from(error: &AcquireError) -> Self {
        match error {
            AcquireError::Quarantined(_) => Self::AdapterRefused,
            AcquireError::Unavailable(_) => Self::AdapterUnavailable,
        }
    }
}

/// Why an adapter is not here now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, thiserror::Error)]
pub enum Unavailable {
    /// No router has it.
    #[error("no router has it")]
    NotFound,
    /// No router could be asked, or the stream broke.
    #[error("the connection to the router broke")]
    Unreachable,
    /// What arrived is something else.
    #[error("what arrived is not what was asked for")]
    Corrupt,
    /// Larger than all of the room there is.
    #[error("it is larger than the room for adapters")]
    TooLarge,
    /// All files that are here are needed.
    #[error("the room for adapter files is taken")]
    NoRoom,
    /// The device has no room left.
    #[error("the disk is full")]
    DiskFull,
    /// The file system failed.
    #[error("the disk failed")]
    DiskFailed,
    /// Too many are under way.
    #[error("too many adapters are being loaded")]
    Crowded,
    /// It did not come in time, or there was no room in memory in time.
    #[error("it was not loaded in time")]
    Late,
    /// Another part of a split model does not have it.
    #[error("a stage does not have it")]
    Stage,
    /// A task panicked; a bug.
    #[error("the load was aborted")]
    Aborted,
}

impl Unavailable {
    /// Whether an immediate attempt would cost as much and end the same: then there is a pause before the next. What the
    /// network or the catalogue is to blame for can be tried at once; the next connection may be good already.
    pub(super) fn is_repeated(self) -> bool {
        match self {
            Self::Corrupt | Self::DiskFull | Self::DiskFailed | Self::Aborted => true,
            Self::NotFound | Self::Unreachable | Self::TooLarge | Self::NoRoom | Self::Crowded | Self::Late => false,
            Self::Stage => false,
        }
    }
}

/// Why an adapter is in quarantine, in words that a router may show: one line of at most [`AdapterState::MAX_REASON`] bytes.
/// It may quote the adapter's files, which anybody can have written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason(String);

impl Reason {
    /// `text` without control characters, cut at a character.
    pub fn new(text: &str) -> Self {
        let mut line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        AdapterState::cut_reason(&mut line);
        Self(line)
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_one_line_and_ends_at_a_character() {
        assert_eq!(Reason::new("a\nb\u{1b}[2J").as_str(), "a b [2J");
        for lead in ["", "x", "xy"] {
            let long = Reason::new(&format!("{lead}{}", "€".repeat(400)));
            assert!((AdapterState::MAX_REASON - 2..=AdapterState::MAX_REASON).contains(&long.as_str().len()));
        }
    }
}
