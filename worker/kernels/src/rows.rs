//! Rows of f32 that kernels read and write: each begins on a cache line and ends in zeros up to a whole block, so that no
//! kernel has a tail.

use crate::simd::LANES;

/// Elements of a quantised block; every row is a whole number of them.
pub const BLOCK: usize = 32;

/// A cache line.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [f32; LANES]);

/// The elements of a row of `length`, rounded up to whole blocks.
pub fn padded(length: usize) -> usize {
    length.next_multiple_of(BLOCK)
}

/// Rows of f32, `[rows, padded(width)]`. What is beyond `width` is zero as long as only kernels write.
#[derive(Clone, Debug)]
pub struct Rows {
    width: usize,
    count: usize,
    lines: Vec<Line>,
}

impl Rows {
    /// No rows yet, of `width` elements.
    pub fn new(width: usize) -> Self {
        Self { width, count: 0, lines: Vec::new() }
    }

    /// Makes it `count` rows. Values are those of before; new rows are zero. Memory is kept for the largest count so far.
    pub fn resize(&mut self, count: usize) {
        self.count = count;
        let lines = count * self.stride() / LANES;
        if lines > self.lines.len() {
            self.lines.resize(lines, Line([0.0; LANES]));
        }
    }

    /// Elements of a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Elements from a row to the next.
    pub fn stride(&self) -> usize {
        padded(self.width)
    }

    /// Rows.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Row `index`, `[width]`.
    pub fn row(&self, index: usize) -> &[f32] {
        &self.padded_row(index)[..self.width]
    }

    /// Row `index`, `[width]`.
    pub fn row_mut(&mut self, index: usize) -> &mut [f32] {
        let (width, stride) = (self.width, self.stride());
        &mut self.values_mut()[index * stride..][..width]
    }

    pub(crate) fn padded_row(&self, index: usize) -> &[f32] {
        assert!(index < self.count, "row {index} of {}", self.count);
        &self.values()[index * self.stride()..][..self.stride()]
    }

    pub(crate) fn values(&self) -> &[f32] {
        // SAFETY: a line is 16 f32 without padding.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.lines.len() * LANES) }
    }

    pub(crate) fn values_mut(&mut self) -> &mut [f32] {
        let length = self.lines.len() * LANES;
        // SAFETY: a line is 16 f32 without padding.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), length) }
    }
}

/// A pointer that threads of a pool write disjoint parts through.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shared<T>(*mut T);

// SAFETY: whoever writes through it keeps to a part of its own.
unsafe impl<T: Send> Sync for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Shared<T> {}

impl<T> Shared<T> {
    pub(crate) fn new(values: &mut [T]) -> Self {
        Self(values.as_mut_ptr())
    }

    /// # Safety
    /// `at` is inside the slice it was made of, which is still borrowed.
    #[inline(always)]
    pub(crate) unsafe fn pointer(&self, at: usize) -> *mut T {
        // SAFETY: the caller's promise.
        unsafe { self.0.add(at) }
    }

    /// # Safety
    /// `at..at + length` is inside the slice it was made of, which is still borrowed, and nobody else uses that part.
    #[expect(clippy::mut_from_ref, reason = "the caller promises that parts are disjoint")]
    #[inline(always)]
    pub(crate) unsafe fn part(&self, at: usize, length: usize) -> &mut [T] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(at), length) }
    }

    /// # Safety
    /// `at..at + length` is inside the slice it was made of, which is still borrowed, and nobody writes to that part.
    #[inline(always)]
    pub(crate) unsafe fn read(&self, at: usize, length: usize) -> &[T] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts(self.0.add(at), length) }
    }
}
