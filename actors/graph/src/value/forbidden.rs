//! Which operations are forbidden on a node: by op blockers, and by the edges that lead to it.

use millpond_messages::graph::Blocker;
use millpond_messages::{NodeId, OpBlocker, Result, Role};

use crate::value::edge::Parent;
use crate::value::graph::Graph;

/// What is forbidden on a node, the newest reason first.
pub fn reasons(graph: &Graph, node: NodeId) -> Vec<Blocker> {
    // Ids of blockers and the times of edges come from one counter, so they tell which is newer.
    let mut reasons: Vec<(u64, String, Vec<OpBlocker>)> = Vec::new();
    for (token, reason, operations) in graph.blockers.on(node) {
        reasons.push((token.0, reason.to_owned(), operations.iter().copied().collect()));
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
    let found = reasons(graph, node)
        .into_iter()
        .find(|blocker| blocker.operation == operation);
    match found {
        Some(blocker) => Err(blocker.error(&graph.expect(node)?.name)),
        None => Ok(()),
    }
}
