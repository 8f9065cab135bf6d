//! The book's promises, with made-up generations and a clock that the test turns.

use super::super::entry::State;
use super::*;
use crate::testing::GEOMETRY;
use shoal_common::ids::Digest;

const GRACE: Duration = Duration::from_secs(60);

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn generation(content: &str) -> Generation {
    Generation(Digest::of(content.as_bytes()))
}

fn version(content: &str) -> Version {
    Version { generation: generation(content), base: name("base"), geometry: GEOMETRY, rank: 8, bytes: 100, created: 7 }
}

fn from(source: Source) -> Origin {
    Origin { source, pinning: Pinning::Evictable, stamp: None }
}

fn known(_: &Name) -> Option<Geometry> {
    Some(GEOMETRY)
}

fn other_widths(_: &Name) -> Option<Geometry> {
    Some(Geometry { hidden: 128, ..GEOMETRY })
}

fn book() -> Book {
    Book::new(3, GRACE)
}

/// Points `a` at `content`, as an upload does.
fn upload(book: &mut Book, content: &str) {
    let (version, previous) = book.succession(&name("a"), version(content));
    book.point(&name("a"), from(Source::Api), version, previous);
}

fn ready(book: &Book) -> Resolved {
    match book.find(&name("a"), &known) {
        Found::Ready(resolved) => resolved,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_request_keeps_what_its_name_pointed_at() {
    let mut book = book();
    upload(&mut book, "one");
    let early = ready(&book);
    upload(&mut book, "two");
    assert_eq!((early.generation, ready(&book).generation), (generation("one"), generation("two")));
    assert_eq!(early.to_string(), format!("a@{}", &generation("one").to_string()[..12]));
    assert_eq!(book.listing(&name("a"), &known).unwrap().previous, Some(generation("one")));
}

#[test]
fn an_old_generation_stays_until_its_last_request_and_a_grace_are_over() {
    let (mut book, start) = (book(), Instant::now());
    upload(&mut book, "one");
    let request = ready(&book);
    upload(&mut book, "two");
    assert!(book.sweep(start).is_empty());
    assert!(book.sweep(start + 10 * GRACE).is_empty(), "a request still uses it");
    drop(request);
    let unused = start + 10 * GRACE;
    assert!(book.sweep(unused).is_empty(), "there was no grace");
    assert!(book.sweep(unused + GRACE / 2).is_empty());
    assert!(book.shelf().lease(generation("one")).is_some(), "a worker can no longer fetch it");
    let gone = book.sweep(unused + GRACE);
    assert_eq!(gone, [Retired { generation: generation("one"), bases: [name("base")].into() }]);
    assert!(book.shelf().lease(generation("one")).is_none());
    assert!(book.sweep(unused + 9 * GRACE).is_empty(), "what a name points at never goes");
}

#[test]
fn a_use_in_the_grace_begins_it_again() {
    let (mut book, start) = (book(), Instant::now());
    upload(&mut book, "one");
    upload(&mut book, "two");
    book.sweep(start);
    let fetch = book.shelf().lease(generation("one")).unwrap();
    assert!(book.sweep(start + GRACE).is_empty());
    drop(fetch);
    assert!(book.sweep(start + 2 * GRACE - Duration::from_secs(1)).is_empty());
    assert!(book.sweep(start + 2 * GRACE).is_empty());
    assert_eq!(book.sweep(start + 3 * GRACE).len(), 1);
}

#[test]
fn content_that_two_names_share_goes_with_the_last_of_them() {
    let (mut book, start) = (book(), Instant::now());
    upload(&mut book, "one");
    book.point(&name("b"), from(Source::Api), version("one"), None);
    book.remove(&name("a"), Source::Api).unwrap();
    book.sweep(start);
    assert!(book.sweep(start + GRACE).is_empty());
    book.remove(&name("b"), Source::Api).unwrap();
    book.sweep(start + GRACE);
    assert_eq!(book.sweep(start + 2 * GRACE).len(), 1);
}

#[test]
fn the_same_content_once_more_is_no_new_version() {
    let mut book = book();
    upload(&mut book, "one");
    upload(&mut book, "two");
    let again = Version { created: 99, ..version("two") };
    let (again, previous) = book.succession(&name("a"), again);
    assert_eq!((again.created, previous), (7, Some(generation("one"))));
}

#[test]
fn a_name_belongs_to_whoever_stands_highest() {
    let mut book = book();
    upload(&mut book, "one");
    book.announce(&name("a"), &from(Source::Directory), None).unwrap();
    assert_eq!(ready(&book).generation, generation("one"), "to announce is not to replace");
    assert_eq!(book.claim(&name("a"), Source::Api), Err(BookError::Owned { by: Source::Directory }));
    assert_eq!(book.remove(&name("a"), Source::Api), Err(BookError::Owned { by: Source::Directory }));
    book.announce(&name("a"), &from(Source::Config), None).unwrap();
    assert_eq!(book.claim(&name("a"), Source::Directory), Err(BookError::Owned { by: Source::Config }));
    assert_eq!(book.remove(&name("b"), Source::Api), Err(BookError::Unknown));
}

#[test]
fn an_adapter_is_pending_until_it_was_looked_at_and_then_ready_or_quarantined() {
    let mut book = book();
    let directory = from(Source::Directory);
    let state = |book: &Book| {
        let listing = book.listing(&name("a"), &known).unwrap();
        (listing.state, listing.reason)
    };
    book.announce(&name("a"), &directory, None).unwrap();
    assert_eq!(state(&book), (State::Pending, Some(UNREAD.to_owned())));
    book.fail(&name("a"), &directory, None, Trouble::Waiting("no worker".to_owned()));
    assert_eq!(state(&book), (State::Pending, Some("no worker".to_owned())));
    assert!(matches!(book.find(&name("a"), &known), Found::Pending { reason, .. } if reason == "no worker"));
    book.fail(&name("a"), &directory, None, Trouble::Refused("broken".to_owned()));
    assert_eq!(state(&book), (State::Quarantined, Some("broken".to_owned())));
    assert!(matches!(book.find(&name("a"), &known), Found::Quarantined { reason, .. } if reason == "broken"));
    book.point(&name("a"), directory.clone(), version("good"), None);
    assert_eq!(state(&book), (State::Ready, None));
    // Broken files over good ones: what was good goes on.
    book.fail(&name("a"), &directory, None, Trouble::Refused("broken".to_owned()));
    assert_eq!(state(&book), (State::Ready, Some("broken".to_owned())));
    assert_eq!(ready(&book).generation, generation("good"));
}

#[test]
fn an_adapter_whose_model_has_new_widths_is_not_used_before_it_was_checked_again() {
    let mut book = book();
    upload(&mut book, "one");
    assert!(matches!(book.find(&name("a"), &|_| None), Found::Ready(_)), "no worker is no change");
    assert!(matches!(book.find(&name("a"), &other_widths), Found::Pending { .. }));
    let stale = book.stale(&other_widths);
    let [(_, _, now)] = stale.as_slice() else { panic!("{stale:?}") };
    book.held_against(&name("a"), generation("one"), *now, Err("too narrow".to_owned()));
    assert!(
        matches!(book.find(&name("a"), &other_widths), Found::Quarantined { reason, .. } if reason == "too narrow")
    );
    assert!(book.stale(&other_widths).is_empty(), "it would be checked for ever");
    assert!(matches!(book.find(&name("a"), &known), Found::Ready(_)), "the old model came back");
    book.held_against(&name("a"), generation("one"), *now, Ok(()));
    assert!(matches!(book.find(&name("a"), &other_widths), Found::Ready(_)));
}

#[test]
fn names_and_retired_generations_are_bounded() {
    let mut book = book();
    for (at, text) in ["a", "b", "c"].into_iter().enumerate() {
        book.point(&name(text), from(Source::Api), version(&at.to_string()), None);
    }
    assert_eq!(book.claim(&name("d"), Source::Config), Err(BookError::Full { limit: 3 }));
    for at in 0..MAX_RETIRED {
        assert_eq!(book.claim(&name("a"), Source::Api), Ok(()), "after {at}");
        upload(&mut book, &format!("next {at}"));
    }
    assert_eq!(book.claim(&name("a"), Source::Api), Err(BookError::Retiring));
}

#[test]
fn what_is_lost_takes_its_names_out_of_service() {
    let mut book = book();
    upload(&mut book, "one");
    assert_eq!(book.lost(generation("one"), "damaged"), [name("a")]);
    assert!(matches!(book.find(&name("a"), &known), Found::Quarantined { reason, .. } if reason == "damaged"));
    assert!(book.shelf().is_empty());
    upload(&mut book, "one");
    assert_eq!(ready(&book).generation, generation("one"));
}

#[test]
fn pins_follow_their_names() {
    let mut book = book();
    let pinned = Origin { pinning: Pinning::Pinned, ..from(Source::Config) };
    book.announce(&name("a"), &pinned, None).unwrap();
    assert!(book.pinned().is_empty());
    book.point(&name("a"), pinned.clone(), version("one"), None);
    book.point(&name("a"), pinned, version("two"), None);
    assert_eq!(book.pinned(), [(name("base"), generation("two"))].into());
}
