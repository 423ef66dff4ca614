//! The graph as `x-debug-query-block-graph` shows it.

use std::collections::HashMap;

use millpond_messages::graph::{EdgeFacts, EdgeParent, GraphFacts, RootUser};
use millpond_messages::qapi::{
    BlockPermission, XDbgBlockGraph, XDbgBlockGraphEdge, XDbgBlockGraphNode, XDbgBlockGraphNodeType,
};
use millpond_messages::{NodeId, Permissions, RootId};

/// What has a number in the shown graph. All edges of a job are its one vertex's.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Vertex<'a> {
    Node(NodeId),
    Job(&'a str),
    User(RootId),
}

impl<'a> Vertex<'a> {
    fn of(parent: &'a EdgeParent) -> Self {
        match parent {
            EdgeParent::Node(node) => Self::Node(*node),
            EdgeParent::Root(_, RootUser::Job(job)) => Self::Job(job),
            EdgeParent::Root(root, RootUser::Export(_) | RootUser::Embedder(_)) => Self::User(*root),
        }
    }
}

/// The shown graph while it is put together, in QEMU's order: users, then jobs, then nodes, each the oldest first and with
/// its edges. A vertex gets its number when it is first met, at either end of an edge.
#[derive(Default)]
struct Shown<'a> {
    numbers: HashMap<Vertex<'a>, u64>,
    graph: XDbgBlockGraph,
}

impl<'a> Shown<'a> {
    fn number(&mut self, vertex: Vertex<'a>) -> u64 {
        let next = self.numbers.len() as u64 + 1;
        *self.numbers.entry(vertex).or_insert(next)
    }

    fn vertex(&mut self, vertex: Vertex<'a>, name: &str) {
        let kind = match vertex {
            Vertex::Node(_) => XDbgBlockGraphNodeType::BlockDriver,
            Vertex::Job(_) => XDbgBlockGraphNodeType::BlockJob,
            Vertex::User(_) => XDbgBlockGraphNodeType::BlockBackend,
        };
        let id = self.number(vertex);
        let name = name.to_owned();
        self.graph.nodes.push(XDbgBlockGraphNode { id, kind, name });
    }

    fn edge(&mut self, edge: &'a EdgeFacts) {
        let parent = self.number(Vertex::of(&edge.parent));
        let child = self.number(Vertex::Node(edge.child));
        self.graph.edges.push(XDbgBlockGraphEdge {
            parent,
            child,
            name: edge.name.clone(),
            perm: permissions(edge.permissions),
            shared_perm: permissions(edge.shared),
        });
    }
}

/// QAPI's form of the graph, what is newest first.
#[must_use]
pub fn graph_json(facts: &GraphFacts) -> XDbgBlockGraph {
    let mut shown = Shown::default();
    let mut jobs: Vec<(&str, Vec<&EdgeFacts>)> = Vec::new();
    let mut children: HashMap<NodeId, Vec<&EdgeFacts>> = HashMap::new();
    for edge in &facts.edges {
        let vertex = Vertex::of(&edge.parent);
        match vertex {
            Vertex::Node(node) => children.entry(node).or_default().push(edge),
            Vertex::Job(job) => match jobs.iter_mut().find(|(name, _)| *name == job) {
                Some((_, edges)) => edges.push(edge),
                None => jobs.push((job, vec![edge])),
            },
            Vertex::User(_) => {
                // An export's hold has no name of its own there.
                shown.vertex(vertex, "");
                shown.edge(edge);
            }
        }
    }
    for (job, edges) in jobs {
        shown.vertex(Vertex::Job(job), job);
        edges.into_iter().for_each(|edge| shown.edge(edge));
    }
    for node in &facts.nodes {
        shown.vertex(Vertex::Node(node.id), &node.name);
        let edges = children.remove(&node.id).unwrap_or_default();
        edges.into_iter().rev().for_each(|edge| shown.edge(edge));
    }
    let mut graph = shown.graph;
    graph.nodes.reverse();
    graph.edges.reverse();
    graph
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
