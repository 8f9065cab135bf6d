//! The promises of what stands beside the trait: the check and the logits' buffer.

use shoal_common::ids::TokenId;

use super::*;

const TOKENS: [TokenId; 40] = [TokenId(1); 40];

fn ids(blocks: &[u32]) -> Vec<BlockId> {
    blocks.iter().copied().map(BlockId).collect()
}

fn slice(start: usize, count: usize, blocks: &[BlockId]) -> Slice<'_> {
    Slice { start, tokens: &TOKENS[..count], blocks, adapter: None, logits: LogitsOf::Last }
}

fn check(slices: &[Slice<'_>]) -> Result<(), BadStep> {
    let mut check = StepCheck::new(8, 100);
    check.reserve(10);
    check.check(slices)
}

#[test]
fn a_step_that_makes_sense_is_taken() {
    let (a, b, c) = (ids(&[0, 1, 2]), ids(&[0, 1, 3]), ids(&[4]));
    assert_eq!(check(&[]), Ok(()));
    assert_eq!(check(&[slice(32, 16, &a), slice(32, 1, &b), slice(0, 16, &c)]), Ok(()), "full blocks are shared");
    let longer = ids(&[5, 6, 7, 99]);
    assert_eq!(check(&[slice(8, 40, &longer)]), Ok(()), "what the slice does not look at is not checked");
}

#[test]
fn the_same_step_can_be_checked_again() {
    let mut check = StepCheck::new(8, 100);
    check.reserve(1);
    let table = ids(&[0]);
    for start in 0..16 {
        assert_eq!(check.check(&[slice(start, 1, &table)]), Ok(()));
    }
}

#[test]
fn a_step_that_makes_no_sense_is_refused() {
    let (a, b) = (ids(&[0, 1]), ids(&[2, 3]));
    assert_eq!(check(&[slice(0, 1, &a), slice(0, 0, &b)]), Err(BadStep::Empty { slice: 1 }));
    let outside = [TokenId(0), TokenId(8)];
    let wrong = Slice { start: 0, tokens: &outside, blocks: &a, adapter: None, logits: LogitsOf::None };
    assert_eq!(check(&[wrong]), Err(BadStep::OutsideVocabulary { slice: 0 }));
    let long = ids(&[0, 1, 2, 3, 4, 5, 6]);
    assert_eq!(check(&[slice(61, 40, &long)]), Err(BadStep::BeyondContext { slice: 0 }));
    assert_eq!(check(&[slice(usize::MAX, 1, &long)]), Err(BadStep::BeyondContext { slice: 0 }));
    assert_eq!(check(&[slice(0, 33, &a)]), Err(BadStep::TableTooShort { slice: 0 }));
    assert_eq!(check(&[slice(16, 1, &ids(&[10, 0]))]), Err(BadStep::OutsidePool(BlockId(10))));
    assert_eq!(StepCheck::new(8, 100).check(&[slice(0, 1, &a)]), Err(BadStep::OutsidePool(BlockId(0))));
}

#[test]
fn a_written_block_is_its_slice_s_own_alone() {
    let (a, b) = (ids(&[0, 1]), ids(&[2, 1]));
    let clobbered = |block| Err(BadStep::Clobbered(BlockId(block)));
    assert_eq!(check(&[slice(20, 1, &a), slice(20, 1, &b)]), clobbered(1), "written by two");
    let reader = ids(&[1, 4]);
    assert_eq!(check(&[slice(20, 1, &a), slice(20, 1, &reader)]), clobbered(1), "read by a later slice");
    assert_eq!(check(&[slice(20, 1, &reader), slice(20, 1, &a)]), clobbered(1), "read by an earlier slice");
    assert_eq!(check(&[slice(20, 1, &ids(&[1, 1]))]), clobbered(1), "read by itself");
    assert_eq!(check(&[slice(0, 20, &ids(&[1, 1]))]), clobbered(1), "written twice by itself");
}

#[test]
fn a_copy_stays_in_the_pool_and_goes_elsewhere() {
    let mut check = StepCheck::new(8, 100);
    check.reserve(2);
    assert_eq!(check.check_copy(BlockId(0), BlockId(1)), Ok(()));
    assert_eq!(check.check_copy(BlockId(0), BlockId(2)), Err(BadStep::OutsidePool(BlockId(2))));
    assert_eq!(check.check_copy(BlockId(2), BlockId(0)), Err(BadStep::OutsidePool(BlockId(2))));
    assert_eq!(check.check_copy(BlockId(1), BlockId(1)), Err(BadStep::CopiedOntoItself(BlockId(1))));
}

#[test]
fn the_logits_grow_to_the_largest_step_and_stay() {
    let mut logits = LogitsBuffer::default();
    logits.reset(4, 8).fill(1.0);
    let before = logits.row(0).as_ptr();
    for rows in [1, 0, 4, 2] {
        assert_eq!(logits.reset(rows, 8).len(), rows * 8);
        assert!((0..rows).all(|row| logits.row(row).len() == 8));
        assert!(rows == 0 || logits.row(0).as_ptr() == before, "allocated again");
    }
}

#[test]
#[should_panic = "row 1 of 1 rows"]
fn a_row_that_the_step_did_not_ask_for_is_not_read() {
    let mut logits = LogitsBuffer::default();
    logits.reset(4, 8);
    logits.reset(1, 8);
    logits.row(1);
}
