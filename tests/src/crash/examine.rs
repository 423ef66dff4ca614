//! What every image that a crash or an error leaves must pass.

use std::path::Path;

use millpond_messages::RequestFlags;
use millpond_ring::buffer::{Buffer, Buffers};
use serde_json::json;

use super::census::{Census, census};
use super::disk::{Clock, Disk};
use super::history::History;
use super::site::{Site, chain_options, options};
use crate::tool;

/// Images of a chain, the lowest first, and whether each is qcow2.
pub type Images = Vec<(Vec<u8>, bool)>;

/// Opens a chain read-write, as after a restart, and reads all of it; answers that and the images afterwards.
pub async fn contents(site: &Site, images: &Images, then_write: bool) -> Result<(Vec<u8>, Images), String> {
    let clock = std::sync::Arc::<Clock>::default();
    let disks: Vec<_> = images
        .iter()
        .map(|(bytes, is_qcow2)| (Disk::new(bytes.clone(), &clock, 1, 0, 0), *is_qcow2))
        .collect();
    let links: Vec<(String, bool)> = disks
        .iter()
        .map(|(disk, is_qcow2)| (site.put("crashed", disk), *is_qcow2))
        .collect();
    let node = site.name("opened");
    let mut image = chain_options(&links);
    image["node-name"] = json!(node);
    let added = site.graph().add_node(options(image)).await;
    links.iter().for_each(|(name, _)| site.disks.remove(name));
    added.map_err(|error| format!("it does not open: {error}"))?;
    let read = read_all(site, &node, then_write).await;
    let closed = site.graph().delete_node(node).await;
    let bytes = read?;
    closed.map_err(|error| format!("it does not close: {error}"))?;
    Ok((
        bytes,
        disks
            .iter()
            .map(|(disk, is_qcow2)| (disk.bytes(), *is_qcow2))
            .collect(),
    ))
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
    for (bytes, _) in images.iter().filter(|(_, is_qcow2)| *is_qcow2) {
        dirty |= sound_image(bytes)?.dirty;
    }
    Ok(dirty)
}

fn sound_image(bytes: &[u8]) -> Result<Census, String> {
    let found = census(bytes)?;
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
    let top = images.last().filter(|(_, is_qcow2)| *is_qcow2);
    top.map(|(bytes, _)| sound_image(bytes)).transpose()
}

/// Where a disk of this length is written to after a crash.
fn places(len: u64) -> [u64; 3] {
    [0, len / 2, len - AFTER]
}

/// How much is written to each.
const AFTER: u64 = 4096;

/// Requires that what an image kept before it was opened, written to and closed again is what it keeps since, with the writes
/// in its bitmaps.
fn still_kept(before: &Census, after: &Census, written: &[u64]) -> Result<(), String> {
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
        if new.in_use != old.in_use {
            return Err(format!(
                "the bitmap '{name}' is in use: {} to {}",
                old.in_use, new.in_use
            ));
        }
        // What nobody may rely on is left as it is.
        let places: &[u64] = if old.in_use { &[] } else { written };
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

/// Examines what is left at `point`.
pub async fn examine(
    site: &Site,
    images: &Images,
    history: &History,
    point: u64,
    then_write: bool,
) -> Result<(), String> {
    sound(images)?;
    let (found, after) = contents(site, images, then_write).await?;
    history.check_crash(point, &found)?;
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
    still_kept(&before, &after, written).map_err(|text| format!("after use: {text}"))
}

/// `qemu-img check` of the qcow2 images, which repairs those that are marked dirty first.
pub fn check_by_qemu(images: &Images, directory: &Path) -> Result<(), String> {
    let path = directory.join("crashed.qcow2");
    // Whatever backing file it names is left out.
    let name = json!({"driver": "qcow2", "file": {"driver": "file", "filename": path}, "backing": null});
    let name = format!("json:{name}");
    for (bytes, _) in images.iter().filter(|(_, is_qcow2)| *is_qcow2) {
        std::fs::write(&path, bytes).map_err(|error| error.to_string())?;
        let dirty = census(bytes)?.dirty;
        let repair = ["check", "-q", "-r", "all", &name];
        if dirty && tool::try_run("qemu-img", &repair).code != Some(0) {
            return Err("QEMU cannot repair it".into());
        }
        let run = tool::try_run("qemu-img", &["check", &name]);
        if !matches!(run.code, Some(0 | 3)) {
            return Err(format!("QEMU finds: {}{}", run.stdout, run.stderr));
        }
    }
    Ok(())
}
