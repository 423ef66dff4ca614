//! Where nodes live, and who holds them there.

use std::collections::BTreeSet;

use millpond_messages::{Error, ErrorKind, IoThreadId, NodeId, Result, RootId};

use crate::value::graph::{Direction, Graph};

/// The nodes joined to a node that nobody holds in place; none if it is held itself.
pub fn free_with(graph: &Graph, node: NodeId) -> Vec<NodeId> {
    if is_held(graph, &beside(graph, node)) {
        return Vec::new();
    }
    let mut seen = BTreeSet::new();
    let mut free = Vec::new();
    for id in graph.closure([node], Direction::Both) {
        if seen.contains(&id) {
            continue;
        }
        let group = beside(graph, id);
        seen.extend(group.iter().copied());
        if !is_held(graph, &group) {
            free.extend(group);
        }
    }
    free
}

/// Two that an edit is about to join.
#[derive(Debug, Clone, Copy)]
pub enum Joint {
    /// A parent and its child.
    Nodes(NodeId, NodeId),
    /// A user and its node.
    Root(RootId, NodeId),
}

/// The nodes that follow when two are joined, and whither.
pub fn following(graph: &Graph, joint: Joint) -> Option<(Vec<NodeId>, IoThreadId)> {
    let home = |id: NodeId| graph.node(id).map(|node| node.iothread);
    let (held, free, to) = match joint {
        Joint::Nodes(parent, child) => {
            let (above, below) = (home(parent)?, home(child)?);
            if above == below {
                return None;
            }
            let (upper, lower) = (beside(graph, parent), beside(graph, child));
            if is_held(graph, &upper) {
                (true, lower, above)
            } else {
                (is_held(graph, &lower), upper, below)
            }
        }
        Joint::Root(root, node) => {
            let wanted = graph.root(root)?.wants?;
            if home(node)? == wanted {
                return None;
            }
            (true, beside(graph, node), wanted)
        }
    };
    (held && !is_held(graph, &free)).then(|| (free.into_iter().collect(), to))
}

/// All that is joined to a node without leaving its iothread.
pub fn beside(graph: &Graph, node: NodeId) -> BTreeSet<NodeId> {
    let home = graph.node(node).map(|node| node.iothread);
    let mut found = BTreeSet::new();
    let mut open = vec![node];
    while let Some(id) = open.pop() {
        let lives_here = graph.node(id).map(|node| node.iothread) == home;
        if lives_here && found.insert(id) {
            open.extend(graph.parent_nodes(id));
            open.extend(graph.children_of(id).map(|edge| edge.child));
        }
    }
    found
}

/// Whether a user wants nodes of one iothread there.
pub fn is_held(graph: &Graph, nodes: &BTreeSet<NodeId>) -> bool {
    let mut roots = nodes
        .iter()
        .filter_map(|id| graph.node(*id))
        .flat_map(|node| graph.roots_of(node.id).map(|root| (root, node.iothread)));
    roots.any(|(root, home)| graph.root(root).is_some_and(|root| root.wants == Some(home)))
}

/// What moves with a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Company {
    /// Nothing else moves with it.
    Alone,
    /// All that is joined to it.
    Joined,
}

/// The nodes that move when a node does.
///
/// # Errors
/// A user holds one of them where it is.
pub fn to_move(graph: &Graph, node: NodeId, to: IoThreadId, company: Company) -> Result<BTreeSet<NodeId>> {
    let moving = match company {
        Company::Alone => BTreeSet::from([node]),
        Company::Joined => graph.closure([node], Direction::Both),
    };
    check_unpinned(graph, &moving, to)?;
    Ok(moving)
}

fn check_unpinned(graph: &Graph, moving: &BTreeSet<NodeId>, to: IoThreadId) -> Result<()> {
    let leaving = moving
        .iter()
        .filter_map(|id| graph.node(*id))
        .filter(|node| node.iothread != to);
    let mut roots = leaving.flat_map(|node| graph.roots_of(node.id).map(|root| (root, node.iothread)));
    let is_pinned = |(root, home)| {
        let root = graph.root(root);
        root.is_some_and(|root| root.pinned && root.wants == Some(home))
    };
    if roots.any(is_pinned) {
        return Err(Error::new(
            ErrorKind::InUse,
            "Cannot change iothread of active block backend",
        ));
    }
    Ok(())
}

/// What goes along as an overlay goes to where the node lives that it is put over, and where that is: between them requests
/// would pass from thread to thread. None where it is there, or where a user holds it.
pub fn going_over(graph: &Graph, overlay: NodeId, node: NodeId) -> Option<(Vec<NodeId>, IoThreadId)> {
    let (home, to) = (graph.node(overlay)?.iothread, graph.node(node)?.iothread);
    if home == to {
        return None;
    }
    let going = free_beside(graph, overlay, home)?;
    Some((going.into_iter().collect(), to))
}

/// All that is joined to a node and lives beside it, if nobody holds any of it in place.
pub fn free_beside(graph: &Graph, node: NodeId, home: IoThreadId) -> Option<BTreeSet<NodeId>> {
    let beside = |id: &NodeId| graph.node(*id).is_some_and(|node| node.iothread == home);
    let joined = graph.closure([node], Direction::Both).into_iter();
    let going: BTreeSet<NodeId> = joined.filter(beside).collect();
    (!is_held(graph, &going)).then_some(going)
}
