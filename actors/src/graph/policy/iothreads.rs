//! Iothreads: making and ending them, and moving nodes between them.

use std::collections::BTreeSet;

use messages::global_state::IothreadOptions;
use messages::{ChildSlot, Error, ErrorKind, IoThreadId, NodeId, Result};

use super::Effect;
use super::drain::Cover;
use super::order::Order;
use super::value::{Direction, Graph, Parent};
use super::world::{IothreadEntry, State, World};

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
pub async fn move_joined(world: &World, node: NodeId, to: IoThreadId) -> Result<()> {
    let joined = world.with(|state| {
        if !state.iothreads.contains_key(&to) {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("Cannot find iothread {to}"),
            ));
        }
        to_move(state, node, to, Company::Joined)
    })?;
    move_nodes(world, joined.into_iter().collect(), to, "x-blockdev-set-iothread").await
}

/// Moves a node back to the main iothread, if it is elsewhere: whoever wanted it there has gone. What is joined to it
/// and lives beside it goes along; what was put elsewhere stays there. Where a user does not let them, all stay.
pub async fn fall_back(world: &World, node: NodeId) {
    let found = world.with(|state| {
        let (home, main) = (state.graph.node(node)?.iothread, state.main);
        if home == main || state.closed {
            return None;
        }
        let joined = to_move(state, node, main, Company::Joined).ok()?;
        let beside = |node: &NodeId| state.graph.node(*node).is_some_and(|node| node.iothread == home);
        Some((joined.into_iter().filter(beside).collect(), main))
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
        .filter(|id| graph.node(**id).is_some_and(|node| node.iothread != to));
    let mut roots = leaving.flat_map(|id| graph.roots_of(*id));
    if roots.any(|root| graph.root(root).is_some_and(|root| root.pinned)) {
        return Err(Error::new(
            ErrorKind::InUse,
            "Cannot change iothread of active block backend",
        ));
    }
    Ok(())
}

/// Moves nodes that are still, and joins the edges again once all have arrived.
async fn move_still(world: &World, nodes: &[NodeId], to: IoThreadId) -> Result<()> {
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
