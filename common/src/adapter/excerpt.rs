//! Text out of a file of an adapter, short and printable enough for a sentence.

use std::fmt::{self, Write};

/// The beginning of some text, in one line.
#[derive(Clone, PartialEq, Eq)]
pub struct Excerpt(Box<str>);

impl Excerpt {
    /// Longest excerpt in bytes, but for the `…` of one that is cut: a tensor's name in full, and two of them in a sentence.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_excerpt_is_short_and_prints() {
        assert_eq!(Excerpt::of(r#"a "b" c\.d é"#).to_string(), r#"a "b" c\.d é"#);
        assert_eq!(Excerpt::of("a\n\u{202e}b").to_string(), r"a\n\u{202e}b");
        for text in ["x".repeat(500), "é".repeat(500), "\u{10ffff}".repeat(500)] {
            let excerpt = Excerpt::of(&text).to_string();
            assert!(excerpt.ends_with('…') && excerpt.len() <= Excerpt::MAX_LEN + '…'.len_utf8(), "{excerpt}");
        }
    }
}
