//! Regular expressions as PEFT matches them against module paths. They are Python's there; here they run in time that grows
//! with the path alone, and whatever the two dialects do not read the same way is refused.

use regex::bytes::{Regex, RegexBuilder};

use super::error::{AdapterError, Excerpt};

/// Longest expression in bytes: one that spells every linear layer of a large model has some 20 KB.
const MAX_LEN: usize = 32 << 10;
/// Largest program that one of the two expressions that choose modules may become, in bytes: a thousand paths, spelled. The
/// worst of that size takes a millisecond for a path.
const CHOICE: usize = 1 << 20;
/// The same for those of which there are many; the worst takes some microseconds.
const KEY: usize = 16 << 10;
/// Smallest limit of what is cached while a program runs, in bytes.
const CACHE: usize = 64 << 10;
/// Deepest nesting of groups.
const MAX_NESTING: u32 = 64;

/// A compiled expression.
#[derive(Clone, Debug)]
pub(super) struct Pattern(Regex);

impl Pattern {
    /// One that must match the whole path: `re.fullmatch(text, path)`.
    pub(super) fn whole(field: &'static str, text: &str) -> Result<Self, AdapterError> {
        // By itself first: `a)|(b` makes sense between our parentheses only.
        compile(field, text, text, CHOICE)?;
        compile(field, text, &format!(r"\A(?:{text})\z"), CHOICE)
    }

    /// One that must match the path or its end after a dot: `re.match(rf"(.*\.)?({text})$", path)`.
    pub(super) fn end(field: &'static str, text: &str) -> Result<Self, AdapterError> {
        compile(field, text, &format!(r"\A(?:(.*\.)?({text})$)"), KEY)
    }

    /// One that must match what comes before the layer's index: `re.match(rf"(?:^|.*?\.){text}\.(?P<idx>\d+)\.", path)`.
    pub(super) fn before_index(field: &'static str, text: &str) -> Result<Self, AdapterError> {
        compile(field, text, &format!(r"\A(?:(?:^|.*?\.){text}\.(?P<idx>\d+)\.)"), KEY)
    }

    /// Whether it matches.
    pub(super) fn matches(&self, path: &str) -> bool {
        self.0.is_match(path.as_bytes())
    }

    /// What it finds as the index: nothing where it does not match, `Some(None)` where it matches without one.
    pub(super) fn index(&self, path: &str) -> Option<Option<i64>> {
        let captures = self.0.captures(path.as_bytes())?;
        let digits = captures.name("idx").and_then(|digits| str::from_utf8(digits.as_bytes()).ok());
        Some(digits.and_then(|digits| digits.parse().ok()))
    }
}

/// Compiles `wrapped`, in which `text` is what the adapter's author wrote, to at most `size` bytes.
fn compile(field: &'static str, text: &str, wrapped: &str, size: usize) -> Result<Pattern, AdapterError> {
    let bad = |reason: Excerpt| AdapterError::BadPattern { field, pattern: Excerpt::of(text), reason };
    if text.len() > MAX_LEN {
        return Err(bad(Excerpt::of("it is too long")));
    }
    if let Some(reason) = ambiguity(text) {
        return Err(bad(Excerpt::of(reason)));
    }
    // Paths are ASCII, and on ASCII the classes of both dialects agree without Unicode's tables.
    let regex = RegexBuilder::new(wrapped)
        .unicode(false)
        .size_limit(size)
        .dfa_size_limit(size.max(CACHE))
        .nest_limit(MAX_NESTING)
        .build();
    match regex {
        Ok(regex) => Ok(Pattern(regex)),
        Err(regex::Error::CompiledTooBig(_)) => Err(bad(Excerpt::of("it becomes too large a program"))),
        // A heading and the expression come before the sentence.
        Err(error) => {
            let report = error.to_string();
            let sentence = report.lines().last().unwrap_or_default();
            Err(bad(Excerpt::of(sentence.strip_prefix("error: ").unwrap_or(sentence))))
        }
    }
}

/// What in `text` both dialects take, each in its own way.
fn ambiguity(text: &str) -> Option<&'static str> {
    if !text.is_ascii() {
        return Some("paths are ASCII");
    }
    let bytes = text.as_bytes();
    let mut class = false;
    let mut repeated = false;
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let rest = &bytes[at..];
        let reason = if class { in_class(rest) } else { outside_class(rest, repeated) };
        if reason.is_some() {
            return reason;
        }
        repeated = !class && matches!(byte, b'*' | b'+' | b'?' | b'}');
        at += match byte {
            b'\\' => 2,
            b'[' if !class => {
                class = true;
                opening(rest)
            }
            b']' if class => {
                class = false;
                1
            }
            _ => 1,
        };
    }
    None
}

/// Bytes of `[`, `[^`, `[]` or `[^]`: a bracket that closes at once is a member.
fn opening(rest: &[u8]) -> usize {
    let negated = 1 + usize::from(rest.get(1) == Some(&b'^'));
    negated + usize::from(rest.get(negated) == Some(&b']'))
}

fn in_class(rest: &[u8]) -> Option<&'static str> {
    match rest {
        [b'\\', b'u' | b'U', ..] => Some("paths are ASCII"),
        [b'[', ..] => Some("a [ within [ ] must be written \\["),
        [b'&', b'&', ..] | [b'-', b'-', ..] | [b'~', b'~', ..] => Some("&&, -- and ~~ within [ ] are not supported"),
        _ => None,
    }
}

fn outside_class(rest: &[u8], repeated: bool) -> Option<&'static str> {
    match rest {
        [b'\\', b'u' | b'U', ..] => Some("paths are ASCII"),
        [b'\\', b'<' | b'>', ..] => Some("\\< and \\> are not supported"),
        [b'\\', b'b' | b'B', b'{', ..] => Some("\\b{ is not supported"),
        [b'+', ..] if repeated => Some("possessive repetition is not supported"),
        [b'(', b'?', flags @ ..] => {
            let flags = flags.iter().take_while(|flag| flag.is_ascii_alphabetic() || **flag == b'-');
            // `(?P<name>` is no flag, and Python has no `R` and `U`.
            flags
                .into_iter()
                .any(|flag| matches!(flag, b'x' | b'u' | b'U' | b'R'))
                .then_some("the flags x and u are not supported")
        }
        _ => None,
    }
}
