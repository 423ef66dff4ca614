//! Op blockers: operations that somebody forbids on nodes while something of theirs goes on, each with the reason.

use std::collections::{BTreeMap, BTreeSet};

use millpond_messages::global_state::{BlockedBy, Blocker, GraphReply};
use millpond_messages::{Error, ErrorKind, NodeId, OpBlocker, Result, Role, RootId, Token};

use crate::Reply;
use crate::value::graph::{Graph, Parent};
use crate::world::World;

/// Who forbids.
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

/// What is forbidden on a node, the newest reason first.
pub fn blockers(graph: &Graph, node: NodeId) -> Vec<Blocker> {
    // Ids of blockers and the times of edges come from one counter, so they tell which is newer.
    let mut reasons: Vec<(u64, String, Vec<OpBlocker>)> = Vec::new();
    for (token, operations) in graph.blockers.nodes.get(&node).into_iter().flatten() {
        if let Some(holder) = graph.blockers.holders.get(token) {
            let operations = operations.iter().copied().collect();
            reasons.push((token.0, holder.reason.clone(), operations));
        }
    }
    for edge in graph
        .parents_of(node)
        .filter(|edge| edge.role.contains(Role::COW))
    {
        if let Parent::Node(overlay, _) = edge.parent {
            let name = graph.node(overlay).map_or("", |node| node.name.as_str());
            let operations = OpBlocker::ALL.into_iter().filter(|kind| !kind.suits_backing());
            let reason = format!("node is used as backing hd of '{name}'");
            reasons.push((edge.since, reason, operations.collect()));
        }
    }
    reasons.sort_by_key(|(age, ..)| std::cmp::Reverse(*age));
    let each = reasons.into_iter().flat_map(|(_, reason, operations)| {
        operations.into_iter().map(move |operation| Blocker {
            operation,
            reason: reason.clone(),
        })
    });
    each.collect()
}

/// Refuses an operation that somebody forbids on a node.
///
/// # Errors
/// Tells the newest reason.
pub fn check(graph: &Graph, node: NodeId, operation: OpBlocker) -> Result<()> {
    let found = blockers(graph, node)
        .into_iter()
        .find(|blocker| blocker.operation == operation);
    match found {
        Some(blocker) => Err(blocker.error(&graph.expect(node)?.name)),
        None => Ok(()),
    }
}

/// Forbids operations on a node.
///
/// # Errors
/// There is no such node, hold or blocker.
pub fn block(world: &World, node: &str, operations: Vec<OpBlocker>, by: BlockedBy) -> Reply {
    world.graph(|graph| {
        let node = graph.find(node)?.id;
        match by {
            BlockedBy::New { reason, root } => {
                if let Some(root) = root.filter(|root| graph.root(*root).is_none()) {
                    let text = format!("There is no root edge {root}");
                    return Err(Error::new(ErrorKind::NotFound, text));
                }
                let token = graph.add_blocker(reason, root);
                graph.blockers.block(token, node, operations);
                Ok(GraphReply::Blocked(token))
            }
            BlockedBy::Token(token) if graph.blockers.contains(token) => {
                graph.blockers.block(token, node, operations);
                // Not `Blocked`: whoever no longer waits for this would give the whole blocker back.
                Ok(GraphReply::Done)
            }
            BlockedBy::Token(token) => Err(no_blocker(token)),
        }
    })
}

/// Lets a blocker allow operations.
///
/// # Errors
/// There is no such node or blocker.
pub fn unblock(world: &World, token: Token, node: Option<&str>, operations: &[OpBlocker]) -> Result<()> {
    world.graph(|graph| {
        let node = node
            .map(|name| graph.find(name).map(|node| node.id))
            .transpose()?;
        if !graph.blockers.contains(token) {
            return Err(no_blocker(token));
        }
        graph.blockers.unblock(token, node, operations);
        Ok(())
    })
}

fn no_blocker(token: Token) -> Error {
    Error::new(ErrorKind::NotFound, format!("There is no op blocker {token}"))
}
