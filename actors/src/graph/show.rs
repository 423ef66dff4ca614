//! The graph as `x-debug-query-block-graph` shows it.

use std::collections::HashMap;

use messages::Permissions;
use messages::global_state::{EdgeParent, GraphFacts, RootUser};
use messages::qapi::{
    BlockPermission, XDbgBlockGraph, XDbgBlockGraphEdge, XDbgBlockGraphNode, XDbgBlockGraphNodeType,
};

/// QAPI's form of the graph: nodes, then users, numbered from 1.
#[must_use]
pub fn graph_json(facts: &GraphFacts) -> XDbgBlockGraph {
    let mut shown = XDbgBlockGraph::default();
    let mut numbers = HashMap::new();
    let mut last = 0;
    let mut number = || {
        last += 1;
        last
    };
    for node in facts.nodes.iter().rev() {
        let id = number();
        numbers.insert(node.id, id);
        let kind = XDbgBlockGraphNodeType::BlockDriver;
        shown.nodes.push(XDbgBlockGraphNode {
            id,
            kind,
            name: node.name.clone(),
        });
    }
    for edge in &facts.edges {
        let parent = match &edge.parent {
            EdgeParent::Node(node) => numbers.get(node).copied(),
            EdgeParent::Root(_, user) => {
                let id = number();
                shown.nodes.push(user_node(id, user));
                Some(id)
            }
        };
        let Some((parent, child)) = parent.zip(numbers.get(&edge.child).copied()) else {
            continue;
        };
        shown.edges.push(XDbgBlockGraphEdge {
            parent,
            child,
            name: edge.name.clone(),
            perm: permissions(edge.permissions),
            shared_perm: permissions(edge.shared),
        });
    }
    shown
}

/// An export's hold has no name of its own there, a job has its id.
fn user_node(id: u64, user: &RootUser) -> XDbgBlockGraphNode {
    let (kind, name) = match user {
        RootUser::Job(job) => (XDbgBlockGraphNodeType::BlockJob, job.clone()),
        RootUser::Export(_) | RootUser::Embedder(_) => (XDbgBlockGraphNodeType::BlockBackend, String::new()),
    };
    XDbgBlockGraphNode { id, kind, name }
}

/// In the order in which QEMU lists them.
fn permissions(set: Permissions) -> Vec<BlockPermission> {
    let all = [
        (Permissions::RESIZE, BlockPermission::Resize),
        (Permissions::WRITE_UNCHANGED, BlockPermission::WriteUnchanged),
        (Permissions::WRITE, BlockPermission::Write),
        (Permissions::CONSISTENT_READ, BlockPermission::ConsistentRead),
    ];
    all.into_iter()
        .filter(|(flag, _)| set.contains(*flag))
        .map(|(_, shown)| shown)
        .collect()
}
