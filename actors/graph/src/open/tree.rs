//! Opening nodes: children first, each with its locks taken before its parent is opened; then the backing chain that
//! images name, overlay by overlay.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use millpond_drivers::api::{ChildKind, DriverKind, slot_name};
use millpond_messages::graph::{Options, Probing};
use millpond_messages::{ChildSlot, EdgeId, Error, ErrorKind, IoThreadId, NodeId, OpenFlags, Result, Role};
use serde_json::Value;

use crate::open::backing;
use crate::open::image::{self, Found};
use crate::open::options::{self, Parsed};
use crate::order::{Address, BitmapOrder, NodeOrder, Open, Wiring};
use crate::transaction::{Transaction, bitmaps, together};
use crate::value::bitmap::Wanted;
use crate::value::chain;
use crate::value::common::{self, Common};
use crate::value::edge::Parent;
use crate::value::graph::Graph;
use crate::value::node::{Granted, Node};
use crate::world::World;

/// How deep children other than backing nodes may nest: each level takes some kilobytes of stack. Backing chains are
/// walked in a loop, and what is deeper than this can be built by references.
const NESTING_MAX: usize = 32;

/// What a node starts from when its own options do not say.
#[derive(Debug, Clone, Copy, Default)]
pub struct Inherited {
    /// The options that are inherited from the parent.
    pub common: Common,
    /// How deep the node's options are nested.
    pub depth: usize,
    /// Without a driver, it is opened by a protocol rather than by a format that is guessed.
    pub is_protocol: bool,
    /// Whether a format may be guessed.
    pub probing: Probing,
    /// The file, where it is open already.
    pub file: Option<NodeId>,
    /// The options come from a filename: no schema says what must be in them.
    pub unchecked: bool,
    /// An image has named it, and no user: what it names does not reach out of this machine.
    pub is_named_by_image: bool,
}

impl Inherited {
    /// What a child starts from.
    pub fn of_child(self, common: Common, parent: &dyn DriverKind, child: &ChildKind) -> Self {
        let role = child.role;
        let mut inherited = common.inherited(parent, role);
        if child.name == "file" && !common.extra.contains(OpenFlags::INACTIVE) {
            // A node's file is opened before it is known that the node is to be inactive.
            inherited.inactive = false;
        }
        let holds_data = role.contains(Role::DATA) && !role.intersects(Role::METADATA | Role::FILTERED);
        let is_format = common::is_format(parent);
        let is_protocol = if (is_format && !role.contains(Role::COW)) || role.contains(Role::METADATA) {
            true
        } else {
            self.is_protocol && (is_format || !holds_data)
        };
        Self {
            common: inherited,
            depth: self.depth + 1,
            is_protocol,
            file: None,
            ..self
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
    base: Inherited,
) -> Pin<Box<dyn Future<Output = Result<NodeId>> + 'a>> {
    Box::pin(async move {
        let (top, backing) = open_one(transaction, options, base).await?;
        backing::open_chain(transaction, top, backing, base).await?;
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

/// A node that is about to be opened, as far as it is known without its children.
struct NewNode {
    kind: Arc<dyn DriverKind>,
    parsed: Parsed,
    common: Common,
    /// Whether its format was guessed.
    probed: bool,
    /// What is known of its file before the node is opened.
    file: Option<NodeId>,
    /// Whether the file belongs to this node, since it was opened for it.
    file_is_nested: bool,
}

/// Opens a node and its children, except for the backing child.
///
/// # Errors
/// Whatever an open met.
pub async fn open_one(
    transaction: &mut Transaction,
    options: Options,
    base: Inherited,
) -> Result<(NodeId, Backing)> {
    if base.depth > NESTING_MAX {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            "Options are nested too deeply",
        ));
    }
    let world = transaction.world.clone();
    let mut new = choose_driver(transaction, options, base).await?;
    let backing = if new.common.extra.contains(OpenFlags::NO_BACKING) {
        new.parsed.rest.remove("backing");
        Backing::None
    } else {
        take_backing(new.kind.as_ref(), &mut new.parsed.rest)?
    };
    let Children { id, opened, heirs } = open_children(transaction, &mut new, base).await?;
    let home = together::gather(transaction, opened.iter().flatten()).await?;
    let id = id.unwrap_or_else(|| world.graph(Graph::new_node_id));
    insert_node(transaction, id, &new, &opened, home)?;
    for child in heirs {
        note_inheritance(&world, Some(child), id);
    }
    transaction.update_permissions([id]).await?;
    world.graph(|graph| chain::freeze_to_bottom(graph, id))?;
    open_cell(&world, id).await?;
    world.settle_new(id).await;
    for child in opened.into_iter().flatten() {
        world.may_link(id, child).await;
    }
    backing::settle_data_file(transaction, id, base).await?;
    let names_none = world.graph(|graph| {
        graph
            .node(id)
            .and_then(|node| node.facts.as_ref())
            .is_none_or(|facts| facts.backing.is_none())
    });
    match backing {
        Backing::Implicit if names_none => Ok((id, Backing::None)),
        backing => Ok((id, backing)),
    }
}

/// Reads a node's options, and finds the driver that they say or that its image asks for.
async fn choose_driver(transaction: &mut Transaction, options: Options, base: Inherited) -> Result<NewNode> {
    let mut parsed = options::parse(options)?;
    let common = parsed.given.over(base.common)?;
    let file_is_nested = base.file.is_some() || parsed.rest.get("file").is_some_and(Value::is_object);
    let found = match parsed.driver.take() {
        Some(driver) => Found::given(driver),
        None => image::find_driver(transaction, &mut parsed.rest, common, base).await?,
    };
    let kind = find_driver(
        &transaction.world,
        &found.driver,
        common.read_only,
        base.unchecked,
    )?;
    if base.is_named_by_image && kind.reaches_out() {
        let text = format!(
            "An image names what driver '{}' would reach out for: that is opened only if options name it",
            kind.name()
        );
        return Err(Error::new(ErrorKind::Permission, text));
    }
    Ok(NewNode {
        kind,
        parsed,
        common,
        probed: found.probed,
        file: found.file.or(base.file),
        file_is_nested,
    })
}

/// The children of a node that are opened before it.
struct Children {
    /// The number of the node, if it was given one already: the other children than the file are younger than the node.
    id: Option<NodeId>,
    /// The child in each slot, if there is one.
    opened: Vec<Option<NodeId>>,
    /// Those that take from the node what their own options do not say.
    heirs: Vec<NodeId>,
}

async fn open_children(
    transaction: &mut Transaction,
    new: &mut NewNode,
    base: Inherited,
) -> Result<Children> {
    let mut children = Children {
        id: None,
        opened: Vec::new(),
        heirs: Vec::new(),
    };
    for (child, value) in take_children(new.kind.as_ref(), &mut new.parsed.rest)? {
        if child.name != "file" {
            // A file is opened first, to be looked at; all other children are younger than the node.
            let id = &mut children.id;
            id.get_or_insert_with(|| transaction.world.graph(Graph::new_node_id));
        }
        let (opened, is_nested) = match new.file.filter(|_| child.name == "file") {
            Some(file) => (Some(file), new.file_is_nested),
            None => {
                let is_nested = value.as_ref().is_some_and(Value::is_object);
                let base = base.of_child(new.common, new.kind.as_ref(), &child);
                (open_child(transaction, child, value, base).await?, is_nested)
            }
        };
        children.heirs.extend(opened.filter(|_| is_nested));
        children.opened.push(opened);
    }
    Ok(children)
}

/// The driver of this name.
fn find_driver(world: &World, name: &str, read_only: bool, unchecked: bool) -> Result<Arc<dyn DriverKind>> {
    world.with(|state| {
        let kind = state.registry.find(name).cloned().ok_or_else(|| {
            if unchecked {
                return image::unknown_driver(name);
            }
            let text = format!("Parameter 'driver' does not accept value '{name}'");
            Error::new(ErrorKind::InvalidArgument, text)
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

/// Takes out of a node's options what they say of its children, the numbered ones last.
fn take_children(kind: &dyn DriverKind, options: &mut Options) -> Result<Vec<(ChildKind, Option<Value>)>> {
    let mut wanted: Vec<_> = kind
        .children()
        .iter()
        .map(|child| (*child, options.remove(child.name)))
        .collect();
    let mut count = 0;
    if let Some(child) = kind.numbered() {
        let values = options::take_numbered(child.name, options)?.unwrap_or_default();
        count = values.len();
        wanted.extend(values.into_iter().map(|value| (child, Some(value))));
    }
    kind.check_options(options, count)?;
    Ok(wanted)
}

/// Finds or opens a child that is needed before its parent.
async fn open_child(
    transaction: &mut Transaction,
    child: ChildKind,
    value: Option<Value>,
    base: Inherited,
) -> Result<Option<NodeId>> {
    if child.name == "backing" {
        return Ok(None);
    }
    match value {
        None | Some(Value::Null) if child.required && base.unchecked => {
            let text = format!("A block device must be specified for \"{}\"", child.name);
            Err(Error::new(ErrorKind::InvalidArgument, text))
        }
        None | Some(Value::Null) if child.required => Err(options::missing(child.name)),
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
    base: Inherited,
    option: &str,
) -> Result<NodeId> {
    match value {
        Value::String(name) => transaction
            .world
            .graph(|graph| graph.look_up_new(&name, &name).map(|node| node.id)),
        Value::Object(options) => open_tree(transaction, options, base).await,
        _ => Err(options::wrong_type(option, "BlockdevRef")),
    }
}

/// Puts a node and its edges into the graph. It is neither open nor seen yet.
fn insert_node(
    transaction: &mut Transaction,
    id: NodeId,
    new: &NewNode,
    children: &[Option<NodeId>],
    iothread: IoThreadId,
) -> Result<()> {
    let NewNode {
        kind, parsed, common, ..
    } = new;
    let world = transaction.world.clone();
    let roles = (0..children.len()).filter_map(ChildSlot::at);
    let roles = roles.map(|slot| kind.child_role(slot, &parsed.rest));
    Role::check_children(roles).map_err(|error| {
        let text = format!(
            "Driver '{}' gives its children roles that cannot be: {error}",
            kind.name()
        );
        Error::new(ErrorKind::InvalidArgument, text)
    })?;
    let name = choose_name(&world, parsed.node_name.as_deref())?;
    let node = Node {
        id,
        name,
        kind: kind.clone(),
        iothread,
        options: parsed.rest.clone(),
        common: *common,
        given: parsed.given,
        inherits_from: None,
        settings: common.settings(new.probed),
        flags: common.flags(kind.as_ref()),
        facts: None,
        children: BTreeMap::new(),
        next_numbered: number_after(kind.as_ref(), children.len()),
        parents: Vec::new(),
        granted: Granted::NOBODY,
        owned: false,
        implicit_backing: None,
        bitmaps: Vec::new(),
        live: false,
        internal_io: 0,
        closing: false,
        moving: false,
        deferred: Vec::new(),
    };
    transaction.insert(node);
    for (index, child) in children.iter().enumerate() {
        let slot = ChildSlot::at(index);
        let name = slot.and_then(|slot| slot_name(kind.as_ref(), slot));
        if let (Some(child), Some(slot), Some(name)) = (child, slot, name) {
            let role = kind.child_role(slot, &parsed.rest);
            transaction.link(Parent::Node(id, slot), *child, name, role);
        }
    }
    Ok(())
}

/// The number that the next numbered child gets in a node with so many children, declared ones included.
fn number_after(kind: &dyn DriverKind, children: usize) -> u32 {
    let numbered = children.saturating_sub(kind.children().len());
    u32::try_from(numbered).unwrap_or(u32::MAX)
}

fn choose_name(world: &World, given: Option<&str>) -> Result<String> {
    let Some(name) = given else {
        return Ok(world.graph(Graph::new_name));
    };
    check_free_name(world, name)?;
    Ok(name.to_owned())
}

/// Checks that a node that is made now may have this name.
///
/// # Errors
/// The name is malformed or taken.
pub fn check_free_name(world: &World, name: &str) -> Result<()> {
    options::check_node_name(name)?;
    match world.graph(|graph| graph.has_name(name)) {
        true => Err(Error::new(
            ErrorKind::Exists,
            format!("Duplicate nodes with node-name='{name}'"),
        )),
        false => Ok(()),
    }
}

/// Has a node's cell opened.
async fn open_cell(world: &World, id: NodeId) -> Result<()> {
    let order = world.with(|state| {
        let node = state.graph.expect(id)?;
        let declared = (0..node.kind.children().len()).map(|index| node.child(ChildSlot::at(index)?));
        let numbered = node.numbered().map(|(_, edge)| Some(edge));
        let address = |edge: Option<EdgeId>| state.address(state.graph.edge(edge?)?.child);
        let children: Vec<Option<Address>> = declared.chain(numbered).map(address).collect();
        Ok::<_, Error>(Wiring::Open(Box::new(Open {
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
    let found = facts.read_bitmaps.clone();
    world.graph(|graph| {
        if let Some(node) = graph.node_mut(id) {
            node.flags = facts.flags;
            node.facts = Some(facts);
        }
    });
    bitmaps::adopt(world, id, &found);
    limit_moment(world, id).await
}

/// Keeps a filter to what is dirty by the bitmap that its options name.
async fn limit_moment(world: &World, id: NodeId) -> Result<()> {
    let named = world.graph(|graph| {
        let node = graph
            .node(id)
            .filter(|node| node.kind.name() == "copy-before-write")?;
        let bitmap = node.options.get("bitmap")?;
        let text = |name: &str| bitmap.get(name)?.as_str().map(str::to_owned);
        let size = node.facts.as_ref().map_or(0, |facts| facts.size);
        Some((text("node")?, text("name")?, size))
    });
    let Some((node, name, size)) = named else {
        return Ok(());
    };
    let (node, bitmap) = world.graph(|graph| {
        let (node, bitmap) = graph.find_free_bitmap(&node, &name, Wanted::Use)?;
        Ok::<_, Error>((node.id, bitmap.id))
    })?;
    let bits = bitmaps::ask(world, node, bitmap, BitmapOrder::Copy)
        .bits()
        .await?;
    if bits.len() != size {
        let text = format!(
            "Cannot create block-copy-state: Failed to merge bitmap '{name}' to internal copy-bitmap: Bitmaps are of different \
             sizes (destination size is {size}, source size is {}) and can't be merged",
            bits.len()
        );
        return Err(Error::new(ErrorKind::InvalidArgument, text));
    }
    world.ask(id, NodeOrder::LimitMoment(bits)).done().await
}
