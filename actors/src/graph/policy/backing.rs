//! Backing chains: which nodes an image's stored backing name means, opened one overlay after the other.

use std::collections::HashSet;

use drivers::driver::BackingLink;
use messages::global_state::Options;
use messages::path::{full_backing_filename, path_has_protocol};
use messages::{Error, ErrorKind, NodeId, Result};
use serde_json::Value;

use super::ImplicitOpens;
use super::open::{self, Backing, Base};
use super::options::{self, Common};
use super::order::Order;
use super::transaction::Transaction;
use super::value::Parent;
use super::world::World;
use crate::node::OrderOutcome;

/// The longest backing chain that is opened by the names in images.
pub const CHAIN_MAX: usize = 1000;
/// Bytes that are enough for every format to be recognised by.
const PROBE_BYTES: usize = 2048;

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
    depth: usize,
) -> Result<()> {
    let mut chain = vec![top];
    let mut names = HashSet::new();
    let end = walk(transaction, &mut chain, &mut names, backing, depth).await;
    if let Err(error) = end {
        let prefix = "Could not open backing file: ".repeat(chain.len());
        let context = format!("{prefix}{error}");
        return Err(Error::caused_by(error.kind(), context, error));
    }
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
    depth: usize,
) -> Result<()> {
    loop {
        let Some(overlay) = chain.last().copied() else {
            return Ok(());
        };
        let common = inherited(&transaction.world, overlay)?;
        let base = Base {
            common,
            depth: depth + 1,
            probed: false,
        };
        match backing {
            Backing::None => return Ok(()),
            Backing::Explicit(Value::Object(options)) => {
                let (node, next) = open::open_one(transaction, options, base).await?;
                open::note_inheritance(&transaction.world, Some(node), overlay);
                chain.push(node);
                backing = next;
            }
            Backing::Explicit(reference) => {
                chain.push(open::resolve(transaction, reference, base, "backing").await?);
                return Ok(());
            }
            Backing::Implicit => {
                let (node, next) = open_named(transaction, overlay, names, base).await?;
                open::note_inheritance(&transaction.world, Some(node), overlay);
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
        Ok(node.common.inherited(node.kind.as_ref(), messages::Role::COW))
    })
}

/// Opens the image that an overlay's header names.
async fn open_named(
    transaction: &mut Transaction,
    overlay: NodeId,
    names: &mut HashSet<String>,
    base: Base,
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
        Ok::<_, Error>((link, super::query::filename::image_filename(graph, overlay)))
    })?;
    let filename = full_backing_filename(&of, &link.filename)
        .map_err(|error| Error::new(ErrorKind::InvalidArgument, error.to_string()))?;
    if filename == of || !names.insert(filename.clone()) {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            format!("Backing file '{filename}' creates an infinite loop"),
        ));
    }
    open_filename(transaction, &filename, &link, base).await
}

/// Opens an image by a name as headers hold it: a path, `protocol:rest`, or `json:{...}`.
async fn open_filename(
    transaction: &mut Transaction,
    filename: &str,
    link: &BackingLink,
    base: Base,
) -> Result<(NodeId, Backing)> {
    let world = transaction.world.clone();
    if let Some(json) = filename.strip_prefix("json:") {
        let mut options = parse_json(json)?;
        if let Some(format) = &link.format {
            options
                .entry("driver")
                .or_insert_with(|| Value::String(format.clone()));
        }
        return open::open_one(transaction, options, base).await;
    }
    let protocol = protocol_options(&world, filename)?;
    let Some(format) = link.format.clone() else {
        return open_probed(transaction, protocol, base).await;
    };
    let is_protocol = world.with(|state| state.registry.find(&format).map(|kind| kind.is_protocol()));
    match is_protocol {
        None => Err(Error::new(
            ErrorKind::InvalidArgument,
            format!("Unknown driver '{format}'"),
        )),
        Some(true) => {
            let mut options = protocol;
            options.insert("driver".to_owned(), Value::String(format));
            open::open_one(transaction, options, base).await
        }
        Some(false) => {
            let mut options = Options::new();
            options.insert("driver".to_owned(), Value::String(format));
            options.insert("file".to_owned(), Value::Object(protocol));
            open::open_one(transaction, options, base).await
        }
    }
}

/// Opens a file whose format nobody has said, guessing it from the first bytes.
async fn open_probed(
    transaction: &mut Transaction,
    protocol: Options,
    base: Base,
) -> Result<(NodeId, Backing)> {
    let world = transaction.world.clone();
    // Opened once to look at it, and once as the child of whatever format that turns out to be.
    let mut look = Transaction::new(&world);
    let head = read_head(&mut look, protocol.clone(), base).await;
    look.roll_back().await;
    let format = world.with(|state| head.map(|head| state.registry.probe(&head).to_owned()))?;
    let mut options = Options::new();
    options.insert("driver".to_owned(), Value::String(format));
    options.insert("file".to_owned(), Value::Object(protocol));
    open::open_one(transaction, options, Base { probed: true, ..base }).await
}

async fn read_head(look: &mut Transaction, protocol: Options, base: Base) -> Result<Vec<u8>> {
    let node = open::open_tree(look, protocol, base).await?;
    match look
        .world
        .ask(
            node,
            Order::ReadHead {
                node,
                len: PROBE_BYTES,
            },
        )
        .await
    {
        OrderOutcome::Head(Ok(head)) => Ok(head),
        OrderOutcome::Head(Err(error)) => Err(Error::io(
            "Could not read image for determining its format",
            error,
        )),
        OrderOutcome::Done(Err(error)) => Err(error),
        _ => Err(Error::new(ErrorKind::Closed, "The iothread gave no answer")),
    }
}

fn parse_json(json: &str) -> Result<Options> {
    match serde_json::from_str(json) {
        Ok(Value::Object(options)) => options::crumple(options),
        Ok(_) => Err(Error::new(
            ErrorKind::InvalidArgument,
            "Invalid JSON object given",
        )),
        Err(error) => Err(Error::caused_by(
            ErrorKind::InvalidArgument,
            format!("Could not parse the JSON options: {error}"),
            error,
        )),
    }
}

/// The options that open the protocol node for a filename.
fn protocol_options(world: &World, filename: &str) -> Result<Options> {
    let driver = world.with(|state| {
        let kind = state.registry.find_protocol(filename)?;
        let has_devices = state.registry.find("host_device").is_some();
        let is_device = filename.starts_with("/dev/") && !filename.starts_with("/dev/shm/");
        Ok::<_, Error>(if kind.name() == "file" && is_device && has_devices {
            "host_device"
        } else {
            kind.name()
        })
    })?;
    let path = match filename.strip_prefix("file:") {
        Some(path) if path_has_protocol(filename) => path,
        _ => filename,
    };
    let mut options = Options::new();
    options.insert("driver".to_owned(), Value::String(driver.to_owned()));
    options.insert("filename".to_owned(), Value::String(path.to_owned()));
    Ok(options)
}

/// Puts `base` behind the backing edge of an overlay that was just opened.
async fn connect(transaction: &mut Transaction, overlay: NodeId, base: NodeId) -> Result<()> {
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
    world.may_link(overlay, base).await;
    transaction.link(Parent::Node(overlay, slot), base, declared.name, declared.role);
    transaction.update_permissions([overlay]).await?;
    transaction.connect(overlay, slot, None).await
}
