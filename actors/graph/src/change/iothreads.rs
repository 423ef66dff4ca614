//! Iothreads: making and ending them, and moving nodes between them.

use std::collections::BTreeSet;

use millpond_messages::global_state::IothreadOptions;
use millpond_messages::{ChildSlot, Error, ErrorKind, IoThreadId, NodeId, Result, RootId};

use crate::Effect;
use crate::order::Order;
use crate::sections::Cover;
use crate::transaction::Transaction;
use crate::value::graph::{Direction, Graph, Parent};
use crate::world::{IothreadEntry, State, World};

/// `object-add` of an iothread.
///
/// # Errors
/// A property is out of range, the id is taken, or the thread cannot be started.
pub async fn add(world: &World, options: IothreadOptions) -> Result<()> {
    check(&options)?;
    if world.with(|state| state.iothread_named(&options.id)).is_some() {
        let text = format!(
            "attempt to add duplicate property '{}' to object (type 'container')",
            options.id
        );
        return Err(Error::new(ErrorKind::Exists, text));
    }
    let (id, thread) = world.start_iothread(options.clone()).await?;
    world.with(|state| {
        state.iothreads.insert(
            id,
            IothreadEntry {
                options: Some(options),
                thread,
            },
        )
    });
    Ok(())
}

/// `qom-set` on an iothread.
///
/// # Errors
/// There is no such iothread, or a property is out of range.
pub fn tune(world: &World, options: IothreadOptions) -> Result<()> {
    check(&options)?;
    world.with(|state| {
        let iothread = state
            .iothread_named(&options.id)
            .ok_or_else(|| no_iothread(&options.id))?;
        if let Some(entry) = state.iothreads.get_mut(&iothread) {
            entry.options = Some(options.clone());
        }
        state.push(Effect::TuneIothread { iothread, options });
        Ok(())
    })
}

/// `object-del` of an iothread.
///
/// # Errors
/// There is none, or a node lives there.
pub fn delete(world: &World, name: &str) -> Result<()> {
    world.with(|state| {
        let iothread = state
            .iothread_named(name)
            .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("object '{name}' not found")))?;
        if state.graph.population(iothread) > 0 {
            let text = format!("object '{name}' is in use, can not be deleted");
            return Err(Error::new(ErrorKind::InUse, text));
        }
        state.iothreads.remove(&iothread);
        state.push(Effect::StopIothread(iothread));
        Ok(())
    })
}

fn check(options: &IothreadOptions) -> Result<()> {
    let values = [
        ("poll-max-ns", options.poll_max_ns),
        ("poll-grow", options.poll_grow),
        ("poll-shrink", options.poll_shrink),
        ("aio-max-batch", options.aio_max_batch),
        ("thread-pool-min", options.thread_pool_min),
        ("thread-pool-max", options.thread_pool_max),
    ];
    for (name, value) in values {
        if value < 0 {
            let text = format!("{name} value must be in range [0, {}]", i64::MAX);
            return Err(Error::new(ErrorKind::InvalidArgument, text));
        }
    }
    if options.thread_pool_min > options.thread_pool_max || options.thread_pool_max == 0 {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            "bad thread-pool-min/thread-pool-max values",
        ));
    }
    Ok(())
}

fn no_iothread(name: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("Cannot find iothread {name}"))
}

/// `x-blockdev-set-iothread`.
///
/// # Errors
/// There is no such node or iothread, or a user holds the node where it is.
pub async fn set_iothread(world: &World, name: &str, iothread: Option<&str>, force: bool) -> Result<()> {
    let (node, to) = world.with(|state| {
        let node = state.graph.find(name)?.id;
        if !force && state.graph.roots_of(node).next().is_some() {
            let text = format!(
                "Node {name} is associated with a BlockBackend and could be in use (use force=true to override \
                 this check)"
            );
            return Err(Error::new(ErrorKind::InUse, text));
        }
        Ok((node, destination(state, iothread)?))
    })?;
    move_joined(world, node, to).await
}

/// Moves one node, without those that it is joined to.
///
/// # Errors
/// There is no such node or iothread, or a user holds the node where it is.
pub async fn move_node(world: &World, name: &str, iothread: Option<&str>) -> Result<()> {
    let (moving, to) = world.with(|state| {
        let node = state.graph.find(name)?.id;
        let to = destination(state, iothread)?;
        Ok::<_, Error>((to_move(state, node, to, Company::Alone)?, to))
    })?;
    move_nodes(
        world,
        moving.iter().copied().collect(),
        to,
        "x-millpond-move-node",
    )
    .await
}

/// Whether a move would be refused.
///
/// # Errors
/// Those of the move.
pub fn may_move(state: &State, name: &str, iothread: Option<&str>, joined: bool) -> Result<()> {
    let node = state.graph.find(name)?.id;
    let company = if joined { Company::Joined } else { Company::Alone };
    to_move(state, node, destination(state, iothread)?, company).map(drop)
}

fn destination(state: &State, iothread: Option<&str>) -> Result<IoThreadId> {
    match iothread {
        None => Ok(state.main),
        Some(name) => state.iothread_named(name).ok_or_else(|| no_iothread(name)),
    }
}

/// Moves a node and all that is joined to it by edges, so that what was an inline call stays one.
///
/// # Errors
/// A user does not let one of them move; then none has.
async fn move_joined(world: &World, node: NodeId, to: IoThreadId) -> Result<()> {
    let joined: Vec<NodeId> = world
        .with(|state| Ok::<_, Error>(to_move(state, node, to, Company::Joined)?.into_iter().collect()))?;
    move_nodes(world, joined.clone(), to, "x-blockdev-set-iothread").await?;
    // Users that let their nodes move on want them where they are now.
    world.graph(|graph| {
        let roots: Vec<RootId> = joined.iter().flat_map(|node| graph.roots_of(*node)).collect();
        for root in roots {
            if let Some(root) = graph.root_mut(root) {
                root.wants = root.wants.map(|wants| if root.pinned { wants } else { to });
            }
        }
    });
    Ok(())
}

/// Brings a node to where a user wants it, with all that is joined to it, except for what is held in place elsewhere: the
/// user's edge, or one below, crosses iothreads then.
///
/// # Errors
/// There is no such iothread.
pub async fn bring(world: &World, node: NodeId, to: IoThreadId) -> Result<()> {
    let moving = world.with(|state| {
        if !state.iothreads.contains_key(&to) {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("Cannot find iothread {to}"),
            ));
        }
        Ok(free_with(&state.graph, node))
    })?;
    move_nodes(world, moving, to, "move to where a user is").await
}

/// The nodes joined to a node that nobody holds in place; none if it is held itself.
fn free_with(graph: &Graph, node: NodeId) -> Vec<NodeId> {
    if is_held(graph, &beside(graph, node)) {
        return Vec::new();
    }
    let mut seen = BTreeSet::new();
    let mut free = Vec::new();
    for id in graph.closure([node], Direction::Both) {
        if seen.contains(&id) {
            continue;
        }
        let group = beside(graph, id);
        seen.extend(group.iter().copied());
        if !is_held(graph, &group) {
            free.extend(group);
        }
    }
    free
}

/// Two that an edit is about to join.
#[derive(Debug, Clone, Copy)]
pub enum Joint {
    /// A parent and its child.
    Nodes(NodeId, NodeId),
    /// A user and its node.
    Root(RootId, NodeId),
}

/// Has nodes follow those that are held in place to the iothread where they are. Where both sides of an edge are held, or
/// neither is, all stay where they are: the edge crosses iothreads.
///
/// # Errors
/// An iothread is gone.
pub async fn follow(transaction: &mut Transaction, joints: impl IntoIterator<Item = Joint>) -> Result<()> {
    for joint in joints {
        let moving = transaction.world.graph(|graph| following(graph, joint));
        if let Some((nodes, to)) = moving {
            transaction.move_nodes(nodes, to).await?;
        }
    }
    Ok(())
}

/// The nodes that follow when two are joined, and whither.
fn following(graph: &Graph, joint: Joint) -> Option<(Vec<NodeId>, IoThreadId)> {
    let home = |id: NodeId| graph.node(id).map(|node| node.iothread);
    let (held, free, to) = match joint {
        Joint::Nodes(parent, child) => {
            let (above, below) = (home(parent)?, home(child)?);
            if above == below {
                return None;
            }
            let (upper, lower) = (beside(graph, parent), beside(graph, child));
            if is_held(graph, &upper) {
                (true, lower, above)
            } else {
                (is_held(graph, &lower), upper, below)
            }
        }
        Joint::Root(root, node) => {
            let wanted = graph.root(root)?.wants?;
            if home(node)? == wanted {
                return None;
            }
            (true, beside(graph, node), wanted)
        }
    };
    (held && !is_held(graph, &free)).then(|| (free.into_iter().collect(), to))
}

/// Where a node with these children is to live: with those that are held in place, whom the others join, or else with the
/// first.
///
/// # Errors
/// An iothread is gone.
pub async fn gather(
    transaction: &mut Transaction,
    children: impl Iterator<Item = &NodeId>,
) -> Result<IoThreadId> {
    let children: Vec<NodeId> = children.copied().collect();
    let world = transaction.world.clone();
    let home = |id: &NodeId| world.graph(|graph| graph.node(*id).map(|node| node.iothread));
    let held = |id: &NodeId| world.graph(|graph| is_held(graph, &beside(graph, *id)));
    let first = children.first().and_then(home);
    let main = || world.with(|state| state.main);
    // Mostly all live in one place.
    if children.iter().all(|child| home(child) == first) {
        return Ok(first.unwrap_or_else(main));
    }
    let Some(to) = children.iter().find(|child| held(child)).and_then(home) else {
        return Ok(first.unwrap_or_else(main));
    };
    for child in &children {
        if home(child) != Some(to) && !held(child) {
            let free = world.graph(|graph| beside(graph, *child));
            transaction.move_nodes(free.into_iter().collect(), to).await?;
        }
    }
    Ok(to)
}

/// All that is joined to a node without leaving its iothread.
fn beside(graph: &Graph, node: NodeId) -> BTreeSet<NodeId> {
    let home = graph.node(node).map(|node| node.iothread);
    let mut found = BTreeSet::new();
    let mut open = vec![node];
    while let Some(id) = open.pop() {
        let lives_here = graph.node(id).map(|node| node.iothread) == home;
        if lives_here && found.insert(id) {
            open.extend(graph.parent_nodes(id));
            open.extend(graph.children_of(id).map(|edge| edge.child));
        }
    }
    found
}

/// Whether a user wants nodes of one iothread there.
fn is_held(graph: &Graph, nodes: &BTreeSet<NodeId>) -> bool {
    let mut roots = nodes
        .iter()
        .filter_map(|id| graph.node(*id))
        .flat_map(|node| graph.roots_of(node.id).map(|root| (root, node.iothread)));
    roots.any(|(root, home)| graph.root(root).is_some_and(|root| root.wants == Some(home)))
}

/// Moves a node back to the main iothread, if it is elsewhere: whoever wanted it there has gone. What is joined to it
/// and lives beside it goes along; what was put elsewhere stays there. Where a user does not let them, all stay.
pub async fn fall_back(world: &World, node: NodeId) {
    let found = world.with(|state| {
        let (home, main) = (state.graph.node(node)?.iothread, state.main);
        if home == main || state.closed {
            return None;
        }
        let graph = &state.graph;
        let beside = |id: &NodeId| graph.node(*id).is_some_and(|node| node.iothread == home);
        let joined = graph.closure([node], Direction::Both).into_iter();
        let going: BTreeSet<NodeId> = joined.filter(beside).collect();
        (!is_held(graph, &going)).then(|| (going.into_iter().collect(), main))
    });
    if let Some((moving, main)) = found
        && let Err(error) = move_nodes(world, moving, main, "return to the main iothread").await
    {
        tracing::warn!(%error, %node, "a node stays in its iothread");
    }
}

/// What moves with a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Company {
    /// Nothing.
    Alone,
    /// All that is joined to it.
    Joined,
}

/// The nodes that move when a node does.
fn to_move(state: &State, node: NodeId, to: IoThreadId, company: Company) -> Result<BTreeSet<NodeId>> {
    let moving = match company {
        Company::Alone => BTreeSet::from([node]),
        Company::Joined => state.graph.closure([node], Direction::Both),
    };
    check_unpinned(&state.graph, &moving, to)?;
    Ok(moving)
}

async fn move_nodes(world: &World, nodes: Vec<NodeId>, to: IoThreadId, user: &str) -> Result<()> {
    let is_there = |node: &NodeId| world.graph(|graph| graph.node(*node).is_none_or(|n| n.iothread == to));
    let moving: Vec<NodeId> = nodes.iter().copied().filter(|node| !is_there(node)).collect();
    if moving.is_empty() {
        return Ok(());
    }
    let token = world.drain(Cover::Nodes(nodes), user).await;
    let result = move_still(world, &moving, to).await;
    world.undrain(token);
    result
}

fn check_unpinned(graph: &Graph, moving: &BTreeSet<NodeId>, to: IoThreadId) -> Result<()> {
    let leaving = moving
        .iter()
        .filter_map(|id| graph.node(*id))
        .filter(|node| node.iothread != to);
    let mut roots = leaving.flat_map(|node| graph.roots_of(node.id).map(|root| (root, node.iothread)));
    let is_pinned = |(root, home)| {
        let root = graph.root(root);
        root.is_some_and(|root| root.pinned && root.wants == Some(home))
    };
    if roots.any(is_pinned) {
        return Err(Error::new(
            ErrorKind::InUse,
            "Cannot change iothread of active block backend",
        ));
    }
    Ok(())
}

/// Moves nodes that are still, and joins the edges again once all have arrived.
///
/// # Errors
/// An iothread is gone.
pub async fn move_still(world: &World, nodes: &[NodeId], to: IoThreadId) -> Result<()> {
    let mut departures = Vec::new();
    for node in nodes {
        departures.push((*node, world.ask(*node, Order::Depart { node: *node, to })));
        // What is sent to it from here on must reach it where it arrives.
        world.graph(|graph| {
            if let Some(node) = graph.node_mut(*node) {
                node.moving = true;
            }
        });
    }
    let mut result = Ok(());
    for (node, departure) in departures {
        let arrived = departure.done().await;
        world.with(|state| {
            if arrived.is_ok() {
                state.graph.set_home(node, to);
            }
            state.arrived(node);
        });
        result = result.and(arrived);
    }
    join_again(world, nodes).await;
    result
}

/// Connects every edge that begins or ends at one of `nodes`.
async fn join_again(world: &World, nodes: &[NodeId]) {
    let edges: BTreeSet<(NodeId, ChildSlot)> = world.graph(|graph| {
        let mut edges = BTreeSet::new();
        for node in nodes {
            for edge in graph.children_of(*node).chain(graph.parents_of(*node)) {
                if let Parent::Node(parent, slot) = edge.parent {
                    edges.insert((parent, slot));
                }
            }
        }
        edges
    });
    let connections: Vec<_> = edges
        .into_iter()
        .map(|(parent, slot)| {
            let target = world.with(|state| {
                state
                    .graph
                    .child_node(parent, slot)
                    .and_then(|child| state.address(child))
            });
            world.ask(parent, Order::Connect { parent, slot, target })
        })
        .collect();
    for connection in connections {
        if let Err(error) = connection.done().await {
            tracing::error!(%error, "an edge could not be joined again after a move");
        }
    }
}
