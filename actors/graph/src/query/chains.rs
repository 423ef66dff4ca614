//! Questions about chains of images.

use millpond_messages::graph::{ChainContains, ChainUnfrozen, FindOverlay, GraphReply};

use crate::effect::Reply;
use crate::query::facts::found;
use crate::value::chain;
use crate::value::graph::Graph;

/// The image of a chain that has a node as its backing image, or the chain's last image.
///
/// # Errors
/// There are no such nodes.
pub fn find_overlay(graph: &Graph, request: &FindOverlay) -> Reply {
    let node = request.node_name.as_ref();
    let node = node.map(|name| graph.find(name).map(|node| node.id));
    let (active, node) = (graph.find(&request.active)?.id, node.transpose()?);
    Ok(found(graph, chain::find_overlay(graph, active, node)))
}

/// Whether a node is in a chain.
///
/// # Errors
/// There are no such nodes.
pub fn contains(graph: &Graph, request: &ChainContains) -> Reply {
    let (top, base) = (graph.find(&request.top)?.id, graph.find(&request.base)?.id);
    Ok(GraphReply::Truth(chain::contains(graph, top, base)))
}

/// Whether no link of a chain is frozen.
///
/// # Errors
/// There are no such nodes, or one of the links is frozen.
pub fn unfrozen(graph: &Graph, request: &ChainUnfrozen) -> Reply {
    chain::check_chain(graph, &request.top, request.base.as_deref())?;
    Ok(GraphReply::Done)
}
