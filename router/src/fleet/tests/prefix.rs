//! Which replica has a prompt's beginning.

use shoal_common::block_hash::{BLOCK_TOKENS, BlockHash, CacheSalt};
use shoal_common::ids::TokenId;

use super::*;
use crate::fleet::Snapshot;
use crate::fleet::prefix::Prefixes;

/// The blocks of a prompt whose block `n` repeats token `tokens[n]`.
fn blocks(tokens: &[u32]) -> Vec<BlockHash> {
    let digest = Digest::of(b"tiny");
    let begin = BlockHash::begin(CacheSalt(0), &Fingerprint::new(digest, None, digest, "test"));
    let next = |before: &mut BlockHash, token: &u32| {
        *before = before.then(&[TokenId(*token); BLOCK_TOKENS]);
        Some(*before)
    };
    tokens.iter().scan(begin, next).collect()
}

fn overlaps(prefixes: &Prefixes, tokens: &[u32], snapshot: &Snapshot) -> Vec<u64> {
    let overlaps = prefixes.overlaps(&blocks(tokens), &snapshot.replicas);
    snapshot.replicas.iter().map(|replica| overlaps.tokens(replica.seat)).collect()
}

#[test]
fn an_overlap_is_counted_from_the_first_block_and_ends_at_the_first_that_differs() {
    let snapshot = roster_of(&["a", "b"], Instant::now()).snapshot();
    let mut prefixes = Prefixes::default();
    prefixes.sent(&blocks(&[1, 2, 3]), &snapshot.replicas[0]);
    prefixes.sent(&blocks(&[1, 9]), &snapshot.replicas[1]);
    assert_eq!(overlaps(&prefixes, &[1, 2, 3], &snapshot), [48, 16]);
    assert_eq!(overlaps(&prefixes, &[1, 2, 4, 3], &snapshot), [32, 16]);
    assert_eq!(overlaps(&prefixes, &[2, 2, 3], &snapshot), [0, 0]);
    assert_eq!(overlaps(&prefixes, &[], &snapshot), [0, 0]);
}

#[test]
fn no_more_is_believed_of_a_replica_than_its_cache_holds() {
    let snapshot = roster_of(&["a", "b"], Instant::now()).snapshot();
    let held = (CAPACITY.kv_tokens / BLOCK_TOKENS as u64) as u32;
    let mut prefixes = Prefixes::default();
    prefixes.sent(&blocks(&[1]), &snapshot.replicas[0]);
    prefixes.sent(&blocks(&[1]), &snapshot.replicas[1]);
    (0..held - 1).for_each(|other| prefixes.sent(&blocks(&[100 + other]), &snapshot.replicas[0]));
    assert_eq!(overlaps(&prefixes, &[1], &snapshot), [16, 16]);
    prefixes.sent(&blocks(&[99]), &snapshot.replicas[0]);
    assert_eq!(overlaps(&prefixes, &[1], &snapshot), [0, 16], "an evicted block was believed to be there");
    // What is used stays.
    prefixes.sent(&blocks(&[1]), &snapshot.replicas[0]);
    (0..held / 2).for_each(|other| prefixes.sent(&blocks(&[1000 + other]), &snapshot.replicas[0]));
    prefixes.sent(&blocks(&[1]), &snapshot.replicas[0]);
    (0..held / 2).for_each(|other| prefixes.sent(&blocks(&[2000 + other]), &snapshot.replicas[0]));
    assert_eq!(overlaps(&prefixes, &[1], &snapshot), [16, 16]);
}

#[test]
fn a_worker_that_comes_back_is_believed_to_have_nothing() {
    let mut roster = roster_of(&["a"], Instant::now());
    let mut prefixes = Prefixes::default();
    prefixes.sent(&blocks(&[1]), &roster.snapshot().replicas[0]);
    serve(&mut roster, offer("a", 0, &model()).0, Instant::now());
    assert_eq!(overlaps(&prefixes, &[1], &roster.snapshot()), [0]);
}

#[test]
fn the_memory_of_prompts_is_bounded_and_keeps_what_is_met_again() {
    let snapshot = roster_of(&["a"], Instant::now()).snapshot();
    let mut replica = (*snapshot.replicas[0]).clone();
    replica.capacity.kv_tokens = u64::MAX;
    let replicas = [Arc::new(replica)];
    let mut prefixes = Prefixes::default();
    for other in 0..200_000 {
        prefixes.sent(&blocks(&[1_000_000 + other]), &replicas[0]);
        if other % 1000 == 0 {
            prefixes.sent(&blocks(&[1]), &replicas[0]);
        }
    }
    assert!(prefixes.len() <= 65_536, "{} blocks", prefixes.len());
    let has = |token: u32| prefixes.overlaps(&blocks(&[token]), &replicas).tokens(Seat(0)) > 0;
    assert!(has(1) && !has(1_000_000));
}
