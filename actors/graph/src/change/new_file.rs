//! An image that is made as a step of another change: a new file, formatted, over another image or alone.

use std::sync::Arc;

use millpond_drivers::api::{ChildKind, DriverKind};
use millpond_messages::graph::Options;
use millpond_messages::{Error, ErrorKind, NodeId, Result, SECTOR_SIZE};
use serde_json::Value;

use crate::new_image::{Given, NewImage, check_base, protocol_of};
use crate::open::tree::{self, Inherited};
use crate::order::{NodeTask, Wiring};
use crate::transaction::Transaction;
use crate::world::World;

/// Makes an image whose size is given; its base is not looked at. Nothing of it stays open, and what was in the file is gone,
/// whatever becomes of the change. The line that is told of it is added to `told` before anything is made.
///
/// # Errors
/// In `qemu-img`'s words: there is no such format, it takes no base, or the driver's.
pub async fn make(world: &World, image: &NewImage, told: &mut Vec<String>) -> Result<()> {
    let format = maker(world, &image.format, "file format", "Format driver")?;
    let (protocol, filename) = protocol_of(&image.filename);
    let protocol = maker(world, protocol, "protocol", "Protocol driver")?;
    let given = Given::new(image)?;
    check_base(&image.filename, given.get("backing_file"))?;
    let size = image.size.unwrap_or(0);
    told.push(given.told(image, size));
    let size = size.next_multiple_of(SECTOR_SIZE);
    let mut options = given.to_create()?;
    // A raw image is its file.
    if image.format == "raw" || format.is_protocol() {
        let driver = if format.is_protocol() { format } else { protocol };
        return make_file(world, driver, filename, size, options).await;
    }
    let data_file = options.remove(ChildKind::DATA_FILE.name);
    let data_file = data_file.as_ref().and_then(Value::as_str);
    // What is opened for this is closed again, as all that a transaction has opened which is undone.
    let mut opening = Transaction::new(world);
    let mut made = Vec::new();
    let formatted = async {
        made.push(make_and_open(&mut opening, protocol, filename).await?);
        if let Some(name) = data_file {
            let (protocol, filename) = protocol_of(name);
            let protocol = maker(world, protocol, "protocol", "Protocol driver")?;
            made.push(make_and_open(&mut opening, protocol, filename).await?);
        }
        format_files(world, &made, format, size, options).await
    };
    let formatted = formatted.await;
    if formatted.is_err() {
        delete_files(world, &made).await;
    }
    opening.roll_back().await;
    formatted
}

/// Makes an empty file, and opens it to be written to.
async fn make_and_open(
    opening: &mut Transaction,
    protocol: Arc<dyn DriverKind>,
    filename: &str,
) -> Result<NodeId> {
    let world = opening.world.clone();
    make_file(&world, Arc::clone(&protocol), filename, 0, Options::new()).await?;
    let mut open = Options::new();
    open.insert("driver".to_owned(), protocol.name().into());
    open.insert("filename".to_owned(), filename.into());
    let (file, _) = tree::open_one(opening, open, Inherited::default()).await?;
    Ok(file)
}

/// The driver of a name, which can make images.
fn maker(world: &World, name: &str, what: &str, which: &str) -> Result<Arc<dyn DriverKind>> {
    let kind = world.with(|state| state.registry.find(name).cloned());
    let unknown = || Error::new(ErrorKind::InvalidArgument, format!("Unknown {what} '{name}'"));
    let kind = kind.ok_or_else(unknown)?;
    // What a raw image is made by is its file's driver.
    if kind.creates() || name == "raw" {
        return Ok(kind);
    }
    let text = format!("{which} '{name}' does not support image creation");
    Err(Error::new(ErrorKind::Unsupported, text))
}

async fn make_file(
    world: &World,
    kind: Arc<dyn DriverKind>,
    filename: &str,
    size: u64,
    mut options: Options,
) -> Result<()> {
    options.insert("filename".to_owned(), filename.into());
    options.insert("size".to_owned(), size.into());
    let main = world.with(|state| state.main);
    let (file, header, data_file) = (None, None, None);
    let order = Wiring::Create {
        kind,
        options,
        file,
        header,
        data_file,
    };
    world.ask_iothread(main, order).done().await
}

/// Formats the first of these files, with the guest's data in the second, if there is one.
async fn format_files(
    world: &World,
    files: &[NodeId],
    kind: Arc<dyn DriverKind>,
    size: u64,
    mut options: Options,
) -> Result<()> {
    options.insert("size".to_owned(), size.into());
    let address = |at: usize| {
        let node = *files.get(at)?;
        world.with(|state| state.address(node))
    };
    let order = Wiring::Create {
        kind,
        options,
        file: address(0),
        header: None,
        data_file: address(1),
    };
    match files.first() {
        Some(node) => world.ask(*node, order).done().await,
        None => Err(Error::new(ErrorKind::NotFound, "The node is gone")),
    }
}

/// Half an image helps nobody. If a file of it cannot go, the error that is told already says enough.
async fn delete_files(world: &World, files: &[NodeId]) {
    for node in files {
        if let Err(error) = world.ask(*node, NodeTask::DeleteFile).done().await {
            tracing::warn!(%error, "half an image is left");
        }
    }
}
