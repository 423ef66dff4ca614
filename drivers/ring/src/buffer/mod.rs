//! The memory that requests carry: unique handles on aligned, pooled or foreign byte ranges.
//!
//! A [`Buffer`] owns its range: while one exists nobody else reads or writes those bytes, except the kernel
//! working on an operation the buffer was moved into. Handles split from one storage cover disjoint ranges of
//! it and travel separately; the storage goes back when the last of them is dropped.

mod list;
mod pool;
mod region;
mod zero;

#[cfg(test)]
mod tests;

use std::alloc::{Layout, handle_alloc_error};
use std::any::Any;
use std::fmt;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering, fence};

pub use list::Buffers;
pub use region::{MOST_PIECE, PLACES, Piece, Region, RegionError, Regions};
pub use zero::is_zero;

/// The alignment, in bytes, that any direct I/O needs at the least: every buffer from [`Buffer::alloc`] has it.
pub const MIN_MEM_ALIGN: usize = 512;

/// The alignment, in bytes, at which direct I/O is best served: buffers of at least this length have it.
pub const OPT_MEM_ALIGN: usize = 4096;

/// Where a storage's bytes come from, and so what its end means.
enum Kind {
    /// From the allocator with this layout; `class` names the free list it goes back to, if it has one.
    Pooled { layout: Layout, class: Option<u8> },
    /// A `Vec` taken apart; the field is its capacity in bytes.
    Vec(usize),
    /// Somebody else's memory, valid as long as the owner lives.
    Foreign { _owner: Arc<dyn Any + Send + Sync> },
}

/// One contiguous allocation, shared by the handles split from it.
struct Storage {
    /// How many [`Buffer`]s point here. Only the holder of the last may recycle or free.
    handles: AtomicUsize,
    base: NonNull<u8>,
    kind: Kind,
}

impl Storage {
    fn into_handle(self, len: usize) -> Buffer {
        let ptr = self.base;
        Buffer {
            ptr,
            len,
            storage: Some(NonNull::from(Box::leak(Box::new(self)))),
        }
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        match self.kind {
            // SAFETY: `base` came from the allocator with this layout, and the last handle is gone.
            Kind::Pooled { layout, .. } => unsafe { std::alloc::dealloc(self.base.as_ptr(), layout) },
            // SAFETY: `base` and the capacity were taken from a `Vec<u8>`; length 0 needs no initialised byte.
            Kind::Vec(capacity) => drop(unsafe { Vec::from_raw_parts(self.base.as_ptr(), 0, capacity) }),
            Kind::Foreign { .. } => {}
        }
    }
}

/// A unique handle on a contiguous range of bytes.
///
/// It dereferences to `[u8]`. Every byte is initialised, but [`Buffer::alloc`] leaves unspecified contents.
pub struct Buffer {
    /// The first byte; dangling only if `len` is zero. Derived from the storage's base.
    ptr: NonNull<u8>,
    len: usize,
    /// None for the empty buffer that never had memory.
    storage: Option<NonNull<Storage>>,
}

// SAFETY: a handle is the only access to its range, the storage's count is atomic, and a foreign owner is
// `Send + Sync`: moving the handle to another thread moves the right to use the range with it.
unsafe impl Send for Buffer {}
// SAFETY: a shared handle only gives `&[u8]`.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// An empty buffer, without memory.
    #[inline]
    pub const fn new() -> Self {
        Self {
            ptr: NonNull::dangling(),
            len: 0,
            storage: None,
        }
    }

    /// A buffer of `len` bytes whose contents are unspecified: zeroes, or what an earlier buffer of this thread
    /// held. Whoever shows it outside must have filled it. Aligned to [`OPT_MEM_ALIGN`] from that length on, to
    /// [`MIN_MEM_ALIGN`] below.
    ///
    /// Ends the process if there is no memory: lengths that come from outside take [`Buffer::try_alloc`].
    #[inline]
    pub fn alloc(len: usize) -> Self {
        match Self::try_alloc(len) {
            Some(buffer) => buffer,
            None => handle_alloc_error(Layout::new::<u8>()),
        }
    }

    /// As [`Buffer::alloc`], but `None` if there is no memory.
    #[inline]
    pub fn try_alloc(len: usize) -> Option<Self> {
        pool::take(len).map(|(buffer, _)| buffer)
    }

    /// As [`Buffer::try_alloc`], at an address that is a multiple of `align` (a power of two): what a node asks for in
    /// [`Limits::mem_alignment`](millpond_messages::Limits::mem_alignment), or likes best.
    pub fn try_aligned(len: usize, align: usize) -> Option<Self> {
        debug_assert!(align.is_power_of_two());
        let has_it = align <= MIN_MEM_ALIGN || (align <= OPT_MEM_ALIGN && len >= OPT_MEM_ALIGN);
        if has_it || len == 0 {
            return Self::try_alloc(len);
        }
        let spare = if align <= OPT_MEM_ALIGN { 0 } else { align };
        let whole = Self::try_alloc(len.max(OPT_MEM_ALIGN).checked_add(spare)?);
        let mut whole = whole?;
        let past = whole.as_ptr().addr() & (align - 1);
        let mut buffer = match past {
            0 => whole,
            past => whole.split_off(align - past),
        };
        buffer.truncate(len);
        Some(buffer)
    }

    /// A buffer of `len` zero bytes, aligned as [`Buffer::alloc`] says.
    pub fn zeroed(len: usize) -> Self {
        match Self::try_zeroed(len) {
            Some(buffer) => buffer,
            None => handle_alloc_error(Layout::new::<u8>()),
        }
    }

    /// As [`Buffer::zeroed`], but `None` if there is no memory.
    pub fn try_zeroed(len: usize) -> Option<Self> {
        let (mut buffer, fresh) = pool::take(len)?;
        if !fresh {
            buffer.fill(0);
        }
        Some(buffer)
    }

    /// An aligned copy of `bytes`.
    pub fn from_slice(bytes: &[u8]) -> Self {
        let mut buffer = Self::alloc(bytes.len());
        buffer.copy_from_slice(bytes);
        buffer
    }

    /// A buffer on memory that somebody else owns, a guest's for instance; `owner` is held until the last handle
    /// on the range is gone.
    ///
    /// # Safety
    /// `ptr` must be valid for reads and writes of `len` initialised bytes for as long as `owner` lives, and no
    /// other Rust reference into the range may be used while a handle on it exists. (A guest or the kernel may
    /// change the bytes at any time: contents must be copied before they are checked and used.)
    pub unsafe fn foreign(ptr: NonNull<u8>, len: usize, owner: Arc<dyn Any + Send + Sync>) -> Self {
        let kind = Kind::Foreign { _owner: owner };
        Storage {
            handles: AtomicUsize::new(1),
            base: ptr,
            kind,
        }
        .into_handle(len)
    }

    /// The length in bytes.
    #[inline]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no byte.
    #[inline]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The address of the first byte.
    #[inline]
    pub const fn as_ptr(&self) -> *const u8 {
        self.ptr.as_ptr()
    }

    /// The address of the first byte, for writing.
    #[inline]
    pub const fn as_mut_ptr(&mut self) -> *mut u8 {
        self.ptr.as_ptr()
    }

    /// Whether both the address and the length are multiples of `align` (a power of two).
    #[inline]
    pub fn is_aligned(&self, align: usize) -> bool {
        debug_assert!(align.is_power_of_two());
        (self.ptr.as_ptr().addr() | self.len) & (align - 1) == 0
    }

    /// Shortens the buffer to `len` bytes; does nothing if it is not longer.
    #[inline]
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Takes the first `n` bytes away as a buffer of their own, without a copy; `self` keeps the rest.
    ///
    /// # Panics
    /// If `n > self.len()`.
    #[inline]
    pub fn split_to(&mut self, n: usize) -> Buffer {
        let rest = self.split_off(n);
        std::mem::replace(self, rest)
    }

    /// Takes all but the first `n` bytes away as a buffer of their own, without a copy.
    ///
    /// # Panics
    /// If `n > self.len()`.
    #[inline]
    pub fn split_off(&mut self, n: usize) -> Buffer {
        assert!(
            n <= self.len,
            "a buffer of {} bytes cannot be split at {n}",
            self.len
        );
        if let Some(storage) = self.storage {
            // SAFETY: this handle keeps the storage alive.
            let storage = unsafe { storage.as_ref() };
            // The new handle is made from one that is alive, so nothing needs to be ordered.
            storage.handles.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: `n <= len`, so the result is inside the range or just past its end.
        let ptr = unsafe { self.ptr.add(n) };
        let rest = Buffer {
            ptr,
            len: self.len - n,
            storage: self.storage,
        };
        self.len = n;
        rest
    }

    /// Joins `self` and `other` again if they were split from one storage and `other` begins where `self` ends.
    ///
    /// # Errors
    /// Gives both back unchanged if they do not adjoin.
    pub fn try_unsplit(mut self, other: Buffer) -> Result<Buffer, (Buffer, Buffer)> {
        // SAFETY: one past the end of the range is still in (or just past) its allocation.
        let end = unsafe { self.ptr.add(self.len) };
        if self.storage != other.storage || end != other.ptr {
            return Err((self, other));
        }
        self.len += other.len;
        Ok(self)
    }
}

impl Drop for Buffer {
    #[inline]
    fn drop(&mut self) {
        let Some(storage) = self.storage else { return };
        {
            // SAFETY: this handle keeps the storage alive until the count below says otherwise.
            let handles = unsafe { &storage.as_ref().handles };
            // A count of one can only be this handle's, and only its holder could raise it: no need to lower it.
            if handles.load(Ordering::Acquire) != 1 && handles.fetch_sub(1, Ordering::Release) != 1 {
                return;
            }
            // What other threads did through handles they dropped happens before the storage is used again.
            fence(Ordering::Acquire);
        }
        // SAFETY: the pointer came from `Box::leak`, and no other handle is left.
        pool::put(unsafe { Box::from_raw(storage.as_ptr()) });
    }
}

impl Deref for Buffer {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: `ptr` is valid for `len` initialised bytes, and this handle is the only one on them.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }
}

impl DerefMut for Buffer {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `deref`, and `&mut self` excludes every other use of the handle.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl AsMut<[u8]> for Buffer {
    fn as_mut(&mut self) -> &mut [u8] {
        self
    }
}

impl Default for Buffer {
    fn default() -> Self {
        Self::new()
    }
}

impl From<Vec<u8>> for Buffer {
    /// Takes the vector's memory over, without a copy and with whatever alignment it has.
    fn from(bytes: Vec<u8>) -> Self {
        let mut bytes = ManuallyDrop::new(bytes);
        let (len, capacity) = (bytes.len(), bytes.capacity());
        let Some(base) = NonNull::new(bytes.as_mut_ptr()) else {
            return Self::new();
        };
        Storage {
            handles: AtomicUsize::new(1),
            base,
            kind: Kind::Vec(capacity),
        }
        .into_handle(len)
    }
}

impl From<&[u8]> for Buffer {
    fn from(bytes: &[u8]) -> Self {
        Self::from_slice(bytes)
    }
}

impl PartialEq for Buffer {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Buffer {}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer")
            .field("ptr", &self.ptr)
            .field("len", &self.len)
            .finish()
    }
}
