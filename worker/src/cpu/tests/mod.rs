//! The promises of the cpu backend: the numerics contract, and agreement with the reference backend and the goldens as far
//! as int8 activations allow.

mod agreement;
mod blocks;
mod real_model;
mod steps;

use std::num::NonZero;

use shoal_common::config::Quant;
use shoal_kernels::{Isa, Pool};

use super::Cpu;
use crate::backend::Backend;
use crate::backend::bench::{Instructions, Setup};
use crate::backend::contract::keeps_the_contract;
use crate::weights::ModelFile;

/// The backend, on one of the instruction sets that this CPU has.
fn open(setup: Setup<'_>) -> Option<Box<dyn Backend>> {
    let isa = match setup.instructions {
        Instructions::Best => Isa::best(),
        Instructions::Number(number) => *Isa::available().get(number)?,
    };
    let file = ModelFile::open(setup.model).unwrap();
    let threads = NonZero::new(setup.threads).unwrap();
    let (layers, pool) = (setup.layers.range(file.config.layers), Pool::new(threads, isa).unwrap());
    Some(Box::new(Cpu::load_part(&file, layers, pool, Quant::Q8_0).unwrap()))
}

keeps_the_contract!(open);
