//! Handing images over to another process, and taking them back: inactive nodes are not written to and hold no locks; on
//! activation they read their metadata again, since the other process may have changed it.
//!
//! An activation of several nodes is no single [`Change`]: each is active by itself once its children are, and stays so if
//! another fails.

use std::collections::{BTreeSet, HashMap};

use millpond_messages::graph::{InvalidateCache, SetActive};
use millpond_messages::{Error, ErrorKind, IoError, NodeId, Permissions, Result};

use crate::change::reopen;
use crate::change::targets::Target;
use crate::order::NodeTask;
use crate::sections::Cover;
use crate::state::PolicyState;
use crate::transaction::{self, Change, Transaction, bitmaps};
use crate::value::edge::Parent;
use crate::value::graph::Graph;
use crate::value::node::Node;
use crate::value::permissions::Plan;
use crate::value::refusal::Refusal;
use crate::world::World;

/// Who drained sections of this module are for.
const USER: &str = "blockdev-set-active";
/// Permissions whose user must not lose its node to another process.
const WRITES: Permissions = Permissions::WRITE.union(Permissions::WRITE_UNCHANGED);

/// `blockdev-set-active`.
///
/// # Errors
/// There is no such node, an active parent or a writer keeps it from being inactivated, or its image cannot be taken back.
pub async fn set_active(world: &World, request: SetActive) -> Result<()> {
    let SetActive { node_name, active } = request;
    let starts = match &node_name {
        Some(name) => vec![world.graph(|graph| graph.find(name).map(|node| node.id))?],
        None => world.graph(|graph| {
            let tops = graph
                .live_nodes()
                .filter(|node| active || graph.parent_nodes(node.id).next().is_none());
            tops.map(|node| node.id).collect()
        }),
    };
    if active {
        return activate(world, &starts).await;
    }
    if node_name.is_some() {
        world.graph(|graph| starts.iter().try_for_each(|start| check_parents(graph, *start)))?;
    }
    let what = if node_name.is_some() { "node" } else { "all nodes" };
    inactivate(world, starts)
        .await
        .map_err(|error| told(&error, what))
}

/// Inactivates an overlay that is about to go on top of an inactive node: images are often inactive when a snapshot of them
/// is taken, and who takes it need not know.
///
/// # Errors
/// Somebody writes to the overlay.
pub async fn follow(world: &World, node: NodeId, overlay: NodeId) -> Result<()> {
    let is_inactive = |id| world.graph(|graph| graph.node(id).is_some_and(Node::is_inactive));
    if is_inactive(node) && !is_inactive(overlay) {
        inactivate(world, vec![overlay]).await?;
    }
    Ok(())
}

/// QEMU tells of nothing but the number of the error.
fn told(error: &Error, what: &str) -> Error {
    let text = format!("Failed to inactivate {what}");
    Error::io(&text, IoError::from_errno(error.errno()))
}

/// A node goes with its last active parent, not before.
fn check_parents(graph: &Graph, node: NodeId) -> Result<()> {
    let is_active = graph.node(node).is_some_and(|node| !node.is_inactive());
    let mut parents = graph.parent_nodes(node).filter_map(|parent| graph.node(parent));
    if is_active && parents.any(|parent| !parent.is_inactive()) {
        return Err(Error::new(ErrorKind::InUse, "Node has active parent node"));
    }
    Ok(())
}

/// The active nodes that go inactive with `starts`, parents before children: those whose parents all are inactive then.
fn going(graph: &Graph, starts: &[NodeId]) -> Vec<NodeId> {
    let mut going = BTreeSet::new();
    let mut order = Vec::new();
    for id in graph.topological(starts.iter().copied()) {
        let Some(node) = graph.node(id).filter(|node| !node.is_inactive()) else {
            continue;
        };
        let mut parents = graph.parent_nodes(id).peekable();
        let is_below = starts.contains(&id) || graph.parent_nodes(id).any(|parent| going.contains(&parent));
        let is_free =
            parents.all(|parent| going.contains(&parent) || graph.node(parent).is_none_or(Node::is_inactive));
        if is_below && is_free {
            going.insert(node.id);
            order.push(node.id);
        }
    }
    order
}

async fn inactivate(world: &World, starts: Vec<NodeId>) -> Result<()> {
    let nodes = Vec::new();
    transaction::run(world, USER, Inactivate { starts, nodes }).await
}

/// Nodes that become inactive together, parents before children.
struct Inactivate {
    starts: Vec<NodeId>,
    nodes: Vec<NodeId>,
}

impl Change for Inactivate {
    type Answer = ();

    fn check(&mut self, state: &PolicyState) -> Result<()> {
        let nodes = going(&state.graph, &self.starts);
        nodes
            .iter()
            .try_for_each(|node| check_writers(&state.graph, *node))?;
        self.nodes = nodes;
        Ok(())
    }

    async fn prepare(&mut self, transaction: &mut Transaction) -> Result<()> {
        match self.nodes.is_empty() {
            true => Ok(()),
            false => let_go(transaction, &self.nodes).await,
        }
    }

    async fn finish(self, _: &World) {}
}

fn check_writers(graph: &Graph, node: NodeId) -> Result<()> {
    // Who gets the image gets its bitmaps, which must not be in anybody's hands here.
    let bitmaps = graph.node(node).into_iter().flat_map(|node| &node.bitmaps);
    let mut held = bitmaps.filter(|bitmap| bitmap.is_persistent && bitmap.is_busy());
    if let Some(bitmap) = held.next() {
        return Err(Refusal::BitmapInUse(bitmap.name.clone()).into());
    }
    let mut writers = graph.parents_of(node).filter(|edge| match edge.parent {
        Parent::Root(root) => {
            let gives_up = graph.root(root).is_some_and(|root| root.allows_inactive);
            edge.taken.intersects(WRITES) && !gives_up
        }
        Parent::Node(..) => false,
    });
    match writers.next() {
        None => Ok(()),
        Some(_) => Err(Error::new(ErrorKind::Permission, "Somebody writes to the node")),
    }
}

async fn let_go(transaction: &mut Transaction, nodes: &[NodeId]) -> Result<()> {
    let world = transaction.world.clone();
    transaction.drain(nodes.iter().copied(), USER).await;
    // A format's tables reach its file before that is flushed.
    for node in nodes {
        world.ask(*node, NodeTask::Flush).done().await?;
    }
    let mut plan = Plan::with_flags(HashMap::new());
    let mut targets = Vec::new();
    world.graph(|graph| {
        for id in nodes {
            let node = graph.expect(*id)?;
            let target = Target::with_activity(node, true);
            plan.flags.insert(*id, target.flags(node));
            targets.push(target);
            for root in graph.roots_of(*id).filter_map(|root| graph.root(root)) {
                plan.edges
                    .insert(root.edge, (Permissions::empty(), Permissions::all()));
            }
        }
        Ok::<_, Error>(())
    })?;
    let roots: Vec<_> = plan.edges.keys().copied().collect();
    let plan = prepare(transaction, nodes, &targets, plan).await?;
    world.graph(|graph| {
        for edge in roots {
            let Some(edge) = graph.edge(edge) else { continue };
            let held = (edge.taken, edge.shared);
            if let Parent::Root(root) = edge.parent
                && let Some(root) = graph.root_mut(root)
            {
                root.suspended = Some(held);
            }
        }
    });
    commit(transaction, &targets, plan).await;
    Ok(())
}

async fn prepare(
    transaction: &mut Transaction,
    nodes: &[NodeId],
    targets: &[Target],
    plan: Plan,
) -> Result<Plan> {
    let world = transaction.world.clone();
    for (node, target) in nodes.iter().zip(targets) {
        let order = world.graph(|graph| {
            graph
                .expect(*node)
                .map(|node| reopen::prepare_order(target, node))
        })?;
        world.ask(*node, order).done().await?;
        transaction.reopen_prepared(*node);
    }
    transaction.prepare_permissions(plan, nodes.iter().copied()).await
}

async fn commit(transaction: &mut Transaction, targets: &[Target], plan: Plan) {
    let world = transaction.world.clone();
    transaction.reopen_committed();
    reopen::commit(&world, targets).await;
    transaction.commit_permissions(plan);
}

/// Activates nodes and all below them, children first: what a node reads again must be what its file is now. A failure
/// leaves those active that were.
async fn activate(world: &World, starts: &[NodeId]) -> Result<()> {
    let nodes = world.graph(|graph| graph.topological(starts.iter().copied()));
    for node in nodes.into_iter().rev() {
        if world.graph(|graph| graph.node(node).is_some_and(Node::is_inactive)) {
            transaction::run(world, USER, Activate { node }).await?;
        }
    }
    Ok(())
}

/// One node that becomes active.
struct Activate {
    node: NodeId,
}

impl Change for Activate {
    type Answer = ();

    fn cover(&self, _: &Graph) -> Cover {
        Cover::Nodes(vec![self.node])
    }

    async fn prepare(&mut self, transaction: &mut Transaction) -> Result<()> {
        take_back(transaction, self.node).await
    }

    async fn finish(self, _: &World) {}
}

async fn take_back(transaction: &mut Transaction, node: NodeId) -> Result<()> {
    let world = transaction.world.clone();
    let (target, plan, roots) = world.graph(|graph| {
        let entry = graph.expect(node)?;
        let target = Target::with_activity(entry, false);
        let mut plan = Plan::with_flags(HashMap::from([(node, target.flags(entry))]));
        let roots: Vec<_> = graph.roots_of(node).collect();
        for root in roots.iter().filter_map(|root| graph.root(*root)) {
            plan.edges.extend(root.suspended.map(|held| (root.edge, held)));
        }
        Ok::<_, Error>((target, plan, roots))
    })?;
    let targets = [target];
    let plan = prepare(transaction, &[node], &targets, plan).await?;
    commit(transaction, &targets, plan).await;
    world.graph(|graph| {
        for root in roots {
            if let Some(root) = graph.root_mut(root) {
                root.suspended = None;
            }
        }
    });
    if let Err(error) = read_again(&world, node).await {
        // It must not be written to with what it believed before.
        if let Err(also) = let_go(transaction, &[node]).await {
            tracing::error!(%also, %node, "a node that could not be activated is not inactive again");
        }
        return Err(error);
    }
    Ok(())
}

/// A node that drops what it caches of its image's metadata, and reads it again.
pub struct Invalidate {
    node_name: String,
    node: Option<NodeId>,
}

impl From<InvalidateCache> for Invalidate {
    fn from(InvalidateCache { node_name }: InvalidateCache) -> Self {
        let node = None;
        Self { node_name, node }
    }
}

impl Change for Invalidate {
    type Answer = ();

    fn check(&mut self, state: &PolicyState) -> Result<()> {
        self.node = Some(state.graph.find(&self.node_name)?.id);
        Ok(())
    }

    fn cover(&self, _: &Graph) -> Cover {
        Cover::Nodes(self.node.into_iter().collect())
    }

    async fn prepare(&mut self, transaction: &mut Transaction) -> Result<()> {
        match self.node {
            Some(node) => read_again(&transaction.world, node).await,
            None => Ok(()),
        }
    }

    async fn finish(self, _: &World) {}
}

async fn read_again(world: &World, node: NodeId) -> Result<()> {
    let facts = world.ask(node, NodeTask::Invalidate).opened().await?;
    let found = facts.read_bitmaps.clone();
    world.graph(|graph| {
        let Some(node) = graph.node_mut(node) else { return };
        let backing = node.facts.take().and_then(|old| old.backing);
        node.facts = Some(millpond_engine::node::OpenFacts { backing, ..facts });
    });
    bitmaps::adopt(world, node, &found);
    Ok(())
}
