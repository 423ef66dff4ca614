//! Nodes that a section reaches in turn: each is quiesced once those of its parents that live in the same iothread are quiet.
//!
//! The graph actor sends the orders for a whole chain at once, parents first; nobody waits for the thread between them. Only
//! numbers are kept here: who is quiet, and how a node is quiesced, is for whoever has the nodes.

use std::collections::VecDeque;

use millpond_messages::{NodeId, Token};
use rustc_hash::{FxHashMap, FxHashSet};

/// The nodes whose turn has not come.
#[derive(Debug, Default)]
pub struct InTurn {
    waiting: FxHashSet<(NodeId, Token)>,
    /// What waits for a node to be quiet for a section: a node, and the parents that come after this one.
    behind: FxHashMap<(NodeId, Token), Vec<NextInTurn>>,
}

/// A node that waits for a parent.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NextInTurn {
    /// The number of the node.
    pub node: NodeId,
    /// The parents that it waits for after this one.
    pub after: VecDeque<NodeId>,
}

impl InTurn {
    /// Whether nobody waits for anybody.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.behind.is_empty()
    }

    /// Whether a node waits for its turn in a section.
    pub fn is_waiting(&self, node: NodeId, token: Token) -> bool {
        self.waiting.contains(&(node, token))
    }

    /// A node is to be quiesced after these parents. Answers whether that is now: `is_quiet` says it of a parent.
    pub fn add(
        &mut self,
        node: NodeId,
        token: Token,
        after: Vec<NodeId>,
        is_quiet: impl Fn(NodeId) -> bool,
    ) -> bool {
        if self.wait(node, token, after.into(), &is_quiet) {
            return true;
        }
        self.waiting.insert((node, token));
        false
    }

    /// Has a node wait for the first of its parents that is not quiet yet. True if there is none.
    fn wait(
        &mut self,
        node: NodeId,
        token: Token,
        mut after: VecDeque<NodeId>,
        is_quiet: &impl Fn(NodeId) -> bool,
    ) -> bool {
        while let Some(parent) = after.pop_front() {
            if self.is_waiting(parent, token) || !is_quiet(parent) {
                self.behind
                    .entry((parent, token))
                    .or_default()
                    .push(NextInTurn { node, after });
                return false;
            }
        }
        true
    }

    /// A parent is quiet, or is no part of the section any more; answers the nodes whose turn has come. Each waits until
    /// [`InTurn::leave`] is called for it, as it is quiesced.
    pub fn passed(&mut self, parent: NodeId, token: Token, is_quiet: impl Fn(NodeId) -> bool) -> Vec<NodeId> {
        let behind = self.behind.remove(&(parent, token)).unwrap_or_default();
        let mut due = Vec::new();
        for NextInTurn { node, after } in behind {
            // A node whose section has ended waits no more.
            if self.is_waiting(node, token) && self.wait(node, token, after, &is_quiet) {
                due.push(node);
            }
        }
        due
    }

    /// A node does not wait any more: it is quiesced now, or the section ends for it before. False if it does not.
    pub fn leave(&mut self, node: NodeId, token: Token) -> bool {
        self.waiting.remove(&(node, token))
    }

    /// Who waits behind whom in which section.
    pub fn parts(&self) -> Vec<((NodeId, Token), Vec<NextInTurn>)> {
        let behind = self.behind.iter();
        let mut parts: Vec<_> = behind.map(|(parent, nodes)| (*parent, nodes.clone())).collect();
        parts.sort_unstable();
        parts
    }

    /// A node is gone: answers the sections in which others wait for it.
    pub fn gone(&mut self, node: NodeId) -> Vec<Token> {
        self.waiting.retain(|(id, _)| *id != node);
        let behind = self.behind.keys().filter(|(parent, _)| *parent == node);
        behind.map(|(_, token)| *token).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Token = Token(1);

    #[test]
    fn a_node_waits_for_all_its_parents_and_for_theirs() {
        let [top, left, right, base] = [1, 2, 3, 4].map(NodeId);
        let mut turns = InTurn::default();
        assert!(!turns.add(left, ONE, vec![top], |_| false));
        assert!(!turns.add(base, ONE, vec![right, left], |node| node == right));
        assert!(turns.passed(right, ONE, |_| false).is_empty());
        assert_eq!(turns.passed(top, ONE, |node| node == top), [left]);
        assert!(turns.is_waiting(left, ONE) && turns.leave(left, ONE));
        // It has been asked, and is busy.
        assert!(turns.is_waiting(base, ONE));
        assert_eq!(turns.passed(left, ONE, |_| true), [base]);
        assert!(turns.leave(base, ONE) && turns.is_empty());
    }

    #[test]
    fn a_section_that_ends_keeps_nobody_waiting() {
        let [top, middle, base] = [1, 2, 3].map(NodeId);
        let mut turns = InTurn::default();
        assert!(!turns.add(middle, ONE, vec![top], |_| false));
        assert!(!turns.add(base, ONE, vec![middle], |_| false));
        assert!(turns.leave(base, ONE) && turns.leave(middle, ONE) && !turns.leave(top, ONE));
        assert!(turns.passed(top, ONE, |_| true).is_empty(), "they have left");
        assert!(turns.passed(middle, ONE, |_| true).is_empty());
        assert!(turns.is_empty());
    }

    #[test]
    fn nobody_waits_for_a_node_that_is_gone() {
        let [top, base] = [1, 2].map(NodeId);
        let mut turns = InTurn::default();
        assert!(!turns.add(base, ONE, vec![top], |_| false));
        assert_eq!(turns.gone(top), [ONE]);
        assert_eq!(turns.passed(top, ONE, |_| true), [base]);
    }
}
