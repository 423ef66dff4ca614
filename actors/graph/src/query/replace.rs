//! Whether a node can take the place of another unseen.

use millpond_messages::{Error, ErrorKind, NodeId, OpBlocker, Result};

use crate::value::edge::Parent;
use crate::value::graph::Graph;
use crate::value::{chain, forbidden};

/// The node `name`, if a node with the data of `parent` can take its place without anybody seeing other data than before.
///
/// # Errors
/// There are no such nodes, somebody forbids that it is replaced, or somebody could see other data.
pub fn check_to_replace(graph: &Graph, parent: &str, name: &str) -> Result<NodeId> {
    let parent = graph.find(parent)?;
    let node = graph.find(name)?;
    forbidden::check(graph, node.id, OpBlocker::Replace)?;
    if shows_the_same(graph, parent.id, node.id) {
        return Ok(node.id);
    }
    let text = format!(
        "Cannot replace '{name}' by a node mirrored from '{}', because it cannot be guaranteed that doing so would not \
         lead to an abrupt change of visible data",
        parent.name
    );
    Err(Error::new(ErrorKind::Permission, text))
}

/// Whether `top` shows the data of `node` through filters alone, or `node` is a child that only `top` looks at, as one of
/// several.
pub fn shows_the_same(graph: &Graph, top: NodeId, node: NodeId) -> bool {
    let mut at = Some(top);
    while let Some(shown) = at.and_then(|id| graph.node(id)) {
        if shown.id == node {
            return true;
        }
        if shown.kind.numbered().is_some() {
            let mut parents = graph.parents_of(node);
            let only = parents.next().filter(|_| parents.next().is_none());
            return only
                .is_some_and(|edge| matches!(edge.parent, Parent::Node(parent, _) if parent == shown.id));
        }
        at = chain::next(graph, shown.id).filter(|_| shown.kind.is_filter());
    }
    false
}
