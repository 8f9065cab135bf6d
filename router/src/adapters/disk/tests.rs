//! What a crash, a bad disk or a person can leave behind, and what is made of it.

use shoal_common::config::Pinning;

use super::super::entry::{Origin, Source, Version};
use super::*;
use crate::testing::GEOMETRY;

const BUNDLE: Bundle<'_> = Bundle { config: b"{}", weights: b"weights" };

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn record(text: &str, bundle: &Bundle<'_>) -> Record {
    let version = Version {
        generation: bundle.generation().unwrap(),
        base: name("base"),
        geometry: GEOMETRY,
        rank: 8,
        bytes: bundle.to_bytes().unwrap().len() as u64,
        created: 7,
    };
    let origin = Origin { source: Source::Api, pinning: Pinning::Evictable, stamp: None };
    Record::new(&name(text), &origin, &version, Some(Generation(Digest::of(b"before"))))
}

/// A directory in which `a` was registered.
fn filled() -> (tempfile::TempDir, Record) {
    let dir = tempfile::tempdir().unwrap();
    let (store, mut ledger, restored) = Store::open(dir.path()).unwrap();
    assert!(restored.is_empty());
    let record = record("a", &BUNDLE);
    store.settle(store.write(&BUNDLE).unwrap(), record.generation).unwrap();
    ledger.put(record.clone()).unwrap();
    (dir, record)
}

fn reopened(dir: &Path) -> (Store, Vec<(Record, Option<&'static str>)>) {
    let (store, _, restored) = Store::open(dir).unwrap();
    (store, restored.into_iter().map(|restored| (restored.record, restored.damage)).collect())
}

#[test]
fn what_was_registered_survives_a_restart() {
    let (dir, record) = filled();
    let (store, restored) = reopened(dir.path());
    assert_eq!(restored, [(record.clone(), None)]);
    assert_eq!(fs::read(store.blob(record.generation)).unwrap(), BUNDLE.to_bytes().unwrap());
    assert!(store.verify(record.generation).unwrap());
}

#[test]
fn a_crash_between_write_and_rename_leaves_nothing() {
    let (dir, record) = filled();
    let incoming = dir.path().join("adapters/incoming");
    for left in ["half-a-blob", "half-a-catalogue"] {
        fs::write(incoming.join(left), b"SHOALPA1").unwrap();
    }
    // The blob was renamed into its place, and then the process died: no name points at it.
    let orphan = dir.path().join("adapters/blobs").join(format!("{}.adapter", Generation(Digest::of(b"orphan"))));
    fs::write(&orphan, b"SHOALPA1").unwrap();
    let (_, restored) = reopened(dir.path());
    assert_eq!(restored, [(record, None)]);
    assert_eq!(fs::read_dir(incoming).unwrap().count(), 0);
    assert!(!orphan.exists());
}

#[test]
fn an_upload_that_is_given_up_leaves_nothing() {
    let (dir, _) = filled();
    let (store, _) = reopened(dir.path());
    drop((store.spool().unwrap(), store.write(&BUNDLE).unwrap()));
    assert_eq!(fs::read_dir(dir.path().join("adapters/incoming")).unwrap().count(), 0);
}

#[test]
fn a_truncated_or_missing_blob_is_told_and_the_others_are_used() {
    let (dir, first) = filled();
    let other = Bundle { weights: b"other", ..BUNDLE };
    {
        let (store, mut ledger, _) = Store::open(dir.path()).unwrap();
        ledger.put(record("b", &other)).unwrap();
        store.settle(store.write(&other).unwrap(), other.generation().unwrap()).unwrap();
        File::options().write(true).open(store.blob(first.generation)).unwrap().set_len(5).unwrap();
    }
    let (store, restored) = reopened(dir.path());
    assert!(restored[0].1.is_some_and(|damage| damage.contains("length")), "{restored:?}");
    assert_eq!(restored[1], (record("b", &other), None));
    store.remove(first.generation).unwrap();
    drop(store);
    assert!(reopened(dir.path()).1[0].1.is_some_and(|damage| damage.contains("gone")));
}

#[test]
fn a_flipped_bit_is_found_when_the_blob_is_read() {
    let (dir, record) = filled();
    let (store, _) = reopened(dir.path());
    let mut bytes = fs::read(store.blob(record.generation)).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(store.blob(record.generation), bytes).unwrap();
    assert!(!store.verify(record.generation).unwrap());
}

#[test]
fn a_catalogue_that_is_no_json_is_kept_aside_and_no_blob_is_deleted() {
    let (dir, record) = filled();
    let catalogue = dir.path().join("adapters/catalogue.json");
    let text = fs::read_to_string(&catalogue).unwrap();
    fs::write(&catalogue, &text[..text.len() / 2]).unwrap();
    let (store, restored) = reopened(dir.path());
    assert!(restored.is_empty());
    assert!(store.blob(record.generation).exists());
    let kept = fs::read_to_string(dir.path().join("adapters/catalogue.json.damaged")).unwrap();
    assert_eq!(kept, text[..text.len() / 2]);
}

#[test]
fn a_damaged_entry_is_skipped_and_the_others_count() {
    let (dir, record) = filled();
    let catalogue = dir.path().join("adapters/catalogue.json");
    let mut document: serde_json::Value = serde_json::from_slice(&fs::read(&catalogue).unwrap()).unwrap();
    let entries = document["adapters"].as_array_mut().unwrap();
    for (field, value) in
        [("generation", "+0".repeat(32)), ("name", "../x".to_owned()), ("source", "nobody".to_owned())]
    {
        let mut bad = entries[0].clone();
        bad[field] = value.into();
        entries.insert(0, bad);
    }
    entries.push(serde_json::Value::Null);
    fs::write(&catalogue, document.to_string()).unwrap();
    assert_eq!(reopened(dir.path()).1, [(record, None)]);
}

#[test]
fn a_change_that_cannot_be_written_changes_nothing() {
    let (dir, first) = filled();
    let (_store, mut ledger, _) = Store::open(dir.path()).unwrap();
    // No file can be made there any more, whoever asks.
    let incoming = dir.path().join("adapters/incoming");
    fs::remove_dir(&incoming).unwrap();
    assert!(ledger.put(record("b", &BUNDLE)).is_err());
    assert!(ledger.remove(&name("a")).is_err());
    fs::create_dir(&incoming).unwrap();
    ledger.put(record("c", &BUNDLE)).unwrap();
    drop((_store, ledger));
    let names: Vec<Name> = reopened(dir.path()).1.into_iter().map(|(record, _)| record.name).collect();
    assert_eq!(names, [first.name, name("c")]);
}

#[test]
fn a_second_router_is_told_that_the_directory_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let held = Store::open(dir.path()).unwrap();
    let second = Store::open(dir.path()).unwrap_err();
    assert!(matches!(second, DiskError::Locked { .. }), "{second}");
    drop(held);
    Store::open(dir.path()).unwrap();
}

#[test]
fn adapters_are_their_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let (dir, record) = filled();
    let (store, _) = reopened(dir.path());
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&dir.path().join("adapters")), 0o700);
    assert_eq!(mode(&store.blob(record.generation)), 0o600);
}
