//! Sections and the nodes of an iothread: who is quiesced when, parents first.

use millpond_messages::{NodeId, Token};

use super::cell::home::Neighbours;
use super::order::outcome::Event;
use super::table::NodeTable;

impl NodeTable {
    /// Quiesces a node once those of its parents here are quiet that were asked before it.
    pub fn quiesce(&self, node: NodeId, token: Token, after: Vec<NodeId>) {
        let is_due = self
            .turns()
            .waiting
            .borrow_mut()
            .add(node, token, after, |parent| self.is_quiet(parent, token));
        if is_due {
            self.quiesce_now(node, token);
        }
    }

    fn quiesce_now(&self, node: NodeId, token: Token) {
        match self.node(node) {
            Some(cell) => cell.quiesce(token),
            None => {
                // A node that is gone has nothing in flight, so it counts as still.
                self.report(Event::Quiesced(node, token));
                self.passed(node, token);
            }
        }
    }

    /// Quiesces the nodes whose turn has come.
    fn quiesce_due(&self) {
        let due = self.turns().due.take();
        for (node, token) in due {
            // The section may have ended for it meanwhile.
            if self.turns().waiting.borrow_mut().leave(node, token) {
                self.quiesce_now(node, token);
            }
        }
    }

    /// Ends a section for a node.
    pub fn resume(&self, node: NodeId, token: Token) {
        // A node whose turn never came has no hold to give back.
        let was_waiting = self.turns().waiting.borrow_mut().leave(node, token);
        if let Some(cell) = self.node(node).filter(|_| !was_waiting) {
            cell.resume(token);
        }
        self.passed(node, token);
    }

    /// A node is gone: nobody waits for it.
    pub fn quiet_for_good(&self, node: NodeId) {
        if self.turns().waiting.borrow().is_empty() {
            return;
        }
        let sections = self.turns().waiting.borrow_mut().gone(node);
        for token in sections {
            self.passed(node, token);
        }
    }

    /// Whether no section waits for a node: it has answered, or was never asked.
    fn is_quiet(&self, node: NodeId, token: Token) -> bool {
        self.node(node).is_none_or(|cell| !cell.gate().owes(token))
    }
}

impl Neighbours for NodeTable {
    fn passed(&self, node: NodeId, token: Token) {
        if self.turns().waiting.borrow().is_empty() {
            return;
        }
        let is_quiet = |parent| self.is_quiet(parent, token);
        let due = self.turns().waiting.borrow_mut().passed(node, token, is_quiet);
        if due.is_empty() {
            return;
        }
        let mut queue = self.turns().due.borrow_mut();
        let is_begun = !queue.is_empty();
        queue.extend(due.into_iter().map(|node| (node, token)));
        // Whoever has a request of the parent end goes on first: what it does next, such as a write of what it has read, may be
        // for a node that is to be quiesced now, and would wait there with its work half done.
        if !is_begun {
            self.local().spawn(async {
                if let Some(table) = Self::current() {
                    table.quiesce_due();
                }
            });
        }
    }
}
