//! Questions about the graph. They are answered at once, or as soon as the nodes they concern have answered.

mod backing_image;
mod device;
mod dot;
mod drains;
mod iothreads;
mod nodes;
mod replace;
mod saved;
mod statistics;

use std::collections::HashSet;

use millpond_messages::graph::{
    DriverFacts, EdgeFacts, EdgeParent, GraphFacts, GraphReply, NodeFacts, Query,
};
use millpond_messages::{Error, ErrorKind, NodeId, Result};

use crate::effect::Reply;
use crate::state::PolicyState;
use crate::value::edge::{Edge, Parent};
use crate::value::graph::Graph;
use crate::value::home::{self, Company};
use crate::value::node::Node;
use crate::value::{chain, filename, forbidden};
use crate::world::World;

pub use drains::pending as pending_drains;

/// Answers a question.
///
/// # Errors
/// It is about something that does not exist.
pub async fn answer(world: &World, query: Query) -> Reply {
    match query {
        Query::NamedNodes { flat } => nodes::named_nodes(world, flat).await.map(GraphReply::Json),
        Query::NodeStatistics => Ok(GraphReply::NodeStatistics(statistics::reports(world).await)),
        Query::Statistics => Ok(GraphReply::Json(statistics::statistics(world).await)),
        Query::MayMove {
            node_name,
            iothread,
            joined,
        } => world
            .with(|state| may_move(state, &node_name, iothread.as_deref(), joined))
            .map(|()| GraphReply::Done),
        Query::IothreadStatistics => Ok(GraphReply::IothreadStatistics(iothreads::reports(world).await)),
        Query::Save => Ok(GraphReply::Saved(Box::new(saved::graph(world).await?))),
        Query::PendingDrains => Ok(GraphReply::Drains(drains::pending(world).await)),
        Query::Graph => Ok(GraphReply::Graph(world.graph(|graph| whole(graph)))),
        Query::Dot => Ok(GraphReply::Json(world.with(|state| drawn(state)).into())),
        Query::Node { node_name } => world.graph(|graph| {
            graph
                .find(&node_name)
                .map(|node| GraphReply::Node(facts(graph, node)))
        }),
        Query::BlockSizes { node_name } => device::block_sizes(world, &node_name).await,
        Query::Drivers { read_only } => Ok(GraphReply::Drivers(world.with(|state| {
            let names = state.registry.names(read_only);
            let kinds = names.filter_map(|name| state.registry.find(name));
            kinds.map(|kind| driver_facts(kind.as_ref())).collect()
        }))),
        Query::DriverInfo { node_name } => device::driver_info(world, &node_name).await,
        Query::Geometry { node_name } => device::geometry(world, &node_name).await,
        Query::Directory { node_name } => world.graph(|graph| {
            let node = graph.find(&node_name)?;
            filename::directory(graph, node).map(GraphReply::Name)
        }),
        Query::Root(root) => world.graph(|graph| {
            let node = graph.root(root).and_then(|root| graph.edge(root.edge));
            let node = node.and_then(|edge| graph.node(edge.child));
            let facts = node.map(|node| GraphReply::Node(facts(graph, node)));
            facts.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("There is no root edge {root}")))
        }),
        Query::OpBlockers { node_name } => world.graph(|graph| {
            let node = graph.find(&node_name)?.id;
            Ok(GraphReply::Blockers(forbidden::reasons(graph, node)))
        }),
        Query::FindOverlay { active, node_name } => world.graph(|graph| {
            let node = node_name.map(|name| graph.find(&name).map(|node| node.id));
            let (active, node) = (graph.find(&active)?.id, node.transpose()?);
            Ok(found(graph, chain::find_overlay(graph, active, node)))
        }),
        Query::FindBackingImage { top, filename } => {
            let image = backing_image::find(world, &top, &filename).await?;
            world.graph(|graph| Ok(found(graph, image)))
        }
        Query::ChainContains { top, base } => world.graph(|graph| {
            let (top, base) = (graph.find(&top)?.id, graph.find(&base)?.id);
            Ok(GraphReply::Truth(chain::contains(graph, top, base)))
        }),
        Query::ChainUnfrozen { top, base } => world.graph(|graph| {
            chain::check_chain(graph, &top, base.as_deref())?;
            Ok(GraphReply::Done)
        }),
        Query::CheckReplace { parent, node_name } => world.graph(|graph| {
            let node = replace::check_to_replace(graph, &parent, &node_name)?;
            Ok(found(graph, Some(node)))
        }),
        Query::NextOwned { after } => world.graph(|graph| {
            let after = after
                .map(|name| graph.find(&name).map(|node| node.id))
                .transpose()?;
            let next = graph
                .live_nodes()
                .find(|node| node.owned && after.is_none_or(|after| node.id > after));
            Ok(found(graph, next.map(|node| node.id)))
        }),
        Query::Iothreads => Ok(GraphReply::Iothreads(world.with(|state| {
            let entries = state.iothreads.iter();
            entries
                .filter_map(|(id, entry)| Some((entry.options.clone()?, entry.thread, *id)))
                .collect()
        }))),
    }
}

/// The graph in the DOT language.
fn drawn(state: &PolicyState) -> String {
    let named = state.iothreads.iter();
    let named = named.map(|(id, entry)| (*id, iothreads::shown_name(entry).to_owned()));
    dot::dot(&whole(&state.graph), &named.collect())
}

fn driver_facts(kind: &dyn millpond_drivers::api::DriverKind) -> DriverFacts {
    DriverFacts {
        name: kind.name().to_owned(),
        is_protocol: kind.is_protocol(),
        creates: kind.creates(),
    }
}

/// What others act on.
pub fn facts(graph: &Graph, node: &Node) -> NodeFacts {
    let names = filename::Filenames::of(graph, [node.id]);
    facts_named(
        node,
        &names,
        has_zero_init(graph, node),
        takes_compressed(graph, node),
    )
}

fn facts_named(
    node: &Node,
    names: &filename::Filenames,
    has_zero_init: bool,
    takes_compressed: bool,
) -> NodeFacts {
    let open = node.facts.as_ref();
    NodeFacts {
        id: node.id,
        name: node.name.clone(),
        driver: node.kind.name().to_owned(),
        size: open.map_or(0, |open| open.size),
        read_only: node.flags.is_read_only(),
        flags: node.flags,
        filename: names.get(node.id).to_owned(),
        has_zero_init,
        limits: open.map_or_else(millpond_messages::Limits::default, |open| open.limits),
        takes_compressed,
        iothread: node.iothread,
    }
}

fn found(graph: &Graph, node: Option<millpond_messages::NodeId>) -> GraphReply<millpond_messages::RootId> {
    let node = node.and_then(|id| graph.node(id));
    GraphReply::Found(node.map(|node| facts(graph, node)))
}

/// Whether compressed writes to a node are possible: a filter passes on what its child takes.
fn takes_compressed(graph: &Graph, node: &Node) -> bool {
    let mut at = node;
    loop {
        let takes = at
            .facts
            .as_ref()
            .is_some_and(|open| open.abilities.write_compressed);
        if !takes || !at.kind.is_filter() {
            return takes;
        }
        let below = graph.children_of(at.id).next();
        match below.and_then(|edge| graph.node(edge.child)) {
            Some(next) => at = next,
            None => return false,
        }
    }
}

/// Whether what was never written to a node reads as zeroes.
enum ZeroInit {
    Known(bool),
    /// As with another node, which it shows.
    As(NodeId),
}

fn zero_init(graph: &Graph, node: &Node) -> ZeroInit {
    // What an overlay does not hold is its backing node's.
    if graph
        .children_of(node.id)
        .any(|edge| edge.role.contains(millpond_messages::Role::COW))
    {
        return ZeroInit::Known(false);
    }
    let open = node.facts.as_ref();
    // Of a raw image, and through a filter, the file's own data is seen.
    let transparent = open.is_some_and(|open| open.abilities.transparent) || node.kind.is_filter();
    if !transparent {
        return ZeroInit::Known(open.is_some_and(|open| open.abilities.has_zero_init));
    }
    match graph.children_of(node.id).next() {
        Some(edge) => ZeroInit::As(edge.child),
        None => ZeroInit::Known(false),
    }
}

fn has_zero_init(graph: &Graph, node: &Node) -> bool {
    let mut at = zero_init(graph, node);
    loop {
        match at {
            ZeroInit::Known(known) => return known,
            ZeroInit::As(id) => match graph.node(id) {
                Some(node) => at = zero_init(graph, node),
                None => return false,
            },
        }
    }
}

/// The nodes that have it, of all: worked out from below, one step a node.
fn with_zero_init(graph: &Graph) -> HashSet<NodeId> {
    let mut have = HashSet::new();
    let all = graph.nodes().map(|node| node.id);
    for id in graph.topological(all).into_iter().rev() {
        let Some(node) = graph.node(id) else { continue };
        let has = match zero_init(graph, node) {
            ZeroInit::Known(known) => known,
            ZeroInit::As(child) => have.contains(&child),
        };
        if has {
            have.insert(id);
        }
    }
    have
}

/// The nodes that compressed writes are possible to, of all: worked out from below, one step a node.
fn with_compressed(graph: &Graph) -> HashSet<NodeId> {
    let mut have = HashSet::new();
    let all = graph.nodes().map(|node| node.id);
    for id in graph.topological(all).into_iter().rev() {
        let Some(node) = graph.node(id) else { continue };
        let open = node.facts.as_ref();
        let takes = open.is_some_and(|open| open.abilities.write_compressed);
        let below = graph.children_of(id).next();
        if takes && (!node.kind.is_filter() || below.is_some_and(|edge| have.contains(&edge.child))) {
            have.insert(id);
        }
    }
    have
}

/// Everything that was committed.
fn whole(graph: &Graph) -> GraphFacts {
    let names = filename::Filenames::of(graph, graph.live_nodes().map(|node| node.id));
    let (zeroes, compressed) = (with_zero_init(graph), with_compressed(graph));
    let mut edges: Vec<&Edge> = graph.edges().filter(|edge| is_live(graph, edge)).collect();
    edges.sort_unstable_by_key(|edge| edge.id);
    let edges = edges.into_iter().filter_map(|edge| {
        let parent = match edge.parent {
            Parent::Node(node, _) => EdgeParent::Node(node),
            Parent::Root(root) => EdgeParent::Root(root, graph.root(root)?.user.clone()),
        };
        Some(EdgeFacts {
            parent,
            child: edge.child,
            name: edge.name.clone().into_owned(),
            role: edge.role,
            permissions: edge.taken,
            shared: edge.shared,
        })
    });
    GraphFacts {
        nodes: graph
            .live_nodes()
            .map(|node| {
                let (zeroes, compressed) = (zeroes.contains(&node.id), compressed.contains(&node.id));
                facts_named(node, &names, zeroes, compressed)
            })
            .collect(),
        edges: edges.collect(),
    }
}

fn is_live(graph: &Graph, edge: &Edge) -> bool {
    match edge.parent {
        Parent::Node(node, _) => graph.node(node).is_some_and(|node| node.live),
        Parent::Root(root) => graph.root(root).is_some_and(|root| root.has_cell),
    }
}

fn may_move(state: &PolicyState, name: &str, iothread: Option<&str>, joined: bool) -> Result<()> {
    let node = state.graph.find(name)?.id;
    let company = if joined { Company::Joined } else { Company::Alone };
    home::to_move(&state.graph, node, state.destination(iothread)?, company).map(drop)
}
