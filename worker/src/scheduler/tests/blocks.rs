//! The pool's books.

use proptest::prelude::*;
use shoal_common::block_hash::BlockHash;
use shoal_common::ids::TokenId;

use super::world::begin;
use crate::backend::{BLOCK_TOKENS, BlockId};
use crate::scheduler::blocks::Blocks;

fn hash(of: u32) -> BlockHash {
    begin().then(&[TokenId(of); BLOCK_TOKENS])
}

/// A block that was filled and let go.
fn cached(blocks: &mut Blocks, of: u32) -> BlockId {
    let block = blocks.take().unwrap();
    assert_eq!(blocks.register(block, hash(of)), block);
    blocks.release(block);
    block
}

#[test]
fn a_registered_block_is_found_until_it_is_evicted() {
    let mut blocks = Blocks::new(2);
    let block = cached(&mut blocks, 1);
    assert_eq!((blocks.find(&hash(1)), blocks.find(&hash(2))), (Some(block), None));
    assert_eq!((blocks.available(), blocks.referenced()), (2, 0), "what is only cached can be taken");
    let other = blocks.take().unwrap();
    assert_ne!(other, block, "a free block comes before a cached one");
    assert_eq!(blocks.take(), Some(block));
    assert_eq!((blocks.find(&hash(1)), blocks.take()), (None, None));
}

#[test]
fn the_least_recently_used_block_is_evicted_first() {
    let mut blocks = Blocks::new(3);
    let [a, b, c] = [1, 2, 3].map(|of| cached(&mut blocks, of));
    blocks.share(a);
    blocks.release(a);
    assert_eq!([blocks.take(), blocks.take(), blocks.take()], [Some(b), Some(c), Some(a)]);
}

#[test]
fn a_shared_block_is_held_until_its_last_table_is_gone() {
    let mut blocks = Blocks::new(1);
    let block = cached(&mut blocks, 1);
    blocks.share(block);
    blocks.share(block);
    assert_eq!((blocks.references(block), blocks.take()), (2, None));
    blocks.release(block);
    assert_eq!(blocks.take(), None);
    blocks.release(block);
    assert_eq!(blocks.take(), Some(block));
}

#[test]
fn the_same_text_computed_twice_is_kept_once() {
    let mut blocks = Blocks::new(2);
    let (first, second) = (blocks.take().unwrap(), blocks.take().unwrap());
    assert_eq!(blocks.register(first, hash(1)), first);
    assert_eq!(blocks.register(second, hash(1)), first, "the table names the first from now on");
    assert_eq!((blocks.references(first), blocks.references(second)), (2, 0));
    assert_eq!(blocks.register(first, hash(1)), first, "once more is the same as once");
    assert_eq!((blocks.references(first), blocks.take()), (2, Some(second)));
}

#[derive(Clone, Copy, Debug)]
enum Act {
    Take,
    Find(u32),
    Register(usize, u32),
    Release(usize),
}

fn any_act() -> impl Strategy<Value = Act> {
    prop_oneof![
        Just(Act::Take),
        (0..8u32).prop_map(Act::Find),
        (any::<usize>(), 0..8u32).prop_map(|(at, of)| Act::Register(at, of)),
        any::<usize>().prop_map(Act::Release),
    ]
}

proptest! {
    #[test]
    fn references_are_exact_and_no_block_is_lost(acts in prop::collection::vec(any_act(), 1..200)) {
        let mut blocks = Blocks::new(6);
        // One entry for each reference, and what the block was registered as.
        let mut held: Vec<(BlockId, Option<u32>)> = Vec::new();
        for act in acts {
            match act {
                Act::Take => {
                    let distinct: std::collections::BTreeSet<_> = held.iter().map(|(block, _)| *block).collect();
                    let taken = blocks.take();
                    prop_assert_eq!(taken.is_some(), distinct.len() < 6);
                    prop_assert!(taken.is_none_or(|block| !distinct.contains(&block)), "a held block was taken");
                    held.extend(taken.map(|block| (block, None)));
                }
                Act::Find(of) => {
                    if let Some(block) = blocks.find(&hash(of)) {
                        prop_assert!(held.iter().all(|(other, as_)| *other != block || *as_ == Some(of)));
                        blocks.share(block);
                        held.push((block, Some(of)));
                    }
                }
                // A block is registered by the one table that filled it.
                Act::Register(at, of) if !held.is_empty() => {
                    let at = at % held.len();
                    if held[at].1.is_none() {
                        held[at] = (blocks.register(held[at].0, hash(of)), Some(of));
                    }
                }
                Act::Release(at) if !held.is_empty() => {
                    let (block, _) = held.swap_remove(at % held.len());
                    blocks.release(block);
                }
                Act::Register(..) | Act::Release(_) => {}
            }
            for block in (0..6).map(BlockId) {
                let named = held.iter().filter(|(other, _)| *other == block).count();
                prop_assert_eq!(blocks.references(block) as usize, named);
            }
        }
        held.into_iter().for_each(|(block, _)| blocks.release(block));
        prop_assert_eq!((blocks.available(), blocks.referenced()), (6, 0));
        let all: std::collections::BTreeSet<_> = std::iter::from_fn(|| blocks.take()).collect();
        prop_assert_eq!(all.len(), 6);
    }
}
