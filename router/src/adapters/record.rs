//! The lines of `catalogue.json` and their form. An entry that cannot be read is reported and skipped; the others count.

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use shoal_common::adapter::Geometry;
use shoal_common::ids::{Generation, Name};

use super::entry::{Origin, Source, Version};
use super::stamp::Stamp;

/// The file's name.
pub(super) const FILE: &str = "catalogue.json";

/// Where a damaged file is kept for a person to look at.
const DAMAGED: &str = "catalogue.json.damaged";

/// What a name points at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The name.
    pub name: Name,
    /// Its base model.
    pub model: Name,
    /// The widths it was checked against.
    pub geometry: Geometry,
    /// The identity of its content.
    #[serde(with = "hex")]
    pub generation: Generation,
    /// Largest rank.
    pub rank: u32,
    /// Bytes of the bundle.
    pub bytes: u64,
    /// Unix seconds.
    pub created: u64,
    /// Who registered it.
    pub source: Source,
    /// What its files looked like.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stamp: Option<Stamp>,
    /// What the name pointed at before.
    #[serde(default, with = "hex::optional", skip_serializing_if = "Option::is_none")]
    pub previous: Option<Generation>,
}

impl Record {
    /// A record of `name` pointing at `version`.
    pub(super) fn new(name: &Name, origin: &Origin, version: &Version, previous: Option<Generation>) -> Self {
        Self {
            name: name.clone(),
            model: version.base.clone(),
            geometry: version.geometry,
            generation: version.generation,
            rank: version.rank,
            bytes: version.bytes,
            created: version.created,
            source: origin.source,
            stamp: origin.stamp.clone(),
            previous,
        }
    }

    /// The version it records.
    pub fn version(&self) -> Version {
        Version {
            generation: self.generation,
            base: self.model.clone(),
            geometry: self.geometry,
            rank: self.rank,
            bytes: self.bytes,
            created: self.created,
        }
    }
}

/// Whether all of a file could be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wholeness {
    Whole,
    Damaged,
}

#[derive(Deserialize)]
struct Document {
    adapters: Vec<Value>,
}

/// The records in `root`. A damaged file is copied aside, since the next change writes a new one.
pub(super) fn read(root: &Path) -> io::Result<(Vec<Record>, Wholeness)> {
    let path = root.join(FILE);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((Vec::new(), Wholeness::Whole)),
        Err(error) => return Err(error),
    };
    let (records, wholeness) = decode(&bytes);
    if wholeness == Wholeness::Damaged {
        fs::copy(&path, root.join(DAMAGED))?;
    }
    Ok((records, wholeness))
}

fn decode(bytes: &[u8]) -> (Vec<Record>, Wholeness) {
    let document: Document = match serde_json::from_slice(bytes) {
        Ok(document) => document,
        Err(error) => {
            tracing::error!(%error, copy = DAMAGED, "the adapters' catalogue is damaged; none of it is used");
            return (Vec::new(), Wholeness::Damaged);
        }
    };
    let mut wholeness = Wholeness::Whole;
    let mut read = |(index, entry): (usize, Value)| match serde_json::from_value(entry) {
        Ok(record) => Some(record),
        Err(error) => {
            tracing::error!(%error, index, copy = DAMAGED, "an entry of the adapters' catalogue is damaged and skipped");
            wholeness = Wholeness::Damaged;
            None
        }
    };
    let records = document.adapters.into_iter().enumerate().filter_map(&mut read).collect();
    (records, wholeness)
}

/// The file's bytes.
pub(super) fn encode<'a>(records: impl Iterator<Item = &'a Record>) -> Vec<u8> {
    let records: Vec<&Record> = records.collect();
    let document = serde_json::json!({ "adapters": records });
    format!("{document:#}\n").into_bytes()
}

/// Generations as hex digits.
mod hex {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    use super::Generation;

    pub(super) fn serialize<S: Serializer>(generation: &Generation, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(generation)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Generation, D::Error> {
        read(&String::deserialize(deserializer)?)
    }

    fn read<E: Error>(text: &str) -> Result<Generation, E> {
        text.parse().map(Generation).map_err(E::custom)
    }

    pub(super) mod optional {
        use super::*;

        pub(in super::super) fn serialize<S: Serializer>(
            generation: &Option<Generation>,
            serializer: S,
        ) -> Result<S::Ok, S::Error> {
            match generation {
                Some(generation) => serializer.collect_str(generation),
                None => serializer.serialize_none(),
            }
        }

        pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
            deserializer: D,
        ) -> Result<Option<Generation>, D::Error> {
            Option::<String>::deserialize(deserializer)?.map(|text| read(&text)).transpose()
        }
    }
}
