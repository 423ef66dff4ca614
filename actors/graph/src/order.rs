//! What the policy asks of nodes: the engine's orders, with ids in place of handles.

use millpond_engine::node::{self, Naming};
use millpond_messages::{IoThreadId, NodeId, Permissions, RootId};

pub use millpond_engine::node::{BitmapMerge, BitmapOrder, IothreadOrder, NodeOrder, NodeTask};

/// Iothreads and root edges by their ids.
#[derive(Debug, Clone, Copy)]
pub struct Ids;

impl Naming for Ids {
    type Iothread = IoThreadId;
    type Root = NewRoot;
}

/// A root edge that is to begin.
#[derive(Debug, Clone, Copy)]
pub struct NewRoot {
    /// The number of the root edge.
    pub root: RootId,
    /// What its user may do.
    pub permissions: Permissions,
    /// Every write is made durable before it is answered.
    pub writethrough: bool,
}

/// An order with ids in place of handles.
pub type Order = node::Order<Ids>;
/// An order about what leads where.
pub type Wiring = node::Wiring<Ids>;
/// What a node is opened with.
pub type Open = node::OpenOrder<Ids>;
/// A node and the iothread that it lives in.
pub type Address = node::Address<IoThreadId>;

/// What can be asked where a node lives.
pub trait AtNode {
    /// The order for that node.
    fn at(self, node: NodeId) -> Order;
}

impl AtNode for NodeOrder {
    fn at(self, node: NodeId) -> Order {
        Order::Node(node, self)
    }
}

impl AtNode for NodeTask {
    fn at(self, node: NodeId) -> Order {
        Order::Task(node, self)
    }
}

impl AtNode for IothreadOrder {
    fn at(self, _: NodeId) -> Order {
        Order::Iothread(self)
    }
}

impl AtNode for Wiring {
    fn at(self, _: NodeId) -> Order {
        Order::Wiring(self)
    }
}

impl AtNode for Order {
    fn at(self, _: NodeId) -> Order {
        self
    }
}

/// The nodes whose data carrying an order out may read or write, without a gate that counts it: sections begun meanwhile
/// wait until it has been. What a node that closes writes back is waited for by the node being closed, and the making of an
/// image begins and ends its work by itself.
pub fn internal_io_of(order: &Order) -> Vec<NodeId> {
    match order {
        Order::Wiring(Wiring::Open(open)) => {
            let children = open.children.iter().flatten();
            children.map(|address| address.node).collect()
        }
        Order::Task(node, task) => match task {
            NodeTask::Truncate { .. }
            | NodeTask::Flush
            | NodeTask::MakeEmpty
            | NodeTask::Commit { .. }
            | NodeTask::ReadHead { .. }
            | NodeTask::ReopenPrepare { .. }
            | NodeTask::ExchangePrepare { .. }
            | NodeTask::Exchange { .. }
            | NodeTask::Invalidate
            | NodeTask::PrepareAmend { .. }
            | NodeTask::Amend { .. }
            | NodeTask::Check { .. }
            | NodeTask::MarkBitmaps
            | NodeTask::StoreAndLog
            | NodeTask::UnstoreBitmap { .. }
            | NodeTask::ChangeSnapshots(_)
            | NodeTask::SaveVmState { .. }
            | NodeTask::LoadVmState { .. }
            | NodeTask::SendScsi(_)
            | NodeTask::ChangeBackingFile { .. } => vec![*node],
            NodeTask::Close
            | NodeTask::PermissionsPrepare { .. }
            | NodeTask::DeleteFile
            | NodeTask::ChangeMedium(_)
            | NodeTask::DescribeDevice
            | NodeTask::MergeBitmap(_)
            | NodeTask::Describe => Vec::new(),
        },
        Order::Node(..) | Order::Iothread(_) | Order::Wiring(_) => Vec::new(),
    }
}

/// What an order does, in a word, where it may take as long as the node's storage does.
pub fn what(order: &Order) -> Option<&'static str> {
    Some(match order {
        Order::Wiring(Wiring::Open(_)) => "open",
        Order::Wiring(Wiring::Create { .. }) => "making of an image",
        Order::Task(_, task) => match task {
            NodeTask::Close => "close",
            NodeTask::Flush => "flush",
            NodeTask::Truncate { .. } => "resize",
            NodeTask::PrepareAmend { .. } | NodeTask::Amend { .. } => "amendment",
            NodeTask::Check { .. } => "check",
            NodeTask::ChangeSnapshots(_) => "change of snapshots",
            NodeTask::SaveVmState { .. } => "write of a machine's state",
            NodeTask::LoadVmState { .. } => "read of a machine's state",
            NodeTask::DeleteFile => "deletion of a file",
            NodeTask::ChangeMedium(_) => "change of a medium",
            NodeTask::SendScsi(_) => "SCSI command",
            NodeTask::ReopenPrepare { .. } => "reopen",
            NodeTask::ExchangePrepare { .. } | NodeTask::Exchange { .. } => "exchange of a child",
            NodeTask::PermissionsPrepare { .. } => "change of permissions",
            NodeTask::ChangeBackingFile { .. } => "change of the backing file",
            NodeTask::MarkBitmaps | NodeTask::StoreAndLog | NodeTask::UnstoreBitmap { .. } => {
                "change of the image's bitmaps"
            }
            NodeTask::Invalidate => "reading of metadata",
            NodeTask::ReadHead { .. } => "first read",
            NodeTask::Describe
            | NodeTask::DescribeDevice
            | NodeTask::Commit { .. }
            | NodeTask::MakeEmpty
            | NodeTask::MergeBitmap(_) => {
                return None;
            }
        },
        Order::Node(..) | Order::Iothread(_) | Order::Wiring(_) => return None,
    })
}
