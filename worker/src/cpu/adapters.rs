//! The adapters of a step on the kernels: which rows have which, and their updates at every site. Called by the walk in
//! `model`, which it costs nothing where no slice has an adapter.

use shoal_kernels::{Kept, Lora, Rows, Updates};

use crate::adapters::Site;
use crate::backend::Slice;

/// The adapters of a step, numbered in the order in which slices name them first.
#[derive(Debug, Default)]
pub(super) struct Adapters {
    lora: Lora,
    /// The first slice that names each adapter.
    first: Vec<usize>,
    /// The number of each slice's adapter.
    numbers: Vec<Option<usize>>,
}

impl Adapters {
    /// Lays out the step of `slices`.
    pub(super) fn plan(&mut self, slices: &[Slice<'_>]) {
        self.first.clear();
        self.numbers.clear();
        for (at, slice) in slices.iter().enumerate() {
            let number = slice.adapter.map(|adapter| {
                let is_same = |&first: &usize| slices[first].adapter.is_some_and(|known| std::ptr::eq(known, adapter));
                self.first.iter().position(is_same).unwrap_or_else(|| {
                    self.first.push(at);
                    self.first.len() - 1
                })
            });
            self.numbers.push(number);
        }
        self.lora.plan(slices.iter().map(|slice| slice.tokens.len()).zip(self.numbers.iter().copied()));
    }

    /// Where rows that are about to be quantised are kept for the adapters.
    pub(super) fn keep<'a>(&'a self, rows: &'a mut Rows) -> Option<Kept<'a>> {
        (!self.lora.is_idle()).then_some(Kept { rows, lora: &self.lora })
    }

    /// What the adapters of `slices`, which are the planned ones, make of `x` at a layer's site.
    pub(super) fn at<'a>(
        &'a mut self,
        slices: &[Slice<'a>],
        (layer, site): (usize, Site),
        x: &'a Rows,
    ) -> Option<Updates<'a>> {
        let Self { lora, first, .. } = self;
        (!lora.is_idle()).then(|| lora.updates(|number| slices[first[number]].adapter?.update(layer, site), x))
    }
}
