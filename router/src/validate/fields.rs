//! Typed reading of a parsed body: each reader takes a field, returns it in the type asked for, or notes a fault and goes
//! on, so that one answer lists all faults. Used by the decoders of `validate` alone.

use std::fmt::Display;

use shoal_common::ids::{Name, TokenId};
use shoal_common::sampling::OutOfRange;

use super::json::{Document, Element, Json, List, MAX_IGNORED};
use crate::http::error::{ApiError, FaultKind, FieldFault, Loc, printable};
use crate::request::ClientText;

/// Faults listed in one answer; further ones are left for the next try.
const MAX_FAULTS: usize = 64;

/// Largest magnitude up to which every whole f64 is one integer.
const EXACT: f64 = (1u64 << 53) as f64;

/// The rule a value breaks, before it is said where it stands.
pub(super) type Broken = (FaultKind, String);

/// The fields of a body that are still to be read, and the faults so far.
pub(super) struct Fields {
    members: Vec<(String, Json)>,
    ignored: Vec<String>,
    faults: Vec<FieldFault>,
    /// The body as a whole; said last, since a field's own fault says more.
    overflow: Option<FieldFault>,
}

impl Fields {
    /// Parses `body`; fields not in `known` are ignored by name.
    pub(super) fn parse(body: &[u8], known: &'static [&'static str]) -> Result<Self, ApiError> {
        let document = Document::parse(body, known)?;
        let Document { members, ignored, overflow } = document;
        Ok(Self { members, ignored, faults: Vec::new(), overflow })
    }

    /// Notes a fault.
    pub(super) fn fault(&mut self, path: impl IntoIterator<Item = Loc>, (kind, rule): Broken) {
        if self.faults.len() < MAX_FAULTS {
            self.faults.push(FieldFault::new(path, kind, rule));
        }
    }

    /// Names an unknown member of a known field, as the document does for those of the body.
    pub(super) fn ignore(&mut self, field: &'static str, member: &str) {
        let name = printable(&format!("{field}.{member}"));
        if self.ignored.len() < MAX_IGNORED {
            self.ignored.push(name);
        }
    }

    /// `required` and the names of the unknown fields if there is no fault, else all faults.
    pub(super) fn finish<T>(&mut self, required: Option<T>) -> Result<(T, Vec<String>), ApiError> {
        self.faults.extend(self.overflow.take());
        match required {
            Some(value) if self.faults.is_empty() => Ok((value, std::mem::take(&mut self.ignored))),
            _ => Err(ApiError::Invalid(std::mem::take(&mut self.faults))),
        }
    }

    /// The raw value. `null` is the same as absent: clients send it for what they leave alone.
    pub(super) fn take(&mut self, name: &'static str) -> Option<Json> {
        let place = self.members.iter().position(|(member, _)| member == name)?;
        Some(self.members.swap_remove(place).1).filter(|value| *value != Json::Null)
    }

    /// Reads a field; what is wrong with it is noted.
    pub(super) fn read<T>(&mut self, name: &'static str, read: impl FnOnce(Json) -> Result<T, Broken>) -> Option<T> {
        let value = self.take(name)?;
        self.noted([name.into()], read(value))
    }

    /// The value, or a fault noted at `path`.
    pub(super) fn noted<T>(&mut self, path: impl IntoIterator<Item = Loc>, read: Result<T, Broken>) -> Option<T> {
        read.map_err(|broken| self.fault(path, broken)).ok()
    }

    /// Reads a field that must be there.
    pub(super) fn required<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(Json) -> Result<T, Broken>,
    ) -> Option<T> {
        let Some(value) = self.take(name) else {
            self.fault([name.into()], (FaultKind::Missing, "is required".into()));
            return None;
        };
        self.noted([name.into()], read(value))
    }

    /// `true` or `false`; absent is `absent`.
    pub(super) fn flag(&mut self, name: &'static str, absent: bool) -> bool {
        self.read(name, flag).unwrap_or(absent)
    }

    /// An integer in `min..=max`.
    pub(super) fn integer<T>(&mut self, name: &'static str, min: T, max: T) -> Option<T>
    where
        T: Copy + Display + Into<i128> + TryFrom<i128>,
    {
        self.read(name, |value| integer_in(value, min, max))
    }

    /// A number that `make` has a place for; absent is the type's default.
    pub(super) fn number<T: Default>(&mut self, name: &'static str, make: fn(f64) -> Result<T, OutOfRange>) -> T {
        self.read(name, |value| number(value, make)).unwrap_or_default()
    }
}

/// A boolean; numbers and strings are none.
pub(super) fn flag(value: Json) -> Result<bool, Broken> {
    match value {
        Json::Bool(flag) => Ok(flag),
        _ => Err((FaultKind::BoolType, "must be true or false".into())),
    }
}

/// An integer of any size that is written exactly. `5.0` and `1e3` are integers, `-0` is not.
pub(super) fn integer(value: Json) -> Result<i128, Broken> {
    match value {
        Json::Unsigned(number) => Ok(number.into()),
        Json::Negative(number) => Ok(number.into()),
        Json::Float(number) if is_negative_zero(number) => {
            Err((FaultKind::IntType, "must be an integer, and not -0".into()))
        }
        Json::Float(number) if number > EXACT => Err((FaultKind::TooLarge, "is too large".into())),
        Json::Float(number) if number < -EXACT => Err((FaultKind::TooSmall, "is too small".into())),
        Json::Float(number) if number.fract() == 0.0 => Ok(number as i128),
        Json::Float(_) => Err((FaultKind::IntFromFloat, "must be an integer, without a fraction".into())),
        _ => Err((FaultKind::IntType, "must be an integer".into())),
    }
}

/// An integer in `min..=max`.
pub(super) fn integer_in<T>(value: Json, min: T, max: T) -> Result<T, Broken>
where
    T: Copy + Display + Into<i128> + TryFrom<i128>,
{
    let number = integer(value)?;
    let kind = if number < min.into() { FaultKind::TooSmall } else { FaultKind::TooLarge };
    let fits = (min.into()..=max.into()).contains(&number).then(|| T::try_from(number).ok()).flatten();
    fits.ok_or_else(|| (kind, format!("must be an integer between {min} and {max}")))
}

/// A number that `make` has a place for.
pub(super) fn number<T>(value: Json, make: fn(f64) -> Result<T, OutOfRange>) -> Result<T, Broken> {
    let number = match value {
        Json::Unsigned(number) => number as f64,
        Json::Negative(number) => number as f64,
        Json::Float(number) if is_negative_zero(number) => return Err((FaultKind::Value, "must not be -0".into())),
        Json::Float(number) => number,
        _ => return Err((FaultKind::FloatType, "must be a number".into())),
    };
    // All ranges hold small positive numbers, so the sign tells on which side of its range a number lies.
    let kind = if number > 0.0 { FaultKind::TooLarge } else { FaultKind::TooSmall };
    make(number).map_err(|out| (kind, out.to_string()))
}

/// A string.
pub(super) fn text(value: Json) -> Result<String, Broken> {
    match value {
        Json::Text(text) => Ok(text),
        _ => Err((FaultKind::StringType, "must be a string".into())),
    }
}

/// A string of at most `limit` bytes.
pub(super) fn short_text(value: Json, limit: usize) -> Result<ClientText, Broken> {
    let text = text(value)?;
    if text.len() > limit {
        return Err((FaultKind::StringTooLong, format!("must be at most {limit} bytes")));
    }
    Ok(ClientText(text))
}

/// A name of a model or an adapter.
pub(super) fn name(value: Json) -> Result<Name, Broken> {
    Name::new(text(value)?).map_err(|bad| (FaultKind::Pattern, bad.to_string()))
}

/// A list.
pub(super) fn list(value: Json) -> Result<List, Broken> {
    match value {
        Json::List(list) => Ok(list),
        _ => Err((FaultKind::ListType, "must be a list".into())),
    }
}

/// A list of at most `limit` elements.
pub(super) fn short_list(value: Json, limit: usize) -> Result<List, Broken> {
    let list = list(value)?;
    if list.len > limit {
        return Err((FaultKind::TooLong, format!("must hold at most {limit} elements")));
    }
    Ok(list)
}

/// The element as a value of its own.
pub(super) fn value_of(element: Element) -> Json {
    match element {
        Element::Id(id) => Json::Unsigned(id.into()),
        Element::Other(value) => value,
    }
}

/// All elements as token ids; faults are noted at `path` of the place. Whether a vocabulary has them is for `plan` to say.
pub(super) fn token_ids(fields: &mut Fields, elements: List, path: impl Fn(usize) -> Vec<Loc>) -> Vec<TokenId> {
    if elements.others.is_empty() {
        return elements.ids.into_iter().map(TokenId).collect();
    }
    let read = |(place, element): (usize, Element)| {
        let id = integer_in(value_of(element), 0, u32::MAX).map(TokenId);
        fields.noted(path(place), id)
    };
    elements.into_elements().filter_map(read).collect()
}

fn is_negative_zero(number: f64) -> bool {
    number == 0.0 && number.is_sign_negative()
}
