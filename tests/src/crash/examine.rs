//! What every image that a crash or an error leaves must pass.

use millpond_messages::RequestFlags;
use millpond_ring::buffer::{Buffer, Buffers};
use serde_json::json;

use super::census::{Census, census};
use super::disk::Clock;
use super::history::History;
use super::keys::{Opens, is_wrong_password};
use super::link::{BITMAP_LOG, Format, Images, Link, Stored, chain_options};
use super::site::{Site, options};
use super::workload::Workload;

/// How a chain is opened after a crash.
#[derive(Debug, Clone, Copy, Default)]
pub struct Opening<'a> {
    /// The secret that opens it, where it is encrypted.
    pub key: Option<&'a str>,
    /// It is written to once it was read.
    pub then_write: bool,
    /// The last image is to go on with the log of its bitmaps.
    pub logs_bitmaps: bool,
}

/// Opens a chain read-write, as after a restart, and reads all of it; answers that and the images afterwards.
pub async fn contents(
    site: &Site,
    images: &Images,
    opening: Opening<'_>,
) -> Result<(Vec<u8>, Images), String> {
    let clock = std::sync::Arc::<Clock>::default();
    let links: Vec<Link> = images.iter().map(|image| image.load(site, &clock)).collect();
    let node = site.name("opened");
    let mut image = chain_options(&links, opening.key);
    image["node-name"] = json!(node);
    if opening.logs_bitmaps {
        image[BITMAP_LOG] = json!(true);
    }
    let added = site.graph().add_node(options(image)).await;
    for link in &links {
        site.disks.remove(&link.name);
        link.data.iter().for_each(|(name, _)| site.disks.remove(name));
    }
    added.map_err(|error| format!("it does not open: {error}"))?;
    let read = read_all(site, &node, opening.then_write).await;
    let closed = site.graph().delete_node(node).await;
    let bytes = read?;
    closed.map_err(|error| format!("it does not close: {error}"))?;
    Ok((bytes, links.iter().map(Stored::of).collect()))
}

async fn read_all(site: &Site, node: &str, then_write: bool) -> Result<Vec<u8>, String> {
    let client = site
        .attach(node)
        .await
        .map_err(|error| format!("no client: {error}"))?;
    let done = async {
        let len = client
            .length()
            .await
            .map_err(|error| format!("no length: {error}"))?;
        let (read, buffers) = client.read(0, Buffers::zeroed(len as usize)).await;
        read.map_err(|error| format!("it does not read: {error}"))?;
        if then_write {
            for offset in places(len) {
                let data = Buffers::from(Buffer::from_slice(&[0x77; AFTER as usize]));
                let (written, _) = client.write(offset, data, RequestFlags::empty()).await;
                written.map_err(|error| format!("it cannot be written: {error}"))?;
            }
            client
                .flush()
                .await
                .map_err(|error| format!("it cannot be flushed: {error}"))?;
        }
        Ok(buffers.to_vec())
    };
    let done: Result<Vec<u8>, String> = done.await;
    let detached = site.graph().detach(client.root()).await;
    let bytes = done?;
    detached.map_err(|error| format!("the client stays: {error}"))?;
    Ok(bytes)
}

/// Requires of each image that it is one, and not corrupt. Whether any is marked dirty.
pub fn sound(images: &Images) -> Result<bool, String> {
    let mut dirty = false;
    for image in images.iter().filter(|image| image.format == Format::Qcow2) {
        dirty |= sound_image(image)?.dirty;
    }
    Ok(dirty)
}

fn sound_image(image: &Stored) -> Result<Census, String> {
    let found = census(image)?;
    match found.corruptions.first() {
        Some(first) => Err(format!(
            "{} corruptions, the first: {first}",
            found.corruptions.len()
        )),
        None => Ok(found),
    }
}

/// The last image, if it is a qcow2 image.
fn top(images: &Images) -> Result<Option<Census>, String> {
    let top = images.last().filter(|image| image.format == Format::Qcow2);
    top.map(sound_image).transpose()
}

/// Where a disk of this length is written to after a crash.
fn places(len: u64) -> [u64; 3] {
    [0, len / 2, len - AFTER]
}

/// How much is written to each.
const AFTER: u64 = 4096;

/// Requires that what an image kept before it was opened, written to and closed again is what it keeps since, with the writes
/// in its bitmaps. With a log those may be consistent since that were in use.
fn still_kept(before: &Census, after: &Census, written: &[u64], is_logged: bool) -> Result<(), String> {
    let names = |found: &Census| -> Vec<String> {
        let bitmaps = found.bitmaps.iter().map(|bitmap| &bitmap.name);
        let snapshots = found.snapshots.iter().map(|snapshot| &snapshot.name);
        let mut names: Vec<_> = bitmaps.chain(snapshots).cloned().collect();
        names.sort();
        names
    };
    if names(before) != names(after) {
        return Err(format!("{:?} became {:?}", names(before), names(after)));
    }
    for old in &before.snapshots {
        let new = after.snapshots.iter().find(|new| new.name == old.name);
        if new.is_none_or(|new| new.contents != old.contents) {
            return Err(format!("the snapshot '{}' was written to", old.name));
        }
    }
    for old in &before.bitmaps {
        let Some(new) = after.bitmaps.iter().find(|new| new.name == old.name) else {
            continue;
        };
        let name = &old.name;
        if is_logged && old.in_use && !new.in_use {
            continue;
        }
        if new.in_use != old.in_use {
            return Err(format!(
                "the bitmap '{name}' is in use: {} to {}",
                old.in_use, new.in_use
            ));
        }
        // What nobody may rely on is left as it is, and what does not record.
        let is_left = old.in_use || !old.is_recording;
        let places: &[u64] = if is_left { &[] } else { written };
        let mut bits = old.bits.clone();
        for offset in places {
            let (first, last) = (offset / old.granularity, (offset + AFTER - 1) / old.granularity);
            bits[first as usize..=last as usize].fill(true);
        }
        if new.bits != bits {
            return Err(format!(
                "the bitmap '{name}' is not what it was with the writes since"
            ));
        }
    }
    Ok(())
}

/// What the users of a disk were promised.
#[derive(Debug, Clone, Copy)]
pub struct Promised<'a> {
    /// What they asked for and were told.
    pub history: &'a History,
    /// What they did, and with which image.
    pub workload: &'a Workload,
}

/// Opens what is left at `point` as `contents` does, by each password that there was: those open it that must, and none that
/// must not.
async fn opened(
    site: &Site,
    images: &Images,
    promised: Promised<'_>,
    point: u64,
    then_write: bool,
) -> Result<(Vec<u8>, Images), String> {
    let Promised { history, workload } = promised;
    let opening = Opening {
        key: None,
        then_write,
        // A log that is found is believed whether or not it is to go on.
        logs_bitmaps: workload.bitmap_log && point.is_multiple_of(2),
    };
    let keys = history.keys.at(point);
    if keys.is_empty() {
        return contents(site, images, opening).await;
    }
    let (mut found, mut count) = (None, 0);
    // A password that opens nothing is tried at every place for keys: that is done to some of the images alone.
    let tried = keys
        .iter()
        .filter(|(_, opens)| *opens != Opens::Never || then_write);
    for (key, opens) in tried {
        let by_key = Opening {
            key: Some(*key),
            ..opening
        };
        match (contents(site, images, by_key).await, opens) {
            (Ok(_), Opens::Never) => return Err(format!("'{key}' opens it still")),
            (Ok(now), _) => {
                count += 1;
                found = found.or(Some(now));
            }
            (Err(text), Opens::Never | Opens::May) if is_wrong_password(&text) => {}
            (Err(text), _) => return Err(format!("by '{key}': {text}")),
        }
    }
    let header = keys_header(images).unwrap_or_default();
    history.keys.check_places(point, header, count)?;
    found.ok_or_else(|| "no password opens it any more".to_owned())
}

/// The header of keys of the last image, and what follows it.
fn keys_header(images: &Images) -> Option<&[u8]> {
    let last = images.last()?;
    let start = match last.format {
        Format::Qcow2 => census(last).ok()?.keys?,
        Format::Luks | Format::Raw => 0,
    };
    last.bytes.get(start as usize..)
}

/// Examines what is left at `point`.
pub async fn examine(
    site: &Site,
    images: &Images,
    promised: Promised<'_>,
    point: u64,
    then_write: bool,
) -> Result<(), String> {
    sound(images)?;
    let Promised { history, workload } = promised;
    let (found, after) = opened(site, images, promised, point, then_write).await?;
    history.check_crash(point, &found)?;
    if let (true, Some(Stored { data: Some(data), .. })) = (workload.is_raw_outside(), images.last()) {
        let mut data = data.clone();
        data.resize(found.len(), 0);
        history
            .check_crash(point, &data)
            .map_err(|text| format!("the data file: {text}"))?;
    }
    let after = top(&after).map_err(|text| format!("after use: {text}"))?;
    let (Some(before), Some(after)) = (top(images)?, after) else {
        return Ok(());
    };
    if after.dirty {
        return Err("opened and closed, it is still dirty".into());
    }
    history.check_kept(point, &before, &found)?;
    let places = places(found.len() as u64);
    let written: &[u64] = if then_write { &places } else { &[] };
    if workload.bitmap_log {
        history.kept.check_logged(point, &after, &found)?;
    }
    still_kept(&before, &after, written, workload.bitmap_log).map_err(|text| format!("after use: {text}"))
}
