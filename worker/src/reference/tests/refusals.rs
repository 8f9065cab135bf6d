//! What the backend refuses, and that a refused step changes nothing.

use shoal_common::ids::TokenId;

use super::tiny;
use crate::backend::bench::{assert_same_bits, tokens};
use crate::backend::{BackendError, BlockId, LogitsBuffer, LogitsOf, Slice};

fn slice<'a>(start: usize, tokens: &'a [TokenId], blocks: &'a [BlockId]) -> Slice<'a> {
    Slice { start, tokens, blocks, adapter: None, logits: LogitsOf::Last }
}

fn reason(refused: Result<(), BackendError>) -> String {
    refused.unwrap_err().source.to_string()
}

#[test]
fn a_step_that_makes_no_sense_is_an_error_and_changes_nothing() {
    let mut bench = tiny("tiny/base", 1);
    let (held, some) = (bench.name(), tokens(&[1, 2, 3, 4, 5]));
    bench.extend(held, 0, &some, 64);
    bench.tables.grow(held, 10);
    let ours = bench.tables.slice(held, 5, &some, LogitsOf::Last).blocks.to_vec();
    let elsewhere: Vec<BlockId> = (100..1100).map(BlockId).collect();
    let (outside, long) = (tokens(&[1, 512]), vec![TokenId(1); 1 << 14]);
    let cases: [(&[Slice<'_>], &str); 6] = [
        (&[slice(5, &[], &ours)], "no tokens"),
        (&[slice(5, &some, &ours), slice(0, &outside, &elsewhere)], "outside the vocabulary"),
        (&[slice(5, &some, &ours), slice(0, &long, &elsewhere)], "beyond the context"),
        (&[slice(5, &some, &ours), slice(16, &some, &elsewhere[..1])], "too short"),
        (&[slice(5, &some, &ours), slice(0, &some, &elsewhere[990..])], "outside the pool"),
        (&[slice(5, &some, &ours), slice(0, &some, &ours)], "named twice"),
    ];
    for (slices, expected) in cases {
        let refusal = reason(bench.backend.forward(slices, &mut LogitsBuffer::default()));
        assert!(refusal.contains(expected), "{refusal}");
    }
    let after = bench.extend(held, 5, &some, 64);
    let whole = bench.alone(&[some.clone(), some].concat(), 64);
    assert_same_bits("after refusals", &after, &whole[5..]);
}

#[test]
fn a_copy_outside_the_pool_is_an_error() {
    let mut bench = tiny("tiny/base", 1);
    assert!(reason(bench.backend.copy_block(BlockId(0), BlockId(1 << 20))).contains("outside the pool"));
    assert!(reason(bench.backend.copy_block(BlockId(1 << 20), BlockId(0))).contains("outside the pool"));
    assert!(reason(bench.backend.copy_block(BlockId(3), BlockId(3))).contains("onto itself"));
}

#[test]
fn more_kv_than_any_machine_has_is_an_error() {
    let mut bench = tiny("tiny/base", 1);
    assert!(reason(bench.backend.reserve(usize::MAX / 64)).contains("no memory"));
}

#[test]
fn kv_is_counted_with_what_it_really_takes() {
    // 4 layers of 2 heads of 16 elements, keys and values, 4 bytes each.
    assert_eq!(tiny("tiny/base", 1).backend.kv_bytes_per_token(), 4 * 2 * 16 * 2 * 4);
}
