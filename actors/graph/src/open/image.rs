//! Opening images by name: what a filename stands for, which protocol and which format it needs, and whether the format
//! may be guessed.

use std::sync::Arc;

use millpond_drivers::api::DriverKind;
use millpond_engine::node::OrderOutcome;
use millpond_messages::graph::{OpenImage, Options, Probing};
use millpond_messages::path::path_has_protocol;
use millpond_messages::{Error, ErrorKind, NodeId, OpenFlags, Result, Role, qapi};
use serde_json::Value;

use crate::open::tree::{self, Inherited};
use crate::open::{options, temporary};
use crate::order::NodeTask;
use crate::transaction::Transaction;
use crate::value::common::Common;
use crate::world::World;

/// Bytes that are enough for every format to be recognised by.
const PROBE_BYTES: usize = 2048;
/// Opens the node of an image, or finds the one that is named.
///
/// # Errors
/// Whatever an open met; what was opened before is in the transaction's log.
pub async fn open_node(transaction: &mut Transaction, image: OpenImage) -> Result<NodeId> {
    let world = transaction.world.clone();
    if let Some(name) = image.reference {
        if image.filename.is_some() || !image.options.is_empty() {
            return Err(reference_and_more());
        }
        return world.graph(|graph| graph.look_up(&name, &name).map(|node| node.id));
    }
    let is_protocol = image.flags.contains(OpenFlags::PROTOCOL);
    let options = match &image.filename {
        Some(filename) => named(&world, filename, image.options, is_protocol)?,
        None => options::nest_dotted_keys(image.options)?,
    };
    check_driver(&world, &options)?;
    let base = Inherited {
        common: Common::of_flags(image.flags),
        is_protocol,
        probing: image.probing,
        unchecked: true,
        ..Inherited::default()
    };
    if image.flags.contains(OpenFlags::SNAPSHOT) {
        temporary::open_below(transaction, options, base).await
    } else {
        tree::open_tree(transaction, options, base).await
    }
}

fn reference_and_more() -> Error {
    Error::new(
        ErrorKind::InvalidArgument,
        "Cannot reference an existing block device with additional options or a new filename",
    )
}

fn check_driver(world: &World, options: &Options) -> Result<()> {
    let Some(Value::String(driver)) = options.get("driver") else {
        return Ok(());
    };
    if world.with(|state| state.registry.find(driver).is_some()) {
        return Ok(());
    }
    Err(unknown_driver(driver))
}

/// The error for a driver's name that is none.
pub fn unknown_driver(name: &str) -> Error {
    Error::new(ErrorKind::InvalidArgument, format!("Unknown driver '{name}'"))
}

/// Puts a filename into the options of the node that it opens. Options that are there already win over what is in a `json:`
/// name.
///
/// # Errors
/// The name is malformed, names an unknown protocol, or the options name another file.
pub fn named(world: &World, filename: &str, options: Options, is_protocol: bool) -> Result<Options> {
    let mut options = options::nest_dotted_keys(options)?;
    if let Some(json) = filename.strip_prefix("json:") {
        join(&mut options, parse_json(json)?);
        return Ok(options);
    }
    let kind = match options.get("driver").and_then(Value::as_str) {
        Some(name) => {
            let found = world.with(|state| state.registry.find(name).cloned());
            Some(found.ok_or_else(|| unknown_driver(name))?)
        }
        None => None,
    };
    if kind.as_ref().map_or(is_protocol, |kind| kind.has_filenames()) {
        if options.contains_key("filename") {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                "Can't specify 'file' and 'filename' options at the same time",
            ));
        }
        let kind = match kind {
            Some(kind) => kind,
            None => protocol_of(world, filename, true)?,
        };
        let parsed = kind.parse_filename(filename)?;
        let below: Vec<String> = parsed.keys().cloned().collect();
        join(&mut options, parsed);
        for child in below {
            name_below(world, &mut options, &child)?;
        }
        options.insert("driver".to_owned(), kind.name().into());
        return Ok(options);
    }
    let file = match options.remove("file") {
        None => Options::new(),
        Some(Value::Object(file)) => file,
        Some(_) => return Err(reference_and_more()),
    };
    let file = named(world, filename, file, true)?;
    options.insert("file".to_owned(), Value::Object(file));
    Ok(options)
}

/// Passes a filename that options of a child have on to the file below that, where the child's driver is a format.
fn name_below(world: &World, options: &mut Options, child: &str) -> Result<()> {
    let Some(Value::Object(nested)) = options.get_mut(child) else {
        return Ok(());
    };
    let is_format = nested.get("driver").and_then(Value::as_str).is_some_and(|name| {
        world.with(|state| {
            state
                .registry
                .find(name)
                .is_some_and(|kind| !kind.has_filenames())
        })
    });
    if !is_format {
        return Ok(());
    }
    if let Some(Value::String(filename)) = nested.remove("filename") {
        *nested = named(world, &filename, std::mem::take(nested), true)?;
    }
    Ok(())
}

/// Adds what is not there yet, also in nested options.
fn join(options: &mut Options, more: Options) {
    for (key, value) in more {
        match (options.get_mut(&key), value) {
            (None, value) => {
                options.insert(key, value);
            }
            (Some(Value::Object(old)), Value::Object(new)) => join(old, new),
            (Some(_), _) => {}
        }
    }
}

fn parse_json(json: &str) -> Result<Options> {
    let invalid = |text| Error::new(ErrorKind::InvalidArgument, text);
    match qapi::parse_json(json) {
        Ok(Value::Object(options)) => options::nest_dotted_keys(options),
        Ok(_) => Err(invalid("Invalid JSON object given".to_owned())),
        Err(error) => Err(invalid(format!(
            "Could not parse the JSON options: {}",
            error.desc
        ))),
    }
}

/// The protocol for a filename. Paths of devices are told from those of files by where devices are.
fn protocol_of(world: &World, filename: &str, may_have_prefix: bool) -> Result<Arc<dyn DriverKind>> {
    world.with(|state| {
        let has_prefix = may_have_prefix && path_has_protocol(filename);
        let kind = state
            .registry
            .find_protocol(if has_prefix { filename } else { "" })?;
        let is_device = filename.starts_with("/dev/") && !filename.starts_with("/dev/shm/");
        let device = state.registry.find("host_device").filter(|_| is_device);
        Ok(Arc::clone(device.unwrap_or(kind)))
    })
}

/// What a node without a `driver` option is opened with.
pub struct Found {
    /// The name of the driver to open it.
    pub driver: String,
    /// The file that was opened to find it.
    pub file: Option<NodeId>,
    /// The format was guessed.
    pub probed: bool,
}

impl Found {
    /// The driver that options name.
    pub fn given(driver: String) -> Self {
        Self {
            driver,
            file: None,
            probed: false,
        }
    }
}

/// Finds the driver for options that name none: a protocol by the filename, a format by what its file begins with.
///
/// # Errors
/// There is no file to look at, it cannot be read, or the format must not be guessed.
pub async fn find_driver(
    transaction: &mut Transaction,
    options: &mut Options,
    common: Common,
    base: Inherited,
) -> Result<Found> {
    let nothing = || Error::new(ErrorKind::InvalidArgument, "Must specify either driver or file");
    if base.is_protocol {
        let filename = options
            .get("filename")
            .and_then(Value::as_str)
            .ok_or_else(nothing)?;
        return Ok(Found {
            // What is given as an option is a path, colon or not.
            driver: protocol_of(&transaction.world, filename, false)?
                .name()
                .to_owned(),
            file: None,
            probed: false,
        });
    }
    let file = options.remove("file").ok_or_else(nothing)?;
    check_may_probe(base.probing, common)?;
    let below = Inherited {
        common: common.inherited_from_format(Role::IMAGE),
        depth: base.depth + 1,
        is_protocol: true,
        file: None,
        ..base
    };
    let file = tree::resolve(transaction, file, below, "file").await?;
    let driver = probe(transaction, file).await?;
    if driver == "raw" && !common.read_only {
        check_raw(transaction, base.probing, file)?;
    }
    Ok(Found {
        driver,
        file: Some(file),
        probed: true,
    })
}

fn check_may_probe(probing: Probing, common: Common) -> Result<()> {
    let refused = match probing {
        Probing::Off => true,
        Probing::ReadOnly => !common.read_only,
        Probing::Formats | Probing::Always => false,
    };
    if !refused {
        return Ok(());
    }
    let text = if probing == Probing::Off {
        "The format of the image was not given, and may not be guessed"
    } else {
        "The format of the image was not given, and may not be guessed for an image that is opened for writing"
    };
    Err(Error::new(ErrorKind::Permission, text))
}

/// An image that begins with no known format is taken to be raw. Whoever may write to it could have it taken for something
/// else the next time.
fn check_raw(transaction: &Transaction, probing: Probing, file: NodeId) -> Result<()> {
    let name = transaction
        .world
        .graph(|graph| crate::value::filename::image_filename(graph, file));
    if probing == Probing::Formats {
        let text = format!("'{name}' begins with no known format; if it is a raw image, that must be said");
        return Err(Error::new(ErrorKind::Permission, text));
    }
    tracing::warn!(
        "The format of '{name}' was not given and was guessed to be raw: writes to its first sector that look like \
         another format are refused; give the format 'raw' to allow them"
    );
    Ok(())
}

/// The format that a file's first bytes belong to.
async fn probe(transaction: &Transaction, node: NodeId) -> Result<String> {
    let world = &transaction.world;
    let order = NodeTask::ReadHead { len: PROBE_BYTES };
    let head = match world.ask(node, order).await {
        OrderOutcome::Head(Ok(head)) => head,
        OrderOutcome::Head(Err(error)) => {
            return Err(Error::io(
                "Could not read image for determining its format",
                error,
            ));
        }
        OrderOutcome::Done(Err(error)) => return Err(error),
        _ => return Err(Error::new(ErrorKind::Closed, "The iothread gave no answer")),
    };
    let format = world.with(|state| state.registry.probe(&head).to_owned());
    match millpond_drivers::api::foreign_format(&head) {
        Some(foreign) if format == "raw" => {
            let name = world.graph(|graph| crate::value::filename::image_filename(graph, node));
            let text = format!(
                "'{name}' looks like {foreign}, which is not supported; if it is a raw image, that must be said"
            );
            Err(Error::new(ErrorKind::Unsupported, text))
        }
        _ => Ok(format),
    }
}
