//! Backing chains as they are: which node is below which, and which of their links are frozen.
//!
//! A chain goes from a node to what it filters, or to its backing node, to the end. Links of it are frozen while somebody
//! relies on them: a frozen link leads where it leads until it is given free.

use millpond_engine::node::OrderOutcome;
use millpond_messages::global_state::GraphReply;
use millpond_messages::path::{full_backing_filename, path_has_protocol};
use millpond_messages::{EdgeId, Error, ErrorKind, NodeId, Result, Role, RootId, Token};

use crate::Reply;
use crate::order::Order;
use crate::value::filename::{Filenames, image_filename};
use crate::value::graph::{Edge, Graph, Node, Parent};
use crate::world::World;

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
pub fn skip_filters(graph: &Graph, mut id: NodeId) -> NodeId {
    // Through no node twice: the graph has no circles.
    while graph.node(id).is_some_and(|node| node.kind.is_filter()) {
        match next(graph, id) {
            Some(below) => id = below,
            None => break,
        }
    }
    id
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

/// The image of a chain that an overlay in it has as its backing file by this name, as headers or users tell it. Two paths
/// are the same if they lead to the same file; the host is asked for that, off the threads that serve requests.
///
/// # Errors
/// There is no such node as `top`.
pub async fn find_backing_image(world: &World, top: &str, filename: &str) -> Result<Option<NodeId>> {
    let candidates = world.graph(|graph| {
        let top = graph.find(top)?.id;
        Ok::<_, Error>(candidates(graph, top, filename))
    })?;
    let paths: Vec<String> = candidates.iter().flat_map(Candidate::paths).collect();
    let mut real = Vec::new();
    if !paths.is_empty() {
        let main = world.with(|state| state.main);
        if let OrderOutcome::RealPaths(found) = world.ask_iothread(main, Order::RealPaths(paths)).await {
            real = found;
        }
    }
    let mut real = real.into_iter();
    let mut next = || real.next().flatten();
    for candidate in candidates {
        match candidate {
            Candidate::Named(below) => return Ok(Some(below)),
            Candidate::Perhaps { below, .. } => {
                let (full, wanted) = (next(), next());
                if full.is_some() && full == wanted {
                    return Ok(Some(below));
                }
            }
        }
    }
    Ok(None)
}

/// A backing image that a name may mean.
enum Candidate {
    /// It does.
    Named(NodeId),
    /// It does if both paths lead to the same file.
    Perhaps {
        below: NodeId,
        full: String,
        wanted: String,
    },
}

impl Candidate {
    fn paths(&self) -> Vec<String> {
        match self {
            Self::Named(_) => Vec::new(),
            Self::Perhaps { full, wanted, .. } => vec![full.clone(), wanted.clone()],
        }
    }
}

/// The images that `filename` may mean, down to the first that it means for sure.
fn candidates(graph: &Graph, top: NodeId, filename: &str) -> Vec<Candidate> {
    let mut candidates = Vec::new();
    let mut at = skip_filters(graph, top);
    let names = Filenames::of(graph, [at]);
    while let (Some(below), Some(overlay)) = (next_image(graph, at), graph.node(at)) {
        let candidate = candidate(graph, &names, overlay, below, filename);
        let is_sure = matches!(candidate, Some(Candidate::Named(_)));
        candidates.extend(candidate);
        if is_sure {
            break;
        }
        at = below;
    }
    candidates
}

/// Whether `filename` means the backing image `below` of `overlay`.
fn candidate(
    graph: &Graph,
    names: &Filenames,
    overlay: &Node,
    below: NodeId,
    filename: &str,
) -> Option<Candidate> {
    let named = |is_it: bool| is_it.then_some(Candidate::Named(below));
    if names.backing_overridden(graph, overlay) {
        return named(names.get(below) == filename);
    }
    let stored = overlay.facts.as_ref()?.backing.as_ref()?.filename.as_str();
    let image = image_filename(graph, overlay.id);
    let full = full_backing_filename(&image, stored).ok();
    if path_has_protocol(filename) || path_has_protocol(stored) {
        return named(filename == stored || full.as_deref() == Some(filename));
    }
    let wanted = full_backing_filename(&image, filename).ok()?;
    Some(Candidate::Perhaps {
        below,
        full: full?,
        wanted,
    })
}

/// A hold on links of chains.
#[derive(Debug)]
pub struct Freeze {
    /// The hold ends with this one at the latest.
    pub root: Option<RootId>,
    /// It ends with this node at the latest.
    pub node: Option<NodeId>,
    /// The links.
    pub edges: Vec<EdgeId>,
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
            let name = |id| graph.expect(id).map(|node| node.name.as_str());
            let text = format!(
                "Node '{}' is not a backing image of '{}'",
                name(base)?,
                name(top)?
            );
            Err(Error::new(ErrorKind::InvalidArgument, text))
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
    Err(unchangeable(graph, edge, "frozen "))
}

/// The same of a link of a chain that somebody is about to rely on.
fn check_free(graph: &Graph, edge: &Edge) -> Result<()> {
    if edge.frozen.is_none() {
        return Ok(());
    }
    Err(unchangeable(graph, edge, ""))
}

fn unchangeable(graph: &Graph, edge: &Edge, how: &str) -> Error {
    let parent = match edge.parent {
        Parent::Node(parent, _) => graph.node(parent),
        Parent::Root(_) => None,
    };
    let name = |node: Option<&Node>| node.map_or(String::new(), |node| node.name.clone());
    let text = format!(
        "Cannot change {how}'{}' link from '{}' to '{}'",
        edge.name,
        name(parent),
        name(graph.node(edge.child))
    );
    Error::new(ErrorKind::Permission, text)
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

fn ends(graph: &Graph, top: &str, base: Option<&str>) -> Result<(NodeId, Option<NodeId>)> {
    let base = base
        .map(|base| graph.find(base).map(|node| node.id))
        .transpose()?;
    Ok((graph.find(top)?.id, base))
}

/// Freezes the links of a chain.
///
/// # Errors
/// One of them is frozen already or must not be, `base` is not in the chain, or there is no such hold.
pub fn freeze(world: &World, top: &str, base: Option<&str>, root: Option<RootId>) -> Reply {
    world.graph(|graph| {
        let (top, base) = ends(graph, top, base)?;
        let edges = to_freeze(graph, top, base)?;
        if let Some(root) = root.filter(|root| graph.root(*root).is_none()) {
            let text = format!("There is no root edge {root}");
            return Err(Error::new(ErrorKind::NotFound, text));
        }
        let node = None;
        Ok(GraphReply::Frozen(graph.freeze(Freeze { root, node, edges })))
    })
}

/// The links of a chain, of which none is frozen yet.
fn to_freeze(graph: &Graph, top: NodeId, base: Option<NodeId>) -> Result<Vec<EdgeId>> {
    let links = links(graph, top, base)?;
    links.iter().try_for_each(|edge| check_free(graph, edge))?;
    for edge in &links {
        let child = graph.expect(edge.child)?;
        if child.kind.never_freeze() {
            let text = format!("Cannot freeze '{}' link to '{}'", edge.name, child.name);
            return Err(Error::new(ErrorKind::Permission, text));
        }
    }
    Ok(links.into_iter().map(|edge| edge.id).collect())
}

/// Freezes the chain below a node as far as its options say that it relies on it.
///
/// # Errors
/// There is no such node below it, that is a filter, or one of the links is frozen already.
pub fn freeze_to_bottom(world: &World, id: NodeId) -> Result<()> {
    world.graph(|graph| {
        let node = graph.expect(id)?;
        let Some(name) = node.kind.chain_bottom(&node.options) else {
            return Ok(());
        };
        // It may be one that is opened together with the node.
        let Some(bottom) = graph.named_or_new(name) else {
            let text = format!("Bottom node '{name}' not found");
            return Err(Error::new(ErrorKind::NotFound, text));
        };
        if bottom.kind.is_filter() {
            let text = format!("Bottom node '{name}' is a filter");
            return Err(Error::new(ErrorKind::InvalidArgument, text));
        }
        let edges = to_freeze(graph, id, Some(bottom.id))?;
        let (root, node) = (None, Some(id));
        graph.freeze(Freeze { root, node, edges });
        Ok(())
    })
}

/// Gives links free again.
///
/// # Errors
/// There is no such hold on links.
pub fn unfreeze(world: &World, token: Token) -> Result<()> {
    if world.graph(|graph| graph.unfreeze(token)) {
        return Ok(());
    }
    let text = format!("There are no links frozen by {token}");
    Err(Error::new(ErrorKind::NotFound, text))
}
