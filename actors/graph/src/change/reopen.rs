//! `blockdev-reopen`: new options and children for open nodes, all or nothing.

use std::collections::{HashMap, HashSet};

use millpond_drivers::api::{ReopenRequest, slot_name};
use millpond_engine::node::OpenFacts;
use millpond_messages::graph::{Options, Reopen, ReopenKeeping, SetReadOnly};
use millpond_messages::{ChildSlot, Error, ErrorKind, IoError, NodeId, OpenFlags, Result};

use crate::change::delete;
use crate::change::targets::{Reopened, Rest, Target, check_cycle, collect, inherit};
use crate::open::options;
use crate::order::{NodeOrder, NodeTask};
use crate::sections::Cover;
use crate::state::PolicyState;
use crate::transaction::exchange::Exchange;
use crate::transaction::{self, Change, Transaction, bitmaps, together};
use crate::value::common::{Common, GivenOptions};
use crate::value::edge::Parent;
use crate::value::graph::Graph;
use crate::value::home::{self, Joint};
use crate::value::node::Node;
use crate::value::permissions::Plan;
use crate::value::rewired::Rewired;
use crate::world::{Answered, World};

/// The user in whose name nodes are drained for a reopen.
pub const USER: &str = "blockdev-reopen";

/// The flags that say how requests are carried out, and not how a node is open.
const SETTINGS: OpenFlags = OpenFlags::UNMAP.union(OpenFlags::NO_FLUSH);

/// Nodes that are reopened together: with these options, or as targets that were worked out before.
pub struct Reopening {
    list: Vec<Options>,
    rest: Rest,
    /// A node that must have been opened such that it can be written.
    writable: Option<String>,
    targets: Vec<Target>,
    /// The nodes whose drivers have their new options ready.
    ready: HashSet<NodeId>,
    taken: Taken,
}

/// What is left to do once all steps are taken.
#[derive(Default)]
struct Taken {
    /// What nodes say that were told to have their options hold, children first.
    committed: Vec<Answered>,
    /// The nodes that have lost a parent.
    released: Vec<NodeId>,
}

impl Reopening {
    fn new(list: Vec<Options>, rest: Rest) -> Self {
        Self {
            list,
            rest,
            writable: None,
            targets: Vec::new(),
            ready: HashSet::new(),
            taken: Taken::default(),
        }
    }
}

impl From<Reopen> for Reopening {
    fn from(Reopen(list): Reopen) -> Self {
        Self::new(list, Rest::Default)
    }
}

impl From<ReopenKeeping> for Reopening {
    fn from(ReopenKeeping(list): ReopenKeeping) -> Self {
        Self::new(list, Rest::Kept)
    }
}

impl From<SetReadOnly> for Reopening {
    fn from(SetReadOnly { node_name, read_only }: SetReadOnly) -> Self {
        let mut options = Options::new();
        options.insert("node-name".to_owned(), node_name.clone().into());
        options.insert("read-only".to_owned(), read_only.into());
        Self {
            writable: (!read_only).then_some(node_name),
            ..Self::new(vec![options], Rest::Kept)
        }
    }
}

impl Change for Reopening {
    type Answer = ();

    fn check(&mut self, state: &PolicyState) -> Result<()> {
        let graph = &state.graph;
        if let Some(name) = &self.writable
            && !graph.find(name)?.flags.contains(OpenFlags::ALLOW_RDWR)
        {
            let text = format!("Node '{name}' is read only");
            return Err(Error::new(ErrorKind::ReadOnly, text));
        }
        if self.list.is_empty() {
            return Ok(());
        }
        let mut targets = Vec::new();
        for options in &self.list {
            let options = match self.rest {
                Rest::Default => options.clone(),
                // Whoever says what changes, and no more, may name the options of a child by their path.
                Rest::Kept => options::nest_dotted_keys(options.clone())?,
            };
            collect(graph, options, None, self.rest, &mut targets)?;
        }
        self.targets = targets;
        Ok(())
    }

    /// New options alone are readied while clients go on, also where a filter comes or goes below. Who goes read-only or
    /// writable, or gets other data, has to be still for that; but most of what is to be durable then can be so already.
    async fn ahead(&mut self, transaction: &mut Transaction) -> Result<()> {
        let world = transaction.world.clone();
        if !world.graph(|graph| keeps_data(graph, &self.targets)) {
            return Ok(());
        }
        let (keep, change): (Vec<&Target>, Vec<&Target>) =
            world.graph(|graph| self.targets.iter().partition(|target| is_early(graph, target)));
        if change.is_empty()
            && let Some((rewired, starts)) = world.graph(|graph| rewired(graph, &self.targets))
        {
            transaction.get_ready(&rewired, starts);
        }
        let flush = |target: &&Target| world.ask(target.node, NodeTask::Flush);
        let flushed: Vec<Answered> = change.iter().map(flush).collect();
        prepare_options(transaction, keep.iter().copied()).await?;
        for answer in flushed {
            let flushed = answer.done().await;
            let told = |error: Error| Error::io("Error flushing drive", IoError::from_errno(error.errno()));
            flushed.map_err(told)?;
        }
        self.ready = keep.iter().map(|target| target.node).collect();
        Ok(())
    }

    fn cover(&self, _: &Graph) -> Cover {
        Cover::Nodes(touched(&self.targets))
    }

    async fn prepare(&mut self, transaction: &mut Transaction) -> Result<()> {
        self.taken = take_steps(transaction, &self.targets, &self.ready).await?;
        Ok(())
    }

    async fn finish(self, world: &World) {
        let Taken { committed, released } = self.taken;
        note_committed(world, self.targets.iter().rev(), committed).await;
        delete::release(world, released).await;
    }
}

async fn reopen_all(world: &World, targets: Vec<Target>) -> Result<()> {
    let reopening = Reopening {
        targets,
        ..Reopening::new(Vec::new(), Rest::Kept)
    };
    transaction::run(world, USER, reopening).await
}

fn touched(targets: &[Target]) -> Vec<NodeId> {
    let mut touched = Vec::new();
    for target in targets {
        touched.push(target.node);
        touched.extend(target.links.iter().filter_map(|(_, child)| *child));
    }
    touched
}

/// How nodes were open before [`set_access`].
#[derive(Debug)]
pub struct Access(Vec<(NodeId, GivenOptions, Common)>);

/// Reopens a node, and what inherits from it, read-only or not; answers how they were, if they were otherwise.
///
/// # Errors
/// Somebody writes to it, or a file cannot be opened for writing.
pub async fn set_access(world: &World, id: NodeId, read_only: bool) -> Result<Option<Access>> {
    let mut targets = Vec::new();
    let before = world.graph(|graph| {
        let node = graph.expect(id)?;
        if node.common.read_only == read_only {
            return Ok(None);
        }
        let common = Common {
            read_only,
            ..node.common
        };
        targets.push(Target::with(node, node.given.with_read_only(read_only), common));
        let parent = Reopened { node, common };
        graph
            .children_of(id)
            .try_for_each(|edge| inherit(graph, parent, edge.child, edge.role, &mut targets))?;
        let nodes = targets.iter().filter_map(|target| graph.node(target.node));
        let before = nodes.map(|node| (node.id, node.given, node.common));
        Ok::<_, Error>(Some(Access(before.collect())))
    })?;
    if before.is_some() {
        reopen_all(world, targets).await?;
    }
    Ok(before)
}

/// Reopens nodes as they were.
///
/// # Errors
/// Somebody writes to one of them by now.
pub async fn restore(world: &World, Access(before): Access) -> Result<()> {
    let targets: Vec<Target> = world.graph(|graph| {
        let nodes = before
            .into_iter()
            .filter_map(|(id, given, common)| Some(Target::with(graph.node(id)?, given, common)));
        nodes.collect()
    });
    reopen_all(world, targets).await
}

/// Takes all steps that can fail, and those that are left once none has.
async fn take_steps(
    transaction: &mut Transaction,
    targets: &[Target],
    ready: &HashSet<NodeId>,
) -> Result<Taken> {
    let world = transaction.world.clone();
    let mut touched = touched(targets);
    together::follow(transaction, joints(targets)).await?;
    let mut exchange = world.graph(|graph| exchange(graph, targets));
    exchange.leave(transaction).await?;
    let mut released = Vec::new();
    for target in targets {
        for (slot, child) in &target.links {
            released.extend(relink(transaction, target.node, *slot, *child).await?);
        }
    }
    let unready: Vec<&Target> = targets
        .iter()
        .filter(|target| !ready.contains(&target.node))
        .collect();
    let connects_early = !unready.is_empty();
    if connects_early {
        exchange.connect(transaction).await?;
    }
    // One after the other, parents first: what an image writes before it is read-only is to be flushed with its file.
    for target in unready {
        prepare_options(transaction, std::iter::once(target)).await?;
    }
    let flags = world.graph(|graph| flags_of(graph, targets));
    touched.extend(released.iter().copied());
    let prepared = transaction
        .prepare_permissions(Plan::with_flags(flags), touched)
        .await?;
    if !connects_early {
        exchange.connect_later(transaction);
    }
    // Read only now that the locks are held which other processes respect.
    let entered = match transaction.enter(exchange).await {
        Ok(()) => transaction.send_burst().await,
        refused => refused,
    };
    if let Err(error) = entered {
        transaction.abort_permissions(&prepared);
        return Err(error);
    }
    // From here on nothing is undone: what is left can only fail if an iothread is gone.
    transaction.reopen_committed();
    let committed = have_committed(&world, targets.iter().rev());
    transaction.commit_permissions(prepared);
    let committed = mark_bitmaps(&world, targets, committed).await;
    Ok(Taken { committed, released })
}

/// Has images say that the bitmaps they store are kept here, which waits until the nodes hold; answers what is waited for still.
async fn mark_bitmaps(world: &World, targets: &[Target], committed: Vec<Answered>) -> Vec<Answered> {
    let stores = |graph: &mut Graph| {
        let mut nodes = targets.iter().map(|target| target.node);
        nodes.any(|node| bitmaps::are_stored(graph, node))
    };
    if !world.graph(stores) {
        return committed;
    }
    note_committed(world, targets.iter().rev(), committed).await;
    for target in targets {
        bitmaps::mark(world, target.node).await;
    }
    Vec::new()
}

/// The flags that nodes will have.
fn flags_of(graph: &Graph, targets: &[Target]) -> HashMap<NodeId, OpenFlags> {
    let flags = targets.iter().filter_map(|target| {
        let node = graph.node(target.node)?;
        Some((target.node, target.flags(node)))
    });
    flags.collect()
}

/// What becomes of edges that are to lead elsewhere.
fn exchange(graph: &Graph, targets: &[Target]) -> Exchange {
    let mut exchange = Exchange::default();
    for target in targets {
        for (slot, child) in &target.links {
            exchange.note(graph, target.node, *slot, *child);
        }
    }
    exchange
}

/// The nodes that come to have an edge between them.
fn joints(targets: &[Target]) -> impl Iterator<Item = Joint> {
    targets.iter().flat_map(|target| {
        let children = target.links.iter().filter_map(|(_, child)| *child);
        children.map(|child| Joint::Nodes(target.node, child))
    })
}

/// Whether all nodes stay where they are and show the data that they show now: drivers that have their options ready can keep
/// them.
fn keeps_data(graph: &Graph, targets: &[Target]) -> bool {
    let stay = joints(targets).all(|joint| home::following(graph, joint).is_none());
    stay && exchange(graph, targets).keeps_data(graph)
}

/// The edge that leads elsewhere, if it is a single one, and the nodes that feel that.
fn rewired(graph: &Graph, targets: &[Target]) -> Option<(Rewired, [NodeId; 3])> {
    let mut links = targets.iter().flat_map(|target| {
        let links = target.links.iter();
        links.map(|(slot, child)| (target.node, *slot, *child))
    });
    let (parent, slot, to) = links.next()?;
    let to = to.filter(|_| links.next().is_none())?;
    let edge = graph.node(parent)?.child(slot)?;
    let rewired = Rewired {
        edges: vec![edge],
        to,
        coming: None,
    };
    Some((rewired, [parent, to, graph.edge(edge)?.child]))
}

/// Whether a node's driver can have its new options ready while requests are in flight.
fn is_early(graph: &Graph, target: &Target) -> bool {
    graph.node(target.node).is_some_and(|node| {
        let kind = node.kind.as_ref();
        let changed = target.common.flags(kind).symmetric_difference(node.flags);
        SETTINGS.contains(changed) && kind.readies_ahead(&node.options, &target.rest)
    })
}

/// Has drivers ready their new options, all at once.
///
/// # Errors
/// The first refusal.
async fn prepare_options(
    transaction: &mut Transaction,
    targets: impl Iterator<Item = &Target>,
) -> Result<()> {
    let world = transaction.world.clone();
    let ask = |target: &Target| {
        let order = world.graph(|graph| graph.expect(target.node).map(|node| prepare_order(target, node)))?;
        Ok((target.node, world.ask(target.node, order)))
    };
    let asked: Vec<Result<(NodeId, Answered)>> = targets.map(ask).collect();
    let mut result = Ok(());
    for asked in asked {
        let prepared = match asked {
            Ok((node, answer)) => answer.done().await.map(|()| transaction.reopen_prepared(node)),
            Err(error) => Err(error),
        };
        result = result.and(prepared);
    }
    result
}

/// What has a node ready its new options.
pub fn prepare_order(target: &Target, node: &Node) -> NodeTask {
    NodeTask::ReopenPrepare {
        request: ReopenRequest {
            options: target.rest.clone(),
            flags: target.common.flags(node.kind.as_ref()),
        },
        settings: target.common.settings(node.settings.probed),
    }
}

/// Puts another node, or none, behind an edge in the graph's value; answers the one that was there.
///
/// # Errors
/// It would close a circle.
pub async fn relink(
    transaction: &mut Transaction,
    parent: NodeId,
    slot: ChildSlot,
    child: Option<NodeId>,
) -> Result<Option<NodeId>> {
    let world = transaction.world.clone();
    let (edge, old) = world.graph(|graph| {
        let edge = graph.node(parent).and_then(|node| node.child(slot));
        (edge, graph.child_node(parent, slot))
    });
    if let Some(child) = child {
        world.may_link(parent, child).await;
        // Looked at again: an earlier target of the same request may have changed what is reached.
        world.graph(|graph| {
            let node = graph.expect(parent)?;
            let name = slot_name(node.kind.as_ref(), slot).unwrap_or_default();
            check_cycle(graph, node, &name, Some(child))
        })?;
    }
    match (edge, child) {
        (Some(edge), Some(child)) => transaction.redirect(edge, child),
        (Some(edge), None) => transaction.unlink(edge),
        (None, Some(child)) => {
            let declared = world.graph(|graph| {
                let node = graph.node(parent)?;
                let name = slot_name(node.kind.as_ref(), slot)?;
                Some((name, node.kind.child_role(slot, &node.options)))
            });
            if let Some((name, role)) = declared {
                transaction.link(Parent::Node(parent, slot), child, name, role);
            }
        }
        (None, None) => {}
    }
    Ok(old)
}

/// Makes nodes' prepared options hold.
pub async fn commit(world: &World, targets: &[Target]) {
    let committed = have_committed(world, targets.iter());
    note_committed(world, targets.iter(), committed).await;
}

/// Tells nodes to have their prepared options hold; answers what they will say. All are told at once: none of them asks
/// another for that. They do it before anything that they are told later, such as that a section is over.
fn have_committed<'a>(world: &World, targets: impl Iterator<Item = &'a Target>) -> Vec<Answered> {
    let ask = |target: &Target| world.ask(target.node, NodeOrder::ReopenCommit);
    targets.map(ask).collect()
}

/// Waits for what the nodes of `targets` say that were told to commit, and takes note of it.
async fn note_committed<'a>(
    world: &World,
    targets: impl Iterator<Item = &'a Target>,
    committed: Vec<Answered>,
) {
    for (target, answer) in targets.zip(committed) {
        match answer.opened().await {
            Ok(facts) => {
                world.graph(|graph| reopened(graph, target, facts));
                bitmaps::reopened(world, target.node);
            }
            Err(error) => tracing::error!(%error, node = %target.node, "a reopened node is gone"),
        }
    }
}

/// A node's new options hold.
fn reopened(graph: &mut Graph, target: &Target, facts: OpenFacts) {
    let Some(node) = graph.node_mut(target.node) else {
        return;
    };
    node.flags = facts.flags;
    node.settings = target.common.settings(node.settings.probed);
    node.common = target.common;
    node.given = target.given;
    node.options = target.rest.clone();
    // A reopen does not read the image's header again.
    let backing = node.facts.take().and_then(|old| old.backing);
    node.facts = Some(OpenFacts {
        backing: facts.backing.clone().or(backing),
        ..facts
    });
}
