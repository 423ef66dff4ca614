//! A node, as the graph knows it.

use std::collections::BTreeMap;
use std::sync::Arc;

use millpond_drivers::api::{DriverKind, slot_named};
use millpond_engine::node::{NodeSettings, OpenFacts, OrderId};
use millpond_messages::graph::Options;
use millpond_messages::{ChildSlot, EdgeId, IoThreadId, NodeId, OpenFlags, Permissions};

use crate::order::Order;
use crate::value::bitmap::Bitmap;
use crate::value::common::{Common, GivenOptions};

/// What all parents of a node together take, and what all of them share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Granted {
    /// The union of what they take.
    pub taken: Permissions,
    /// The intersection of what they share.
    pub shared: Permissions,
}

impl Granted {
    /// Of a node without parents.
    pub const NOBODY: Self = Self {
        taken: Permissions::empty(),
        shared: Permissions::all(),
    };
}

/// A node, as the graph knows it.
pub struct Node {
    /// Its id. Ids grow: their order is that in which nodes were opened.
    pub id: NodeId,
    /// The name that it has in the graph.
    pub name: String,
    /// The driver that it was opened with.
    pub kind: Arc<dyn DriverKind>,
    /// The iothread where the node lives.
    pub iothread: IoThreadId,
    /// The driver's own options as they were given, children left out.
    pub options: Options,
    /// The options that every node has, inherited ones included.
    pub common: Common,
    /// Those of them that were given for this node.
    pub given: GivenOptions,
    /// The node whose options this one was part of: what is not given comes from there.
    pub inherits_from: Option<NodeId>,
    /// What the node cell does besides its driver.
    pub settings: NodeSettings,
    /// The flags it is open with.
    pub flags: OpenFlags,
    /// What the open gave; `None` until it has ended.
    pub facts: Option<OpenFacts>,
    /// Its edges by slot.
    pub children: BTreeMap<ChildSlot, EdgeId>,
    /// The number of the next numbered child.
    pub next_numbered: u32,
    /// The edges that lead to it, the oldest first.
    pub parents: Vec<EdgeId>,
    /// The permissions that were committed on it.
    pub granted: Granted,
    /// A user added it by `blockdev-add`; without one it goes with its last parent.
    pub owned: bool,
    /// The backing node that was opened because the image names it.
    pub implicit_backing: Option<NodeId>,
    /// Its dirty bitmaps, the oldest first.
    pub bitmaps: Vec<Bitmap>,
    /// Others may see it: the transaction that made it has been committed.
    pub live: bool,
    /// How much work of the graph actor's own goes on at it, uncounted by its gate.
    pub internal_io: u32,
    /// It is being closed: it still writes back, and is quiet only when it is gone.
    pub closing: bool,
    /// It is on its way to another iothread: what is sent to it waits in `deferred`.
    pub moving: bool,
    /// Orders that wait until it has arrived.
    pub deferred: Vec<(OrderId, Order)>,
}

impl Node {
    /// Whether another process may use its image.
    pub fn is_inactive(&self) -> bool {
        self.flags.contains(OpenFlags::INACTIVE)
    }

    /// Whether it may be written to.
    pub fn writable(&self) -> bool {
        self.flags.is_writable()
    }

    /// The edge in `slot`.
    pub fn child(&self, slot: ChildSlot) -> Option<EdgeId> {
        self.children.get(&slot).copied()
    }

    /// The dirty bitmap of this name, if it has one.
    pub fn bitmap_named(&self, name: &str) -> Option<&Bitmap> {
        self.bitmaps.iter().find(|bitmap| bitmap.name == name)
    }

    /// The slot of the child of this name, if the driver can have such a child.
    pub fn slot(&self, name: &str) -> Option<ChildSlot> {
        slot_named(self.kind.as_ref(), name)
    }

    /// Its numbered edges, in order.
    pub fn numbered(&self) -> impl Iterator<Item = (ChildSlot, EdgeId)> + '_ {
        let declared = self.kind.children().len();
        let all = self.children.iter().map(|(slot, edge)| (*slot, *edge));
        all.skip_while(move |(slot, _)| slot.index() < declared)
    }
}
