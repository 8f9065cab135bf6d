//! Rank and scale of each module: `r` and `lora_alpha`, and the patterns that say otherwise (PEFT's `get_pattern_key`).

use super::config::{Config, Scaling};
use super::error::AdapterError;
use super::pattern::Pattern;

/// Most regular expressions of one field. Names in full, which need none, are as many as the file has room for.
const MAX_EXPRESSIONS: usize = 64;

/// Ranks and alphas of a configuration.
#[derive(Debug)]
pub(super) struct Scales {
    rank: u32,
    alpha: f64,
    scaling: Scaling,
    ranks: Vec<(Key, u32)>,
    alphas: Vec<(Key, f64)>,
}

/// Rank and scale of one module.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Scale {
    pub(super) rank: u32,
    /// Finite.
    pub(super) factor: f32,
}

impl Scales {
    /// Compiles the patterns of `config`.
    pub(super) fn new(config: &Config) -> Result<Self, AdapterError> {
        Ok(Self {
            rank: config.rank,
            alpha: config.alpha,
            scaling: config.scaling,
            ranks: keys("rank_pattern", &config.rank_pattern)?,
            alphas: keys("alpha_pattern", &config.alpha_pattern)?,
        })
    }

    /// Those of the module at `path`.
    pub(super) fn of(&self, path: &str) -> Result<Scale, AdapterError> {
        let rank = first(&self.ranks, path).unwrap_or(self.rank);
        let alpha = first(&self.alphas, path).unwrap_or(self.alpha);
        let divisor = match self.scaling {
            Scaling::Rank => f64::from(rank),
            Scaling::RootOfRank => f64::from(rank).sqrt(),
        };
        // As Python: the division in double precision, rounded once where it meets the tensors.
        let factor = (alpha / divisor) as f32;
        if !factor.is_finite() {
            return Err(AdapterError::HugeScale { module: path.to_owned(), alpha: format!("{alpha:?}"), rank });
        }
        Ok(Scale { rank, factor })
    }
}

fn first<T: Copy>(entries: &[(Key, T)], path: &str) -> Option<T> {
    entries.iter().find(|(key, _)| key.matches(path)).map(|(_, value)| *value)
}

fn keys<T: Copy>(field: &'static str, entries: &[(String, T)]) -> Result<Vec<(Key, T)>, AdapterError> {
    let mut keys = Vec::with_capacity(entries.len());
    let mut expressions = 0;
    for (text, value) in entries {
        let key = match Plain::parse(text) {
            Some(plain) => Key::Plain(plain),
            None if expressions == MAX_EXPRESSIONS => {
                return Err(AdapterError::ManyPatterns { field, limit: MAX_EXPRESSIONS });
            }
            None => {
                expressions += 1;
                Key::Expression(Pattern::end(field, text)?)
            }
        };
        keys.push((key, *value));
    }
    Ok(keys)
}

/// A key of `rank_pattern` or `alpha_pattern`: it matches a path or its end after a dot.
#[derive(Debug)]
enum Key {
    Plain(Plain),
    Expression(Pattern),
}

impl Key {
    fn matches(&self, path: &str) -> bool {
        match self {
            Self::Plain(plain) => plain.matches(path.as_bytes()),
            Self::Expression(pattern) => pattern.matches(path),
        }
    }
}

/// An expression without choices and repetitions, as a module's name is. Its dots, unless escaped, stand for any character.
#[derive(Debug)]
struct Plain {
    /// Nothing stands for any character.
    characters: Box<[Option<u8>]>,
    /// Whether it began with `^`, so that nothing may come before it.
    from_start: bool,
}

impl Plain {
    fn parse(text: &str) -> Option<Self> {
        let (from_start, text) = match text.strip_prefix('^') {
            Some(text) => (true, text),
            None => (false, text),
        };
        let mut characters = Vec::with_capacity(text.len());
        let mut rest = text.as_bytes();
        while let Some((&byte, after)) = rest.split_first() {
            rest = after;
            characters.push(match byte {
                b'.' => None,
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' => Some(byte),
                b'\\' if rest.first() == Some(&b'.') => {
                    rest = &rest[1..];
                    Some(b'.')
                }
                b'$' if rest.is_empty() => break,
                _ => return None,
            });
        }
        Some(Self { characters: characters.into(), from_start })
    }

    fn matches(&self, path: &[u8]) -> bool {
        let Some(before) = path.len().checked_sub(self.characters.len()) else { return false };
        let (before, end) = path.split_at(before);
        let at_module = before.is_empty() || (!self.from_start && before.last() == Some(&b'.'));
        at_module && end.iter().zip(&self.characters).all(|(byte, character)| character.is_none_or(|it| it == *byte))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_plain_key_matches_what_its_expression_matches(
            text in r"\^?(q_proj|o|\.|\\\.|[0-3]|layers|mlp|model){0,6}\$?",
            path in r"(model\.)?(layers\.[0-3]\.)?(mlp\.|self_attn\.)?(q_proj|xq_proj|o)",
        ) {
            let plain = Plain::parse(&text).unwrap();
            let expression = Pattern::end("rank_pattern", &text).unwrap();
            prop_assert_eq!(plain.matches(path.as_bytes()), expression.matches(&path), "{} {}", text, path);
        }
    }
}
