//! Iothreads: making and ending them, and moving nodes between them.
//!
//! Making and ending an iothread is no [`Change`]: it touches no node, and a thread that has ended does not come back.

use millpond_messages::graph::{GraphReply, IothreadOptions, MoveNode, RootUser, ServeOn, SetIothread};
use millpond_messages::{Error, ErrorKind, IoThreadId, NodeId, Result, RootId};

use crate::effect::{Effect, Reply};
use crate::sections::Cover;
use crate::state::{IothreadEntry, PolicyState};
use crate::transaction::{self, Change, Transaction};
use crate::value::edge::{Parent, Root};
use crate::value::graph::Graph;
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

/// Notes where a user works, besides where its node lives.
///
/// # Errors
/// There is no such user, or no such iothread.
pub fn serve_on(world: &World, ServeOn { root, iothreads }: ServeOn) -> Reply {
    world.with(|state| {
        let found = iothreads.iter().map(|name| {
            let found = state.iothread_named(name);
            found.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("iothread \"{name}\" not found")))
        });
        let iothreads: Vec<IoThreadId> = found.collect::<Result<_>>()?;
        let user = state.graph.root_mut(root).ok_or(Refusal::NoRoot(root))?;
        user.serves.clone_from(&iothreads);
        state.push(Effect::RootServes { root, iothreads });
        Ok(GraphReply::Done)
    })
}

/// `object-del` of an iothread.
///
/// # Errors
/// There is none, or a node lives there, or a user works there.
pub fn delete(world: &World, name: &str) -> Result<()> {
    world.with(|state| {
        let iothread = state
            .iothread_named(name)
            .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("object '{name}' not found")))?;
        let is_served_on = |(_, root): (RootId, &Root)| root.serves.contains(&iothread);
        if state.graph.population(iothread) > 0 || state.graph.roots().any(is_served_on) {
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

/// Nodes that move to an iothread together, so that what was an inline call stays one.
pub struct Move {
    wish: Wish,
    found: Option<(Vec<NodeId>, IoThreadId)>,
}

/// Which nodes move together.
enum Wish {
    /// A node with all that is joined to it by edges.
    Joined(SetIothread),
    /// One node, without those that it is joined to.
    Alone(MoveNode),
    /// These nodes, which were found before.
    These(Vec<NodeId>, IoThreadId),
}

impl From<SetIothread> for Move {
    fn from(request: SetIothread) -> Self {
        let (wish, found) = (Wish::Joined(request), None);
        Self { wish, found }
    }
}

impl From<MoveNode> for Move {
    fn from(request: MoveNode) -> Self {
        let (wish, found) = (Wish::Alone(request), None);
        Self { wish, found }
    }
}

impl Change for Move {
    type Answer = ();

    fn check(&mut self, state: &PolicyState) -> Result<()> {
        self.found = Some(match &self.wish {
            Wish::Joined(request) => find_joined(state, request)?,
            Wish::Alone(request) => {
                let node = state.graph.find(&request.node_name)?.id;
                let to = state.destination(request.iothread.as_deref())?;
                let nodes = home::to_move(&state.graph, node, to, Company::Alone)?;
                (nodes.into_iter().collect(), to)
            }
            Wish::These(nodes, to) => (nodes.clone(), *to),
        });
        Ok(())
    }

    fn cover(&self, graph: &Graph) -> Cover {
        match &self.found {
            Some((nodes, to)) if nodes.iter().any(|node| moves(graph, *node, *to)) => {
                Cover::Nodes(nodes.clone())
            }
            _ => Cover::Nodes(Vec::new()),
        }
    }

    async fn prepare(&mut self, transaction: &mut Transaction) -> Result<()> {
        let Some((nodes, to)) = &self.found else {
            return Ok(());
        };
        let moving: Vec<NodeId> = transaction.world.graph(|graph| {
            let moving = nodes.iter().copied();
            moving.filter(|node| moves(graph, *node, *to)).collect()
        });
        match moving.is_empty() {
            true => Ok(()),
            false => transaction.move_still(&moving, *to).await,
        }
    }

    async fn finish(self, world: &World) {
        let (Wish::Joined(_), Some((nodes, to))) = (self.wish, self.found) else {
            return;
        };
        // Users that let their nodes move on want them where they are now.
        world.graph(|graph| {
            let roots: Vec<RootId> = nodes.iter().flat_map(|node| graph.roots_of(*node)).collect();
            for root in roots {
                if let Some(root) = graph.root_mut(root) {
                    root.wants = root.wants.map(|wants| if root.pinned { wants } else { to });
                }
            }
        });
    }
}

/// Whether a user, or a job by more than its mere presence, is at a node itself: such has an own opinion on iothreads.
fn is_in_use(graph: &Graph, node: NodeId) -> bool {
    graph.parents_of(node).any(|edge| match edge.parent {
        Parent::Root(root) => {
            let is_job = graph
                .root(root)
                .is_some_and(|root| matches!(root.user, RootUser::Job(_)));
            !is_job || !edge.taken.is_empty()
        }
        Parent::Node(..) => false,
    })
}

/// The nodes that are joined to one, and where they are to go.
fn find_joined(state: &PolicyState, request: &SetIothread) -> Result<(Vec<NodeId>, IoThreadId)> {
    let name = &request.node_name;
    let node = state.graph.find(name)?.id;
    if !request.force && is_in_use(&state.graph, node) {
        let text = format!(
            "Node {name} is associated with a BlockBackend and could be in use (use force=true to override this \
             check)"
        );
        return Err(Error::new(ErrorKind::InUse, text));
    }
    let to = state.destination(request.iothread.as_deref())?;
    let joined = home::to_move(&state.graph, node, to, Company::Joined)?;
    Ok((joined.into_iter().collect(), to))
}

/// Whether a node is elsewhere.
fn moves(graph: &Graph, node: NodeId, to: IoThreadId) -> bool {
    graph.node(node).is_some_and(|node| node.iothread != to)
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
    let (wish, found) = (Wish::These(nodes, to), None);
    transaction::run(world, user, Move { wish, found }).await
}
