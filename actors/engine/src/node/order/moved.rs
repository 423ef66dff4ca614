//! Nodes and root edges on their way to another iothread, as mail carries them.

use std::sync::Arc;

use futures_channel::oneshot;
use millpond_drivers::api::{DriverKind, Moved};
use millpond_messages::io::{Operation, Outcome};
use millpond_messages::{ChildSlot, NodeId, OpenFlags, Token};
use millpond_ring::buffer::Buffers;

use super::mail::Mail;
use super::outcome::{NodeSettings, OrderId};
use super::root_handle::RootHandle;
use crate::iothread::IoThread;
use crate::node::cell::bitmaps::Bitmap;
use crate::node::gate::statistics::Counters;

/// A node on its way to another iothread.
pub struct MovedNode {
    pub(in crate::node) order_id: OrderId,
    pub(in crate::node) node: NodeId,
    pub(in crate::node) name: String,
    pub(in crate::node) kind: Arc<dyn DriverKind>,
    pub(in crate::node) driver: Moved,
    /// The slots of its numbered children.
    pub(in crate::node) numbered: Vec<ChildSlot>,
    pub(in crate::node) flags: OpenFlags,
    pub(in crate::node) settings: NodeSettings,
    pub(in crate::node) size: u64,
    pub(in crate::node) copy_on_read: u32,
    pub(in crate::node) unflushed: bool,
    pub(in crate::node) write_threshold: u64,
    pub(in crate::node) bitmaps: Vec<Bitmap>,
    pub(in crate::node) counters: Counters,
    pub(in crate::node) holds: Vec<Token>,
    pub(in crate::node) roots: Vec<MovedRoot>,
    pub(in crate::node) home: IoThread<Mail>,
}

/// A root edge on its way, with the requests that are parked at it.
pub struct MovedRoot {
    pub(in crate::node) order_id: Option<OrderId>,
    pub(in crate::node) handle: RootHandle,
    pub(in crate::node) node: NodeId,
    pub(in crate::node) parked: Vec<(Operation<Buffers>, oneshot::Sender<Outcome<Buffers>>)>,
    /// The handle by which clients send to it where it goes.
    pub(in crate::node) home: Arc<IoThread<Mail>>,
}
