//! Searches of the graph: what can be reached from where, and in which order.

use std::collections::{BTreeSet, HashSet};

use millpond_messages::NodeId;

use super::Graph;

/// Which way a search goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From a node to its parents.
    Up,
    /// From a node to its children.
    Down,
    /// Both: all that is joined.
    Both,
}

impl Graph {
    /// Whether `to` can be reached downwards from `from`; a node reaches itself.
    pub fn reaches(&self, from: NodeId, to: NodeId) -> bool {
        // Ids are given bottom-up at open, but edges change: only a search tells. It goes from both ends at the same pace and
        // is over where one of them is: on top of a long chain there is little above a node, however much is below.
        let (mut below, mut above) = (Search::new(from), Search::new(to));
        loop {
            match below.step(|id, open| open.extend(self.children_of(id).map(|edge| edge.child))) {
                None => return false,
                Some(id) if id == to => return true,
                Some(_) => {}
            }
            match above.step(|id, open| open.extend(self.parent_nodes(id))) {
                None => return false,
                Some(id) if id == from => return true,
                Some(_) => {}
            }
        }
    }

    /// All nodes that can be reached from `starts`, themselves included. In order of their ids, so that what is done for
    /// each of them is done in the same order every time.
    pub fn closure(
        &self,
        starts: impl IntoIterator<Item = NodeId>,
        direction: Direction,
    ) -> BTreeSet<NodeId> {
        let mut found = BTreeSet::new();
        let mut open: Vec<NodeId> = starts.into_iter().collect();
        while let Some(id) = open.pop() {
            if !found.insert(id) {
                continue;
            }
            if direction != Direction::Down {
                open.extend(self.parent_nodes(id));
            }
            if direction != Direction::Up {
                open.extend(self.children_of(id).map(|edge| edge.child));
            }
        }
        found
    }

    /// All nodes below `starts`, themselves included, parents before children.
    pub fn topological(&self, starts: impl IntoIterator<Item = NodeId>) -> Vec<NodeId> {
        let mut done = HashSet::new();
        let mut order = Vec::new();
        let mut open: Vec<(NodeId, bool)> = starts.into_iter().map(|id| (id, false)).collect();
        while let Some((id, children_done)) = open.pop() {
            if children_done {
                order.push(id);
            } else if done.insert(id) {
                open.push((id, true));
                open.extend(self.children_of(id).map(|edge| (edge.child, false)));
            }
        }
        order.reverse();
        order
    }
}

/// A search for nodes, one at a time.
struct Search {
    open: Vec<NodeId>,
    found: HashSet<NodeId>,
}

impl Search {
    fn new(start: NodeId) -> Self {
        Self {
            open: vec![start],
            found: HashSet::new(),
        }
    }

    /// The next node that was not found yet, after which those are looked at that `next` adds.
    fn step(&mut self, next: impl FnOnce(NodeId, &mut Vec<NodeId>)) -> Option<NodeId> {
        let id = loop {
            let id = self.open.pop()?;
            if self.found.insert(id) {
                break id;
            }
        };
        next(id, &mut self.open);
        Some(id)
    }
}
