//! What the options of a reopen mean for nodes, and for those that inherit from them.

use std::borrow::Cow;
use std::collections::HashSet;

use millpond_drivers::api::reopen::not_supported;
use millpond_drivers::api::slot_name;
use millpond_messages::graph::Options;
use millpond_messages::{ChildSlot, Error, ErrorKind, NodeId, OpenFlags, Result, Role};
use serde_json::Value;

use crate::open::options;
use crate::value::chain;
use crate::value::common::{Common, GivenOptions};
use crate::value::graph::Graph;
use crate::value::node::Node;
use crate::value::refusal::Refusal;

/// What becomes of one node.
pub struct Target {
    /// The number of the node.
    pub node: NodeId,
    /// The options that it is given.
    pub given: GivenOptions,
    /// The options that every node has, with what it inherits.
    pub common: Common,
    /// The options of its driver.
    pub rest: Options,
    /// What is behind its edges from now on, where that changes.
    pub links: Vec<(ChildSlot, Option<NodeId>)>,
}

impl Target {
    /// The node with other common options, and its own as they are.
    pub fn with(node: &Node, given: GivenOptions, common: Common) -> Self {
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

/// What becomes of options that a reopen does not name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
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

/// A node, and the common options that it is going to have.
#[derive(Clone, Copy)]
pub struct Reopened<'a> {
    /// The node as it is.
    pub node: &'a Node,
    /// Its common options from now on.
    pub common: Common,
}

/// Works out what options mean for a node and for those that inherit from it. `child` is known where the options are part
/// of a parent's, with what it inherits from there.
///
/// # Errors
/// The options cannot be, or not together.
pub fn collect(
    graph: &Graph,
    options: Options,
    child: Option<(NodeId, Common)>,
    rest: Rest,
    targets: &mut Vec<Target>,
) -> Result<()> {
    let mut parsed = options::parse(options)?;
    let node = find(graph, child.map(|(node, _)| node), parsed.node_name.as_deref())?;
    if parsed
        .driver
        .as_ref()
        .is_some_and(|driver| driver != node.kind.name())
    {
        return refused("Cannot change the option 'driver'");
    }
    let asked = parsed.given;
    if rest == Rest::Kept {
        parsed.given = parsed.given.or(node.given);
        for (name, value) in &node.options {
            parsed.rest.entry(name).or_insert_with(|| value.clone());
        }
    }
    let base = child.map_or_else(|| rest.base(node), |(_, common)| common);
    let common = common_options(node, parsed.given, base)?;
    parsed.given = parsed.given.with_force_share(node.given.force_share);
    if !node.kind.reopens() {
        return Err(not_supported(node.kind.name(), &node.name));
    }
    if rest == Rest::Default {
        check_not_reset(node, asked)?;
    }
    let reopened = Reopened { node, common };
    let mut children = Children::default();
    for wanted in take_children(node, &mut parsed.rest)? {
        children.add(graph, reopened, wanted, rest)?;
    }
    check_not_set(node, asked)?;
    for (nested, child) in children.nested {
        collect(graph, nested, Some(child), rest, targets)?;
    }
    targets.retain(|other| other.node != node.id);
    targets.push(Target {
        node: node.id,
        given: parsed.given,
        common,
        rest: parsed.rest,
        links: children.links,
    });
    for (child, role) in children.below {
        inherit(graph, reopened, child, role, targets)?;
    }
    Ok(())
}

/// The common options of a node that is given these and starts from `base`.
fn common_options(node: &Node, given: GivenOptions, base: Common) -> Result<Common> {
    let others = given.with_force_share(None).over(Common {
        force_share: false,
        ..base
    })?;
    Ok(Common {
        // It stays as it is, so it cannot contradict anything: whether it is given is looked at by itself.
        force_share: node.common.force_share,
        ..others
    })
}

/// What becomes of a node's children.
#[derive(Default)]
struct Children {
    /// What is behind edges from now on, where that changes.
    links: Vec<(ChildSlot, Option<NodeId>)>,
    /// Children that are given options of their own, with what they inherit.
    nested: Vec<(Options, (NodeId, Common))>,
    /// All children that the node will have.
    below: Vec<(NodeId, Role)>,
}

impl Children {
    /// Adds the child in one slot, and looks whether it may be exchanged.
    fn add(&mut self, graph: &Graph, parent: Reopened<'_>, wanted: Wanted, rest: Rest) -> Result<()> {
        let Wanted { slot, name, value } = wanted;
        let node = parent.node;
        let Some(declared) = node.kind.child(slot) else {
            return Ok(());
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
                let Some(child) = current else {
                    return refused(format!("Parameter '{name}' must name an existing node"));
                };
                let inherited = inherited(graph, child, parent, declared.role);
                self.nested.push((nested, (child, inherited)));
                current
            }
            Some(_) => return Err(options::wrong_type(&name, "BlockdevRefOrNull")),
        };
        if new != current {
            check_unfrozen(graph, node, slot)?;
            check_cycle(graph, node, &name, new)?;
            self.links.push((slot, new));
        }
        self.below.extend(new.map(|child| (child, declared.role)));
        Ok(())
    }
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

/// Refuses a child that would close a circle.
///
/// # Errors
/// It would.
pub fn check_cycle(graph: &Graph, node: &Node, edge: &str, child: Option<NodeId>) -> Result<()> {
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
fn inherited(graph: &Graph, child: NodeId, parent: Reopened<'_>, role: Role) -> Common {
    let Reopened { node, common } = parent;
    let old = graph.node(child).map_or(common, |child| child.common);
    Common {
        inactive: old.inactive,
        extra: (old.extra - OpenFlags::ALLOW_RDWR) | (common.extra & OpenFlags::ALLOW_RDWR),
        ..common.inherited(node.kind.as_ref(), role)
    }
}

/// Passes options on to a child that takes what it was not given from its parent, and to those below that take them from it:
/// in a loop, since images that were opened by each other's names may be many.
///
/// # Errors
/// What it inherits contradicts what it was given.
pub fn inherit(
    graph: &Graph,
    parent: Reopened<'_>,
    child: NodeId,
    role: Role,
    targets: &mut Vec<Target>,
) -> Result<()> {
    let mut known: HashSet<NodeId> = targets.iter().map(|target| target.node).collect();
    let mut open = vec![(parent, child, role)];
    while let Some((parent, child, role)) = open.pop() {
        let Some(node) = graph
            .node(child)
            .filter(|node| node.inherits_from == Some(parent.node.id))
        else {
            continue;
        };
        if known.contains(&child) {
            continue;
        }
        let common = node.given.over(inherited(graph, child, parent, role))?;
        if common == node.common {
            continue;
        }
        known.insert(child);
        targets.push(Target::with(node, node.given, common));
        let parent = Reopened { node, common };
        let below = open.len();
        open.extend(
            graph
                .children_of(child)
                .map(|edge| (parent, edge.child, edge.role)),
        );
        // The first child is the next.
        open[below..].reverse();
    }
    Ok(())
}
