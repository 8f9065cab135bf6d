//! Memory of what every step reads: weights, adapters' updates, keys and values.
//!
//! It comes from the system in large runs, for which huge pages are asked: of 4 KB pages a model has tens of thousands, the
//! processor knows the places of few thousand, and it never reads ahead over a page's end. Reading weights for few rows is
//! half as fast again with pages of 2 MB. Where the system has none, this is memory like any other.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use crate::rows::Line;

/// Bytes of a huge page where pages have 4 KB: x86-64, and most of aarch64.
pub(crate) const HUGE_PAGE: usize = 2 << 20;
/// What advice to the system begins at a multiple of; larger pages refuse it, and then nothing is advised.
#[cfg(target_os = "linux")]
const SMALL_PAGE: usize = 4096;
/// What everything is aligned to: a cache line, which is a vector of the widest.
const ALIGNMENT: usize = size_of::<Line>();
/// Bytes that an arena takes at once. From its end on the C library gives a run back when it is freed; and pages that are never
/// written take no memory.
const CHUNK: usize = 32 << 20;

/// Numbers, or arrays of them.
///
/// # Safety
/// Zeros are a value, nothing is to be dropped, and the alignment is at most a cache line's.
pub(crate) unsafe trait Plain: Copy + Send + Sync {}

// SAFETY: numbers.
unsafe impl Plain for u8 {}
// SAFETY: numbers.
unsafe impl Plain for u16 {}
// SAFETY: arrays of numbers.
unsafe impl<const N: usize> Plain for [i8; N] {}
// SAFETY: arrays of numbers.
unsafe impl<const N: usize> Plain for [u16; N] {}
// SAFETY: arrays of numbers.
unsafe impl<const N: usize> Plain for [f32; N] {}
// SAFETY: a cache line of numbers.
unsafe impl Plain for Line {}

/// Zeros; the system's pages are taken when they are first written.
#[derive(Debug)]
pub(crate) struct Zeroed {
    /// What was allocated: some more than is used, so that what is used can begin on a page or a line.
    allocated: NonNull<u8>,
    layout: Layout,
    first: NonNull<u8>,
    bytes: usize,
}

// SAFETY: it owns its memory, like a `Vec`.
unsafe impl Send for Zeroed {}
// SAFETY: as above.
unsafe impl Sync for Zeroed {}

impl Zeroed {
    /// `None` where there is not so much memory. The layout has no alignment of its own: for a large one the standard library
    /// fetches memory and then writes the zeros, which takes every page at once.
    pub(crate) fn new(bytes: usize) -> Option<Self> {
        let alignment = if bytes < HUGE_PAGE { ALIGNMENT } else { HUGE_PAGE };
        let layout = Layout::array::<u8>(bytes.checked_add(alignment)?).ok()?;
        // SAFETY: the layout is not empty.
        let allocated = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        let skipped = allocated.as_ptr().align_offset(alignment);
        assert!(skipped <= alignment, "the next boundary is nearer than a whole one");
        // SAFETY: as many bytes were allocated on top.
        let first = unsafe { allocated.add(skipped) };
        if bytes >= HUGE_PAGE {
            ask_for_huge_pages(first, bytes);
        }
        Some(Self { allocated, layout, first, bytes })
    }

    /// Where it begins.
    pub(crate) fn first(&self) -> NonNull<u8> {
        self.first
    }

    pub(crate) fn as_slice<T: Plain>(&self) -> &[T] {
        // SAFETY: it is aligned, as many bytes were allocated, and zeros are values.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr().cast(), self.bytes / size_of::<T>()) }
    }

    pub(crate) fn as_mut_slice<T: Plain>(&mut self) -> &mut [T] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.first.as_ptr().cast(), self.bytes / size_of::<T>()) }
    }
}

impl Drop for Zeroed {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { dealloc(self.allocated.as_ptr(), self.layout) };
    }
}

/// Where the administrator wants none, or the system has none, nothing changes.
fn ask_for_huge_pages(first: NonNull<u8>, bytes: usize) {
    #[cfg(target_os = "linux")]
    // SAFETY: the range is allocated, begins on a page, and the advice changes no content.
    unsafe {
        libc::madvise(first.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (first, bytes);
}

/// Takes the pages of a range from the system now, whatever they hold. False where it does not know how.
pub(crate) fn take_pages(first: NonNull<u8>, bytes: usize) -> bool {
    #[cfg(target_os = "linux")]
    {
        let skipped = first.addr().get() % SMALL_PAGE;
        // SAFETY: from the beginning of the page on, which holds something of the caller's.
        let begin = unsafe { first.sub(skipped) };
        // SAFETY: the pages hold something of the caller's, and their content does not change.
        (unsafe { libc::madvise(begin.as_ptr().cast(), bytes + skipped, libc::MADV_POPULATE_WRITE) }) == 0
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (first, bytes);
        false
    }
}

/// Where the pieces of a model, or of an adapter, lie side by side. A clone is the same arena. Its memory goes when the last
/// piece does, so that what is loaded and dropped together has an arena of its own.
#[derive(Clone, Debug, Default)]
pub struct Arena(Arc<Mutex<Option<Open>>>);

/// The chunk that has room, perhaps.
#[derive(Debug)]
struct Open {
    chunk: Arc<Zeroed>,
    used: usize,
}

impl Arena {
    /// `length` zeros. Ends the process where there is not so much memory, like a `Vec`.
    pub(crate) fn zeros<T: Plain>(&self, length: usize) -> Piece<T> {
        const { assert!(align_of::<T>() <= ALIGNMENT && size_of::<T>() > 0) };
        let layout = Layout::array::<T>(length).expect("no more than the address space");
        let bytes = layout.size().next_multiple_of(ALIGNMENT);
        if bytes == 0 {
            return Piece { chunk: None, first: NonNull::dangling(), length: 0, values: PhantomData };
        }
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let has_room = |open: &Open| open.chunk.bytes - open.used >= bytes;
        let mut taken = open.take().filter(has_room).unwrap_or_else(|| {
            let chunk = Zeroed::new(bytes.max(CHUNK)).unwrap_or_else(|| handle_alloc_error(layout));
            Open { chunk: Arc::new(chunk), used: 0 }
        });
        // SAFETY: inside the chunk.
        let first = unsafe { taken.chunk.first.add(taken.used) }.cast();
        taken.used += bytes;
        let chunk = Some(taken.chunk.clone());
        *open = Some(taken);
        Piece { chunk, first, length, values: PhantomData }
    }
}

/// Values in an arena; nobody else has them.
#[derive(Debug)]
pub(crate) struct Piece<T> {
    /// What it lies in; nothing when it is empty.
    #[expect(dead_code, reason = "held, so that the memory stays")]
    chunk: Option<Arc<Zeroed>>,
    first: NonNull<T>,
    length: usize,
    values: PhantomData<T>,
}

// SAFETY: it owns its values, like a `Vec`.
unsafe impl<T: Plain> Send for Piece<T> {}
// SAFETY: as above.
unsafe impl<T: Plain> Sync for Piece<T> {}

impl<T: Plain> Deref for Piece<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: as many values lie there, zeros at first, as long as the chunk is held; no other piece has them.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.length) }
    }
}

impl<T: Plain> DerefMut for Piece<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.first.as_ptr(), self.length) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_an_arena_are_zeros_on_cache_lines_and_do_not_overlap() {
        let arena = Arena::default();
        let lengths = [1, 0, 100, CHUNK / 2, CHUNK / 2, 2 * CHUNK + 3, 5];
        let mut pieces: Vec<Piece<[u16; 3]>> = lengths.iter().map(|length| arena.zeros(*length / 6)).collect();
        let mut last: Piece<u8> = arena.clone().zeros(7);
        drop(arena);
        for (number, piece) in pieces.iter_mut().enumerate() {
            assert_eq!(piece.len(), lengths[number] / 6);
            assert!(piece.is_empty() || piece.as_ptr().addr().is_multiple_of(ALIGNMENT));
            assert!(piece.iter().all(|values| *values == [0; 3]), "piece {number} is not new");
            piece.fill([number as u16 + 1; 3]);
        }
        last.fill(255);
        for (number, piece) in pieces.iter().enumerate() {
            assert!(piece.iter().all(|values| *values == [number as u16 + 1; 3]), "piece {number} was written to");
        }
    }

    #[test]
    fn memory_is_not_there_where_there_is_not_so_much() {
        assert!(Zeroed::new(usize::MAX - 8).is_none() && Zeroed::new(isize::MAX as usize - HUGE_PAGE).is_none());
    }
}
