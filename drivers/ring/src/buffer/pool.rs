//! Free lists of buffer memory, one set a thread, so that a request costs no allocator call and no shared line.
//!
//! Memory goes to the lists of the thread that drops the last handle. Where buffers flow one way between
//! threads, the taker's lists fill up to their bound and the rest goes back to the allocator.

use std::alloc::{Layout, alloc_zeroed};
use std::cell::RefCell;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{Buffer, Kind, MIN_MEM_ALIGN, OPT_MEM_ALIGN, Storage};

/// The smallest class, in bytes; each next class is twice as large.
const SMALLEST: usize = MIN_MEM_ALIGN;

/// Classes of 512 bytes up to 2 MiB: larger buffers are rare and pay the allocator.
const CLASSES: usize = 13;

/// What one thread keeps at the most, in bytes: 128 requests of 256 KiB in flight, twice.
const KEEP: usize = 64 << 20;

struct Pool {
    #[expect(
        clippy::vec_box,
        reason = "the box is what travels: handles point at the storage"
    )]
    free: [Vec<Box<Storage>>; CLASSES],
    kept: usize,
}

thread_local! {
    static POOL: RefCell<Pool> = const { RefCell::new(Pool { free: [const { Vec::new() }; CLASSES], kept: 0 }) };
}

/// The class whose blocks hold `len` bytes, if one does.
#[inline]
fn class_of(len: usize) -> Option<usize> {
    let class = len.max(SMALLEST).checked_next_power_of_two()?.trailing_zeros() - SMALLEST.trailing_zeros();
    Some(class as usize).filter(|&class| class < CLASSES)
}

/// A buffer of `len` bytes, and whether it is fresh from the allocator and so all zero.
#[inline]
pub(super) fn take(len: usize) -> Option<(Buffer, bool)> {
    if len == 0 {
        return Some((Buffer::new(), true));
    }
    let class = class_of(len);
    if let Some(class) = class
        && let Some(storage) = POOL.try_with(|pool| pool.borrow_mut().pop(class)).ok().flatten()
    {
        let ptr = storage.base;
        storage.handles.store(1, Ordering::Relaxed);
        return Some((
            Buffer {
                ptr,
                len,
                storage: Some(NonNull::from(Box::leak(storage))),
            },
            false,
        ));
    }
    allocate(len, class)
}

#[cold]
fn allocate(len: usize, class: Option<usize>) -> Option<(Buffer, bool)> {
    let size = match class {
        Some(class) => SMALLEST << class,
        None => len.checked_next_multiple_of(OPT_MEM_ALIGN)?,
    };
    let align = if size >= OPT_MEM_ALIGN {
        OPT_MEM_ALIGN
    } else {
        MIN_MEM_ALIGN
    };
    let layout = Layout::from_size_align(size, align).ok()?;
    // SAFETY: the layout's size is not zero. All bytes are initialised, once and for the storage's whole life.
    let base = NonNull::new(unsafe { alloc_zeroed(layout) })?;
    // A class fits in a byte: there are thirteen.
    let kind = Kind::Pooled {
        layout,
        class: class.map(|class| class as u8),
    };
    Some((
        Storage {
            handles: AtomicUsize::new(1),
            base,
            kind,
        }
        .into_handle(len),
        true,
    ))
}

/// Keeps the storage for a later [`take`] on this thread, or frees it.
#[inline]
pub(super) fn put(storage: Box<Storage>) {
    if let Kind::Pooled {
        layout,
        class: Some(class),
    } = storage.kind
    {
        // At the thread's end the lists may be gone already: then the closure, and the storage with it, is dropped.
        let rest =
            POOL.try_with(move |pool| pool.borrow_mut().push(usize::from(class), layout.size(), storage));
        drop(rest);
    }
}

impl Pool {
    #[inline]
    fn pop(&mut self, class: usize) -> Option<Box<Storage>> {
        let storage = self.free[class].pop()?;
        self.kept -= SMALLEST << class;
        Some(storage)
    }

    /// Gives the storage back if the thread keeps enough already.
    #[inline]
    fn push(&mut self, class: usize, size: usize, storage: Box<Storage>) -> Option<Box<Storage>> {
        if self.kept + size > KEEP {
            return Some(storage);
        }
        self.kept += size;
        self.free[class].push(storage);
        None
    }
}
