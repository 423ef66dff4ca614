//! Flushes: writes that were acknowledged before become durable, layer by layer from the top down.

use std::rc::Rc;

use millpond_messages::io::Operation;
use millpond_messages::{DebugEvent, IoError, IoResult, OpenFlags};

use crate::node::cell::edge::EdgeCell;
use crate::node::cell::node::NodeCell;

/// Writes back what the driver caches, makes its storage durable unless the node ignores flushes, then does the same for
/// the children that it stores anything in. A read-only node has nothing to flush. Numbered children are the driver's to
/// flush: it knows how many of them must succeed.
pub async fn flush(cell: &Rc<NodeCell>) -> IoResult<()> {
    if cell.is_read_only() {
        return Ok(());
    }
    if cell.durability().unflushed().is_none() {
        return flush_children(cell).await;
    }
    let _only = cell.durability().begin_flush().await;
    let Some(written) = cell.durability().unflushed() else {
        return Ok(());
    };
    let is_ignored = cell.kind().flushes_to_disk() && cell.flags().contains(OpenFlags::NO_FLUSH);
    raise_at_primary(cell, DebugEvent::FlushToOs).await;
    if !is_ignored {
        let driver = cell.driver()?;
        let flushed = driver.flush().await;
        report_failure(cell, flushed);
        flushed?;
    }
    raise_at_primary(cell, DebugEvent::FlushToDisk).await;
    flush_children(cell).await?;
    cell.durability().flushed(written);
    Ok(())
}

/// Says once in the log that a storage could not be flushed, and what there is to be done.
fn report_failure(cell: &NodeCell, flushed: IoResult<()>) {
    if !cell.kind().flushes_to_disk() {
        return;
    }
    let goes_through_page_cache =
        matches!(cell.kind().name(), "file" | "host_device") && !cell.flags().contains(OpenFlags::NOCACHE);
    let failed_before = cell.durability().note_flush(flushed.is_err());
    let (Err(error), false) = (flushed, failed_before) else {
        return;
    };
    let node = cell.name();
    if goes_through_page_cache {
        tracing::error!(
            node, %error,
            "a flush failed: what was written since the last one may be lost, and the kernel may have forgotten it already, \
             so every later flush of this node fails too. To get out: let its users stop, mend the storage, delete the node \
             and add it again (blockdev-del, blockdev-add), and check the image or restore it"
        );
    } else {
        tracing::error!(
            node, %error,
            "a flush failed: what was written since the last one is not known to be durable until a later one succeeds"
        );
    }
}

/// Raises a debug event at the node's primary child.
async fn raise_at_primary(cell: &NodeCell, event: DebugEvent) {
    let children = cell.kind().children();
    let primary = children
        .iter()
        .position(|child| child.role.contains(millpond_messages::Role::PRIMARY));
    let held = primary
        .and_then(|slot| cell.edges().get(slot))
        .and_then(|edge| edge.debug_event(event));
    if let Some(held) = held {
        held.await;
    }
}

async fn flush_children(cell: &Rc<NodeCell>) -> IoResult<()> {
    let mut result = Ok(());
    for (edge, child) in cell.edges().iter().zip(cell.kind().children()) {
        if !cell.kind().flushes_child(child) || !edge.is_connected() {
            continue;
        }
        result = result.and(flush_child(edge).await);
    }
    result
}

async fn flush_child(edge: &Rc<EdgeCell>) -> IoResult<()> {
    match edge.pass_down(Operation::Flush).await.result {
        Ok(_) => Ok(()),
        // A child that is read-only or gone has nothing of this node's to flush.
        Err(IoError::NoMedium) => Ok(()),
        Err(error) => Err(error),
    }
}
