//! The promises of the reference backend: it agrees with the goldens, and its bits depend on nothing but the tokens
//! before.

mod families;
mod goldens;
mod operators;
mod real_model;
mod refusals;

use std::path::Path;
use std::sync::Arc;

use shoal_common::ids::TokenId;

use super::Reference;
use super::kernel::Machine;
use crate::adapters::Adapter;
use crate::backend::Backend;
use crate::backend::bench::{Bench, Instructions, Layers, Setup, argmax, golden, tokens};
use crate::backend::contract::keeps_the_contract;
use crate::weights::ModelFile;

/// The backend on the best instruction set of this CPU, or on the portable one, which is its number 0 and last.
fn open(setup: Setup<'_>) -> Option<Box<dyn Backend>> {
    let machine = match setup.instructions {
        Instructions::Best => Machine::detect(),
        Instructions::Number(0) => Machine::portable(),
        Instructions::Number(_) => return None,
    };
    let file = ModelFile::open(setup.model).unwrap();
    let layers = setup.layers.range(file.config.layers);
    Some(Box::new(Reference::load_part(&file, layers, setup.threads, machine).unwrap()))
}

keeps_the_contract!(open);

fn bench(model: &Path, threads: usize) -> Bench {
    Bench::over(
        open(Setup { model, threads, instructions: Instructions::Best, layers: Layers::All })
            .expect("the best is there"),
    )
}

fn tiny(format: &str, threads: usize) -> Bench {
    bench(&golden(format), threads)
}

/// Margin below which two tokens are as good as each other.
const MARGIN: f32 = 1e-3;

/// Greedy answers with an adapter or without, up to the first step whose golden margin is below [`MARGIN`], equal `golden`.
fn assert_greedy(
    bench: &mut Bench,
    adapter: Option<&Arc<Adapter>>,
    what: &str,
    prompt: &[u32],
    (golden, margins): (&[u32], &[f32]),
) {
    let sequence = bench.tables.name_with(adapter);
    let mut row = bench.extend(sequence, 0, &tokens(prompt), usize::MAX).pop().unwrap();
    for (step, (&expected, &by)) in golden.iter().zip(margins).enumerate() {
        if by < MARGIN {
            break;
        }
        assert_eq!(argmax(&row), expected as usize, "{what}: step {step}, margin {by}");
        row = bench.extend(sequence, prompt.len() + step, &[TokenId(expected)], 1).remove(0);
    }
    bench.tables.release(sequence);
}
