//! The tile registers, and all instructions on them. Nothing else in the process uses them, the compiler included: what one
//! `asm!` leaves in them the next one finds.
//!
//! | registers | hold | shape |
//! |---|---|---|
//! | 0 to 3 | the weights of four steps | `[D / 4 quads of inputs, 16 outputs x 4 bytes]` |
//! | 4 and 5, in turn | the rows of a step | `[rows, D bytes]` |
//! | 6 and 7, in turn | their products | `[rows, 16 outputs]` i32 |
//!
//! The rows are those of one group, or of two that lie side by side: sixteen rows take the multiplier no longer than eight.

use std::arch::asm;
use std::marker::PhantomData;

use super::weights::Unpacked;
use crate::activations::{GROUPS_ABREAST, ROW_BLOCK, RowBlocks, TOGETHER};
use crate::rows::{BLOCK, Line};
use crate::simd::Simd;

/// Steps whose weights are in registers together.
pub(super) const STEPS: usize = 4;

/// Bytes from a line of weights to the next, and of products.
pub(super) const LINE: usize = 64;

/// What `ldtilecfg` reads.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// Of steps `depth` deep, times `rows` rows.
const fn config(depth: usize, rows: usize) -> Config {
    let mut config = Config { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
    let mut tile = 0;
    while tile < 8 {
        let (lines, row_bytes) = match tile {
            0..4 => (depth / 4, LINE),
            4..6 => (rows, depth),
            _ => (rows, LINE),
        };
        (config.rows[tile], config.row_bytes[tile]) = (lines as u8, row_bytes as u16);
        tile += 1;
    }
    config
}

/// This thread's tile registers, set up for steps of `D` inputs. Dropped, they are given back: a thread that keeps them has
/// 8 KiB more to save at every context switch.
pub(super) struct Tiles<const D: usize> {
    /// Groups whose rows are multiplied together.
    abreast: usize,
    of_this_thread: PhantomData<*mut ()>,
}

impl<const D: usize> Tiles<D> {
    const CONFIGS: [Config; GROUPS_ABREAST] = [config(D, TOGETHER), config(D, 2 * TOGETHER)];

    /// Sets the registers up for the rows of `abreast` groups; there is one of these at a time.
    ///
    /// # Safety
    /// The CPU has AMX int8 tiles and the system lets this thread use them.
    #[inline(always)]
    pub(super) unsafe fn configure(abreast: usize) -> Self {
        const { assert!(D == BLOCK || D == BLOCK / 2) };
        let config: *const Config = &Self::CONFIGS[abreast - 1];
        // SAFETY: the caller's promise; a configuration is 64 bytes, and this one is valid.
        unsafe { asm!("ldtilecfg [{config}]", config = in(reg) config, options(nostack, preserves_flags, readonly)) };
        Self { abreast, of_this_thread: PhantomData }
    }

    /// Takes the weights of the next steps.
    #[inline(always)]
    pub(super) fn load(&mut self, weights: &Unpacked) {
        // SAFETY: the tiles are set up; each is at most the eight lines of a step.
        unsafe {
            asm!(
                "tileloadd tmm0, [{weights} + {line}*1]",
                "tileloadd tmm1, [{weights} + {line}*1 + 512]",
                "tileloadd tmm2, [{weights} + {line}*1 + 1024]",
                "tileloadd tmm3, [{weights} + {line}*1 + 1536]",
                weights = in(reg) &raw const *weights,
                line = in(reg) LINE,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                options(nostack, preserves_flags, readonly)
            );
        }
    }

    /// Takes the rows of step `step` of `x`, `[blocks, groups abreast]`, into register `ROWS`.
    #[inline(always)]
    pub(super) fn load_rows<const ROWS: usize>(&mut self, x: &[RowBlocks], step: usize) {
        const { assert!(ROWS == 4 || ROWS == 5) };
        assert!(x.len() >= (step * D / BLOCK + 1) * self.abreast, "blocks of the step");
        // Within its block, a half begins where the halves before end.
        let quants = x.as_ptr().cast::<i8>().wrapping_add(step * D / BLOCK * self.abreast * size_of::<RowBlocks>());
        let quants = quants.wrapping_add(step * D % BLOCK);
        // SAFETY: the tiles are set up. D bytes are read of each row of the groups' blocks.
        unsafe {
            asm!(
                "tileloadd tmm{rows}, [{quants} + {row}*1]",
                rows = const ROWS,
                quants = in(reg) quants,
                row = in(reg) ROW_BLOCK,
                out("tmm4") _, out("tmm5") _,
                options(nostack, preserves_flags, readonly)
            );
        }
    }

    /// Register `PRODUCT` becomes the products of the rows in `ROWS` and the weights in `STEP`.
    #[inline(always)]
    pub(super) fn multiply<const STEP: usize, const ROWS: usize, const PRODUCT: usize>(&mut self) {
        const { assert!(STEP < STEPS && (ROWS == 4 || ROWS == 5) && (PRODUCT == 6 || PRODUCT == 7)) };
        // SAFETY: the tiles are set up, with shapes that fit each other.
        unsafe {
            asm!(
                "tilezero tmm{product}",
                "tdpbssd tmm{product}, tmm{rows}, tmm{step}",
                product = const PRODUCT,
                rows = const ROWS,
                step = const STEP,
                out("tmm6") _, out("tmm7") _,
                options(nostack, preserves_flags, nomem)
            );
        }
    }

    /// The products of the first `count` steps of `x`, `[blocks, groups abreast]`, and the weights that were loaded.
    #[inline(always)]
    pub(super) fn multiply_all(&mut self, x: &[RowBlocks], count: usize, to: &mut Dots) {
        for step in 0..count {
            match step {
                0 => self.step::<0, 4, 6>(x, to),
                1 => self.step::<1, 5, 7>(x, to),
                2 => self.step::<2, 4, 6>(x, to),
                _ => self.step::<3, 5, 7>(x, to),
            }
        }
    }

    /// Step `STEP`, from its rows to its products.
    #[inline(always)]
    fn step<const STEP: usize, const ROWS: usize, const PRODUCT: usize>(&mut self, x: &[RowBlocks], to: &mut Dots) {
        self.load_rows::<ROWS>(x, STEP);
        self.multiply::<STEP, ROWS, PRODUCT>();
        self.store::<PRODUCT>(to, STEP);
    }

    /// Writes the products in register `PRODUCT` to those of step `step`.
    #[inline(always)]
    pub(super) fn store<const PRODUCT: usize>(&mut self, to: &mut Dots, step: usize) {
        const { assert!(PRODUCT == 6 || PRODUCT == 7) };
        // SAFETY: the tiles are set up; as many lines are written as a step has, at most.
        unsafe {
            asm!(
                "tilestored [{to} + {line}*1], tmm{product}",
                product = const PRODUCT,
                to = in(reg) &raw mut to.0[step],
                line = in(reg) LINE,
                options(nostack, preserves_flags)
            );
        }
    }
}

impl<const D: usize> Drop for Tiles<D> {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: the tiles are set up, and nobody needs what is in them.
        unsafe {
            asm!(
                "tilerelease",
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, preserves_flags, nomem)
            );
        }
    }
}

/// Dot products of the rows of the groups abreast with a panel, `[steps, groups, rows, outputs]`: bits of i32.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Dots([[[Line; TOGETHER]; GROUPS_ABREAST]; STEPS]);

impl Dots {
    pub(super) const ZERO: Self = Self([[[Line([0.0; LINE / 4]); TOGETHER]; GROUPS_ABREAST]; STEPS]);

    /// Those of one step and the first `R` rows of a group.
    #[inline(always)]
    pub(super) fn of<S: Simd, const R: usize>(&self, s: S, step: usize, group: usize) -> [S::I; R] {
        let mut dots = [s.splat_i(0); R];
        for (dot, row) in dots.iter_mut().zip(&self.0[step][group]) {
            *dot = s.bits(s.load(&row.0));
        }
        dots
    }
}
