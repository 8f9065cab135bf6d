//! The numerics contract as tests for any backend: equal bits of every logit, whatever shares the step, wherever a prefill
//! was cut, whichever blocks it got, however many threads, on any instruction set; with an adapter as without, and whatever
//! adapters the others have. [`keeps_the_contract`] makes the tests.

mod crowd;

use std::iter;
use std::sync::Arc;

use shoal_common::ids::{Digest, Generation, TokenId};

use super::bench::{Bench, Instructions, Layers, Part, Setup, assert_same_bits, golden};
use super::split::Split;
use super::tables::Name;
use super::{Backend, LogitsOf};
use crate::adapters::Adapter;
pub(crate) use crowd::TINY_GEOMETRY;
use crowd::{Worn, crowd, extremes, name};

/// Opens a backend; `None` for an instruction set that this CPU does not have.
pub(crate) type Open = fn(Setup<'_>) -> Option<Box<dyn Backend>>;

/// The tiny golden model in every format.
const TINY: [&str; 4] =
    ["tiny/base", "tiny/gguf/tiny-f32.gguf", "tiny/gguf/tiny-q4_1.gguf", "tiny/gguf/tiny-q8_0.gguf"];
const VOCAB: u32 = 512;
/// Longer than a few KV blocks, and no multiple of one.
const LENGTH: usize = 151;

fn bench(open: Open, format: &str, threads: usize) -> Bench {
    let setup = Setup { model: &golden(format), threads, instructions: Instructions::Best, layers: Layers::All };
    Bench::over(open(setup).expect("the best is there"))
}

/// Some text: ids that follow no pattern the model could hide a mistake behind.
fn text(seed: u32, length: usize) -> Vec<TokenId> {
    let step = |state: &u32| Some(state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223));
    iter::successors(step(&seed), step).map(|state| TokenId((state >> 16) % VOCAB)).take(length).collect()
}

/// Every format with every adapter.
fn each(mut test: impl FnMut(&str, &Worn)) {
    TINY.iter().for_each(|format| extremes().iter().for_each(|worn| test(format, worn)));
}

pub(crate) fn a_prefill_may_be_cut_anywhere(open: Open) {
    each(|format, worn| {
        let mut bench = bench(open, format, 2);
        let whole = bench.alone_with(worn.as_ref(), &text(1, LENGTH), usize::MAX);
        for chunk in [1, 7, 64] {
            let cut = bench.alone_with(worn.as_ref(), &text(1, LENGTH), chunk);
            assert_same_bits(&format!("{format} with {} in chunks of {chunk}", name(worn)), &cut, &whole);
        }
    });
}

pub(crate) fn an_adapter_changes_the_logits_and_no_two_the_same_way(open: Open) {
    let mut bench = bench(open, "tiny/base", 2);
    let last = |worn: &Worn| bench.alone_with(worn.as_ref(), &text(1, 20), usize::MAX).pop().unwrap();
    let rows: Vec<Vec<f32>> = crowd().iter().map(last).collect();
    for (at, one) in rows.iter().enumerate() {
        for other in &rows[..at] {
            let worst = one.iter().zip(other).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst > 0.1, "adapters {at} and one before differ by {worst}");
        }
    }
}

pub(crate) fn an_adapter_that_changes_nothing_here_leaves_the_base(open: Open) {
    let mut bench = bench(open, "tiny/base", 2);
    let base = bench.alone(&text(1, 20), 7);
    let nothing = Arc::new(Adapter::empty(Generation(Digest([1; 32]))));
    assert_same_bits("nothing", &bench.alone_with(Some(&nothing), &text(1, 20), 7), &base);
}

pub(crate) fn thirty_one_strangers_leave_no_trace(open: Open) {
    each(|format, worn| {
        let mut bench = bench(open, format, 2);
        let alone = bench.alone_with(worn.as_ref(), &text(1, LENGTH), 64);
        for adapters in [&[None][..], &crowd()] {
            let among = among_strangers(&mut bench, worn, adapters);
            assert_same_bits(&format!("{format} with {}", name(worn)), &among, &alone);
        }
    });
}

/// Our text among strangers of all lengths, some in prefill and some in decode, before and behind; all move on at every
/// step. They have these adapters in turn.
fn among_strangers(bench: &mut Bench, worn: &Worn, adapters: &[Worn]) -> Vec<Vec<f32>> {
    let ours = text(1, LENGTH);
    let stranger = |i: usize| {
        let adapter = adapters[i % adapters.len()].as_ref();
        (bench.tables.name_with(adapter), text(100 + i as u32, 1 + (i * 11) % 90))
    };
    let strangers: Vec<(Name, Vec<TokenId>)> = (0..31).map(stranger).collect();
    let sequence = bench.tables.name_with(worn.as_ref());
    let mut among = Vec::new();
    for (step, chunk) in ours.chunks(13).enumerate() {
        let slice = |(name, tokens): &(Name, Vec<TokenId>)| {
            let size = tokens.len().div_ceil(12);
            let tokens = tokens.clone().into_iter().skip(step * size).take(size).collect::<Vec<_>>();
            (*name, step * size, tokens)
        };
        let parts: Vec<_> = strangers.iter().map(slice).filter(|(_, _, tokens)| !tokens.is_empty()).collect();
        let mut slices: Vec<Part<'_>> = parts
            .iter()
            .map(|(name, start, tokens)| Part { sequence: *name, start: *start, tokens, logits: LogitsOf::Last })
            .collect();
        let before = (step * 5) % (slices.len() + 1);
        let own = Part { sequence, start: step * 13, tokens: chunk, logits: LogitsOf::All };
        slices.insert(before, own);
        bench.run(&slices);
        among.extend(bench.rows(before..before + chunk.len()));
    }
    strangers.into_iter().for_each(|(name, _)| bench.tables.release(name));
    bench.tables.release(sequence);
    among
}

pub(crate) fn any_batch_size_gives_a_decode_the_same_bits(open: Open) {
    let mut bench = bench(open, "tiny/gguf/tiny-q4_1.gguf", 2);
    let (prompt, crowd) = (text(1, 20), crowd());
    for worn in extremes() {
        let alone = bench.alone_with(worn.as_ref(), &prompt, usize::MAX);
        for batch in 1..=40 {
            // Ours is in the middle; the others have any text and any adapter.
            let own = |index: usize| if index == batch / 2 { prompt.clone() } else { text(index as u32 + 7, 20) };
            let adapter = |index: usize| if index == batch / 2 { &worn } else { &crowd[index % 6] };
            let names: Vec<Name> = (0..batch).map(|index| bench.tables.name_with(adapter(index).as_ref())).collect();
            let texts: Vec<Vec<TokenId>> = (0..batch).map(own).collect();
            for (&name, text) in names.iter().zip(&texts) {
                bench.extend(name, 0, &text[..19], usize::MAX);
            }
            bench.run(&lasts(&names, &texts, 19));
            assert_same_bits(&format!("batch of {batch}"), &bench.rows(batch / 2..batch / 2 + 1), &alone[19..]);
            names.into_iter().for_each(|name| bench.tables.release(name));
        }
    }
}

pub(crate) fn a_batch_of_thirty_two_with_five_adapters_gives_each_the_bits_it_has_alone(open: Open) {
    for format in TINY {
        let mut bench = bench(open, format, 2);
        let crowd = crowd();
        // Neighbours rarely have the same adapter, and every one has rows of a prefill and single ones.
        let length = |index: usize| if index.is_multiple_of(5) { 9 + index } else { 1 };
        let texts: Vec<Vec<TokenId>> = (0..32).map(|index| text(index as u32, 20 + length(index))).collect();
        let adapter = |index: usize| crowd[index * 7 % 6].as_ref();
        let names: Vec<Name> = (0..32).map(|index| bench.tables.name_with(adapter(index))).collect();
        for (&name, text) in names.iter().zip(&texts) {
            bench.extend(name, 0, &text[..20], usize::MAX);
        }
        bench.run(&lasts(&names, &texts, 20));
        let rows = bench.rows(0..32);
        for (index, row) in rows.iter().enumerate() {
            let alone = bench.alone_with(adapter(index), &texts[index], 7).pop().unwrap();
            assert_same_bits(&format!("{format}: row {index}"), std::slice::from_ref(row), &[alone]);
        }
    }
}

/// What each text has from `start` on, all in one step.
fn lasts<'a>(names: &[Name], texts: &'a [Vec<TokenId>], start: usize) -> Vec<Part<'a>> {
    let part = |(&sequence, text): (&Name, &'a Vec<TokenId>)| Part {
        sequence,
        start,
        tokens: &text[start..],
        logits: LogitsOf::Last,
    };
    names.iter().zip(texts).map(part).collect()
}

pub(crate) fn a_fork_goes_on_as_if_it_had_been_computed(open: Open) {
    each(|format, worn| {
        let mut bench = bench(open, format, 2);
        let (root, trunk) = (bench.tables.name_with(worn.as_ref()), text(1, 70));
        bench.extend(root, 0, &trunk, 64);
        // Within a block, at its end, at its beginning, nothing, everything.
        for length in [37, 48, 49, 0, 70] {
            let left = bench.fork(root, length);
            let right = bench.fork(left, length);
            for (seed, branch) in [(5, left), (6, right)] {
                let tail = text(seed, 40);
                let forked = bench.extend(branch, length, &tail, 7);
                let recomputed = bench.alone_with(worn.as_ref(), &[&trunk[..length], &tail].concat(), 64);
                assert_same_bits(&format!("{format} fork at {length}"), &forked, &recomputed[length..]);
            }
            bench.tables.release(left);
            bench.tables.release(right);
        }
        let after = bench.extend(root, 70, &text(9, 5), 1);
        let untouched = bench.alone_with(worn.as_ref(), &[trunk, text(9, 5)].concat(), usize::MAX);
        assert_same_bits(&format!("{format} root"), &after, &untouched[70..]);
    });
}

pub(crate) fn a_fork_outlives_its_root(open: Open) {
    let mut bench = bench(open, "tiny/base", 2);
    let root = bench.name();
    bench.extend(root, 0, &text(1, 40), 64);
    let branch = bench.fork(root, 25);
    bench.tables.release(root);
    let forked = bench.extend(branch, 25, &text(2, 20), 64);
    let recomputed = bench.alone(&[&text(1, 40)[..25], &text(2, 20)].concat(), 64);
    assert_same_bits("fork without root", &forked, &recomputed[25..]);
}

pub(crate) fn where_blocks_are_and_what_they_held_before_does_not_show(open: Open) {
    each(|format, worn| {
        let mut bench = bench(open, format, 2);
        let (fresh, crowd) = (bench.alone_with(worn.as_ref(), &text(1, LENGTH), 64), crowd());
        let others: Vec<Name> = (0..8).map(|index| bench.tables.name_with(crowd[index % 6].as_ref())).collect();
        // Interleaved, so that a sequence's blocks are scattered; released in another order, so that they come back mixed.
        for start in (0..96).step_by(12) {
            for (seed, &name) in others.iter().enumerate() {
                bench.extend(name, start, &text(50 + seed as u32, 96)[start..start + 12], 12);
            }
        }
        [3, 0, 7, 5, 1, 6, 2, 4].into_iter().for_each(|at: usize| bench.tables.release(others[at]));
        assert_same_bits(format, &bench.alone_with(worn.as_ref(), &text(1, LENGTH), 7), &fresh);
    });
}

pub(crate) fn the_number_of_threads_does_not_show(open: Open) {
    each(|format, worn| {
        let one = bench(open, format, 1).alone_with(worn.as_ref(), &text(1, LENGTH), 64);
        for threads in [2, 5] {
            let several = bench(open, format, threads).alone_with(worn.as_ref(), &text(1, LENGTH), 64);
            assert_same_bits(&format!("{format} on {threads} threads"), &several, &one);
        }
    });
}

pub(crate) fn the_instruction_set_does_not_show(open: Open) {
    each(|format, worn| {
        let here = bench(open, format, 2).alone_with(worn.as_ref(), &text(1, LENGTH), 64);
        let on = |number| {
            open(Setup {
                model: &golden(format),
                threads: 1,
                instructions: Instructions::Number(number),
                layers: Layers::All,
            })
        };
        let sets: Vec<_> = (0..).map_while(on).collect();
        assert!(!sets.is_empty(), "the portable one is always there");
        for (number, backend) in sets.into_iter().enumerate() {
            let there = Bench::over(backend).alone_with(worn.as_ref(), &text(1, LENGTH), 64);
            assert_same_bits(&format!("{format} on set {number}"), &there, &here);
        }
    });
}

pub(crate) fn last_and_all_give_the_same_row(open: Open) {
    let mut bench = bench(open, "tiny/base", 2);
    let (tokens, sequence) = (text(1, 30), bench.name());
    let all = bench.alone(&tokens, usize::MAX);
    bench.run(&[Part { sequence, start: 0, tokens: &tokens[..12], logits: LogitsOf::None }]);
    bench.run(&[Part { sequence, start: 12, tokens: &tokens[12..], logits: LogitsOf::Last }]);
    assert_same_bits("last", &bench.rows(0..1), &all[29..]);
}

pub(crate) fn a_model_in_stages_gives_the_bits_of_the_whole(open: Open) {
    for format in TINY {
        let model = golden(format);
        let stage = |(begin, end)| {
            let layers = Layers::Between(begin, end);
            let setup = Setup { model: &model, threads: 1, instructions: Instructions::Best, layers };
            open(setup).expect("the best is there")
        };
        let split =
            |cuts: &[(usize, usize)]| Bench::over(Box::new(Split::new(cuts.iter().copied().map(stage).collect())));
        let whole = bench(open, format, 2).alone(&text(1, LENGTH), 64);
        for cuts in [&[(0, 4)][..], &[(0, 2), (2, 4)], &[(0, 1), (1, 3), (3, 4)], &[(0, 0), (0, 4)]] {
            let mut bench = split(cuts);
            assert_same_bits(&format!("{format} in {cuts:?}"), &bench.alone(&text(1, LENGTH), 7), &whole);
            let root = bench.name();
            bench.extend(root, 0, &text(1, LENGTH)[..70], 64);
            let fork = bench.fork(root, 70);
            let forked = bench.extend(fork, 70, &text(1, LENGTH)[70..], 1);
            assert_same_bits(&format!("{format} in {cuts:?}, forked"), &forked, &whole[70..]);
        }
    }
}

/// The contract's tests for the backend that `$open` opens.
macro_rules! keeps_the_contract {
    ($open:expr) => {
        $crate::backend::contract::keeps_the_contract! {
            $open;
            a_prefill_may_be_cut_anywhere
            an_adapter_changes_the_logits_and_no_two_the_same_way
            an_adapter_that_changes_nothing_here_leaves_the_base
            thirty_one_strangers_leave_no_trace
            any_batch_size_gives_a_decode_the_same_bits
            a_batch_of_thirty_two_with_five_adapters_gives_each_the_bits_it_has_alone
            a_fork_goes_on_as_if_it_had_been_computed
            a_fork_outlives_its_root
            where_blocks_are_and_what_they_held_before_does_not_show
            the_number_of_threads_does_not_show
            the_instruction_set_does_not_show
            last_and_all_give_the_same_row
            a_model_in_stages_gives_the_bits_of_the_whole
        }
    };
    ($open:expr; $($promise:ident)+) => {
        $(
            #[test]
            fn $promise() {
                $crate::backend::contract::$promise($open);
            }
        )+
    };
}
pub(crate) use keeps_the_contract;
