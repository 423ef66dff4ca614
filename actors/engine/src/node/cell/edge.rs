//! Edges between nodes: what is behind one of a node's children, on this iothread or another. An edge is data: what is
//! sent over it is a matter of the path of requests.

use std::cell::RefCell;
use std::rc::Rc;

use futures_util::future::LocalBoxFuture;
use millpond_messages::{DebugEvent, Limits};

use super::node::NodeCell;
use crate::node::order::mail::NodeAddress;

/// The node behind an edge.
#[derive(Clone, Default)]
pub enum Behind {
    /// There is no node behind it.
    #[default]
    None,
    /// A node of the same iothread.
    Here(Rc<NodeCell>),
    /// A node of another iothread.
    There(NodeAddress),
}

/// One of a node's children.
#[derive(Default)]
pub struct EdgeCell {
    behind: RefCell<Behind>,
}

impl EdgeCell {
    /// An edge to what is behind it.
    pub fn to(behind: Behind) -> Rc<Self> {
        let edge = Self::default();
        edge.connect(behind);
        Rc::new(edge)
    }

    /// Puts another node behind the edge. The caller holds the parent still, so that no request is on its way over the edge.
    pub fn connect(&self, behind: Behind) {
        self.behind.replace(behind);
    }

    pub fn behind(&self) -> Behind {
        self.behind.borrow().clone()
    }

    pub fn is_connected(&self) -> bool {
        !matches!(*self.behind.borrow(), Behind::None)
    }

    /// The child's limits, where they are known without asking another iothread.
    pub fn limits(&self) -> Option<Limits> {
        match &*self.behind.borrow() {
            Behind::Here(cell) => Some(cell.limits()),
            Behind::None | Behind::There(_) => None,
        }
    }

    /// Whether the child takes compressed writes, where that is known without asking another iothread.
    pub fn takes_compressed(&self) -> bool {
        match &*self.behind.borrow() {
            Behind::Here(cell) => cell.takes_compressed(),
            Behind::None | Behind::There(_) => false,
        }
    }

    /// Whether the child observes debug events.
    pub fn observes(&self) -> bool {
        match &*self.behind.borrow() {
            Behind::Here(cell) => cell.observes(),
            Behind::None | Behind::There(_) => false,
        }
    }

    /// Hands a debug event to the child.
    pub fn debug_event(&self, event: DebugEvent) -> Option<LocalBoxFuture<'static, ()>> {
        match self.behind() {
            Behind::Here(cell) => cell.debug_event(event),
            Behind::None | Behind::There(_) => None,
        }
    }
}
