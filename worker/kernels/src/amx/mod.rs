//! Rows times weights on AMX tiles (x86-64 Linux). `matmul` hands a [`Share`] of a product over to here if the pool's
//! [`crate::Isa`] has tiles and there are rows enough.
//!
//! A **step** is what has one scale: a block of 32 inputs, or half of one. One instruction multiplies the rows of the groups
//! abreast by the 16 outputs of a panel, a step deep; deeper it cannot go, as every step is rescaled by itself. The weights
//! are unpacked to signed bytes first, so the sums of a tile are the portable code's dot products as they are; `matmul`'s
//! own functions rescale them, step by step in ascending order: the bits are the same.
//!
//! Four steps of a panel at a time stay in tile registers while all groups of the share pass over them. The products of
//! some groups and the rescaling of those before take turns in the program, so that the CPU does both at once.

use std::mem::MaybeUninit;
use std::ops::Range;

use crate::activations::{GROUPS_ABREAST, RowBlocks, TOGETHER};
use crate::matmul::{GROUPS_PER_PASS, Share, WHOLE, add_dots, add_minimum};
use crate::matrix::Part;
use crate::rows::{BLOCK, Line};
use crate::simd::{LANES, Op, Simd, avx512};

mod check;
mod detect;
mod tiles;
mod weights;

use tiles::{Dots, STEPS, Tiles};
use weights::{Panel, Scales, Unpacked};

pub(crate) use detect::is_available;

/// Groups with fewer rows are faster on vectors: unpacking and storing costs as much for them as for eight rows.
pub(crate) const LEAST_ROWS: usize = 4;

const HALF: usize = BLOCK / 2;

/// Multiplies on tiles.
///
/// # Safety
/// This thread may use AMX int8 tiles and AVX-512 as in [`avx512::run`].
pub(crate) unsafe fn multiply(share: Share<'_>) {
    // SAFETY: the caller's promise.
    unsafe { avx512::run(OnTiles(share)) }
}

/// A share of a thread that may use tiles.
struct OnTiles<'a>(Share<'a>);

impl Op for OnTiles<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut panels = self.0.panels.clone();
        while !panels.is_empty() {
            let (part, first) = self.0.matrix.part_of(panels.start);
            let count = panels.len().min(part.panels() - first);
            Stretch { share: &self.0, part, panels: first..first + count }.multiply(s);
            panels.start += count;
        }
    }
}

/// The panels of a share that are in one part.
struct Stretch<'a> {
    share: &'a Share<'a>,
    part: &'a Part,
    panels: Range<usize>,
}

impl Stretch<'_> {
    #[inline(always)]
    fn multiply<S: Simd>(&self, s: S) {
        match (self.part.encoding.group(), self.part.encoding.has_minima()) {
            (BLOCK, false) => self.with_depth::<S, BLOCK, false>(s),
            (BLOCK, true) => self.with_depth::<S, BLOCK, true>(s),
            (_, false) => self.with_depth::<S, HALF, false>(s),
            (_, true) => self.with_depth::<S, HALF, true>(s),
        }
    }

    /// A step is `D` deep.
    #[inline(always)]
    fn with_depth<S: Simd, const D: usize, const MIN: bool>(&self, s: S) {
        // An odd row more is computed for nothing: each of these is compiled for itself, and they are large.
        match self.share.x.rows_of_a_group() {
            4 => self.with_rows::<S, D, MIN, 4>(s),
            5 | 6 => self.with_rows::<S, D, MIN, 6>(s),
            _ => self.with_rows::<S, D, MIN, TOGETHER>(s),
        }
    }

    #[inline(always)]
    fn with_rows<S: Simd, const D: usize, const MIN: bool, const R: usize>(&self, s: S) {
        // SAFETY: whoever made an `OnTiles` may use tiles.
        let mut tiles = unsafe { Tiles::<D>::configure(self.share.x.abreast()) };
        let mut scratch = Scratch::new();
        for panel in self.panels.clone() {
            scratch.multiply::<S, D, MIN, R>(s, &mut tiles, self, panel);
            for (group, sums) in self.share.groups.clone().zip(&scratch.sums) {
                let group = self.share.x.group(group);
                // SAFETY: `multiply` has set the sums of the share's groups.
                let sums = unsafe { sums.assume_init_ref() };
                for (row, sum) in sums.iter().enumerate().take(group.rows) {
                    let mut sum = s.load(&sum.0);
                    if let Some(bias) = self.part.bias(panel) {
                        sum = s.add(sum, s.load(bias));
                    }
                    // SAFETY: a row and a panel of the share.
                    unsafe { self.share.write(s, group.first + row, (self.part, panel), sum) };
                }
            }
        }
    }
}

/// The sums of a group's rows and a panel.
type Sums = [Line; TOGETHER];

/// What a thread works with; it stays in the first level cache.
struct Scratch {
    weights: Unpacked,
    /// Those of the steps that are multiplied, and of the steps before.
    scales: [Scales; 2],
    /// Of the groups that are multiplied, and of those before.
    dots: [Dots; 2],
    /// Set for as many groups as the share has.
    sums: [MaybeUninit<Sums>; GROUPS_PER_PASS],
}

/// Products that wait to be rescaled.
struct Due<'a> {
    /// The first group of the share, and how many.
    group: usize,
    groups: usize,
    /// Index of the first step.
    first: usize,
    steps: usize,
    /// `[blocks, groups abreast]`, from the first step on.
    x: &'a [RowBlocks],
}

impl Scratch {
    #[inline(always)]
    fn new() -> Self {
        Self {
            weights: Unpacked::ZERO,
            scales: [Scales::ZERO; 2],
            dots: [Dots::ZERO; 2],
            sums: [MaybeUninit::uninit(); GROUPS_PER_PASS],
        }
    }

    /// Sets the sums of all groups of the share.
    #[inline(always)]
    fn multiply<S: Simd, const D: usize, const MIN: bool, const R: usize>(
        &mut self,
        s: S,
        tiles: &mut Tiles<D>,
        stretch: &Stretch<'_>,
        panel: usize,
    ) {
        let share = stretch.share;
        let (groups, abreast) = (share.groups.len(), share.x.abreast());
        for sums in &mut self.sums[..groups] {
            sums.write([Line([0.0; LANES]); TOGETHER]);
        }
        let panel = Panel::of(stretch.part, panel);
        let (mut before, mut turn): (Option<Due<'_>>, _) = (None, 0);
        let (mut first, mut group) = (0, 0);
        loop {
            let mut now: Option<Due<'_>> = None;
            if first < panel.steps() {
                let steps = STEPS.min(panel.steps() - first);
                if group == 0 {
                    panel.read(s, first, steps, &mut self.scales[first / STEPS % 2]);
                    panel.unpack::<D>(first, steps, &mut self.weights);
                    tiles.load(&self.weights);
                }
                let x = &share.x.blocks_from(share.groups.start + group)[first * D / BLOCK * abreast..];
                now = Some(Due { group, groups: abreast.min(groups - group), first, steps, x });
            }
            match (&now, &before) {
                (Some(now), Some(due)) if now.steps == STEPS && due.steps == STEPS && due.groups == GROUPS_ABREAST => {
                    self.step_by_step::<S, D, MIN, R>(s, tiles, now.x, due, turn);
                }
                _ => {
                    if let Some(now) = &now {
                        tiles.multiply(now.x, now.steps, &mut self.dots[turn]);
                    }
                    if let Some(due) = &before {
                        for group in 0..due.groups {
                            self.rescale::<S, D, MIN, R>(s, due, (group, abreast), 1 - turn);
                        }
                    }
                }
            }
            if now.is_none() {
                return;
            }
            before = now;
            turn = 1 - turn;
            group += abreast;
            if group >= groups {
                (first, group) = (first + STEPS, 0);
            }
        }
    }

    /// Multiplies four steps of `x`, and adds the products that are due to the sums of their two groups: a step of the one, then
    /// a step of the other, because the CPU looks ahead no further than that. With one group it does.
    #[inline(always)]
    fn step_by_step<S: Simd, const D: usize, const MIN: bool, const R: usize>(
        &mut self,
        s: S,
        tiles: &mut Tiles<D>,
        x: &[RowBlocks],
        due: &Due<'_>,
        turn: usize,
    ) {
        let scales = &self.scales[due.first / STEPS % 2];
        let [low, high] = &mut self.dots;
        let (to, dots) = if turn == 0 { (low, &*high) } else { (high, &*low) };
        let mut sums = [[s.splat(0.0); R]; GROUPS_ABREAST];
        for group in 0..GROUPS_ABREAST {
            // SAFETY: `multiply` has set the sums of the share's groups.
            let memory = unsafe { self.sums[due.group + group].assume_init_ref() };
            for row in 0..R {
                sums[group][row] = s.load(&memory[row].0);
            }
        }
        for step in 0..STEPS {
            tiles.multiply_step(x, step, to);
            for group in 0..GROUPS_ABREAST {
                let x = &due.x[step * D / BLOCK * GROUPS_ABREAST + group];
                add_step::<S, D, MIN, R>(s, (scales, step), dots.of(s, step, group), x, &mut sums[group]);
            }
        }
        for group in 0..GROUPS_ABREAST {
            // SAFETY: as above.
            let memory = unsafe { self.sums[due.group + group].assume_init_mut() };
            for row in 0..R {
                s.store(sums[group][row], &mut memory[row].0);
            }
        }
    }

    /// Adds products to the sums of one of their groups.
    #[inline(always)]
    fn rescale<S: Simd, const D: usize, const MIN: bool, const R: usize>(
        &mut self,
        s: S,
        due: &Due<'_>,
        (group, abreast): (usize, usize),
        turn: usize,
    ) {
        let (scales, dots) = (&self.scales[due.first / STEPS % 2], &self.dots[turn]);
        // SAFETY: `multiply` has set the sums of the share's groups.
        let memory = unsafe { self.sums[due.group + group].assume_init_mut() };
        let mut sums = [s.splat(0.0); R];
        for row in 0..R {
            sums[row] = s.load(&memory[row].0);
        }
        for step in 0..due.steps {
            let x = &due.x[step * D / BLOCK * abreast + group];
            add_step::<S, D, MIN, R>(s, (scales, step), dots.of(s, step, group), x, &mut sums);
        }
        for row in 0..R {
            s.store(sums[row], &mut memory[row].0);
        }
    }
}

/// Adds the products of one step to the sums of a group.
#[inline(always)]
fn add_step<S: Simd, const D: usize, const MIN: bool, const R: usize>(
    s: S,
    (scales, step): (&Scales, usize),
    dots: [S::I; R],
    x: &RowBlocks,
    sums: &mut [S::F; R],
) {
    let x = x.first_chunk().expect("as many rows as a group has");
    add_dots(s, dots, s.load(&scales.scales[step].0), x, sums);
    if MIN {
        let minimum = s.load(&scales.minima[step].0);
        match (D, step % (BLOCK / D)) {
            (BLOCK, _) => add_minimum::<S, R, WHOLE>(s, minimum, x, sums),
            (_, 0) => add_minimum::<S, R, 0>(s, minimum, x, sums),
            _ => add_minimum::<S, R, 1>(s, minimum, x, sums),
        }
    }
}

const _: () =
    assert!(GROUPS_PER_PASS.is_multiple_of(GROUPS_ABREAST), "a share begins with groups that lie side by side");

#[cfg(test)]
mod emulator;
#[cfg(test)]
mod tests;
