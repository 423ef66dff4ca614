//! How the model checker's nodes are quiesced and go on: those of an iothread in turn, parents first.

use std::collections::BTreeMap;

use millpond_messages::{IoThreadId, NodeId, Token};

use super::Breach;
use super::site::{Cell, Site};
use millpond_engine::node;

/// Whether no section waits for a node.
fn is_quiet(cells: &BTreeMap<NodeId, Cell>, node: NodeId, token: Token) -> bool {
    cells.get(&node).is_none_or(|cell| !cell.gate.owes(token))
}

impl Site {
    pub fn quiesce(&mut self, home: IoThreadId, id: NodeId, token: Token, after: Vec<NodeId>) {
        let cells = &self.cells;
        let is_quiet = |parent: NodeId| is_quiet(cells, parent, token);
        if self.turns.add(id, token, after, is_quiet) {
            self.quiesce_now(home, id, token);
        }
    }

    /// A node is quiet for a section, or has left it.
    pub fn passed(&mut self, home: IoThreadId, id: NodeId, token: Token) {
        let cells = &self.cells;
        for due in self
            .turns
            .passed(id, token, |parent| is_quiet(cells, parent, token))
        {
            self.turns.leave(due, token);
            self.quiesce_now(home, due, token);
        }
    }

    pub fn gone(&mut self, home: IoThreadId, id: NodeId) {
        for token in self.turns.gone(id) {
            self.passed(home, id, token);
        }
    }

    fn quiesce_now(&mut self, home: IoThreadId, id: NodeId, token: Token) {
        let slow = self.slow.contains(&id);
        let Some(cell) = self.cells.get_mut(&id) else {
            self.tell(home, node::Event::Quiesced(id, token));
            self.passed(home, id, token);
            return;
        };
        let twice = cell.gate.holds().contains(&token);
        if cell.gate.close(token) == node::Background::Stop {
            cell.stops += 1;
            if slow {
                cell.background.stopping += 1;
            } else if cell.gate.background_stopped() == node::Background::Resume {
                cell.resumes += 1;
            }
        }
        if twice {
            self.breach(Breach::Restoration);
        }
        self.answer_quiesce(id);
    }

    pub fn resume(&mut self, home: IoThreadId, id: NodeId, token: Token) {
        if !self.turns.leave(id, token) {
            self.resume_now(id, token);
        }
        self.passed(home, id, token);
    }

    fn resume_now(&mut self, id: NodeId, token: Token) {
        let Some(cell) = self.cells.get_mut(&id) else {
            return;
        };
        if !cell.gate.holds().contains(&token) {
            self.breach(Breach::Restoration);
            return;
        }
        if cell.gate.release(token) {
            if cell.gate.resume_background() == node::Background::Resume {
                cell.resumes += 1;
            }
            for root in self.roots.values().filter(|root| root.node == id) {
                root.queue.wake_first();
            }
        }
    }
}
