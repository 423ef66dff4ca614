//! What fake nodes have in flight, and what waits for that.

use millpond_engine::node::{self, OrderId, OrderOutcome};
use millpond_messages::NodeId;

use super::world::FakeWorld;

impl FakeWorld {
    /// Lets a request enter at a node, unless the gate is closed.
    pub fn enter(&mut self, id: NodeId) -> bool {
        let node = self.nodes.get_mut(&id).unwrap();
        let open = node.tokens.is_empty();
        node.in_flight += u32::from(open);
        open
    }

    /// A request that entered at a node ends.
    pub fn leave(&mut self, id: NodeId) {
        let node = self.nodes.get_mut(&id).unwrap();
        node.in_flight -= 1;
        if node.in_flight == 0 {
            let closing = node.closing.take();
            for token in std::mem::take(&mut node.unanswered) {
                self.tell(node::Event::Quiesced(id, token));
                for event in self.passed(id, token) {
                    self.tell(event);
                }
            }
            let closed = closing.map(|order_id| self.closed(id, order_id));
            for event in closed.into_iter().flatten() {
                self.tell(event);
            }
        }
    }

    /// Closes a node, at once unless it was told to be quiet before and is not.
    pub fn close(&mut self, id: NodeId, order_id: OrderId) -> Vec<node::Event> {
        let node = self.nodes.get_mut(&id).expect("a node is closed once");
        if node.in_flight > 0 {
            assert!(!node.tokens.is_empty(), "a node in use is closed");
            node.closing = Some(order_id);
            return Vec::new();
        }
        self.closed(id, order_id)
    }

    fn closed(&mut self, id: NodeId, order_id: OrderId) -> Vec<node::Event> {
        self.nodes.remove(&id);
        self.homes.remove(&id);
        let mut events = vec![node::Event::Ended(order_id, OrderOutcome::Done(Ok(())))];
        events.extend(self.gone(id));
        events
    }

    /// Delivers the mail that there is, and not what it causes; answers how much that was.
    pub fn burst(&mut self) -> usize {
        let mail: usize = self.mailboxes.values().map(std::collections::VecDeque::len).sum();
        for _ in 0..mail {
            self.deliver(|_| 0);
        }
        mail
    }
}
