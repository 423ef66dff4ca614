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
//! before, and holds every emulation. So a driver may rely on: ranges aligned to its [`Limits::request_alignment`](millpond_messages::Limits::request_alignment) and
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

mod abilities;
mod answer;
mod bitmaps;
mod child;
mod confused;
mod debug;
mod device;
mod driver;
mod exchange;
mod foreign;
mod guard;
mod image;
mod kind;
mod lifecycle;
mod mirrored;
mod moved;
mod nothing;
mod notice;
mod pass_through;
mod placement;
mod registry;
pub mod reopen;
mod saved;
mod simple;
mod snapshot_access;
mod withdrawal;

pub use abilities::{Abilities, Ability, DebugEvents, LengthSource};
pub use answer::{Answer, Lasting, Lasts};
pub use bitmaps::{ImageBitmap, StoresBitmaps};
pub(crate) use child::bytes_in;
pub use child::{Child, ChildPort, Transfer, transfer};
pub use confused::Size;
pub use debug::DebugPoints;
pub use device::Device;
pub use driver::Driver;
pub use exchange::Exchanged;
pub use foreign::foreign_format;
pub use guard::{GuardedKind, panic_text};
pub use image::{BackingLink, DataFileLink, Image};
pub use kind::{
    ChildChange, ChildKind, CreateRequest, DriverKind, EdgeUse, OpenRequest, Opened, OptionNames,
    invalid_options, parse_options, parse_size, slot_name, slot_named,
};
pub use lifecycle::{Lifecycle, ReopenRequest};
pub use millpond_messages::Repair;
pub use mirrored::Mirrored;
pub use moved::Moved;
pub use nothing::Nothing;
pub use notice::{Notice, Notices, Posted};
pub use pass_through::{PassThrough, arrived, declared};
pub use placement::{AllocationTicket, At, Extent, Placement, Purpose, Target};
pub use registry::{Registry, Whitelist};
pub use saved::SavesState;
pub use simple::{SimpleDriver, SimpleKind};
pub use snapshot_access::SnapshotAccess;
pub use withdrawal::{Hidden, Withdrawal, unless_withdrawn};
