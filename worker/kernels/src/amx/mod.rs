//! Rows times weights on AMX tiles (x86-64 Linux). `matmul` hands a [`Share`] of a product over to here if the pool's
//! [`crate::Isa`] has tiles and there are rows enough.
//!
//! A **step** is what has one scale: a block of 32 inputs, or half of one. One instruction multiplies the rows of the groups
//! abreast by the 16 outputs of a panel, a step deep; deeper it cannot go, as every step is rescaled by itself. The weights
//! are unpacked to signed bytes first, so the sums of a tile are the portable code's dot products as they are; `matmul`'s
//! own functions rescale them, step by step in ascending order: the bits are the same.
//!
//! Four steps of a panel at a time, a **chunk**, stay in tile registers while all groups of the share pass over them; a chunk
//! and the groups abreast are a **unit**. The products of a unit and the rescaling of the one before take turns in the program,
//! so that the CPU does both at once. The compiler is kept from moving the additions: it moved them all to the end, and what
//! they need to the stack.

use std::arch::asm;
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
    let mut panels = share.panels.clone();
    while !panels.is_empty() {
        let (part, first) = share.matrix.part_of(panels.start);
        let count = panels.len().min(part.panels() - first);
        let stretch = Stretch { share: &share, part, panels: first..first + count };
        // SAFETY: the caller's promise.
        unsafe {
            match (part.encoding.group(), part.encoding.has_minima()) {
                (BLOCK, false) => stretch.with_depth::<BLOCK, false>(),
                (BLOCK, true) => stretch.with_depth::<BLOCK, true>(),
                (_, false) => stretch.with_depth::<HALF, false>(),
                (_, true) => stretch.with_depth::<HALF, true>(),
            }
        }
        panels.start += count;
    }
}

/// The panels of a share that are in one part.
struct Stretch<'a> {
    share: &'a Share<'a>,
    part: &'a Part,
    panels: Range<usize>,
}

impl Stretch<'_> {
    /// A step is `D` deep.
    ///
    /// # Safety
    /// As for [`multiply`].
    unsafe fn with_depth<const D: usize, const MIN: bool>(&self) {
        // An odd row more is computed for nothing: each of these is compiled for itself, and they are large.
        // SAFETY: the caller's promise.
        unsafe {
            match (self.share.x.abreast(), self.share.x.rows_of_a_group()) {
                (1, 4) => avx512::run(OnTiles::<D, MIN, 4, 1>(self)),
                (1, 5 | 6) => avx512::run(OnTiles::<D, MIN, 6, 1>(self)),
                (1, _) => avx512::run(OnTiles::<D, MIN, TOGETHER, 1>(self)),
                // Nine rows are five and four.
                (_, ..=6) => avx512::run(OnTiles::<D, MIN, 6, GROUPS_ABREAST>(self)),
                _ => avx512::run(OnTiles::<D, MIN, TOGETHER, GROUPS_ABREAST>(self)),
            }
        }
    }
}

/// A stretch of a thread that may use tiles, `G` groups of at most `R` rows abreast.
struct OnTiles<'a, const D: usize, const MIN: bool, const R: usize, const G: usize>(&'a Stretch<'a>);

impl<const D: usize, const MIN: bool, const R: usize, const G: usize> Op for OnTiles<'_, D, MIN, R, G> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self(stretch) = self;
        // SAFETY: whoever made an `OnTiles` may use tiles.
        let mut tiles = unsafe { Tiles::<D>::configure(G) };
        let mut scratch = Scratch::new();
        let (x, length) = stretch.share.x.blocks_from(stretch.share.groups.start);
        for index in stretch.panels.clone() {
            let product = Product { stretch, index, panel: Panel::of(stretch.part, index), x, length };
            scratch.multiply::<S, D, MIN, R, G>(s, &mut tiles, &product);
        }
    }
}

/// What a thread works with; it stays in the first level cache.
struct Scratch {
    /// Those of the steps that are multiplied and of the steps that come next, in turn.
    weights: [Unpacked; 2],
    /// Likewise; until the products of the steps before are rescaled, theirs.
    scales: [Scales; 2],
    /// Of the unit that is multiplied, and of the one before.
    dots: [Dots; 2],
    /// Of the share's groups, between their units.
    sums: [[MaybeUninit<Line>; TOGETHER]; GROUPS_PER_PASS],
}

/// A panel that is multiplied by the rows of a share.
struct Product<'a> {
    stretch: &'a Stretch<'a>,
    index: usize,
    panel: Panel<'a>,
    /// The share's rows: `[groups / abreast, blocks, groups abreast]`, and how many blocks those of the groups abreast are.
    x: &'a [RowBlocks],
    length: usize,
}

impl Product<'_> {
    /// Fetches the lines that the outputs of a unit go to: they are not in a cache, and its turn to be written is the next.
    #[inline(always)]
    fn expect_writes(&self, unit: Unit<'_>, groups: usize) {
        let Share { x, groups: all, .. } = self.stretch.share;
        let first = all.start + unit.group;
        for row in x.rows_of(first).start..x.rows_of(first + groups - 1).end {
            // SAFETY: a row and a panel of the share; and a hint.
            unsafe {
                let at = self.stretch.share.output(row, (self.stretch.part, self.index));
                asm!("prefetchw [{at}]", at = in(reg) at, options(nostack, preserves_flags, readonly));
            }
        }
    }
}

/// Up to four steps of the groups abreast.
#[derive(Clone, Copy)]
struct Unit<'a> {
    /// The first group of the share. Where fewer are left than go abreast, one is computed for nothing.
    group: usize,
    /// Which four steps, and how many of them there are.
    chunk: usize,
    steps: usize,
    /// `[blocks, groups abreast]`, from the first step on.
    x: &'a [RowBlocks],
    /// Which of the scratch's products are its own.
    dots: usize,
}

impl Scratch {
    #[inline(always)]
    fn new() -> Self {
        Self {
            weights: [Unpacked::ZERO; 2],
            scales: [Scales::ZERO; 2],
            dots: [Dots::ZERO; 2],
            sums: [[MaybeUninit::uninit(); TOGETHER]; GROUPS_PER_PASS],
        }
    }

    /// Writes the products of a panel and the rows of the share, of which `G` groups go abreast.
    #[inline(always)]
    fn multiply<S: Simd, const D: usize, const MIN: bool, const R: usize, const G: usize>(
        &mut self,
        s: S,
        tiles: &mut Tiles<D>,
        product: &Product<'_>,
    ) {
        let steps = product.panel.steps();
        let (chunks, pairs) = (steps.div_ceil(STEPS), product.stretch.share.groups.len().div_ceil(G));
        let of_chunk = STEPS * D / BLOCK * G;
        self.unpack::<S, D>(s, product, 0);
        tiles.load_rows::<4>(product.x, 0);
        let mut due: Option<Unit<'_>> = None;
        for chunk in 0..chunks {
            let steps = STEPS.min(steps - chunk * STEPS);
            tiles.load(&self.weights[chunk % 2]);
            for pair in 0..pairs {
                let x = &product.x[pair * product.length + chunk * of_chunk..];
                let now = Unit { group: pair * G, chunk, steps, x, dots: due.map_or(0, |due| 1 - due.dots) };
                // After the last, whatever it is.
                let next = if pair + 1 < pairs {
                    &now.x[product.length..]
                } else if chunk + 1 < chunks {
                    &product.x[(chunk + 1) * of_chunk..]
                } else {
                    product.x
                };
                match due {
                    Some(due) if steps == STEPS && due.steps == STEPS => {
                        self.both::<S, D, MIN, R, G, STEPS>(s, tiles, product, (now, due, next));
                    }
                    Some(due) if steps == 2 && due.steps == 2 => {
                        self.both::<S, D, MIN, R, G, 2>(s, tiles, product, (now, due, next));
                    }
                    // The first of a panel, the first of its last few steps, and any of three steps or one.
                    _ => {
                        tiles.multiply_all(now.x, steps, &mut self.dots[now.dots]);
                        tiles.load_rows::<4>(next, 0);
                        if let Some(due) = due {
                            self.rescale::<S, D, MIN, R, G>(s, product, due);
                        }
                    }
                }
                if pair == 0 && chunk + 1 < chunks {
                    self.unpack::<S, D>(s, product, chunk + 1);
                }
                due = Some(now);
            }
        }
        if let Some(due) = due {
            self.rescale::<S, D, MIN, R, G>(s, product, due);
        }
    }

    /// Unpacks the weights of a chunk: long before they go to registers.
    #[inline(always)]
    fn unpack<S: Simd, const D: usize>(&mut self, s: S, Product { panel, .. }: &Product<'_>, chunk: usize) {
        let (first, to) = (chunk * STEPS, chunk % 2);
        let steps = STEPS.min(panel.steps() - first);
        panel.read(s, first, steps, &mut self.scales[to]);
        panel.unpack::<S, D>(s, first, steps, &mut self.weights[to]);
    }

    /// Multiplies the `N` steps of a unit, whose first rows are in their register, and adds the products that are due to the
    /// sums of their groups, step by step in turn. What an instruction on tiles waits for was begun a step before, because a
    /// CPU that has another thread on the same core does not look ahead much further. At the end the first rows of `next` are
    /// in theirs.
    #[inline(always)]
    fn both<S: Simd, const D: usize, const MIN: bool, const R: usize, const G: usize, const N: usize>(
        &mut self,
        s: S,
        tiles: &mut Tiles<D>,
        product: &Product<'_>,
        (now, due, next): (Unit<'_>, Unit<'_>, &[RowBlocks]),
    ) {
        let mut sums = [self.recall(s, due, 0), if G > 1 { self.recall(s, due, 1) } else { [s.splat(0.0); R] }];
        if now.chunk * STEPS + N == product.panel.steps() {
            product.expect_writes(now, G);
        }
        let scales = &self.scales[due.chunk % 2];
        let [low, high] = &mut self.dots;
        let (to, dots) = if now.dots == 0 { (low, &*high) } else { (high, &*low) };
        tiles.load_rows::<5>(now.x, 1);
        tiles.multiply::<0, 4, 6>();
        add_all::<S, D, MIN, R, G>(s, (scales, 0), dots, due.x, &mut sums);
        tiles.load_rows::<4>(if N > 2 { &now.x[2 * D / BLOCK * G..] } else { next }, 0);
        tiles.store::<6>(to, 0);
        tiles.multiply::<1, 5, 7>();
        add_all::<S, D, MIN, R, G>(s, (scales, 1), dots, due.x, &mut sums);
        if N > 2 {
            tiles.load_rows::<5>(now.x, 3);
            tiles.store::<7>(to, 1);
            tiles.multiply::<2, 4, 6>();
            add_all::<S, D, MIN, R, G>(s, (scales, 2), dots, due.x, &mut sums);
            tiles.load_rows::<4>(next, 0);
            tiles.store::<6>(to, 2);
            tiles.multiply::<3, 5, 7>();
            add_all::<S, D, MIN, R, G>(s, (scales, 3), dots, due.x, &mut sums);
        }
        tiles.store::<7>(to, N - 1);
        let [one, other] = sums;
        self.keep(s, product, due, 0, one);
        if G > 1 {
            self.keep(s, product, due, 1, other);
        }
    }

    /// Adds the products that are due to the sums of their groups.
    #[inline(always)]
    fn rescale<S: Simd, const D: usize, const MIN: bool, const R: usize, const G: usize>(
        &mut self,
        s: S,
        product: &Product<'_>,
        due: Unit<'_>,
    ) {
        for group in 0..G {
            let mut sums = self.recall::<S, R>(s, due, group);
            let (scales, dots) = (&self.scales[due.chunk % 2], &self.dots[due.dots]);
            for step in 0..due.steps {
                let x = &due.x[step * D / BLOCK * G + group];
                add_step::<S, D, MIN, R>(s, (scales, step), dots.of(s, step, group), x, &mut sums);
            }
            self.keep(s, product, due, group, sums);
        }
    }

    /// The sums of a group of the unit before its steps.
    #[inline(always)]
    fn recall<S: Simd, const R: usize>(&self, s: S, due: Unit<'_>, group: usize) -> [S::F; R] {
        let mut sums = [s.splat(0.0); R];
        if due.chunk > 0 {
            for row in 0..R {
                // SAFETY: it was kept after the steps before.
                sums[row] = s.load(unsafe { &self.sums[due.group + group][row].assume_init_ref().0 });
            }
        }
        sums
    }

    /// Keeps the sums of a group of the unit after its steps, or writes them where they belong.
    #[inline(always)]
    fn keep<S: Simd, const R: usize>(
        &mut self,
        s: S,
        Product { stretch, index, panel, .. }: &Product<'_>,
        due: Unit<'_>,
        group: usize,
        mut sums: [S::F; R],
    ) {
        let group = due.group + group;
        if due.chunk * STEPS + due.steps < panel.steps() {
            for row in 0..R {
                s.store(sums[row], &mut self.sums[group][row].write(Line([0.0; LANES])).0);
            }
            return;
        }
        if let Some(bias) = stretch.part.bias(*index) {
            let bias = s.load(bias);
            for row in 0..R {
                sums[row] = s.add(sums[row], bias);
            }
        }
        let rows = stretch.share.x.rows_of(stretch.share.groups.start + group);
        // SAFETY: rows and a panel of the share.
        unsafe { stretch.share.write(s, rows, (stretch.part, *index), &sums) };
    }
}

/// Adds the products of one step to the sums of all groups.
#[inline(always)]
fn add_all<S: Simd, const D: usize, const MIN: bool, const R: usize, const G: usize>(
    s: S,
    (scales, step): (&Scales, usize),
    dots: &Dots,
    x: &[RowBlocks],
    sums: &mut [[S::F; R]; GROUPS_ABREAST],
) {
    let x = pinned(x);
    let [one, other] = sums;
    add_pinned::<S, D, MIN, R>(s, (scales, step), dots.of(s, step, 0), &x[step * D / BLOCK * G], one);
    if G > 1 {
        add_pinned::<S, D, MIN, R>(s, (scales, step), dots.of(s, step, 1), &x[step * D / BLOCK * G + 1], other);
    }
}

/// The same slice, but the compiler does not know that, and so reads nothing of it before this place in the program.
#[expect(clippy::pointers_in_nomem_asm_block, reason = "there is no instruction that could read what it points to")]
#[inline(always)]
fn pinned<T>(slice: &[T]) -> &[T] {
    let mut at = slice.as_ptr();
    // SAFETY: no instruction.
    unsafe { asm!("/* {at} */", at = inout(reg) at, options(nomem, nostack, preserves_flags)) };
    // SAFETY: the same slice.
    unsafe { std::slice::from_raw_parts(at, slice.len()) }
}

/// As [`add_step`], at this place in the program.
#[inline(always)]
fn add_pinned<S: Simd, const D: usize, const MIN: bool, const R: usize>(
    s: S,
    scales: (&Scales, usize),
    dots: [S::I; R],
    x: &RowBlocks,
    sums: &mut [S::F; R],
) {
    add_step::<S, D, MIN, R>(s, scales, dots, x, sums);
    for sum in sums {
        *sum = s.pinned(*sum);
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
