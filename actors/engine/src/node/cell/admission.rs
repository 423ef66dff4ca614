//! A request's place in the count of the node where it entered the graph.

use std::rc::Rc;

use millpond_messages::NodeId;
use millpond_messages::io::OperationKind;

use super::node::NodeCell;
use crate::node::gate::sections::InFlight;
use crate::node::order::recorded;

/// A request in flight, counted by its node until this is dropped.
pub struct Admission {
    owner: Rc<NodeCell>,
    key: usize,
}

impl Admission {
    /// Counts a request as in flight.
    pub fn new(owner: Rc<NodeCell>, kind: OperationKind, (offset, len): (u64, u64), since_ns: u64) -> Self {
        let request = InFlight::new(owner.id(), kind, offset, len, since_ns);
        let key = owner.gate().enter(request);
        Self { owner, key }
    }

    /// Its place in the count.
    pub fn key(&self) -> usize {
        self.key
    }

    /// The node that counts it.
    pub fn node(&self) -> &Rc<NodeCell> {
        &self.owner
    }

    /// Notes that the request has been handed to `node`.
    pub fn stands_at(&self, node: NodeId) {
        self.owner.gate().stands_at(self.key, node);
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        let note = recorded::answered(self.owner.id(), self.key);
        self.owner.home().local().note(note);
        if self.owner.gate().leave(self.key) {
            self.owner.answer_quiesce();
        }
    }
}
