//! Text out of a file of an adapter, short and printable enough for a sentence.

use std::fmt::{self, Write};

/// The beginning of some text, in one line.
#[derive(Clone, PartialEq, Eq)]
pub struct Excerpt(Box<str>);

impl Excerpt {
    /// Longest excerpt, in bytes: a tensor's name in full, and three of them in the reason that a worker gives.
    pub const MAX_LEN: usize = 120;

    /// As much of `text` as fits, with what does not print written as an escape.
    pub fn of(text: &str) -> Self {
        let mut out = String::new();
        for char in text.chars() {
            let before = out.len();
            match char {
                '"' | '\'' | '\\' => out.push(char),
                // An escape is at most ten characters long; writing to a string does not fail.
                _ => out.extend(char.escape_debug()),
            }
            if out.len() > Self::MAX_LEN {
                out.truncate(before);
                out.push('…');
                break;
            }
        }
        Self(out.into())
    }

    /// The last line of `text`.
    pub(super) fn of_last_line(text: &str) -> Self {
        Self::of(text.lines().last().unwrap_or_default())
    }
}

impl fmt::Display for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('`')?;
        f.write_str(&self.0)?;
        f.write_char('`')
    }
}
