//! Committing an overlay to its backing node, and emptying an image.

use millpond_messages::graph::GraphReply;
use millpond_messages::io::Preallocation;
use millpond_messages::{
    EdgeId, Error, ErrorKind, NodeId, OpBlocker, Permissions, RequestFlags, Result, Role, RootId, Token,
};

use crate::change::reopen::{self, Access};
use crate::change::{delete, resize, roots};
use crate::order::NodeTask;
use crate::procedure::Next;
use crate::sections::Cover;
use crate::transaction::{self, Change, Transaction};
use crate::value::frozen::Freeze;
use crate::value::graph::Graph;
use crate::value::permissions::Plan;
use crate::value::{chain, forbidden};
use crate::world::World;

/// Bytes of the disk that are committed in one go: a drained section waits for no more than that.
const PIECE: u64 = 16 << 20;

/// `bdrv_make_empty`: the image has nothing of its own any more, and shows what its backing node does.
///
/// # Errors
/// There is no such node, its driver cannot, or permissions.
pub async fn make_empty(world: &World, name: &str) -> Result<()> {
    let node = world.graph(|graph| graph.find(name).map(|node| node.id))?;
    let name = name.to_owned();
    transaction::run(world, "make-empty", Emptying { node, name }).await
}

/// An image that is emptied under a hold, in a drained section: both end with it.
struct Emptying {
    node: NodeId,
    name: String,
}

impl Change for Emptying {
    type Answer = ();

    const LASTS: bool = false;

    async fn prepare(&mut self, transaction: &mut Transaction) -> Result<()> {
        let node = self.node;
        let request = roots::hold(&self.name, "make-empty", Permissions::WRITE);
        let root = roots::link_root(transaction, node, &request);
        roots::take(transaction, node, root, request.permissions, request.shared).await?;
        transaction.drain([node], "make-empty").await;
        transaction.world.ask(node, NodeTask::MakeEmpty).done().await
    }

    async fn finish(self, _: &World) {}
}

/// What a commit holds while it goes on.
struct Hold {
    overlay: NodeId,
    backing: NodeId,
    link: EdgeId,
    roots: [RootId; 2],
    /// Clients of the overlay wait until it is empty: what they wrote meanwhile would be lost.
    section: Token,
    access: Option<Access>,
}

/// Writes what an overlay has allocated to its backing node, which is reopened for writing and grown if need be, then
/// empties the overlay. Requests to the overlay wait until that is done; drained sections of others are waited for after
/// each piece.
pub async fn commit(world: &World, name: &str) -> Next {
    let (overlay, backing, link) = match world.graph(|graph| check(graph, name)) {
        Ok(found) => found,
        Err(error) => return Next::Reply(Err(error)),
    };
    let access = match reopen::set_access(world, backing, false).await {
        Ok(access) => access,
        Err(error) => return Next::Reply(Err(error)),
    };
    let section = world.drain(Cover::Nodes(vec![overlay]), "commit").await;
    let holding = Holding {
        overlay,
        backing,
        link,
        roots: [RootId(0); 2],
    };
    let roots = match transaction::run(world, "commit", holding).await {
        Ok(roots) => roots,
        Err(error) => {
            end_access(world, access).await;
            world.undrain(section);
            return Next::Reply(Err(error));
        }
    };
    let hold = Hold {
        overlay,
        backing,
        link,
        roots,
        section,
        access,
    };
    let world = world.clone();
    Next::Background(Box::pin(async move {
        let result = copy(&world, &hold).await;
        Next::Mutation(Box::pin(async move {
            let_go(&world, hold).await;
            Next::Reply(result.map(|()| GraphReply::Done))
        }))
    }))
}

fn check(graph: &Graph, name: &str) -> Result<(NodeId, NodeId, EdgeId)> {
    let node = graph.find(name)?;
    let edge = graph
        .children_of(node.id)
        .find(|edge| edge.role.contains(Role::COW));
    let edge = edge.ok_or_else(|| {
        let text = format!("Node '{name}' does not have a backing file");
        Error::new(ErrorKind::Unsupported, text)
    })?;
    forbidden::check(graph, node.id, OpBlocker::CommitSource)?;
    // A job's filter lets nobody else write to the image below it, which is what the job holds.
    chain::through_filters(graph, edge.child)
        .try_for_each(|target| forbidden::check(graph, target, OpBlocker::CommitTarget))?;
    chain::check_unfrozen(graph, edge)?;
    Ok((node.id, edge.child, edge.id))
}

/// What a commit takes before it begins.
struct Holding {
    overlay: NodeId,
    backing: NodeId,
    link: EdgeId,
    roots: [RootId; 2],
}

impl Change for Holding {
    type Answer = [RootId; 2];

    async fn prepare(&mut self, transaction: &mut Transaction) -> Result<()> {
        self.roots = hold(transaction, self.overlay, self.backing, self.link).await?;
        Ok(())
    }

    async fn finish(self, _: &World) -> [RootId; 2] {
        self.roots
    }
}

/// Takes what a commit needs: the right to write below the overlay, which for so long relies on nothing there, and that
/// nobody else changes either of the two.
async fn hold(
    transaction: &mut Transaction,
    overlay: NodeId,
    backing: NodeId,
    link: EdgeId,
) -> Result<[RootId; 2]> {
    let world = transaction.world.clone();
    let quiet = Permissions::CONSISTENT_READ | Permissions::WRITE_UNCHANGED;
    let writes = Permissions::WRITE | Permissions::RESIZE;
    let reads = Permissions::CONSISTENT_READ | Permissions::WRITE;
    transaction.suspend_edge(link);
    let mut plan = Plan::default();
    let mut roots = [RootId(0); 2];
    let takes = [(overlay, reads, Permissions::all()), (backing, writes, quiet)];
    for (place, (node, taken, shared)) in roots.iter_mut().zip(takes) {
        let root = roots::link_root(transaction, node, &roots::hold("", "commit", taken));
        let edge = world.graph(|graph| graph.root(root).map(|root| root.edge));
        plan.edges.extend(edge.map(|edge| (edge, (taken, shared))));
        *place = root;
    }
    transaction.apply_permissions(plan, [overlay, backing]).await?;
    grow(transaction, overlay, backing).await?;
    world.graph(|graph| {
        let root = Some(roots[0]);
        let token = graph.add_blocker("block device is in use by block job: commit".to_owned(), root);
        for node in [overlay, backing] {
            let operations = OpBlocker::ALL.into_iter();
            let operations = operations.filter(|operation| *operation != OpBlocker::Dataplane);
            graph.blockers.block(token, node, operations);
        }
        let edges = vec![link];
        let node = None;
        graph.freeze(Freeze { root, node, edges });
    });
    Ok(roots)
}

/// Makes the backing node as long as the overlay.
async fn grow(transaction: &mut Transaction, overlay: NodeId, backing: NodeId) -> Result<()> {
    let world = transaction.world.clone();
    let (size, old) = world.graph(|graph| (length(graph, overlay), length(graph, backing)));
    if size <= old {
        return Ok(());
    }
    transaction.drain([backing], "commit").await;
    let order = NodeTask::Truncate {
        size,
        exact: true,
        preallocation: Preallocation::Off,
        flags: RequestFlags::empty(),
    };
    world.ask(backing, order).done().await?;
    resize::refresh_sizes(&world, backing).await;
    Ok(())
}

fn length(graph: &Graph, node: NodeId) -> u64 {
    let facts = graph.node(node).and_then(|node| node.facts.as_ref());
    facts.map_or(0, |facts| facts.size)
}

/// The work. It enters the graph at the overlay, so drained sections on that or below wait for each piece of it.
async fn copy(world: &World, hold: &Hold) -> Result<()> {
    let Hold { overlay, backing, .. } = *hold;
    let end = world.graph(|graph| length(graph, overlay));
    let mut offset = 0;
    while offset < end {
        let len = PIECE.min(end - offset);
        let order = NodeTask::Commit { offset, len };
        work(world, hold, overlay, order).await?;
        offset += len;
    }
    // What was written is durable before the overlay forgets it.
    work(world, hold, backing, NodeTask::Flush).await?;
    match work(world, hold, overlay, NodeTask::MakeEmpty).await {
        Err(error) if error.kind() == ErrorKind::Unsupported => {}
        result => result?,
    }
    work(world, hold, overlay, NodeTask::Flush).await
}

/// Has a node do a piece of the work, once no drained section of somebody else covers the overlay.
async fn work(world: &World, hold: &Hold, node: NodeId, task: NodeTask) -> Result<()> {
    world
        .until(|state| state.begin_internal_io_in_section(hold.overlay, hold.section))
        .await;
    // Where everything was closed meanwhile, the other node is about to go too.
    world.graph(|graph| graph.expect(hold.overlay).map(drop))?;
    let result = world.ask(node, task).done().await;
    world.with(|state| state.end_internal_io(hold.overlay));
    result
}

async fn let_go(world: &World, hold: Hold) {
    let Hold {
        overlay,
        backing,
        link,
        roots,
        section,
        access,
    } = hold;
    for root in roots {
        roots::forget(world, root);
    }
    world.graph(|graph| {
        if let Some(link) = graph.edge_mut(link) {
            link.suspended = false;
        }
    });
    delete::refresh(world, &[overlay, backing]).await;
    end_access(world, access).await;
    world.undrain(section);
    delete::release(world, [overlay, backing]).await;
}

async fn end_access(world: &World, access: Option<Access>) {
    let Some(access) = access else { return };
    if let Err(error) = reopen::restore(world, access).await {
        tracing::warn!(%error, "a backing node stays writable");
    }
}
