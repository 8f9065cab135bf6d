//! Reads one table of the merged tree: each getter gives a value of the right type and range, or records a fault and
//! gives nothing. Used by `check`; knows types and ranges, never what a key means.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use config::{Map, Value, ValueKind};

use super::report::Report;
use crate::ids::Name;

/// One table, by the path that leads to it.
#[derive(Debug)]
pub(super) struct Section<'a> {
    path: String,
    table: Option<&'a Map<String, Value>>,
}

impl<'a> Section<'a> {
    /// The table `value`, found under `path`; what is not one of `known` is a fault.
    pub(super) fn open(path: &str, value: Option<&'a Value>, known: &[&str], report: &mut Report) -> Self {
        let table = match value {
            None => None,
            Some(Value { kind: ValueKind::Table(table), .. }) => Some(table),
            Some(other) => {
                report.fault(other, path, format!("is {}, not a table", describe(other)), format!("write [{path}]"));
                None
            }
        };
        let section = Self { path: path.to_owned(), table };
        section.refuse_unknown(known, report);
        section
    }

    /// A table within this one.
    pub(super) fn section(&self, key: &str, known: &[&str], report: &mut Report) -> Self {
        Self::open(&self.key(key), self.value(key), known, report)
    }

    /// A table within this one whose unknown settings were reported before.
    pub(super) fn known(&self, key: &str) -> Self {
        let table = self.value(key).and_then(|value| match &value.kind {
            ValueKind::Table(table) => Some(table),
            _ => None,
        });
        Self { path: self.key(key), table }
    }

    /// A list of tables within this one, `[[key]]`.
    pub(super) fn sections(&self, key: &str, known: &[&str], report: &mut Report) -> Vec<Self> {
        let path = self.key(key);
        let elements = match self.value(key) {
            None => return Vec::new(),
            Some(Value { kind: ValueKind::Array(elements), .. }) => elements,
            Some(other) => {
                let reason = format!("is {}, not a list of tables", describe(other));
                report.fault(other, &path, reason, format!("write [[{path}]], once for each"));
                return Vec::new();
            }
        };
        let numbered = elements.iter().enumerate();
        numbered.map(|(i, element)| Self::open(&format!("{path}[{i}]"), Some(element), known, report)).collect()
    }

    /// The full path of `key`.
    pub(super) fn key(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// The value of `key` as it was written.
    pub(super) fn value(&self, key: &str) -> Option<&'a Value> {
        self.table?.get(key).filter(|value| value.kind != ValueKind::Nil)
    }

    /// Records a fault of `key`, whether it is there or not.
    pub(super) fn fault(&self, key: &str, reason: impl Into<String>, remedy: impl Into<String>, report: &mut Report) {
        match self.value(key) {
            Some(value) => report.fault(value, &self.key(key), reason, remedy),
            None => report.missing(&self.key(key), reason, remedy),
        }
    }

    /// A whole number within `range`. Text is taken for a number where it comes from the environment, which has only text.
    pub(super) fn integer<T: TryFrom<i64>>(
        &self,
        key: &str,
        range: RangeInclusive<i64>,
        report: &mut Report,
    ) -> Option<T> {
        let value = self.value(key)?;
        let number = match &value.kind {
            ValueKind::I64(number) => Some(*number),
            ValueKind::U64(number) => i64::try_from(*number).ok(),
            ValueKind::String(text) if value.origin().is_some() => text.trim().parse().ok(),
            _ => None,
        };
        let remedy = format!("write a whole number from {} to {}", range.start(), range.end());
        match number {
            None => self.fault(key, format!("is {}, not a whole number", describe(value)), remedy, report),
            Some(number) if !range.contains(&number) => {
                self.fault(key, format!("{number} is out of range"), remedy, report);
            }
            Some(number) => return T::try_from(number).ok(),
        }
        None
    }

    /// A time in milliseconds within `range`.
    pub(super) fn millis(&self, key: &str, range: RangeInclusive<i64>, report: &mut Report) -> Option<Duration> {
        self.integer::<u64>(key, range, report).map(Duration::from_millis)
    }

    /// Text.
    pub(super) fn text(&self, key: &str, report: &mut Report) -> Option<&'a str> {
        let value = self.value(key)?;
        if let ValueKind::String(text) = &value.kind {
            return Some(text);
        }
        let reason = format!("is {}, not text", describe(value));
        self.fault(key, reason, format!("write it in quotes: {} = \"...\"", last(key)), report);
        None
    }

    /// `true` or `false`.
    pub(super) fn truth(&self, key: &str, report: &mut Report) -> Option<bool> {
        let value = self.value(key)?;
        let truth = match &value.kind {
            ValueKind::Boolean(truth) => Some(*truth),
            ValueKind::String(text) if value.origin().is_some() => text.trim().parse().ok(),
            _ => None,
        };
        if truth.is_none() {
            self.fault(key, format!("is {}", describe(value)), "write true or false", report);
        }
        truth
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(&self, key: &str, choices: &[(&str, T)], report: &mut Report) -> Option<T> {
        let text = self.text(key, report)?;
        let chosen = choices.iter().find(|(word, _)| *word == text).map(|(_, choice)| *choice);
        if chosen.is_none() {
            let words = choices.iter().map(|(word, _)| format!("\"{word}\"")).collect::<Vec<_>>().join(" or ");
            self.fault(key, format!("{} is not a choice here", quote(text)), format!("write {words}"), report);
        }
        chosen
    }

    /// A name.
    pub(super) fn name(&self, key: &str, report: &mut Report) -> Option<Name> {
        let text = self.text(key, report)?;
        Name::new(text)
            .map_err(|error| self.fault(key, format!("{} is not a name", quote(text)), error.to_string(), report))
            .ok()
    }

    /// An address with a port.
    pub(super) fn address(&self, key: &str, report: &mut Report) -> Option<SocketAddr> {
        let text = self.text(key, report)?;
        let address = text.parse().ok();
        if address.is_none() {
            let remedy = "write an IP address and a port, such as 127.0.0.1:8080 or [::1]:8080";
            self.fault(key, format!("{} is not an address", quote(text)), remedy, report);
        }
        address
    }

    /// A path, resolved.
    pub(super) fn path(&self, key: &str, report: &mut Report) -> Option<PathBuf> {
        let text = self.text(key, report)?;
        if text.is_empty() {
            self.fault(key, "is empty", "write a path, or leave the key out", report);
            return None;
        }
        Some(report.resolve(text, self.value(key)?))
    }

    fn refuse_unknown(&self, known: &[&str], report: &mut Report) {
        let mut unknown: Vec<_> =
            self.table.into_iter().flatten().filter(|(key, _)| !known.contains(&key.as_str())).collect();
        unknown.sort_by_key(|(key, _)| *key);
        for (key, value) in unknown {
            let remedy = match nearest(key, known) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("remove it; known here: {}", known.join(", ")),
            };
            report.fault(value, &self.key(key), "there is no such setting", remedy);
        }
    }
}

/// A value as a reader of the report would call it, cut to one short line.
pub(super) fn describe(value: &Value) -> String {
    match &value.kind {
        ValueKind::Nil => "nothing".to_owned(),
        ValueKind::Boolean(truth) => truth.to_string(),
        ValueKind::Float(number) => number.to_string(),
        ValueKind::Table(_) => "a table".to_owned(),
        ValueKind::Array(_) => "a list".to_owned(),
        ValueKind::String(text) => format!("the text {}", quote(text)),
        number => number.to_string(),
    }
}

/// Text in quotes, escaped and cut to what a line of a report can hold.
fn quote(text: &str) -> String {
    let shown: String = text.chars().take(60).collect();
    if shown.len() < text.len() { format!("{shown:?}...") } else { format!("{shown:?}") }
}

fn last(key: &str) -> &str {
    key.rsplit('.').next().unwrap_or(key)
}

/// The candidate that `word` was probably meant to be: at most a third of its letters away.
pub(super) fn nearest<'c>(word: &str, candidates: &[&'c str]) -> Option<&'c str> {
    let near = candidates.iter().map(|candidate| (distance(word, candidate), *candidate)).min()?;
    (near.0 <= (word.len() / 3).max(1)).then_some(near.1)
}

/// Levenshtein distance in bytes, over names of at most a line.
fn distance(a: &str, b: &str) -> usize {
    let (a, b) = (&a.as_bytes()[..a.len().min(200)], &b.as_bytes()[..b.len().min(200)]);
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
