//! What drained sections that users begin cover.

use millpond_messages::Result;
use millpond_messages::graph::{ChildOf, DrainScope};

use crate::sections::Cover;
use crate::value::graph::Graph;

/// The nodes that a section of this scope covers.
///
/// # Errors
/// There is no such node, child or root edge.
pub fn cover(graph: &Graph, scope: &DrainScope) -> Result<Cover> {
    Ok(match scope {
        DrainScope::All => Cover::All,
        DrainScope::Node(name) => Cover::Nodes(vec![graph.find(name)?.id]),
        DrainScope::Parent(ChildOf::Node { node_name, child }) => {
            Cover::Nodes(vec![graph.parent_of(node_name, child)?])
        }
        DrainScope::Parent(ChildOf::Root(root)) => Cover::Nodes(vec![graph.root_node(*root)?]),
        DrainScope::Subtree(name) => Cover::Subtree(vec![graph.find(name)?.id]),
    })
}
