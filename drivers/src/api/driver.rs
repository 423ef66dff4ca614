//! The trait that a node runs: a driver's data path.

use std::rc::Rc;

use millpond_messages::io::Preallocation;
use millpond_messages::{IoResult, Range, RequestFlags, Result};
use millpond_ring::buffer::Buffers;

use super::abilities::Abilities;
use super::answer::Answer;
use super::child::Transfer;
use super::debug::DebugPoints;
use super::device::Device;
use super::image::Image;
use super::lifecycle::Lifecycle;
use super::mirrored::Mirrored;
use super::nothing::Nothing;
use super::placement::{AllocationTicket, Extent, Placement, Purpose};
use super::snapshot_access::SnapshotAccess;

/// A driver, running in a node: its data path.
///
/// Everything happens on the node's iothread. Methods that answer later may run side by side with others; a driver
/// orders what it must order itself, without blocking. No method has a default, since a filter that passed on what it does
/// not know would corrupt data; a filter names what it hands on by [`delegate!`](crate::delegate). Beside the data path
/// there is how a driver lives and ends, [`Lifecycle`], and what a few have to say of more than their data: [`Driver::image`],
/// [`Driver::debug`] and [`Driver::device`].
///
/// An answer to [`Driver::locate`] or [`Driver::place`] that has to be waited for may be dropped before it is first
/// polled, and the question asked again: until then it has changed nothing.
pub trait Driver: Lifecycle {
    /// What the driver can do, at present.
    fn abilities(&self) -> Abilities;

    /// Where the first bytes of a range are.
    fn locate(&self, purpose: Purpose, range: Range) -> Answer<'_, IoResult<Extent>>;

    /// Reads what [`Driver::locate`] called [`At::Own`](super::At::Own) or [`At::Special`](super::At::Special).
    fn read(self: Rc<Self>, offset: u64, buffers: Buffers, flags: RequestFlags) -> Answer<'static, Transfer>;

    /// Where a write to a range goes, allocating if need be. An answer with a ticket holds back, until
    /// that is settled, other writes to what it allocates.
    fn place(&self, range: Range, flags: RequestFlags) -> Answer<'_, IoResult<Placement>>;

    /// The write that `ticket` was given for has ended. On success what it allocated becomes visible; on failure it
    /// is given back, and what was readable before still is.
    fn settle(&self, ticket: AllocationTicket, written: IoResult<()>) -> Answer<'_, IoResult<()>>;

    /// Writes what [`Driver::place`] sent to [`Target::Own`](super::Target::Own). FUA is set only if [`Abilities::fua`] is native.
    fn write(self: Rc<Self>, offset: u64, buffers: Buffers, flags: RequestFlags)
    -> Answer<'static, Transfer>;

    /// Makes a range read as zeroes. `NotSupported` makes the node write zeroes instead, unless NO_FALLBACK is set.
    fn write_zeroes(&self, range: Range, flags: RequestFlags) -> Answer<'_, IoResult<()>>;

    /// Forgets a range. `NotSupported` counts as success.
    fn discard(&self, range: Range) -> Answer<'_, IoResult<()>>;

    /// Writes back what the driver caches (a format), or makes its storage durable (a protocol). The node flushes the
    /// children afterwards.
    fn flush(&self) -> Answer<'_, IoResult<()>>;

    /// Changes the length. `flags` may hold ZERO_WRITE.
    fn truncate(
        &self,
        size: u64,
        exact: bool,
        preallocation: Preallocation,
        flags: RequestFlags,
    ) -> Answer<'_, Result<()>>;

    /// The length in bytes, not rounded.
    fn length(&self) -> Answer<'_, IoResult<u64>>;

    /// How many bytes the driver itself takes on the host; `NotSupported` where only its children take any.
    fn allocated_size(&self) -> Answer<'_, IoResult<u64>>;

    /// The view of the driver's image. A driver without one leaves the default.
    fn image(&self) -> &dyn Image {
        &Nothing
    }

    /// The view of the points where requests can be held. Only a driver that handles debug events has any.
    fn debug(&self) -> &dyn DebugPoints {
        &Nothing
    }

    /// The view of the host's file or device that the driver stands for. Formats and filters stand for none.
    fn device(&self) -> &dyn Device {
        &Nothing
    }

    /// The moment of the past that the driver keeps. Nearly all keep none.
    fn snapshot_access(&self) -> &dyn SnapshotAccess {
        &Nothing
    }

    /// What the driver mirrors of its child. Nearly all mirror nothing.
    fn mirrored(&self) -> &dyn Mirrored {
        &Nothing
    }
}
