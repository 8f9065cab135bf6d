//! What is wrong with one value of a request: where it stands, which rule it breaks. `validate` and `plan` collect these;
//! [`error`](super::error) puts them into a 422. Never the value itself: it may be a prompt.

use std::borrow::Cow;
use std::fmt;

use serde::Serialize;

/// Longest part of a client's own field name that is echoed, in bytes.
const MAX_ECHO: usize = 64;

/// One step on the way to a faulty value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Loc {
    /// A member of an object.
    Field(Cow<'static, str>),
    /// An element of a list.
    Index(usize),
}

impl Loc {
    /// A field whose name the client chose: cut to printable ASCII of at most 64 bytes.
    pub fn echoed(name: &str) -> Self {
        Self::Field(printable(name).into())
    }
}

impl From<&'static str> for Loc {
    fn from(name: &'static str) -> Self {
        Self::Field(Cow::Borrowed(name))
    }
}

impl From<usize> for Loc {
    fn from(index: usize) -> Self {
        Self::Index(index)
    }
}

/// `text` without anything but printable ASCII, at most 64 bytes of it: fit for a header, a log line and a terminal.
pub fn printable(text: &str) -> String {
    text.chars().filter(char::is_ascii_graphic).take(MAX_ECHO).collect()
}

/// What kind of rule a value breaks, in the words of pydantic, which the contract's clients already know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// A required field is absent.
    Missing,
    /// Not a string.
    StringType,
    /// Not an integer.
    IntType,
    /// A number with a fraction where an integer is due.
    IntFromFloat,
    /// Not a number.
    FloatType,
    /// Not `true` or `false`.
    BoolType,
    /// Not a list.
    ListType,
    /// Not an object.
    DictType,
    /// Below the range.
    TooSmall,
    /// Above the range.
    TooLarge,
    /// Outside the range on either side, or a combination the range depends on.
    Value,
    /// Too many elements.
    TooLong,
    /// Too few elements.
    TooShort,
    /// Too many bytes.
    StringTooLong,
    /// Too few bytes.
    StringTooShort,
    /// A name or key of the wrong form.
    Pattern,
}

impl FaultKind {
    /// The `type` on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::StringType => "string_type",
            Self::IntType => "int_type",
            Self::IntFromFloat => "int_from_float",
            Self::FloatType => "float_type",
            Self::BoolType => "bool_type",
            Self::ListType => "list_type",
            Self::DictType => "dict_type",
            Self::TooSmall => "greater_than_equal",
            Self::TooLarge => "less_than_equal",
            Self::Value => "value_error",
            Self::TooLong => "too_long",
            Self::TooShort => "too_short",
            Self::StringTooLong => "string_too_long",
            Self::StringTooShort => "string_too_short",
            Self::Pattern => "string_pattern_mismatch",
        }
    }
}

/// One value that breaks a rule of the contract.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldFault {
    /// From the body down to the element; begins with `body`, or with `path` or `query` where the fault is there.
    pub loc: Vec<Loc>,
    /// The rule, never the value.
    pub msg: Cow<'static, str>,
    /// Which kind of rule.
    pub kind: FaultKind,
}

impl FieldFault {
    /// A fault at `body`, then `path`.
    pub fn new(path: impl IntoIterator<Item = Loc>, kind: FaultKind, msg: impl Into<Cow<'static, str>>) -> Self {
        let loc = std::iter::once(Loc::from("body")).chain(path).collect();
        Self { loc, msg: msg.into(), kind }
    }

    /// A fault of a top-level field.
    pub fn field(name: &'static str, kind: FaultKind, msg: impl Into<Cow<'static, str>>) -> Self {
        Self::new([Loc::from(name)], kind, msg)
    }

    /// The path in one word, without `body`: `prompt[3]`, `stream_options.include_usage`. Absent for the body itself.
    pub fn param(&self) -> Option<String> {
        dotted(self.loc.get(1..).unwrap_or_default())
    }
}

impl fmt::Display for FieldFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.param() {
            Some(param) => write!(f, "{param}: {}", self.msg),
            None => f.write_str(&self.msg),
        }
    }
}

/// `prompt[3]`, `stream_options.include_usage`; absent for an empty path.
pub fn dotted(path: &[Loc]) -> Option<String> {
    let mut word = String::new();
    for step in path {
        match step {
            Loc::Index(index) => word.push_str(&format!("[{index}]")),
            Loc::Field(name) if word.is_empty() => word.push_str(name),
            Loc::Field(name) => {
                word.push('.');
                word.push_str(name);
            }
        }
    }
    (!word.is_empty()).then_some(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_echoed_field_name_cannot_break_a_header_or_a_terminal() {
        let name = format!("a\r\nset-cookie: x\u{1b}[31m\u{202e}{}", "y".repeat(500));
        let Loc::Field(echoed) = Loc::echoed(&name) else { panic!("not a field") };
        assert!(echoed.len() <= MAX_ECHO);
        assert!(echoed.bytes().all(|b| b.is_ascii_graphic()), "{echoed:?}");
    }
}
