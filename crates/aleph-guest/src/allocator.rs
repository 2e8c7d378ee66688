//! The agent's heap: small, and it gives memory back.
//!
//! Up to half a page, a request is rounded up to a power of two and served from a list of free
//! pieces of that size; pages are cut into such pieces and stay with their size. What is larger
//! is its own mapping, so it goes back to the kernel when it is freed, and grows by moving page
//! table entries instead of bytes. The agent's small pieces are few and alike, its large ones
//! are the buffers of streams, so this fits it better than a general allocator of many times
//! the code.
#![allow(unsafe_code)]

use crate::sys;
use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::ptr::{self, NonNull};

const PAGE: usize = 4096;
const SMALLEST: usize = 16;
const LARGEST: usize = PAGE / 2;
const CLASSES: usize = (LARGEST / SMALLEST).trailing_zeros() as usize + 1;
/// Pages are taken from the kernel in this many bytes; untouched ones cost nothing.
const REGION: usize = 16 * PAGE;

struct Piece {
    next: Option<NonNull<Piece>>,
}

struct Heap {
    free: [Option<NonNull<Piece>>; CLASSES],
    /// The part of the newest region that is not cut yet.
    fresh: *mut u8,
    left: usize,
}

/// The allocator, to be a `#[global_allocator]` of a program with one thread.
pub struct Allocator(UnsafeCell<Heap>);

// SAFETY: the agent has one thread, and a child that shares its memory does not allocate.
unsafe impl Sync for Allocator {}

impl Default for Allocator {
    fn default() -> Self {
        Self::new()
    }
}

impl Allocator {
    /// An empty heap.
    #[must_use]
    pub const fn new() -> Self {
        Self(UnsafeCell::new(Heap {
            free: [None; CLASSES],
            fresh: ptr::null_mut(),
            left: 0,
        }))
    }
}

impl core::fmt::Debug for Allocator {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Allocator")
    }
}

/// The class of pieces that serves a layout, or `None` for a mapping of its own.
fn class(layout: Layout) -> Option<usize> {
    let size = layout.size().max(layout.align()).max(SMALLEST);
    (size <= LARGEST).then(|| (size.next_power_of_two() / SMALLEST).trailing_zeros() as usize)
}

fn pages(size: usize) -> usize {
    size.next_multiple_of(PAGE)
}

impl Heap {
    /// A piece of a class, from its list or from a fresh page.
    fn take(&mut self, class: usize) -> *mut u8 {
        if self.free[class].is_none() && !self.refill(class) {
            return ptr::null_mut();
        }
        let Some(piece) = self.free[class] else {
            return ptr::null_mut();
        };
        // SAFETY: what is on a list is a free piece, and its link was written when it got there.
        self.free[class] = unsafe { piece.as_ref() }.next;
        piece.as_ptr().cast()
    }

    fn put(&mut self, class: usize, piece: *mut u8) {
        let Some(piece) = NonNull::new(piece.cast::<Piece>()) else {
            return;
        };
        let next = self.free[class];
        // SAFETY: the piece is free, at least as large as a link, and aligned to its size.
        unsafe { piece.write(Piece { next }) };
        self.free[class] = Some(piece);
    }

    /// Cuts a fresh page into pieces, which are aligned to their size since the page is.
    fn refill(&mut self, class: usize) -> bool {
        if self.left == 0 {
            let region = sys::map(REGION);
            if region.is_null() {
                return false;
            }
            (self.fresh, self.left) = (region, REGION);
        }
        let page = self.fresh;
        // SAFETY: a page is left, so the pointer stays within the region or at its end.
        self.fresh = unsafe { page.add(PAGE) };
        self.left -= PAGE;
        let size = SMALLEST << class;
        for at in (0..PAGE).step_by(size).rev() {
            // SAFETY: the piece lies in the page.
            self.put(class, unsafe { page.add(at) });
        }
        true
    }
}

// SAFETY: pieces and mappings are as large and as aligned as their layouts ask, are handed out
// once until they are freed, and a failure is null, never a panic.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match class(layout) {
            // SAFETY: one thread, and the heap is not borrowed beyond a call.
            Some(class) => unsafe { &mut *self.0.get() }.take(class),
            None if layout.align() <= PAGE => sys::map(pages(layout.size())),
            None => ptr::null_mut(),
        }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        match class(layout) {
            // SAFETY: as above.
            Some(class) => unsafe { &mut *self.0.get() }.put(class, pointer),
            // SAFETY: the caller frees what `alloc` mapped with this length.
            None => unsafe { sys::unmap(pointer, pages(layout.size())) },
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller asks what `alloc` asks.
        let pointer = unsafe { self.alloc(layout) };
        if !pointer.is_null() && class(layout).is_some() {
            // SAFETY: the piece is at least that large; a mapping is zero already.
            unsafe { pointer.write_bytes(0, layout.size()) };
        }
        pointer
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller gives a size that makes a layout with this alignment.
        let new = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        match (class(layout), class(new)) {
            (Some(old), Some(new)) if old == new => pointer,
            (None, None) if pages(layout.size()) == pages(size) => pointer,
            // SAFETY: the mapping is `alloc`'s, with that length.
            (None, None) => unsafe { sys::remap(pointer, pages(layout.size()), pages(size)) },
            _ => {
                // SAFETY: the new piece is its own, and both hold the smaller size.
                unsafe {
                    let target = self.alloc(new);
                    if !target.is_null() {
                        target.copy_from_nonoverlapping(pointer, layout.size().min(size));
                        self.dealloc(pointer, layout);
                    }
                    target
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn layout(size: usize, align: usize) -> Layout {
        Layout::from_size_align(size, align).unwrap()
    }

    #[test]
    fn classes_cover_their_sizes() {
        for (size, align, want) in [
            (1, 1, Some(0)),
            (16, 8, Some(0)),
            (17, 8, Some(1)),
            (8, 64, Some(2)),
            (LARGEST, 16, Some(CLASSES - 1)),
            (LARGEST + 1, 1, None),
            (1, PAGE, None),
        ] {
            assert_eq!(class(layout(size, align)), want, "{size} {align}");
        }
    }

    #[test]
    fn freed_pieces_are_used_again() {
        let heap = Allocator::new();
        let seen: Vec<_> = (0..1000)
            .map(|_| {
                // SAFETY: the layout is not empty, and the piece is freed with it.
                unsafe {
                    let pointer = heap.alloc(layout(100, 8));
                    heap.dealloc(pointer, layout(100, 8));
                    pointer
                }
            })
            .collect();
        assert!(seen.iter().all(|p| *p == seen[0]));
    }

    proptest! {
        /// Pieces never overlap, keep their bytes through growing and shrinking, and are
        /// aligned.
        #[test]
        fn pieces_keep_what_is_in_them(
            steps in prop::collection::vec((0_usize..8, 1_usize..20_000, 0_u32..7), 1..100)
        ) {
            let heap = Allocator::new();
            let mut held: Vec<Option<(*mut u8, Layout, u8)>> = vec![None; 8];
            for (step, (slot, size, align)) in steps.into_iter().enumerate() {
                let mark = u8::try_from(step % 251).unwrap();
                let held = &mut held[slot];
                // SAFETY: every pointer is used with the layout that it was allocated with.
                unsafe {
                    *held = match held.take() {
                        None => {
                            let wanted = layout(size, 1 << align);
                            let pointer = heap.alloc_zeroed(wanted);
                            prop_assert!((0..size).all(|i| *pointer.add(i) == 0));
                            pointer.write_bytes(mark, size);
                            Some((pointer, wanted, mark))
                        }
                        Some((pointer, old, mark)) => {
                            let kept = old.size().min(size);
                            let moved = heap.realloc(pointer, old, size);
                            prop_assert!((0..kept).all(|i| *moved.add(i) == mark));
                            prop_assert_eq!(moved.addr() % old.align(), 0);
                            heap.dealloc(moved, layout(size, old.align()));
                            None
                        }
                    };
                }
            }
        }
    }
}
