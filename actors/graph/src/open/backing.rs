//! What images name: their backing chains, opened one overlay after the other, and their data files, which hold the guest's
//! data where an image's own file has the metadata alone.

use std::collections::HashSet;

use millpond_drivers::api::{ChildKind, DataFileLink};
use millpond_messages::graph::Options;
use millpond_messages::path::full_backing_filename;
use millpond_messages::{ChildSlot, Error, ErrorKind, NodeId, OpenFlags, Result, Role};
use serde_json::Value;

use crate::effect::ImplicitOpens;
use crate::open::image;
use crate::open::tree::{self, Backing, Inherited};
use crate::transaction::{Transaction, together};
use crate::value::common::Common;
use crate::value::edge::Parent;
use crate::value::home::Joint;
use crate::world::World;

/// The longest backing chain that is opened by the names in images.
pub const CHAIN_MAX: usize = 1000;

/// Opens and connects what is behind `top`, and behind that, to the end of the chain.
///
/// The chain is walked in a loop: its length is up to whoever made the images, and must not be the depth of a stack.
///
/// # Errors
/// An open's, with a prefix for every overlay it happened below.
pub async fn open_chain(
    transaction: &mut Transaction,
    top: NodeId,
    backing: Backing,
    above: Inherited,
) -> Result<()> {
    let mut chain = vec![top];
    let mut names = HashSet::new();
    let end = walk(transaction, &mut chain, &mut names, backing, above).await;
    end.map_err(|error| {
        let prefix = vec!["Could not open backing file"; chain.len()].join(": ");
        error.within(&prefix)
    })?;
    // From the bottom up, so that permissions are settled before an overlay relies on them.
    for pair in chain.windows(2).rev() {
        if let [overlay, base] = *pair {
            connect(transaction, overlay, base).await?;
        }
    }
    Ok(())
}

async fn walk(
    transaction: &mut Transaction,
    chain: &mut Vec<NodeId>,
    names: &mut HashSet<String>,
    mut backing: Backing,
    above: Inherited,
) -> Result<()> {
    // What a name in an image stands for may say what is behind it too.
    let mut is_named_by_image = above.is_named_by_image;
    loop {
        let Some(overlay) = chain.last().copied() else {
            return Ok(());
        };
        let common = inherited(&transaction.world, overlay)?;
        let base = Inherited {
            common,
            depth: above.depth + 1,
            is_named_by_image,
            ..Inherited::default()
        };
        match backing {
            Backing::None => return Ok(()),
            Backing::Explicit(Value::Object(options)) if needs_stored_name(&transaction.world, &options) => {
                is_named_by_image = true;
                let (node, next) = open_named(transaction, overlay, names, options, base).await?;
                tree::note_inheritance(&transaction.world, Some(node), overlay);
                chain.push(node);
                backing = next;
            }
            Backing::Explicit(Value::Object(options)) => {
                let (node, next) = tree::open_one(transaction, options, base).await?;
                tree::note_inheritance(&transaction.world, Some(node), overlay);
                chain.push(node);
                backing = next;
            }
            Backing::Explicit(reference) => {
                chain.push(tree::resolve(transaction, reference, base, "backing").await?);
                return Ok(());
            }
            Backing::Implicit => {
                is_named_by_image = true;
                let (node, next) = open_named(transaction, overlay, names, Options::new(), base).await?;
                tree::note_inheritance(&transaction.world, Some(node), overlay);
                transaction.world.graph(|graph| {
                    if let Some(overlay) = graph.node_mut(overlay) {
                        overlay.implicit_backing = Some(node);
                    }
                });
                chain.push(node);
                backing = next;
            }
        }
        if chain.len() > CHAIN_MAX {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                format!("The backing chain is longer than {CHAIN_MAX} images"),
            ));
        }
    }
}

fn inherited(world: &World, overlay: NodeId) -> Result<Common> {
    world.graph(|graph| {
        let node = graph.expect(overlay)?;
        Ok(node.common.inherited(node.kind.as_ref(), Role::COW))
    })
}

/// Whether options say how to open the image that an overlay names, rather than which.
fn needs_stored_name(world: &World, options: &Options) -> bool {
    let names_one = options.contains_key("file") || options.contains_key("filename");
    let driver = options.get("driver").and_then(Value::as_str);
    let is_protocol = driver.is_some_and(|name| {
        world.with(|state| state.registry.find(name).is_some_and(|kind| kind.is_protocol()))
    });
    !names_one && !is_protocol
}

/// Opens the image that an overlay's header names, with these options besides.
async fn open_named(
    transaction: &mut Transaction,
    overlay: NodeId,
    names: &mut HashSet<String>,
    mut options: Options,
    base: Inherited,
) -> Result<(NodeId, Backing)> {
    let world = transaction.world.clone();
    if world.with(|state| state.implicit) == ImplicitOpens::Deny {
        return Err(Error::new(
            ErrorKind::Permission,
            "Opening the files that images name is not allowed: name them in the options",
        ));
    }
    let (link, of) = world.graph(|graph| {
        let node = graph.expect(overlay)?;
        let link = node.facts.as_ref().and_then(|facts| facts.backing.clone());
        let link = link.ok_or_else(|| Error::new(ErrorKind::NotFound, "The image names no backing file"))?;
        Ok::<_, Error>((link, crate::value::filename::image_filename(graph, overlay)))
    })?;
    let filename = full_backing_filename(&of, &link.filename)
        .map_err(|error| Error::new(ErrorKind::InvalidArgument, error.to_string()))?;
    if filename == of || !names.insert(filename.clone()) {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            format!("Backing file '{filename}' creates an infinite loop"),
        ));
    }
    if let Some(format) = &link.format
        && !options.contains_key("driver")
    {
        if world.with(|state| state.registry.find(format).is_none()) {
            let text = format!("Unknown driver '{format}'");
            return Err(Error::new(ErrorKind::InvalidArgument, text));
        }
        options.insert("driver".to_owned(), format.clone().into());
    }
    let options = image::named(&world, &filename, options, false)?;
    let base = Inherited {
        unchecked: true,
        is_named_by_image: true,
        ..base
    };
    tree::open_one(transaction, options, base).await
}

/// Puts `base` behind the backing edge of an overlay that was just opened.
///
/// # Errors
/// The driver has no backing edge, or permissions.
pub async fn connect(transaction: &mut Transaction, overlay: NodeId, base: NodeId) -> Result<()> {
    let world = transaction.world.clone();
    let (slot, declared) = world.graph(|graph| {
        let node = graph.expect(overlay)?;
        let slot = node.slot("backing");
        let declared = slot.and_then(|slot| node.kind.child(slot));
        slot.zip(declared).ok_or_else(|| {
            let text = format!("Driver '{}' does not support backing files", node.kind.name());
            Error::new(ErrorKind::Unsupported, text)
        })
    })?;
    together::follow(transaction, [Joint::Nodes(overlay, base)]).await?;
    world.may_link(overlay, base).await;
    transaction.link(Parent::Node(overlay, slot), base, declared.name, declared.role);
    transaction.update_permissions([overlay]).await?;
    transaction.connect(overlay, slot, None).await
}

/// Sees to it that a node which was just opened has the data file that its image asks for: the one that its options give, or
/// else the one that the image names.
///
/// # Errors
/// The image names none, the open's, or permissions.
pub async fn settle_data_file(transaction: &mut Transaction, id: NodeId, base: Inherited) -> Result<()> {
    let world = transaction.world.clone();
    let (wanted, given, common) = world.graph(|graph| {
        let node = graph.expect(id)?;
        let wanted = node.facts.as_ref().and_then(|facts| facts.data_file.clone());
        let given = graph.child_named(id, ChildKind::DATA_FILE.name);
        Ok::<_, Error>((wanted, given, node.common))
    })?;
    let Some(link) = wanted else { return Ok(()) };
    if given.is_none() {
        // Whoever only looks at an image needs no data, and does not open what the image names.
        if common.extra.contains(OpenFlags::NO_IO) {
            return Ok(());
        }
        let file = open_data_file(transaction, id, link, base).await?;
        connect_data_file(transaction, id, file).await?;
    }
    world.graph(|graph| {
        let file = graph.node(id).and_then(|node| node.child(ChildSlot::FILE));
        if let Some(edge) = file.and_then(|file| graph.edge_mut(file)) {
            edge.role.remove(Role::DATA);
        }
    });
    transaction.update_permissions([id]).await
}

/// Opens the file of the name that an image has for it. It is a path and nothing else: an image must not choose a protocol.
async fn open_data_file(
    transaction: &mut Transaction,
    id: NodeId,
    link: DataFileLink,
    base: Inherited,
) -> Result<NodeId> {
    let world = transaction.world.clone();
    let Some(filename) = link.filename else {
        let text = "'data-file' is required for this image";
        return Err(Error::new(ErrorKind::InvalidArgument, text));
    };
    if world.with(|state| state.implicit) == ImplicitOpens::Deny {
        return Err(Error::new(
            ErrorKind::Permission,
            "Opening the data file that an image names is not allowed: name it in the options",
        ));
    }
    let base = world.graph(|graph| {
        let node = graph.expect(id)?;
        Ok::<_, Error>(base.of_child(node.common, node.kind.as_ref(), &ChildKind::DATA_FILE))
    })?;
    let mut options = Options::new();
    options.insert("filename".to_owned(), filename.into());
    let file = tree::open_tree(transaction, options, base).await?;
    tree::note_inheritance(&world, Some(file), id);
    Ok(file)
}

async fn connect_data_file(transaction: &mut Transaction, id: NodeId, file: NodeId) -> Result<()> {
    let world = transaction.world.clone();
    let ChildKind { name, role, .. } = ChildKind::DATA_FILE;
    let slot = world.graph(|graph| graph.expect(id).map(|node| node.slot(name)))?;
    let slot = slot.ok_or_else(|| Error::new(ErrorKind::Unsupported, "The driver takes no data file"))?;
    together::follow(transaction, [Joint::Nodes(id, file)]).await?;
    world.may_link(id, file).await;
    transaction.link(Parent::Node(id, slot), file, name, role);
    transaction.update_permissions([id]).await?;
    transaction.connect(id, slot, None).await
}
