//! What a driver is: the trait that a node runs, and the description from which the graph opens one.
//!
//! ```text
//!   DriverKind  (Send + Sync, one for each name: opens, creates, probes)
//!       | open
//!       v
//!   Driver      (!Send, lives with its node on one iothread)
//!       | asks
//!       v
//!   Child       (a handle on an edge: stays, whatever node is behind it)
//! ```
//!
//! A driver answers *where* data is; the node's choke point does the transfers, checks ranges, flags and permissions
//! before, and holds every emulation. So a driver may rely on: ranges aligned to its [`Limits::request_alignment`] and
//! within its length, rounded up to whole sectors and to that alignment; no write without permission; at least one byte.
//!
//! A format makes its file longer by writing past the file's end. A driver that can be written to like that says so by
//! [`Abilities::grows`], and so sees ranges past its length; any other is first made longer by [`Driver::truncate`].
//!
//! A format that maps ranges elsewhere implements [`Driver::locate`], [`Driver::place`] and [`Driver::settle`], and sees
//! [`Driver::read`] and [`Driver::write`] only for ranges that it called [`At::Special`] or [`Target::Own`]. A protocol,
//! which stores bytes itself, answers [`At::Own`] and [`Target::Own`] at once.
//!
//! A filter hands on by a [`PassThrough`] what it does not look at. Storage of a program's own that is read and written, and
//! no more, is a [`SimpleDriver`] of four methods.
//!
//! A driver that panics breaks its node and nothing else: see [`GuardedKind`].

mod answer;
mod child;
mod debug;
mod device;
mod exchange;
mod foreign;
mod guard;
mod image;
mod kind;
mod lifecycle;
mod moved;
mod notice;
mod pass_through;
mod registry;
pub mod reopen;
mod saved;
mod simple;
mod snapshot_access;
mod withdrawal;

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

use millpond_messages::graph::Options;
use millpond_messages::io::Preallocation;
use millpond_messages::{ChildSlot, IoResult, Limits, Range, RequestFlags, Result};

pub use answer::{Answer, Lasting};
pub(crate) use child::bytes_in;
pub use child::{Child, ChildPort, Transfer, transfer};
pub use debug::DebugPoints;
pub use device::Device;
pub use exchange::Exchanged;
pub use foreign::foreign_format;
pub use guard::{GuardedKind, panic_text};
pub use image::Image;
pub use kind::{
    BackingLink, ChildChange, ChildKind, CreateRequest, DriverKind, EdgeUse, OpenRequest, Opened,
    OptionNames, invalid_options, parse_options, parse_size, slot_name, slot_named,
};
pub use lifecycle::Lifecycle;
pub use millpond_messages::Repair;
pub use moved::Moved;
pub use notice::{Notice, Notices, Posted};
pub use pass_through::{PassThrough, arrived, declared};
pub use registry::{Registry, Whitelist};
pub use saved::SavesState;
pub use simple::{SimpleDriver, SimpleKind};
pub use snapshot_access::SnapshotAccess;
pub use withdrawal::{Hidden, Withdrawal, unless_withdrawn};

use millpond_ring::buffer::Buffers;

/// How a driver stands to something it may be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ability {
    /// Refused, with no way round.
    #[default]
    None,
    /// The node does it by other means: zeroes by writing them, FUA by a flush.
    Emulated,
    /// The driver does it.
    Native,
}

/// What a driver can do. The node asks after open, after reopen and after a change of children or length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Abilities {
    /// What it demands of requests, its children's demands not merged in.
    pub limits: Limits,
    /// Zero writes. `Emulated` writes buffers of zeroes.
    pub write_zeroes: Ability,
    /// Zero writes may deallocate.
    pub zero_unmap: bool,
    /// Discards. `Emulated` and `None` both succeed without effect.
    pub discard: Ability,
    /// Writes with FUA. `Emulated` flushes after the write.
    pub fua: Ability,
    /// Writes with WRITE_COMPRESSED. A filter says that it passes them on: whether that is of use is up to what it filters.
    pub write_compressed: bool,
    /// What [`At::Child`] leads to is all there is to say: allocation and zeroes are the child's. True of filters and of
    /// `raw`, false of formats with allocation of their own.
    pub transparent: bool,
    /// Unallocated ranges are read from the `backing` child.
    pub supports_backing: bool,
    /// Zero writes and discards wait for, and hold back, requests that overlap the range widened to this power of
    /// two (a format's cluster). 0 where they need not.
    pub serialise_granularity: u64,
    /// A new image of this length reads as zeroes.
    pub has_zero_init: bool,
    /// Writes and zero writes of a parent may pass the end: what is written there makes the driver longer. A transparent
    /// driver need not say so, since its child decides.
    pub grows: bool,
    /// What becomes of debug events that the node and its parents raise.
    pub events: DebugEvents,
    /// What [`Driver::length`] goes by.
    pub length: LengthSource,
}

/// What a driver's length goes by: whether it has to be asked for again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LengthSource {
    /// It may change at any time: whoever wants to know it asks the driver.
    #[default]
    Driver,
    /// It changes only by what the node is asked to do: writes, and changes of length.
    Requests,
    /// It follows from the children's lengths, and is asked for again when one of them has changed.
    Children,
}

/// What a driver does with [`DebugEvent`]s.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DebugEvents {
    /// They end here: no node below sees them.
    #[default]
    Ignore,
    /// They go on to the first child.
    Forward,
    /// They go to [`DebugPoints::debug_event`].
    Handle,
}

/// Why a driver is asked where a range is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To read it: what the answer says of the first byte must hold, how far is as the driver pleases.
    Read,
    /// To report its status. `want_zero` asks to look for zeroes at the cost of a system call.
    Status {
        /// Tell data from zeroes, rather than only allocated from unallocated.
        want_zero: bool,
    },
}

/// Where a range's bytes are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// In the driver's own keeping: [`Driver::read`] reads them.
    Own,
    /// As they are, in a child at this offset.
    Child {
        /// Which of the declared children.
        slot: ChildSlot,
        /// The offset of the range's first byte there.
        offset: u64,
    },
    /// They are zeroes, by the driver's own word. Storage may be reserved for them.
    Zero {
        /// The storage reserved, for reports.
        reserved: Option<(ChildSlot, u64)>,
    },
    /// The driver has nothing: the backing child's bytes show through, or zeroes.
    Unallocated,
    /// The driver has them in a form that only [`Driver::read`] can read (compressed, encrypted).
    Special,
}

/// The answer to [`Driver::locate`], for the first `len` bytes of the range asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// How many bytes this holds for: at least 1, at most what was asked.
    pub len: u64,
    /// Where these bytes are.
    pub at: At,
    /// The child may know that the data is zeroes (space preallocated by an image's maker).
    pub recurse: bool,
}

impl Extent {
    /// An extent about whose child nothing more is known.
    #[must_use]
    pub const fn new(len: u64, at: At) -> Self {
        Self {
            len,
            at,
            recurse: false,
        }
    }
}

/// Something that a driver set aside for a write and wants to hear about when it ends.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a ticket must be settled, else what it holds is never released"]
pub struct AllocationTicket(pub u64);

/// Where a write goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The driver is given them, by [`Driver::write`].
    Own,
    /// To a child. `offset` is where the first byte goes, the head (see [`Placement::head`]) included.
    Child {
        /// Which of the declared children.
        slot: ChildSlot,
        /// The offset at that child.
        offset: u64,
    },
}

/// The answer to [`Driver::place`], for the first `len` bytes of the write.
///
/// With a head or a tail, the node reads `head` bytes before the range and `tail` bytes behind it *from the node as
/// it is now* (so from the backing chain where nothing is allocated), and writes head, data and tail to the target in
/// one request: copy-on-write.
#[derive(Debug, PartialEq, Eq)]
pub struct Placement {
    /// How many bytes of the write this holds for: at least 1, at most what was asked.
    pub len: u64,
    /// Where these bytes are to go.
    pub target: Target,
    /// Bytes to copy along before them.
    pub head: u64,
    /// Bytes to copy along behind them. Never past the node's length: beyond it the node writes zeroes.
    pub tail: u64,
    /// What the driver wants back in [`Driver::settle`] once the data is written, or has failed to be.
    pub ticket: Option<AllocationTicket>,
}

impl Placement {
    /// The write goes to [`Driver::write`] as it is, and nobody is told of its end.
    #[must_use]
    pub const fn own(len: u64) -> Self {
        Self {
            len,
            target: Target::Own,
            head: 0,
            tail: 0,
            ticket: None,
        }
    }
}

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

    /// Reads what [`Driver::locate`] called [`At::Own`] or [`At::Special`].
    fn read(self: Rc<Self>, offset: u64, buffers: Buffers, flags: RequestFlags) -> Answer<'static, Transfer>;

    /// Where a write to a range goes, allocating if need be. An answer with a ticket holds back, until
    /// that is settled, other writes to what it allocates.
    fn place(&self, range: Range, flags: RequestFlags) -> Answer<'_, IoResult<Placement>>;

    /// The write that `ticket` was given for has ended. On success what it allocated becomes visible; on failure it
    /// is given back, and what was readable before still is.
    fn settle(&self, ticket: AllocationTicket, written: IoResult<()>) -> Answer<'_, IoResult<()>>;

    /// Writes what [`Driver::place`] sent to [`Target::Own`]. FUA is set only if [`Abilities::fua`] is native.
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

    /// Bytes taken on the host, the children's left out; `NotSupported` where the children's sum says it all.
    fn allocated_size(&self) -> Answer<'_, IoResult<u64>>;

    /// What can be done to the image that the driver keeps. A driver without one has nothing to say.
    fn image(&self) -> &dyn Image {
        &Nothing
    }

    /// Where requests can be held for debugging. Only a driver that handles debug events has such places.
    fn debug(&self) -> &dyn DebugPoints {
        &Nothing
    }

    /// The file or device of the host that the driver stands for. Formats and filters stand for none.
    fn device(&self) -> &dyn Device {
        &Nothing
    }

    /// The moment of the past that the driver keeps. Nearly all keep none.
    fn snapshot_access(&self) -> &dyn SnapshotAccess {
        &Nothing
    }
}

/// What a driver without an image, places to hold requests at or a device has to say of them.
#[derive(Debug, Clone, Copy)]
pub struct Nothing;

/// New options for an open driver.
#[derive(Debug, Clone)]
pub struct ReopenRequest {
    /// The driver's own options, complete.
    pub options: Options,
    /// The flags it would be opened with.
    pub flags: millpond_messages::OpenFlags,
}

/// A place in a file of the host.
#[derive(Debug, Clone)]
pub struct CopySource {
    /// The file with the bytes.
    pub file: Arc<OwnedFd>,
    /// The first byte in the file.
    pub offset: u64,
}
