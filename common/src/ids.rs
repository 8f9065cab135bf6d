//! Newtypes for what is named or counted across a process border. They own parsing and bounds of names and digests;
//! they never touch a path, a socket or a clock.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::ambient;

/// Index of a token in a model's vocabulary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TokenId(pub u32);

impl TokenId {
    /// The id as an index into a `[vocab]` row.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// BLAKE3 of some content: model weights, a tokenizer bundle, an adapter.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// The first 12 hex digits: enough to tell two digests apart in a log line or a table.
    pub fn short(&self) -> String {
        self.to_string()[..12].to_owned()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Why a string is not a [`Digest`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a digest is 64 hex digits")]
pub struct BadDigest;

impl FromStr for Digest {
    type Err = BadDigest;

    /// From hex digits of either case; [`Display`](fmt::Display) writes small ones.
    fn from_str(text: &str) -> Result<Self, BadDigest> {
        let mut bytes = [0; 32];
        if text.len() != 2 * bytes.len() || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(BadDigest);
        }
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).map_err(|_| BadDigest)?;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({})", self.short())
    }
}

/// Identity of an adapter: the digest of its content ([`crate::adapter::bundle`]). Names may be pointed at another generation,
/// generations never change; so they, not names, key KV, routes, fingerprints and the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub Digest);

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why a string is not a [`Name`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "a name is 1 to 128 characters of A-Z a-z 0-9 . _ / - and begins with a letter or a digit; no part of it between slashes is empty, . or .."
)]
pub struct BadName;

/// Name of a model, an adapter or a worker: `^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$`, without an empty part, `.` or `..` between
/// its slashes. Names are looked up in maps and never joined to a path.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    /// Longest name in bytes.
    pub const MAX_LEN: usize = 128;

    /// Checks `text` against the rule of the type.
    pub fn new(text: impl Into<String>) -> Result<Self, BadName> {
        let text = text.into();
        let starts_well = text.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric);
        let all_allowed = text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'/' | b'-'));
        let no_path = text.split('/').all(|part| !matches!(part, "" | "." | ".."));
        if starts_well && all_allowed && no_path && text.len() <= Self::MAX_LEN { Ok(Self(text)) } else { Err(BadName) }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Name {
    type Error = BadName;
    fn try_from(text: String) -> Result<Self, BadName> {
        Self::new(text)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl FromStr for Name {
    type Err = BadName;
    fn from_str(text: &str) -> Result<Self, BadName> {
        Self::new(text)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a string is not a [`Zone`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a zone is 1 to 32 characters of A-Z a-z 0-9 . _ - and begins with a letter or a digit")]
pub struct BadZone;

/// Label of a place whose machines are near each other, a rack or a building: `^[A-Za-z0-9][A-Za-z0-9._-]{0,31}$`. Equal labels
/// are one place; nothing else is read into them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Zone(String);

impl Zone {
    /// Longest label in bytes.
    pub const MAX_LEN: usize = 32;

    /// Checks `text` against the rule of the type.
    pub fn new(text: impl Into<String>) -> Result<Self, BadZone> {
        let text = text.into();
        let starts_well = text.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric);
        let all_allowed = text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
        if starts_well && all_allowed && text.len() <= Self::MAX_LEN { Ok(Self(text)) } else { Err(BadZone) }
    }
}

impl TryFrom<String> for Zone {
    type Error = BadZone;
    fn try_from(text: String) -> Result<Self, BadZone> {
        Self::new(text)
    }
}

impl From<Zone> for String {
    fn from(zone: Zone) -> Self {
        zone.0
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Random number drawn when a process starts: two lives of one worker name are told apart by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Incarnation(pub u64);

impl Incarnation {
    /// Draws a fresh one.
    pub fn draw() -> Self {
        Self(ambient::draw())
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Position of a branch (one candidate of `n` / `best_of`) within its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BranchIndex(pub u16);

impl BranchIndex {
    /// The branch as an index into a per-group array.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// Layers `[begin, end)` of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LayerRange {
    /// First layer.
    pub begin: u32,
    /// One past the last layer.
    pub end: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_never_a_path_trick() {
        for bad in [
            "",
            ".",
            "../x",
            "/etc",
            "-x",
            "a b",
            "a\0",
            "a\n",
            "ä",
            "%2e",
            "C:\\x",
            &"a".repeat(129),
            "a/",
            "a//b",
            "a/.",
            "a/../b",
        ] {
            assert!(Name::new(bad).is_err(), "{bad:?} was taken as a name");
        }
        for good in ["a", "SmolLM2-135M-Instruct.Q4_1", "org/name", "a/b..c", &"a".repeat(128)] {
            assert!(Name::new(good).is_ok(), "{good:?} was refused");
        }
    }

    #[test]
    fn a_zone_is_a_short_label_when_it_is_decoded_too() {
        for bad in ["", "-x", ".x", "a b", "a/b", "a\n", "ä", &"a".repeat(33)] {
            assert!(Zone::new(bad).is_err(), "{bad:?} was taken as a zone");
            let decoded: Result<Zone, _> =
                Deserialize::deserialize(serde::de::value::StrDeserializer::<serde::de::value::Error>::new(bad));
            assert!(decoded.is_err(), "{bad:?} was decoded as a zone");
        }
        for good in ["a", "rack-7", "eu-west.1_b", &"a".repeat(32)] {
            assert!(Zone::new(good).is_ok(), "{good:?} was refused");
        }
    }

    #[test]
    fn a_digest_is_read_as_it_is_written_and_nothing_else_is_one() {
        let digest = Digest::of(b"x");
        let written = digest.to_string();
        assert_eq!((written.parse(), written.to_uppercase().parse()), (Ok(digest), Ok(digest)));
        let signed = format!("+{}", &written[1..]);
        for bad in ["", &written[1..], &format!("{written}0"), &signed, &"ä".repeat(32), &" ".repeat(64)] {
            assert_eq!(bad.parse::<Digest>(), Err(BadDigest), "{bad:?}");
        }
    }

    #[test]
    fn a_name_is_checked_when_it_is_decoded_too() {
        let decoded: Result<Name, _> =
            Deserialize::deserialize(serde::de::value::StrDeserializer::<serde::de::value::Error>::new("../x"));
        assert!(decoded.is_err());
    }
}
