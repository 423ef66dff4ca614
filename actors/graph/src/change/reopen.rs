//! `blockdev-reopen`: new options and children for open nodes, all or nothing.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use millpond_drivers::api::reopen::not_supported;
use millpond_drivers::api::{ReopenRequest, slot_name};
use millpond_messages::graph::Options;
use millpond_messages::{ChildSlot, Error, ErrorKind, NodeId, OpenFlags, Result, Role};
use serde_json::Value;

use crate::change::delete;
use crate::change::exchange::Exchange;
use crate::open::options;
use crate::order::{NodeOrder, NodeTask};
use crate::sections::Cover;
use crate::transaction::{self, Change, Transaction, together};
use crate::value::chain;
use crate::value::common::{Common, GivenOptions};
use crate::value::edge::Parent;
use crate::value::graph::Graph;
use crate::value::home::Joint;
use crate::value::node::Node;
use crate::value::permissions::Plan;
use crate::value::refusal::Refusal;
use crate::world::World;

/// What becomes of one node.
pub struct Target {
    node: NodeId,
    given: GivenOptions,
    common: Common,
    rest: Options,
    /// What is behind its edges from now on, where that changes.
    links: Vec<(ChildSlot, Option<NodeId>)>,
}

impl Target {
    /// The node with other common options, and its own as they are.
    fn with(node: &Node, given: GivenOptions, common: Common) -> Self {
        Self {
            node: node.id,
            given,
            common,
            rest: node.options.clone(),
            links: Vec::new(),
        }
    }

    /// The node with its options as they are, active or not.
    pub fn with_activity(node: &Node, inactive: bool) -> Self {
        let extra = node.common.extra - OpenFlags::INACTIVE;
        let common = Common {
            inactive,
            extra,
            ..node.common
        };
        Self::with(node, node.given, common)
    }

    /// The flags that it will have.
    pub fn flags(&self, node: &Node) -> OpenFlags {
        self.common.flags(node.kind.as_ref())
    }
}

/// Reopens nodes.
///
/// # Errors
/// One of them cannot be; then nothing has changed.
pub async fn blockdev_reopen(world: &World, list: Vec<Options>) -> Result<()> {
    reopen_with(world, list, Rest::Default).await
}

/// Reopens nodes with some options changed and all others, and all children that are not named, as they are.
///
/// # Errors
/// As for [`blockdev_reopen`].
pub async fn reopen_keeping(world: &World, list: Vec<Options>) -> Result<()> {
    reopen_with(world, list, Rest::Kept).await
}

/// Makes a node, and what inherits from it, read-only or writable.
///
/// # Errors
/// Somebody writes to it, or it was opened to stay read-only.
pub async fn set_read_only(world: &World, name: &str, read_only: bool) -> Result<()> {
    world.graph(|graph| {
        let node = graph.find(name)?;
        if read_only || node.flags.contains(OpenFlags::ALLOW_RDWR) {
            return Ok(());
        }
        let text = format!("Node '{name}' is read only");
        Err(Error::new(ErrorKind::ReadOnly, text))
    })?;
    let mut options = Options::new();
    options.insert("node-name".to_owned(), name.into());
    options.insert("read-only".to_owned(), read_only.into());
    reopen_keeping(world, vec![options]).await
}

async fn reopen_with(world: &World, list: Vec<Options>, rest: Rest) -> Result<()> {
    let mut targets = Vec::new();
    world.graph(|graph| {
        list.into_iter()
            .try_for_each(|options| collect(graph, options, None, rest, &mut targets))
    })?;
    reopen_all(world, targets).await
}

/// What becomes of options that a reopen does not name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rest {
    /// They have their defaults again.
    Default,
    /// They stay as they are.
    Kept,
}

impl Rest {
    /// What a node starts from whose options are not part of a parent's.
    fn base(self, node: &Node) -> Common {
        match self {
            Self::Kept => node.common,
            Self::Default => Common {
                // No option of a reopen says these.
                inactive: node.common.inactive,
                extra: node.common.extra,
                ..Common::default()
            },
        }
    }
}

fn refused<T>(text: impl Into<Cow<'static, str>>) -> Result<T> {
    Err(Error::new(ErrorKind::InvalidArgument, text))
}

/// Options with which a node goes from its open to its end. One that was given has no way back to its default, which is
/// what a reopen without it asks for. Whether a node is active is changed by a command of its own, so that option stands
/// for what it was at the open.
fn check_not_reset(node: &Node, given: GivenOptions) -> Result<()> {
    if node.given.active.is_some() {
        return refused("Option 'active' cannot be reset to its default value");
    }
    let shares = node.given.force_share.is_some() || node.common.force_share;
    if shares && given.force_share.is_none() {
        return refused("Option 'force-share' cannot be reset to its default value");
    }
    Ok(())
}

/// The same options, which cannot be set to anything either.
fn check_not_set(node: &Node, given: GivenOptions) -> Result<()> {
    if given.active == Some(node.common.inactive) {
        return refused("Cannot change the option 'active'");
    }
    if given.force_share.is_some() {
        return refused("Cannot change the option 'force-share'");
    }
    Ok(())
}

/// The node that a reference among the options means. Only what is behind `file` and `backing` can be exchanged like this.
fn referred(
    graph: &Graph,
    current: Option<NodeId>,
    (option, leads_elsewhere): (&str, bool),
    name: &str,
) -> Result<NodeId> {
    if leads_elsewhere {
        return Ok(graph.look_up("", name)?.id);
    }
    let is_current = |id: &NodeId| graph.node(*id).is_some_and(|node| node.name == name);
    match current.filter(is_current) {
        Some(current) => Ok(current),
        None => refused(format!("Cannot change the option '{option}'")),
    }
}

async fn reopen_all(world: &World, targets: Vec<Target>) -> Result<()> {
    let released = Vec::new();
    transaction::run(world, "blockdev-reopen", Reopen { targets, released }).await
}

/// Nodes that are reopened together.
struct Reopen {
    targets: Vec<Target>,
    /// The nodes that have lost a parent.
    released: Vec<NodeId>,
}

impl Change for Reopen {
    type Answer = ();

    fn cover(&self, _: &Graph) -> Cover {
        Cover::Nodes(touched(&self.targets))
    }

    async fn prepare(&mut self, transaction: &mut Transaction) -> Result<()> {
        self.released = reopen(transaction, &self.targets).await?;
        Ok(())
    }

    async fn finish(self, world: &World) {
        delete::release(world, self.released).await;
    }
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
        graph
            .children_of(id)
            .try_for_each(|edge| inherit(graph, node, common, edge.child, edge.role, &mut targets))?;
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

/// Works out what options mean for a node and for those that inherit from it. `node` is known where the options are part
/// of a parent's, with what it inherits from there.
fn collect(
    graph: &Graph,
    options: Options,
    child: Option<(NodeId, Common)>,
    rest: Rest,
    targets: &mut Vec<Target>,
) -> Result<()> {
    let mut parsed = options::parse(options)?;
    let node = find(graph, child.map(|(node, _)| node), parsed.node_name.as_deref())?;
    if parsed.driver.is_some_and(|driver| driver != node.kind.name()) {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            "Cannot change the option 'driver'",
        ));
    }
    let asked = parsed.given;
    if rest == Rest::Kept {
        parsed.given = parsed.given.or(node.given);
        for (name, value) in &node.options {
            parsed.rest.entry(name).or_insert_with(|| value.clone());
        }
    }
    let base = child.map_or_else(|| rest.base(node), |(_, common)| common);
    let common = Common {
        // It stays as it is, so it cannot contradict anything: whether it is given is looked at below.
        force_share: node.common.force_share,
        ..parsed.given.with_force_share(None).over(Common {
            force_share: false,
            ..base
        })?
    };
    parsed.given = parsed.given.with_force_share(node.given.force_share);
    if !node.kind.reopens() {
        return Err(not_supported(node.kind.name(), &node.name));
    }
    if rest == Rest::Default {
        check_not_reset(node, asked)?;
    }
    let mut target = Target {
        node: node.id,
        given: parsed.given,
        common,
        rest: Options::new(),
        links: Vec::new(),
    };
    let (mut below, mut given_below) = (Vec::new(), Vec::new());
    for Wanted { slot, name, value } in take_children(node, &mut parsed.rest)? {
        let Some(declared) = node.kind.child(slot) else {
            continue;
        };
        let current = graph.child_node(node.id, slot);
        let new = match value {
            None if declared.name == "backing" && names_backing(node, current) && rest == Rest::Default => {
                return refused(format!("backing is missing for '{}'", node.name));
            }
            None => current,
            Some(Value::Null) if declared.required => {
                return refused(format!("Parameter '{name}' is missing"));
            }
            Some(Value::Null) => None,
            Some(Value::String(wanted)) => {
                let leads_elsewhere = declared.leads_elsewhere;
                Some(referred(graph, current, (&name, leads_elsewhere), &wanted)?)
            }
            Some(Value::Object(nested)) => {
                let child = current.ok_or_else(|| {
                    let text = format!("Parameter '{name}' must name an existing node");
                    Error::new(ErrorKind::InvalidArgument, text)
                })?;
                let inherited = inherited(graph, child, node, common, declared.role);
                given_below.push((nested, (child, inherited)));
                current
            }
            Some(_) => return Err(options::wrong_type(&name, "BlockdevRefOrNull")),
        };
        if new != current {
            check_unfrozen(graph, node, slot)?;
            check_cycle(graph, node, &name, new)?;
            target.links.push((slot, new));
        }
        below.extend(new.map(|child| (child, declared.role)));
    }
    check_not_set(node, asked)?;
    for (nested, child) in given_below {
        collect(graph, nested, Some(child), rest, targets)?;
    }
    target.rest = parsed.rest;
    targets.retain(|other| other.node != target.node);
    targets.push(target);
    for (child, role) in below {
        inherit(graph, node, common, child, role, targets)?;
    }
    Ok(())
}

/// Whether a node has a backing node, or its image names one.
fn names_backing(node: &Node, current: Option<NodeId>) -> bool {
    let facts = node.facts.as_ref();
    current.is_some() || facts.is_some_and(|facts| facts.backing.is_some())
}

/// What options say of a child.
struct Wanted {
    slot: ChildSlot,
    name: Cow<'static, str>,
    value: Option<Value>,
}

/// Takes out of a node's options what they say of the children that it can have.
fn take_children(node: &Node, rest: &mut Options) -> Result<Vec<Wanted>> {
    let kind = node.kind.as_ref();
    let declared = (0..kind.children().len()).filter_map(ChildSlot::at);
    let mut wanted: Vec<Wanted> = declared
        .filter_map(|slot| {
            let name = slot_name(kind, slot)?;
            let value = rest.remove(name.as_ref());
            Some(Wanted { slot, name, value })
        })
        .collect();
    let Some(child) = kind.numbered() else {
        return Ok(wanted);
    };
    let slots: Vec<ChildSlot> = node.numbered().map(|(slot, _)| slot).collect();
    let values = options::take_numbered(child.name, rest)?;
    let values = match values {
        None => vec![None; slots.len()],
        Some(values) if values.len() == slots.len() => values.into_iter().map(Some).collect(),
        Some(_) => {
            let text = format!("Cannot change the number of '{}'", child.name);
            return Err(Error::new(ErrorKind::InvalidArgument, text));
        }
    };
    wanted.extend(slots.into_iter().zip(values).filter_map(|(slot, value)| {
        let name = slot_name(kind, slot)?;
        Some(Wanted { slot, name, value })
    }));
    Ok(wanted)
}

fn check_unfrozen(graph: &Graph, node: &Node, slot: ChildSlot) -> Result<()> {
    match node.child(slot).and_then(|edge| graph.edge(edge)) {
        Some(edge) => chain::check_unfrozen(graph, edge),
        None => Ok(()),
    }
}

fn find<'a>(graph: &'a Graph, node: Option<NodeId>, name: Option<&str>) -> Result<&'a Node> {
    let Some(id) = node else {
        let name = name.ok_or_else(|| Error::new(ErrorKind::InvalidArgument, "node-name not specified"))?;
        return graph.find(name);
    };
    let node = graph.expect(id)?;
    if name.is_some_and(|name| name != node.name) {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            "Cannot change the option 'node-name'",
        ));
    }
    Ok(node)
}

fn check_cycle(graph: &Graph, node: &Node, edge: &str, child: Option<NodeId>) -> Result<()> {
    let Some(child) = child.and_then(|child| graph.node(child)) else {
        return Ok(());
    };
    if graph.reaches(child.id, node.id) {
        return Err(Refusal::cycle(&child.name, edge, &node.name).into());
    }
    Ok(())
}

/// What a child takes from its parent. Whether it is active is its own, and so are flags that no option stands for, except
/// that it may be made writable where its parent may.
fn inherited(graph: &Graph, child: NodeId, parent: &Node, common: Common, role: Role) -> Common {
    let old = graph.node(child).map_or(common, |child| child.common);
    Common {
        inactive: old.inactive,
        extra: (old.extra - OpenFlags::ALLOW_RDWR) | (common.extra & OpenFlags::ALLOW_RDWR),
        ..common.inherited(parent.kind.as_ref(), role)
    }
}

/// Passes options on to a child that takes what it was not given from its parent, and to those below that take them from it:
/// in a loop, since images that were opened by each other's names may be many.
fn inherit(
    graph: &Graph,
    parent: &Node,
    common: Common,
    child: NodeId,
    role: Role,
    targets: &mut Vec<Target>,
) -> Result<()> {
    let mut known: HashSet<NodeId> = targets.iter().map(|target| target.node).collect();
    let mut open = vec![(parent, common, child, role)];
    while let Some((parent, common, child, role)) = open.pop() {
        let Some(node) = graph
            .node(child)
            .filter(|node| node.inherits_from == Some(parent.id))
        else {
            continue;
        };
        if known.contains(&child) {
            continue;
        }
        let common = node.given.over(inherited(graph, child, parent, common, role))?;
        if common == node.common {
            continue;
        }
        known.insert(child);
        targets.push(Target::with(node, node.given, common));
        let below = open.len();
        open.extend(
            graph
                .children_of(child)
                .map(|edge| (node, common, edge.child, edge.role)),
        );
        // The first child is the next.
        open[below..].reverse();
    }
    Ok(())
}

/// Takes all steps; answers the nodes that lost a parent.
async fn reopen(transaction: &mut Transaction, targets: &[Target]) -> Result<Vec<NodeId>> {
    let world = transaction.world.clone();
    let mut touched = touched(targets);
    let joints = targets.iter().flat_map(|target| {
        let children = target.links.iter().filter_map(|(_, child)| *child);
        children.map(|child| Joint::Nodes(target.node, child))
    });
    together::follow(transaction, joints).await?;
    let mut exchange = Exchange::default();
    world.graph(|graph| {
        for target in targets {
            for (slot, child) in &target.links {
                exchange.note(graph, target.node, *slot, *child);
            }
        }
    });
    exchange.leave(transaction).await?;
    let mut released = Vec::new();
    for target in targets {
        for (slot, child) in &target.links {
            released.extend(relink(transaction, target.node, *slot, *child).await?);
        }
    }
    exchange.connect(transaction).await?;
    for target in targets {
        let order = world.graph(|graph| graph.expect(target.node).map(|node| prepare_order(target, node)))?;
        world.ask(target.node, order).done().await?;
        transaction.reopen_prepared(target.node);
    }
    let flags = world.graph(|graph| {
        let flags = targets.iter().filter_map(|target| {
            let node = graph.node(target.node)?;
            Some((target.node, target.common.flags(node.kind.as_ref())))
        });
        flags.collect::<HashMap<_, _>>()
    });
    touched.extend(released.iter().copied());
    let prepared = transaction
        .prepare_permissions(Plan::with_flags(flags), touched)
        .await?;
    // Read only now that the locks are held which other processes respect.
    if let Err(error) = exchange.enter(transaction).await {
        transaction.abort_permissions(&prepared);
        return Err(error);
    }
    // From here on nothing is undone: what is left can only fail if an iothread is gone.
    transaction.reopen_committed();
    for target in targets.iter().rev() {
        commit(&world, target).await;
    }
    transaction.commit_permissions(prepared);
    Ok(released)
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

/// Makes a node's prepared options hold.
pub async fn commit(world: &World, target: &Target) {
    match world.ask(target.node, NodeOrder::ReopenCommit).opened().await {
        Ok(facts) => world.graph(|graph| {
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
            node.facts = Some(millpond_engine::node::OpenFacts {
                backing: facts.backing.clone().or(backing),
                ..facts
            });
        }),
        Err(error) => tracing::error!(%error, node = %target.node, "a reopened node is gone"),
    }
}
