//! Op blockers: operations that somebody forbids on nodes while something of theirs goes on, each with the reason.

use std::collections::{BTreeMap, BTreeSet};

use millpond_messages::{NodeId, OpBlocker, RootId, Token};

/// One who forbids operations, and why.
#[derive(Debug)]
struct Holder {
    reason: String,
    /// The blocker ends with this hold at the latest.
    root: Option<RootId>,
    nodes: BTreeSet<NodeId>,
}

/// All blockers but those that are part of the graph itself: that a node has an overlay is seen from its edges.
#[derive(Debug, Default)]
pub struct Blockers {
    holders: BTreeMap<Token, Holder>,
    nodes: BTreeMap<NodeId, BTreeMap<Token, BTreeSet<OpBlocker>>>,
}

impl Blockers {
    /// Adds a blocker that forbids nothing yet.
    pub fn insert(&mut self, token: Token, reason: String, root: Option<RootId>) {
        let nodes = BTreeSet::new();
        self.holders.insert(token, Holder { reason, root, nodes });
    }

    /// All blockers: their numbers, why, and the holds that they end with.
    pub fn holders(&self) -> impl Iterator<Item = (Token, &str, Option<RootId>)> {
        let holders = self.holders.iter();
        holders.map(|(token, holder)| (*token, holder.reason.as_str(), holder.root))
    }

    /// Whether there is such a blocker.
    pub fn contains(&self, token: Token) -> bool {
        self.holders.contains_key(&token)
    }

    /// Lets a blocker forbid operations on a node.
    pub fn block(&mut self, token: Token, node: NodeId, operations: impl IntoIterator<Item = OpBlocker>) {
        if let Some(holder) = self.holders.get_mut(&token) {
            holder.nodes.insert(node);
            let blocked = self.nodes.entry(node).or_default().entry(token).or_default();
            blocked.extend(operations);
        }
    }

    /// Lets a blocker allow operations, on one node or on all.
    pub fn unblock(&mut self, token: Token, node: Option<NodeId>, operations: &[OpBlocker]) {
        let Some(holder) = self.holders.get_mut(&token) else {
            return;
        };
        let nodes: Vec<NodeId> = match node {
            Some(node) => vec![node],
            None => holder.nodes.iter().copied().collect(),
        };
        for node in nodes {
            let Some(blocked) = self.nodes.get_mut(&node) else {
                continue;
            };
            if let Some(left) = blocked.get_mut(&token) {
                left.retain(|operation| !operations.contains(operation));
                if left.is_empty() {
                    blocked.remove(&token);
                    holder.nodes.remove(&node);
                }
            }
            if blocked.is_empty() {
                self.nodes.remove(&node);
            }
        }
        if holder.nodes.is_empty() {
            self.holders.remove(&token);
        }
    }

    /// What is forbidden on a node: by which blocker, why, and which operations.
    pub fn on(&self, node: NodeId) -> impl Iterator<Item = (Token, &str, &BTreeSet<OpBlocker>)> {
        let blocked = self.nodes.get(&node).into_iter().flatten();
        blocked.filter_map(|(token, operations)| {
            let holder = self.holders.get(token)?;
            Some((*token, holder.reason.as_str(), operations))
        })
    }

    /// A hold has ended, and with it what its user forbade.
    pub fn forget_root(&mut self, root: RootId) {
        let ended: Vec<Token> = self
            .holders
            .iter()
            .filter(|(_, holder)| holder.root == Some(root))
            .map(|(token, _)| *token)
            .collect();
        for token in ended {
            self.unblock(token, None, &OpBlocker::ALL);
        }
    }

    /// A node is gone. A blocker that only concerned it still is in its holder's hands.
    pub fn forget_node(&mut self, node: NodeId) {
        for token in self.nodes.remove(&node).unwrap_or_default().into_keys() {
            if let Some(holder) = self.holders.get_mut(&token) {
                holder.nodes.remove(&node);
            }
        }
    }
}
