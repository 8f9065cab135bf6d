//! `adapter_config.json` as JSON: the values of the fields that somebody reads, and for every other field only whether it says
//! anything. Bounded: what is kept grows with the file, and nothing is looked into more than one level deep.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::error::Excerpt;

/// Most entries of a list or a mapping: a name for every linear layer of the largest models is a thousand.
const MAX_ENTRIES: usize = 4096;

/// A field's value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Whole(i64),
    Number(f64),
    Text(String),
    List(Vec<Value>),
    /// In the order of the file, which decides between patterns; a name is there once.
    Mapping(Vec<(String, Value)>),
    /// A list or a mapping below the first level.
    Nested,
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Bool(value) => value.fmt(f),
            Self::Whole(value) => value.fmt(f),
            Self::Number(value) => write!(f, "{value:?}"),
            Self::Text(text) => write!(f, "\"{}\"", Excerpt::of(text)),
            Self::List(_) => f.write_str("a list"),
            Self::Mapping(_) => f.write_str("a mapping"),
            Self::Nested => f.write_str("a list or a mapping"),
        }
    }
}

/// The fields of a configuration.
#[derive(Debug, Default)]
pub(super) struct Fields {
    /// Those that were asked for.
    pub(super) values: BTreeMap<&'static str, Value>,
    /// The first of the others that says something: that is not null, false or empty.
    pub(super) other: Option<String>,
}

impl Fields {
    /// Reads `json`, an object: keeps the values of the fields in `wanted`, and does not look at those in `ignored`.
    pub(super) fn parse(
        json: &[u8],
        wanted: &[&'static str],
        ignored: &[&'static str],
    ) -> Result<Self, serde_json::Error> {
        let mut reader = serde_json::Deserializer::from_slice(json);
        let fields = reader.deserialize_map(FieldsVisitor { wanted, ignored })?;
        reader.end()?;
        Ok(fields)
    }
}

struct FieldsVisitor<'w> {
    wanted: &'w [&'static str],
    ignored: &'w [&'static str],
}

impl<'de> Visitor<'de> for FieldsVisitor<'_> {
    type Value = Fields;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
        let mut fields = Fields::default();
        while let Some(name) = map.next_key::<String>()? {
            if let Some(&known) = self.wanted.iter().find(|wanted| **wanted == name) {
                let value = map.next_value_seed(Depth::Top)?;
                if fields.values.insert(known, value).is_some() {
                    return Err(A::Error::custom(format_args!("{known} is given twice")));
                }
            } else if self.ignored.contains(&name.as_str()) {
                map.next_value::<IgnoredAny>()?;
            } else if map.next_value::<Meaning>()? == Meaning::Something {
                fields.other.get_or_insert(name);
            }
        }
        Ok(fields)
    }
}

/// How far below a field a value is.
#[derive(Clone, Copy)]
enum Depth {
    Top,
    Entry,
}

impl<'de> DeserializeSeed<'de> for Depth {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Depth {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Whole(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(i64::try_from(value).map_or(Value::Number(value as f64), Value::Whole))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Number(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        match self {
            Self::Entry => {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Value::Nested)
            }
            Self::Top => {
                let mut list = Vec::new();
                while let Some(value) = seq.next_element_seed(Self::Entry)? {
                    bounded(list.len())?;
                    list.push(value);
                }
                Ok(Value::List(list))
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        match self {
            Self::Entry => {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Value::Nested)
            }
            Self::Top => {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    bounded(entries.len())?;
                    entries.push((name, map.next_value_seed(Self::Entry)?));
                }
                once(&entries)?;
                Ok(Value::Mapping(entries))
            }
        }
    }
}

fn bounded<E: Error>(entries: usize) -> Result<(), E> {
    if entries < MAX_ENTRIES {
        Ok(())
    } else {
        Err(E::custom(format_args!("a list or a mapping has more than {MAX_ENTRIES} entries")))
    }
}

fn once<E: Error>(entries: &[(String, Value)]) -> Result<(), E> {
    let mut names: Vec<_> = entries.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(E::custom(format_args!("\"{}\" is given twice", Excerpt::of(pair[0])))),
        None => Ok(()),
    }
}

/// Whether a value says anything. Nothing of it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    /// It is null, false, or empty.
    Nothing,
    /// It is anything else.
    Something,
}

impl Meaning {
    fn unless(empty: bool) -> Self {
        if empty { Self::Nothing } else { Self::Something }
    }
}

impl<'de> Deserialize<'de> for Meaning {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(MeaningVisitor)
    }
}

struct MeaningVisitor;

impl<'de> Visitor<'de> for MeaningVisitor {
    type Value = Meaning;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Meaning, E> {
        Ok(Meaning::Nothing)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Meaning, E> {
        Ok(Meaning::unless(!value))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Meaning, E> {
        Ok(Meaning::Something)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Meaning, E> {
        Ok(Meaning::Something)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Meaning, E> {
        Ok(Meaning::Something)
    }

    fn visit_str<E>(self, value: &str) -> Result<Meaning, E> {
        Ok(Meaning::unless(value.is_empty()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Meaning, A::Error> {
        let mut empty = true;
        while seq.next_element::<IgnoredAny>()?.is_some() {
            empty = false;
        }
        Ok(Meaning::unless(empty))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Meaning, A::Error> {
        let mut empty = true;
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
            empty = false;
        }
        Ok(Meaning::unless(empty))
    }
}
