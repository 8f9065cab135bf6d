//! What the backend refuses, and that a refused step changes nothing.

use shoal_common::ids::TokenId;

use super::{Bench, assert_same_bits, tokens};
use crate::backend::{Backend, LogitsOf, SequenceId, Slice};

const NOBODY: SequenceId = SequenceId(999);

fn slice(sequence: SequenceId, start: usize, tokens: &[TokenId]) -> Slice<'_> {
    Slice { sequence, start, tokens, logits: LogitsOf::Last }
}

fn reason(error: crate::backend::BackendError) -> String {
    error.source.to_string()
}

#[test]
fn a_step_that_makes_no_sense_is_an_error_and_changes_nothing() {
    let mut bench = Bench::tiny("tiny/base", 1);
    let (held, some) = (bench.name(), tokens(&[1, 2, 3, 4, 5]));
    bench.extend(held, 0, &some, 64);
    let outside = tokens(&[1, 512]);
    let long = vec![TokenId(1); 1 << 14];
    let fresh = bench.name();
    let cases: [(&[Slice<'_>], &str); 7] = [
        (&[slice(held, 4, &some)], "starts at 4, it holds 5"),
        (&[slice(held, 6, &some)], "starts at 6, it holds 5"),
        (&[slice(NOBODY, 1, &some)], "unknown"),
        (&[slice(held, 5, &[])], "no tokens"),
        (&[slice(held, 5, &some), slice(held, 10, &some)], "twice"),
        (&[slice(held, 5, &some), slice(fresh, 0, &outside)], "outside the vocabulary"),
        (&[slice(held, 5, &some), slice(fresh, 0, &long)], "longer than the context"),
    ];
    for (slices, expected) in cases {
        let refusal = reason(bench.run(slices).unwrap_err());
        assert!(refusal.contains(expected), "{refusal}");
    }
    let after = bench.extend(held, 5, &some, 64);
    let whole = bench.alone(&[some.clone(), some].concat(), 64);
    assert_same_bits("after refusals", &after, &whole[5..]);
}

#[test]
fn a_fork_takes_only_what_there_is() {
    let mut bench = Bench::tiny("tiny/base", 1);
    let (held, other) = (bench.name(), bench.name());
    bench.extend(held, 0, &tokens(&[1, 2, 3]), 64);
    assert!(reason(bench.backend.fork(held, other, 4).unwrap_err()).contains("it holds 3"));
    assert!(reason(bench.backend.fork(NOBODY, other, 0).unwrap_err()).contains("unknown"));
    assert!(reason(bench.backend.fork(held, held, 1).unwrap_err()).contains("exists"));
    bench.backend.fork(held, other, 3).unwrap();
}

#[test]
fn a_released_sequence_is_gone_and_releasing_nobody_is_nothing() {
    let mut bench = Bench::tiny("tiny/base", 1);
    let held = bench.name();
    bench.extend(held, 0, &tokens(&[1, 2, 3]), 64);
    bench.backend.release(held);
    bench.backend.release(NOBODY);
    assert!(reason(bench.run(&[slice(held, 3, &tokens(&[4]))]).unwrap_err()).contains("unknown"));
}

#[test]
fn kv_is_counted_with_what_it_really_takes() {
    // 4 layers of 2 heads of 16 elements, keys and values, 4 bytes each.
    assert_eq!(Bench::tiny("tiny/base", 1).backend.kv_bytes_per_token(), 4 * 2 * 16 * 2 * 4);
}
