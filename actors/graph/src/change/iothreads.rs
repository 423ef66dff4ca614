//! Iothreads: making and ending them, and moving nodes between them.

use millpond_messages::graph::{IothreadOptions, MoveNode, SetIothread};
use millpond_messages::{Error, ErrorKind, IoThreadId, NodeId, Result, RootId};

use crate::effect::Effect;
use crate::sections::Cover;
use crate::state::IothreadEntry;
use crate::transaction::moving;
use crate::value::home::{self, Company};
use crate::value::refusal::Refusal;
use crate::world::World;

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
            .ok_or_else(|| Refusal::NoIothread(options.id.clone()))?;
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

/// `x-blockdev-set-iothread`.
///
/// # Errors
/// There is no such node or iothread, or a user holds the node where it is.
pub async fn set_iothread(world: &World, request: &SetIothread) -> Result<()> {
    let SetIothread {
        node_name: name,
        iothread,
        force,
    } = request;
    let (node, to) = world.with(|state| {
        let node = state.graph.find(name)?.id;
        if !force && state.graph.roots_of(node).next().is_some() {
            let text = format!(
                "Node {name} is associated with a BlockBackend and could be in use (use force=true to override \
                 this check)"
            );
            return Err(Error::new(ErrorKind::InUse, text));
        }
        Ok((node, state.destination(iothread.as_deref())?))
    })?;
    move_joined(world, node, to).await
}

/// Moves one node, without those that it is joined to.
///
/// # Errors
/// There is no such node or iothread, or a user holds the node where it is.
pub async fn move_node(world: &World, request: &MoveNode) -> Result<()> {
    let (moving, to) = world.with(|state| {
        let node = state.graph.find(&request.node_name)?.id;
        let to = state.destination(request.iothread.as_deref())?;
        Ok::<_, Error>((home::to_move(&state.graph, node, to, Company::Alone)?, to))
    })?;
    move_nodes(
        world,
        moving.iter().copied().collect(),
        to,
        "x-millpond-move-node",
    )
    .await
}

/// Moves a node and all that is joined to it by edges, so that what was an inline call stays one.
///
/// # Errors
/// A user does not let one of them move; then none has.
async fn move_joined(world: &World, node: NodeId, to: IoThreadId) -> Result<()> {
    let joined: Vec<NodeId> = world.with(|state| {
        Ok::<_, Error>(
            home::to_move(&state.graph, node, to, Company::Joined)?
                .into_iter()
                .collect(),
        )
    })?;
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
        Ok(home::free_with(&state.graph, node))
    })?;
    move_nodes(world, moving, to, "move to where a user is").await
}

/// Moves a node back to the main iothread, if it is elsewhere: whoever wanted it there has gone. What is joined to it
/// and lives beside it goes along; what was put elsewhere stays there. Where a user does not let them, all stay.
pub async fn fall_back(world: &World, node: NodeId) {
    let found = world.with(|state| {
        let (home, main) = (state.graph.node(node)?.iothread, state.main);
        if home == main || state.closed {
            return None;
        }
        let going = home::free_beside(&state.graph, node, home)?;
        Some((going.into_iter().collect(), main))
    });
    if let Some((moving, main)) = found
        && let Err(error) = move_nodes(world, moving, main, "return to the main iothread").await
    {
        tracing::warn!(%error, %node, "a node stays in its iothread");
    }
}

async fn move_nodes(world: &World, nodes: Vec<NodeId>, to: IoThreadId, user: &str) -> Result<()> {
    let is_there = |node: &NodeId| world.graph(|graph| graph.node(*node).is_none_or(|n| n.iothread == to));
    let moving: Vec<NodeId> = nodes.iter().copied().filter(|node| !is_there(node)).collect();
    if moving.is_empty() {
        return Ok(());
    }
    let token = world.drain(Cover::Nodes(nodes), user).await;
    let result = moving::move_still(world, &moving, to).await;
    world.undrain(token);
    result
}
