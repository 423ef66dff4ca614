//! Chains of images, as the commands look at them.

use millpond_messages::Role;
use millpond_messages::graph::{EdgeParent, GraphFacts, NodeFacts};

use crate::cli::tool::{Failure, Tool};

/// The nodes of a chain, the top first: images with the filters above them.
pub async fn chain_of(tool: &Tool<'_>, top: &str) -> Result<Vec<NodeFacts>, Failure> {
    let graph = tool.graph().facts().await?;
    let mut next = graph.nodes.iter().find(|node| node.name == top);
    let mut chain = Vec::new();
    while let Some(node) = next {
        chain.push(node.clone());
        // No chain is longer than there are nodes.
        if chain.len() > graph.nodes.len() {
            break;
        }
        next = below(&graph, node);
    }
    Ok(chain)
}

/// The backing image of an image, which may be below filters; nothing where there is none.
pub async fn backing_of(tool: &Tool<'_>, image: &str) -> Result<Option<String>, Failure> {
    let chain = chain_of(tool, image).await?;
    let mut images = chain.into_iter().filter(|node| !node.is_filter);
    Ok(images.nth(1).map(|node| node.name))
}

/// What a node shows where it has nothing of its own.
fn below<'a>(graph: &'a GraphFacts, node: &NodeFacts) -> Option<&'a NodeFacts> {
    let role = if node.is_filter { Role::FILTERED } else { Role::COW };
    let mut edges = graph.edges.iter();
    let edge = edges.find(|edge| edge.parent == EdgeParent::Node(node.id) && edge.role.contains(role))?;
    graph.nodes.iter().find(|node| node.id == edge.child)
}
