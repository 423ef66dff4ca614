//! Opening nodes: children first, each with its locks taken before its parent is opened; then the backing chain that
//! images name, overlay by overlay.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use drivers::driver::{ChildKind, DriverKind};
use messages::global_state::Options;
use messages::{ChildSlot, Error, ErrorKind, IoThreadId, NodeId, Result};
use serde_json::Value;

use super::backing;
use super::options::{self, Common, Parsed};
use super::order::{Address, Open, Order};
use super::transaction::Transaction;
use super::value::{Granted, Node, Parent};
use super::world::World;

/// How deep children other than backing nodes may nest: each level takes some kilobytes of stack. Backing chains are
/// walked in a loop, and what is deeper than this can be built by references.
const NESTING_MAX: usize = 32;

/// What a node starts from when its own options do not say.
#[derive(Debug, Clone, Copy, Default)]
pub struct Base {
    /// Inherited options.
    pub common: Common,
    /// How deep the node's options are nested.
    pub depth: usize,
    /// Its format was guessed from its contents.
    pub probed: bool,
}

/// `blockdev-add`.
///
/// # Errors
/// Whatever a node's open met. Nothing is left behind then.
pub async fn blockdev_add(world: &World, options: Options) -> Result<()> {
    if !options.contains_key("driver") {
        return Err(missing("driver"));
    }
    if !options.contains_key("node-name") {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            "'node-name' must be specified for the root node",
        ));
    }
    let mut transaction = Transaction::new(world);
    match open_tree(&mut transaction, options, Base::default()).await {
        Ok(node) => {
            world.graph(|graph| {
                if let Some(node) = graph.node_mut(node) {
                    node.owned = true;
                }
            });
            transaction.commit();
            Ok(())
        }
        Err(error) => {
            transaction.roll_back().await;
            Err(error)
        }
    }
}

/// Opens a node with all that it needs below it.
///
/// # Errors
/// Whatever an open met; what was opened before is in the transaction's log.
pub fn open_tree<'a>(
    transaction: &'a mut Transaction,
    options: Options,
    base: Base,
) -> Pin<Box<dyn Future<Output = Result<NodeId>> + 'a>> {
    Box::pin(async move {
        let (top, backing) = open_one(transaction, options, base).await?;
        backing::open_chain(transaction, top, backing, base.depth).await?;
        Ok(top)
    })
}

/// What is to be done about a node's backing child once the node is open.
pub enum Backing {
    /// Nothing: the driver has no such child, or the options say that there is none.
    None,
    /// What the image names.
    Implicit,
    /// What the options say.
    Explicit(Value),
}

/// Opens a node and its children, except for the backing child.
///
/// # Errors
/// Whatever an open met.
pub async fn open_one(
    transaction: &mut Transaction,
    options: Options,
    base: Base,
) -> Result<(NodeId, Backing)> {
    if base.depth > NESTING_MAX {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            "Options are nested too deeply",
        ));
    }
    let world = transaction.world.clone();
    let mut parsed = options::parse(options)?;
    let common = parsed.given.over(base.common)?;
    let kind = find_driver(&world, parsed.driver.as_deref(), common.read_only)?;
    let backing = take_backing(kind.as_ref(), &mut parsed.rest)?;
    let nested: Vec<bool> = kind
        .children()
        .iter()
        .map(|child| parsed.rest.get(child.name).is_some_and(Value::is_object))
        .collect();
    let mut children = Vec::new();
    for child in kind.children() {
        let value = parsed.rest.remove(child.name);
        let inherited = Base {
            common: common.inherited(kind.as_ref(), child.role),
            depth: base.depth + 1,
            probed: false,
        };
        children.push(open_child(transaction, *child, value, inherited).await?);
    }
    let id = insert_node(transaction, &kind, &parsed, common, base.probed, &children)?;
    for (child, _) in children.iter().zip(nested).filter(|(_, nested)| *nested) {
        note_inheritance(&world, *child, id);
    }
    transaction.update_permissions([id]).await?;
    open_cell(&world, id).await?;
    world.settle_new(id).await;
    for child in children.into_iter().flatten() {
        world.may_link(id, child).await;
    }
    let names_none = world.graph(|graph| {
        graph
            .node(id)
            .and_then(|node| node.facts.as_ref())
            .is_none_or(|facts| facts.backing.is_none())
    });
    let backing = if names_none && matches!(backing, Backing::Implicit) {
        Backing::None
    } else {
        backing
    };
    Ok((id, backing))
}

/// The driver of this name.
fn find_driver(world: &World, name: Option<&str>, read_only: bool) -> Result<Arc<dyn DriverKind>> {
    let name = name.ok_or_else(|| missing("driver"))?;
    world.with(|state| {
        let kind = state.registry.find(name).cloned().ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidArgument,
                format!("Parameter 'driver' does not accept value '{name}'"),
            )
        })?;
        if state.registry.is_whitelisted(name, read_only) {
            return Ok(kind);
        }
        let how = if state.registry.is_whitelisted(name, true) {
            "can only be used for read-only devices"
        } else {
            "is not whitelisted"
        };
        Err(Error::new(
            ErrorKind::Unsupported,
            format!("Driver '{name}' {how}"),
        ))
    })
}

fn missing(name: &str) -> Error {
    Error::new(
        ErrorKind::InvalidArgument,
        format!("Parameter '{name}' is missing"),
    )
}

fn take_backing(kind: &dyn DriverKind, options: &mut Options) -> Result<Backing> {
    if !kind.children().iter().any(|child| child.name == "backing") {
        return Ok(Backing::None);
    }
    match options.remove("backing") {
        None => Ok(Backing::Implicit),
        Some(Value::Null) => Ok(Backing::None),
        Some(Value::String(name)) if name.is_empty() => Ok(Backing::None),
        Some(value @ (Value::String(_) | Value::Object(_))) => Ok(Backing::Explicit(value)),
        Some(_) => Err(options::wrong_type("backing", "BlockdevRefOrNull")),
    }
}

/// Finds or opens a child that is needed before its parent.
async fn open_child(
    transaction: &mut Transaction,
    child: ChildKind,
    value: Option<Value>,
    base: Base,
) -> Result<Option<NodeId>> {
    if child.name == "backing" {
        return Ok(None);
    }
    match value {
        None | Some(Value::Null) if child.required => Err(missing(child.name)),
        None | Some(Value::Null) => Ok(None),
        Some(value) => resolve(transaction, value, base, child.name).await.map(Some),
    }
}

/// Notes that a child takes from its parent what its own options do not say, now and when the parent is reopened.
pub fn note_inheritance(world: &World, child: Option<NodeId>, parent: NodeId) {
    world.graph(|graph| {
        if let Some(child) = child.and_then(|child| graph.node_mut(child)) {
            child.inherits_from = Some(parent);
        }
    });
}

/// The node that an option means: one that exists, by name, or one to be opened.
///
/// # Errors
/// There is no node of that name, or the open's.
pub async fn resolve(
    transaction: &mut Transaction,
    value: Value,
    base: Base,
    option: &str,
) -> Result<NodeId> {
    match value {
        Value::String(name) => transaction
            .world
            .graph(|graph| graph.look_up(&name, &name).map(|node| node.id)),
        Value::Object(options) => open_tree(transaction, options, base).await,
        _ => Err(options::wrong_type(option, "BlockdevRef")),
    }
}

/// Puts a node and its edges into the graph. It is neither open nor seen yet.
fn insert_node(
    transaction: &mut Transaction,
    kind: &Arc<dyn DriverKind>,
    parsed: &Parsed,
    common: Common,
    probed: bool,
    children: &[Option<NodeId>],
) -> Result<NodeId> {
    let world = transaction.world.clone();
    let name = choose_name(&world, parsed.node_name.as_deref())?;
    let node = world.with(|state| {
        let first = children.iter().flatten().next();
        let iothread: IoThreadId = first
            .and_then(|id| state.address(*id))
            .map_or(state.main, |address| address.iothread);
        Node {
            id: state.graph.new_node_id(),
            name,
            kind: kind.clone(),
            iothread,
            options: parsed.rest.clone(),
            common,
            given: parsed.given,
            inherits_from: None,
            settings: common.settings(probed),
            flags: common.flags(kind.as_ref()),
            facts: None,
            children: vec![None; kind.children().len()],
            parents: Vec::new(),
            granted: Granted::NOBODY,
            owned: false,
            implicit_backing: None,
            live: false,
            working: 0,
            closing: false,
            moving: false,
            deferred: Vec::new(),
        }
    });
    let id = node.id;
    transaction.insert(node);
    for (index, (child, declared)) in children.iter().zip(kind.children()).enumerate() {
        if let (Some(child), Ok(slot)) = (child, u8::try_from(index)) {
            transaction.link(
                Parent::Node(id, ChildSlot(slot)),
                *child,
                declared.name,
                kind.child_role(index, &parsed.rest),
            );
        }
    }
    Ok(id)
}

fn choose_name(world: &World, given: Option<&str>) -> Result<String> {
    let Some(name) = given else {
        return Ok(world.graph(super::value::Graph::new_name));
    };
    options::check_node_name(name)?;
    if world.graph(|graph| graph.has_name(name)) {
        return Err(Error::new(
            ErrorKind::Exists,
            format!("Duplicate nodes with node-name='{name}'"),
        ));
    }
    Ok(name.to_owned())
}

/// Has a node's cell opened.
async fn open_cell(world: &World, id: NodeId) -> Result<()> {
    let order = world.with(|state| {
        let node = state.graph.expect(id)?;
        let children = node
            .children
            .iter()
            .map(|edge| {
                let child = edge.and_then(|edge| state.graph.edge(edge))?.child;
                state.address(child)
            })
            .collect::<Vec<Option<Address>>>();
        Ok::<_, Error>(Order::Open(Box::new(Open {
            node: id,
            name: node.name.clone(),
            kind: node.kind.clone(),
            options: node.options.clone(),
            flags: node.flags,
            settings: node.settings,
            children,
        })))
    })?;
    let facts = world.ask(id, order).opened().await?;
    world.graph(|graph| {
        if let Some(node) = graph.node_mut(id) {
            node.flags = facts.flags;
            node.facts = Some(facts);
        }
    });
    Ok(())
}
