//! What requests of a qcow2 node wait for one another about.

use super::layout::index::{L1Index, SliceKey};

/// The waits of one node.
pub(super) type KeyedWait = crate::format::wait::KeyedWait<Key>;

/// A hold of one of them.
pub(super) type Held<'a> = crate::format::wait::Held<'a, Key>;

/// What a request may hold while others wait for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    /// The load of the L2 slice at this offset.
    Slice(SliceKey),
    /// The load of the refcount block of this number.
    Refblock(u64),
    /// The making of a writable L2 table for this L1 entry.
    Table(L1Index),
    /// The write-back of metadata.
    Writeback,
    /// The clusters set aside by the ticket of this number.
    Allocation(u64),
    /// A change of the disk's length, and whatever else must not run beside one.
    Resize,
    /// Readying the image for changes.
    Activation,
    /// Writing the log of the dirty bitmaps.
    BitmapLog,
}
