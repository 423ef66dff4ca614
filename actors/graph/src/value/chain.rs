//! Backing chains as they are: which node is below which, and which of their links are frozen.
//!
//! A chain goes from a node to what it filters, or to its backing node, to the end. Links of it are frozen while somebody
//! relies on them: a frozen link leads where it leads until it is given free.

use millpond_messages::{EdgeId, NodeId, Result, Role};

use crate::value::edge::{Edge, Parent};
use crate::value::frozen::Freeze;
use crate::value::graph::Graph;
use crate::value::node::Node;
use crate::value::refusal::Refusal;

/// The edge by which a chain goes on from a node: to what it filters, or to its backing node.
pub fn next_edge(graph: &Graph, id: NodeId) -> Option<&Edge> {
    let is_filter = graph.node(id)?.kind.is_filter();
    let role = if is_filter { Role::PRIMARY } else { Role::COW };
    graph.children_of(id).find(|edge| edge.role.contains(role))
}

/// The node that a chain goes on with.
pub fn next(graph: &Graph, id: NodeId) -> Option<NodeId> {
    next_edge(graph, id).map(|edge| edge.child)
}

/// The first node from `id` on that is no filter.
pub fn skip_filters(graph: &Graph, id: NodeId) -> NodeId {
    through_filters(graph, id).last().unwrap_or(id)
}

/// The nodes from `id` on, up to the first that is no filter.
pub fn through_filters(graph: &Graph, id: NodeId) -> impl Iterator<Item = NodeId> {
    // No node comes twice: the graph has no circles.
    std::iter::successors(Some(id), |id| {
        let is_filter = graph.node(*id).is_some_and(|node| node.kind.is_filter());
        is_filter.then(|| next(graph, *id)).flatten()
    })
}

/// The next image of a chain, filters left out.
pub fn next_image(graph: &Graph, id: NodeId) -> Option<NodeId> {
    let image = skip_filters(graph, id);
    let below = next(graph, image)?;
    Some(skip_filters(graph, below))
}

/// The image of `active`'s chain whose backing image is that of `node`; its last image if there is no `node`.
pub fn find_overlay(graph: &Graph, active: NodeId, node: Option<NodeId>) -> Option<NodeId> {
    let node = node.map(|node| skip_filters(graph, node));
    let mut at = skip_filters(graph, active);
    loop {
        let below = next_image(graph, at);
        if below == node {
            return Some(at);
        }
        at = below?;
    }
}

/// Whether `base` is in the chain of `top`, which is in its own.
pub fn contains(graph: &Graph, top: NodeId, base: NodeId) -> bool {
    let mut at = Some(top);
    while let Some(id) = at {
        if id == base {
            return true;
        }
        at = next(graph, id);
    }
    false
}

/// The links from `top` down to `base`, or to the end of the chain.
fn links(graph: &Graph, top: NodeId, base: Option<NodeId>) -> Result<Vec<&Edge>> {
    let mut links = Vec::new();
    let mut at = top;
    while Some(at) != base {
        match next_edge(graph, at) {
            Some(edge) => {
                links.push(edge);
                at = edge.child;
            }
            None => break,
        }
    }
    match base {
        Some(base) if base != at => {
            let name = |id| graph.expect(id).map(|node| node.name.clone());
            let (base, top) = (name(base)?, name(top)?);
            Err(Refusal::NotInChain { base, top }.into())
        }
        _ => Ok(links),
    }
}

/// Refuses to change a link that is frozen.
///
/// # Errors
/// It is.
pub fn check_unfrozen(graph: &Graph, edge: &Edge) -> Result<()> {
    if edge.frozen.is_none() {
        return Ok(());
    }
    let (edge, parent, child) = names(graph, edge);
    Err(Refusal::FrozenLink { edge, parent, child }.into())
}

/// The same of a link of a chain that somebody is about to rely on.
fn check_free(graph: &Graph, edge: &Edge) -> Result<()> {
    if edge.frozen.is_none() {
        return Ok(());
    }
    let (edge, parent, child) = names(graph, edge);
    Err(Refusal::ReservedLink { edge, parent, child }.into())
}

/// A link's name, and the names of the nodes at its ends.
fn names(graph: &Graph, edge: &Edge) -> (String, String, String) {
    let parent = match edge.parent {
        Parent::Node(parent, _) => graph.node(parent),
        Parent::Root(_) => None,
    };
    let name = |node: Option<&Node>| node.map_or(String::new(), |node| node.name.clone());
    (edge.name.to_string(), name(parent), name(graph.node(edge.child)))
}

/// Refuses a chain that has a frozen link between `top` and `base`.
///
/// # Errors
/// It has one, or `base` is not in the chain.
pub fn check_chain(graph: &Graph, top: &str, base: Option<&str>) -> Result<()> {
    let (top, base) = ends(graph, top, base)?;
    links(graph, top, base)?
        .into_iter()
        .try_for_each(|edge| check_free(graph, edge))
}

/// The nodes between which a chain lies.
///
/// # Errors
/// There are no such nodes.
pub fn ends(graph: &Graph, top: &str, base: Option<&str>) -> Result<(NodeId, Option<NodeId>)> {
    let base = base
        .map(|base| graph.find(base).map(|node| node.id))
        .transpose()?;
    Ok((graph.find(top)?.id, base))
}

/// The links of a chain, of which none is frozen yet.
///
/// # Errors
/// One is, or must not be; or `base` is not in the chain.
pub fn to_freeze(graph: &Graph, top: NodeId, base: Option<NodeId>) -> Result<Vec<EdgeId>> {
    let links = links(graph, top, base)?;
    links.iter().try_for_each(|edge| check_free(graph, edge))?;
    for edge in &links {
        let child = graph.expect(edge.child)?;
        if child.kind.never_freeze() {
            let (edge, child) = (edge.name.to_string(), child.name.clone());
            return Err(Refusal::PassingLink { edge, child }.into());
        }
    }
    Ok(links.into_iter().map(|edge| edge.id).collect())
}

/// Freezes the chain below a node as far as its options say that it relies on it.
///
/// # Errors
/// There is no such node below it, that is a filter, or one of the links is frozen already.
pub fn freeze_to_bottom(graph: &mut Graph, id: NodeId) -> Result<()> {
    let node = graph.expect(id)?;
    let Some(name) = node.kind.chain_bottom(&node.options) else {
        return Ok(());
    };
    // It may be one that is opened together with the node.
    let Some(bottom) = graph.named_or_new(name) else {
        return Err(Refusal::NoBottom(name.to_owned()).into());
    };
    if bottom.kind.is_filter() {
        return Err(Refusal::BottomIsFilter(name.to_owned()).into());
    }
    let edges = to_freeze(graph, id, Some(bottom.id))?;
    let (root, node) = (None, Some(id));
    graph.freeze(Freeze { root, node, edges });
    Ok(())
}

/// The node that has what is asked of `node` of snapshots: itself, or the one below it where it is all that it stands on.
pub fn keeper_of_snapshots(graph: &Graph, node: NodeId) -> Option<&Node> {
    let mut node = graph.node(node)?;
    while !node.kind.has_snapshots() {
        let storage = Role::DATA | Role::METADATA | Role::FILTERED;
        let mut children = graph
            .children_of(node.id)
            .filter(|edge| edge.role.intersects(storage));
        let only = children.next().filter(|edge| edge.role.contains(Role::PRIMARY))?;
        if children.next().is_some() {
            return None;
        }
        node = graph.node(only.child)?;
    }
    Some(node)
}
