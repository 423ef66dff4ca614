//! What the policy is told, what it wants done, and how requests are answered.

use std::time::Duration;

use millpond_engine::node::{self, OrderId};
use millpond_messages::graph::{GraphReply, IothreadOptions};
use millpond_messages::{IoThreadId, NodeId, Permissions, Result, RootId, qapi};

use crate::order::Order;

/// Names a request, for its reply. Chosen by whoever asks; the policy only gives it back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// Whether the backing files that images name are opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ImplicitOpens {
    /// They are opened, as QEMU does.
    #[default]
    Allow,
    /// Never: an image whose maker is not trusted must not choose which files are opened.
    Deny,
}

/// A reply of the policy: a root edge by its id.
pub type Reply = Result<GraphReply<RootId>>;

/// What the policy wants done.
pub enum Effect {
    /// Send an order. If it cannot be sent, it has ended with an error.
    Send {
        /// The iothread that gets the order.
        iothread: IoThreadId,
        /// The name that the answer will have.
        order_id: OrderId,
        /// The order, with ids in it.
        order: Order,
    },
    /// Answer a request. Every request is answered exactly once.
    Reply {
        /// The request that is answered.
        id: RequestId,
        /// What the request is answered with.
        result: Reply,
    },
    /// A root's user may do this from now on.
    RootPermissions {
        /// The number of the root edge.
        root: RootId,
        /// What it may do.
        permissions: Permissions,
    },
    /// From now on a node is found by its name.
    NodeFound {
        /// The number of the node.
        node: NodeId,
        /// The name of the node.
        name: String,
        /// The name of the node's driver.
        driver: &'static str,
    },
    /// A node is found no more by the name that it had.
    NodeGone(String),
    /// A root has ended.
    RootGone(RootId),
    /// Start an iothread, and tell of it by [`PolicyEvent::Started`].
    StartIothread {
        /// The name that the answer will have.
        order_id: OrderId,
        /// The properties of the new iothread.
        options: IothreadOptions,
    },
    /// Change an iothread's polling.
    TuneIothread {
        /// The iothread whose properties change.
        iothread: IoThreadId,
        /// The properties that it has from now on.
        options: IothreadOptions,
    },
    /// A user works on these iothreads too.
    RootServes {
        /// The number of the root edge.
        root: RootId,
        /// Where its user works, in the user's order.
        iothreads: Vec<IoThreadId>,
    },
    /// Stop an iothread in which nothing is left.
    StopIothread(IoThreadId),
    /// Tell of [`PolicyEvent::Alarm`] after this long.
    Alarm(Duration),
    /// Tell all who listen for announcements.
    Announce(Announcement),
}

/// What the policy is told.
pub enum PolicyEvent {
    /// Something that a node tells of.
    Node(node::Event),
    /// By whoever carries out effects: an iothread was started, with its thread's id on the host, or was not.
    Started(OrderId, Result<(IoThreadId, u32)>),
    /// The time of an [`Effect::Alarm`] is over.
    Alarm,
}

/// Something that users of the graph are told without having asked.
#[derive(Debug, Clone, PartialEq)]
pub enum Announcement {
    /// An event for the clients of monitors.
    Event(qapi::QmpEvent),
    /// A driver that was told to compare found a difference: the program is to end with this message and status 1.
    Mismatch(String),
}
