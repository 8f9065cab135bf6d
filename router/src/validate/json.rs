//! Strict JSON for untrusted bodies: what many parsers let pass (duplicate keys, any depth) is refused here, and what is
//! kept is bounded. `validate` reads every request body through [`Document::parse`]; meaning is the decoders' matter.
//!
//! A list keeps its token ids in 4 bytes each, so that a body of nothing but ids costs twice its size and not twelve times.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};

use crate::http::error::{ApiError, FaultKind, FieldFault, Loc, dotted, printable};

/// Levels of lists and objects; the contract's own requests have three.
const MAX_DEPTH: usize = 32;

/// Members of one object, known to the contract or not: their names are held to find duplicates.
const MAX_MEMBERS: usize = 1 << 16;

/// Values kept, token ids in lists not counted.
const MAX_KEPT: usize = 1 << 16;

/// Names of unknown fields kept.
pub(super) const MAX_IGNORED: usize = 16;

/// A JSON value. No readable `Debug`: a prompt may be in it.
#[derive(Clone, PartialEq)]
pub(super) enum Json {
    Null,
    Bool(bool),
    Unsigned(u64),
    Negative(i64),
    /// A number with a fraction or an exponent, `-0`, or one beyond 64 bits.
    Float(f64),
    Text(String),
    List(List),
    Object(Object),
    /// Read and checked, but of no use: the value of an unknown field.
    Skipped,
}

/// A list; each element is an id or another value.
#[derive(Clone, Default, PartialEq)]
pub(super) struct List {
    /// Elements there were, kept or not.
    pub(super) len: usize,
    /// Elements that are integers of 32 bits, in order.
    pub(super) ids: Vec<u32>,
    /// All others, with their places, in order.
    pub(super) others: Vec<(usize, Json)>,
}

/// An element of a [`List`].
#[derive(PartialEq)]
pub(super) enum Element {
    Id(u32),
    Other(Json),
}

impl List {
    /// The kept elements with their places.
    pub(super) fn into_elements(self) -> impl Iterator<Item = (usize, Element)> {
        let (mut ids, mut others) = (self.ids.into_iter(), self.others.into_iter().peekable());
        (0..self.len).filter_map(move |place| match others.next_if(|(index, _)| *index == place) {
            Some((_, value)) => Some((place, Element::Other(value))),
            None => ids.next().map(|id| (place, Element::Id(id))),
        })
    }
}

/// An object; names are unique.
#[derive(Clone, Default, PartialEq)]
pub(super) struct Object {
    /// Members there were, kept or not.
    pub(super) len: usize,
    /// The kept ones, in order.
    pub(super) members: Vec<(String, Json)>,
}

/// A request body: one object, split into the fields a decoder knows and the names of those it does not.
pub(super) struct Document {
    /// Known fields.
    pub(super) members: Vec<(String, Json)>,
    /// Unknown ones: at most 16 names, printable ASCII of at most 64 bytes.
    pub(super) ignored: Vec<String>,
    /// Set if values had to be dropped: the document cannot be used.
    pub(super) overflow: Option<FieldFault>,
}

impl Document {
    /// Parses the whole of `body`. 400 if it is not strict JSON, 422 if it is no object.
    pub(super) fn parse(body: &[u8], known: &'static [&'static str]) -> Result<Self, ApiError> {
        let parser = Parser { known, path: RefCell::default(), room: Cell::new(MAX_KEPT), ignored: RefCell::default() };
        let mut reader = serde_json::Deserializer::from_slice(body);
        let root = Value { parser: &parser, depth: 0, keep: Keep::Yes }.deserialize(&mut reader);
        let root = root.and_then(|root| reader.end().map(|()| root)).map_err(|error| parser.malformed(&error))?;
        let Json::Object(object) = root else {
            return Err(ApiError::invalid(FieldFault::new([], FaultKind::DictType, "the body must be a JSON object")));
        };
        let rule = || format!("the body holds more than {MAX_KEPT} values");
        let overflow = (parser.room.get() == 0).then(|| FieldFault::new([], FaultKind::TooLong, rule()));
        Ok(Self { members: object.members, ignored: parser.ignored.into_inner(), overflow })
    }
}

/// Whether a value is of use.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keep {
    Yes,
    No,
}

struct Parser {
    known: &'static [&'static str],
    /// Where parsing failed, innermost first: written while the error goes up, so that success costs nothing.
    path: RefCell<Vec<Loc>>,
    /// Values that may still be kept.
    room: Cell<usize>,
    ignored: RefCell<Vec<String>>,
}

impl Parser {
    fn take_room(&self) -> bool {
        let room = self.room.get();
        self.room.set(room.saturating_sub(1));
        room > 0
    }

    fn failed_at<E>(&self, step: Loc, error: E) -> E {
        self.path.borrow_mut().push(step);
        error
    }

    /// The parser's message is made of fixed words and a position: all types of values are taken, so that none is quoted.
    fn malformed(&self, error: &serde_json::Error) -> ApiError {
        let mut path = self.path.take();
        path.reverse();
        ApiError::Malformed { param: dotted(&path), why: format!("not valid JSON: {error}").into() }
    }

    /// At the root only what a decoder knows is kept.
    fn keep_member(&self, depth: usize, keep: Keep, name: &str) -> Keep {
        if depth > 1 || keep == Keep::No || self.known.contains(&name) {
            return keep;
        }
        let (mut ignored, name) = (self.ignored.borrow_mut(), printable(name));
        if ignored.len() < MAX_IGNORED && !name.is_empty() {
            ignored.push(name);
        }
        Keep::No
    }
}

/// Reads one value at `depth` containers below the document.
#[derive(Clone, Copy)]
struct Value<'p> {
    parser: &'p Parser,
    depth: usize,
    keep: Keep,
}

impl Value<'_> {
    fn deeper<E: Error>(self) -> Result<Self, E> {
        if self.depth == MAX_DEPTH {
            return Err(E::custom(format_args!("more than {MAX_DEPTH} levels of nesting")));
        }
        Ok(Self { depth: self.depth + 1, ..self })
    }

    fn kept(self, value: Json) -> Json {
        if self.keep == Keep::Yes { value } else { Json::Skipped }
    }
}

impl<'de> DeserializeSeed<'de> for Value<'_> {
    type Value = Json;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Json, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Value<'_> {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(Json::Unsigned(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(u64::try_from(value).map_or(Json::Negative(value), Json::Unsigned))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
        Ok(Json::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        // An unknown field's text is checked but not copied.
        Ok(if self.keep == Keep::Yes { Json::Text(value.to_owned()) } else { Json::Skipped })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Json, A::Error> {
        let inner = self.deeper()?;
        let mut list = List::default();
        loop {
            let place = list.len;
            let next = access.next_element_seed(inner);
            let Some(value) = next.map_err(|error| self.parser.failed_at(place.into(), error))? else {
                return Ok(self.kept(Json::List(list)));
            };
            list.len += 1;
            match value {
                _ if self.keep == Keep::No => {}
                Json::Unsigned(number) if number <= u64::from(u32::MAX) => list.ids.push(number as u32),
                value if self.parser.take_room() => list.others.push((place, value)),
                _ => {}
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Json, A::Error> {
        let inner = self.deeper()?;
        let mut object = Object::default();
        let mut names = HashSet::new();
        while let Some(name) = access.next_key_seed(MemberName)? {
            let failed = |error| self.parser.failed_at(Loc::echoed(&name), error);
            if object.len == MAX_MEMBERS {
                return Err(A::Error::custom(format_args!("more than {MAX_MEMBERS} members in one object")));
            }
            if names.contains(&name) {
                return Err(failed(A::Error::custom("duplicate key")));
            }
            let keep = self.parser.keep_member(inner.depth, self.keep, &name);
            let value = access.next_value_seed(Value { keep, ..inner }).map_err(failed)?;
            object.len += 1;
            // Of the root's members only known ones are kept, which bounds them already.
            if keep == Keep::Yes && (inner.depth == 1 || self.parser.take_room()) {
                object.members.push((name.clone().into_owned(), value));
            }
            names.insert(name);
        }
        Ok(self.kept(Json::Object(object)))
    }
}

/// Reads a member's name, borrowed from the body where it has no escapes.
struct MemberName;

impl<'de> DeserializeSeed<'de> for MemberName {
    type Value = Cow<'de, str>;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for MemberName {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_borrowed_str<E>(self, name: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(name))
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(body: &str) -> Result<Document, ApiError> {
        Document::parse(body.as_bytes(), &["a", "b"])
    }

    fn fault(body: &str) -> (Option<String>, String) {
        match parse(body) {
            Err(ApiError::Malformed { param, why }) => (param, why.into_owned()),
            Err(other) => panic!("gave {other:?}"),
            Ok(_) => panic!("was taken"),
        }
    }

    fn list_of(body: &str) -> List {
        match parse(body).unwrap().members.swap_remove(0).1 {
            Json::List(list) => list,
            _ => panic!("no list"),
        }
    }

    #[test]
    fn a_duplicate_key_is_named_at_any_depth() {
        assert_eq!(fault(r#"{"a":1,"a":1}"#).0.as_deref(), Some("a"));
        assert_eq!(fault(r#"{"a":1,"\u0061":1}"#).0.as_deref(), Some("a"));
        assert_eq!(fault(r#"{"a":[0,{"x":1,"x":1}]}"#).0.as_deref(), Some("a[1].x"));
        assert_eq!(fault(r#"{"unknown":{"x":1,"x":1}}"#).0.as_deref(), Some("unknown.x"));
    }

    #[test]
    fn a_number_beyond_f64_names_its_field() {
        let (field, why) = fault(r#"{"a":[1,1e400]}"#);
        assert_eq!(field.as_deref(), Some("a[1]"));
        assert!(why.starts_with("not valid JSON: number out of range"), "{why}");
    }

    #[test]
    fn depth_32_passes_and_33_does_not() {
        let nested = |lists: usize| format!(r#"{{"a":{}{}}}"#, "[".repeat(lists), "]".repeat(lists));
        assert!(parse(&nested(31)).is_ok());
        assert!(fault(&nested(32)).1.contains("levels of nesting"));
        assert!(fault(&format!(r#"{{"a":{}"#, "[".repeat(1_000_000))).1.contains("levels of nesting"));
        assert!(fault(&nested(32).replace("\"a\"", "\"unknown\"")).1.contains("levels of nesting"));
    }

    #[test]
    fn a_message_never_quotes_the_body() {
        let bodies = [
            r#"{"a": secret}"#,
            r#"{"a": "secret}"#,
            r#"{"a": "sec\ud800ret"}"#,
            r#"{"a": "secret"} secret"#,
            "secret",
            r#"{"a": {"secret" "secret"}}"#,
        ];
        for body in bodies {
            let (_, why) = fault(body);
            assert!(!why.contains("secret"), "{why}");
        }
    }

    #[test]
    fn a_list_gives_back_its_elements_in_order() {
        let list = list_of(r#"{"a":[1,-2,4294967295,4294967296,"x",7]}"#);
        assert_eq!(list.ids, [1, u32::MAX, 7]);
        let elements: Vec<_> = list.into_elements().collect();
        assert_eq!(elements.len(), 6);
        assert!(elements[1] == (1, Element::Other(Json::Negative(-2))));
        assert!(elements[3] == (3, Element::Other(Json::Unsigned(1 << 32))));
        assert!(elements[5] == (5, Element::Id(7)));
    }

    #[test]
    fn what_is_not_known_is_named_but_not_kept() {
        let document = parse(r#"{"a":1,"x y\n":[["deep"]],"":2}"#).unwrap();
        assert_eq!(document.members.len(), 1);
        assert_eq!(document.ignored, ["xy"]);
    }

    #[test]
    fn values_beyond_the_bound_are_counted_but_not_kept() {
        let body = format!(r#"{{"a":[{}null]}}"#, "null,".repeat(100_000));
        assert!(parse(&body).unwrap().overflow.is_some());
        let lists = format!(r#"{{"a":[{}[]]}}"#, "[[],[],[]],".repeat(50_000));
        assert!(parse(&lists).unwrap().overflow.is_some());
        let ids = format!(r#"{{"a":[{}0]}}"#, "0,".repeat(100_000));
        assert!(parse(&ids).unwrap().overflow.is_none());
        assert_eq!(list_of(&ids).len, 100_001);
    }
}
