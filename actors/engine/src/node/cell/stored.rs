//! The dirty bitmaps of a node that its image stores: written before the image is left to others.

use millpond_drivers::api::Driver;
use millpond_messages::{BitmapId, Error, ErrorKind, OpenFlags, Result};

use super::bitmaps::NewBitmap;
use super::node::NodeCell;

/// Keeps the bitmaps that were read with the image, but for those that the node has already.
pub fn keep_read(cell: &NodeCell) {
    let Ok(driver) = cell.driver() else { return };
    if let Some(image) = driver.image().bitmaps() {
        let known = cell.bitmaps().stored_names();
        let mut read = image.take_read();
        read.retain(|bitmap| !known.contains(&bitmap.name));
        cell.bitmaps().keep_read(read);
    }
}

/// Adds a bitmap with nothing dirty.
///
/// # Errors
/// It would have more bits than a bitmap can have, or the image cannot store it.
pub fn add(cell: &NodeCell, id: BitmapId, new: NewBitmap) -> Result<()> {
    if let Some(name) = &new.stored_as {
        let driver = cell
            .driver()
            .map_err(|error| Error::io("The node is closing", error))?;
        let Some(bitmaps) = driver.image().bitmaps() else {
            let text = "The image does not store bitmaps";
            return Err(Error::new(ErrorKind::Unsupported, text));
        };
        let checked = bitmaps.check_new(name, new.granularity, &cell.bitmaps().stored_names());
        let context = || format!("Can't make bitmap '{name}' persistent in '{}'", cell.name());
        checked.map_err(|error| error.within(&context()))?;
    }
    cell.bitmaps().add(id, new, cell.size())
}

/// Has the image store the bitmaps, unless it has not been written to.
///
/// # Errors
/// There is no space, or the image cannot be written.
pub async fn store(cell: &NodeCell, driver: &dyn Driver) -> Result<()> {
    let bitmaps = match cell.flags().is_writable() {
        true => cell.bitmaps().to_store(),
        false => Vec::new(),
    };
    match driver.image().bitmaps() {
        Some(image) if !bitmaps.is_empty() => image.store(bitmaps).await,
        _ => Ok(()),
    }
}

/// The same where the node is about to be opened with other flags, if it is not written to then.
///
/// # Errors
/// As of [`store`].
pub async fn store_before(cell: &NodeCell, driver: &dyn Driver, flags: OpenFlags) -> Result<()> {
    match flags.is_writable() {
        true => Ok(()),
        false => store(cell, driver).await,
    }
}

/// Has an image that keeps a log store the bitmaps, if any has changed otherwise than by writes since it stored them last.
///
/// # Errors
/// The image cannot be written, and relies on what it said before.
pub async fn store_and_log(cell: &NodeCell, driver: &dyn Driver) -> Result<()> {
    let (bitmaps, image) = (cell.bitmaps(), driver.image().bitmaps());
    match image.filter(|_| cell.flags().is_writable() && bitmaps.are_changed()) {
        Some(image) => {
            let stored = image.store_and_log(bitmaps.to_store()).await;
            bitmaps.set_changed(stored.is_err());
            stored
        }
        None => Ok(()),
    }
}

/// Has the image say that its bitmaps are kept here.
///
/// # Errors
/// The image cannot be written.
pub async fn mark(driver: &dyn Driver) -> Result<()> {
    match driver.image().bitmaps() {
        Some(image) => image.mark_in_use().await,
        None => Ok(()),
    }
}

/// Removes a bitmap from the image, if that stores it.
///
/// # Errors
/// There is no such bitmap, or the image cannot be written.
pub async fn remove(cell: &NodeCell, driver: &dyn Driver, id: BitmapId) -> Result<()> {
    match (cell.bitmaps().stored_name(id)?, driver.image().bitmaps()) {
        (Some(name), Some(image)) => {
            cell.bitmaps().set_changed(true);
            image.remove(&name).await
        }
        _ => Ok(()),
    }
}
