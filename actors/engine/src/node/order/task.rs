//! Orders to nodes that take time: each goes on as a task.

use std::rc::Rc;
use std::sync::Arc;

use millpond_drivers::api::{Driver, ReopenRequest};
use millpond_messages::error::errno::EFBIG;
use millpond_messages::graph::Options;
use millpond_messages::{
    BitmapId, CheckResult, ChildSlot, ChunkSet, Error, ErrorKind, InternalSnapshot, IoError, IoResult,
    MAX_LENGTH, MediumOrder, NodeId, Range, Repair, Result, ScsiAnswer, ScsiCommand, SnapshotChange,
};

use super::commit;
use super::orders::{BitmapMerge, NodeTask};
use super::outcome::{Description, DeviceFacts, NodeSettings, OpenFacts, OrderOutcome};
use crate::node::cell::edge::Behind;
use crate::node::cell::node::NodeCell;
use crate::node::cell::stored;
use crate::node::io::{flush, length, read};
use crate::node::table::NodeTable;

/// Carries out an order that goes on as a task.
pub async fn carry_out(table: &Rc<NodeTable>, node: NodeId, task: NodeTask) -> OrderOutcome {
    match task {
        NodeTask::Close => OrderOutcome::Done(close(table, node).await),
        NodeTask::PermissionsPrepare { taken, shared } => {
            OrderOutcome::Done(async { driver(table, node)?.permissions_prepare(taken, shared).await }.await)
        }
        NodeTask::ReopenPrepare { request, settings } => {
            OrderOutcome::Done(reopen_prepare(table, node, request, settings).await)
        }
        NodeTask::ExchangePrepare { slots } => {
            OrderOutcome::Done(exchange_prepare(table, node, &slots).await)
        }
        NodeTask::Exchange { slots } => OrderOutcome::Opened(exchange(table, node, &slots).await),
        NodeTask::Truncate {
            size,
            exact,
            preallocation,
            flags,
        } => OrderOutcome::Done(
            async { length::truncate(&found(table, node)?, size, exact, preallocation, flags).await }.await,
        ),
        NodeTask::Check { repair } => OrderOutcome::Checked(check(table, node, repair).await),
        NodeTask::DeleteFile => OrderOutcome::Done(delete_file(table, node).await),
        NodeTask::DescribeDevice => OrderOutcome::Device(describe_device(table, node).await),
        NodeTask::ChangeMedium(order) => OrderOutcome::Done(change_medium(table, node, order).await),
        NodeTask::SendScsi(command) => OrderOutcome::Scsi(send_scsi(table, node, *command).await),
        NodeTask::Flush => OrderOutcome::Done(flush_node(table, node).await),
        NodeTask::Describe => OrderOutcome::Described(describe(table, node).await.map(Box::new)),
        NodeTask::ReadHead { len } => OrderOutcome::Head(read_head(table, node, len).await),
        NodeTask::Invalidate => OrderOutcome::Opened(invalidate(table, node).await),
        NodeTask::Commit { offset, len } => OrderOutcome::Done(
            async {
                let copied = commit::commit(&found(table, node)?, offset, len).await;
                copied.map_err(|error| Error::io("Could not commit", error))
            }
            .await,
        ),
        NodeTask::MakeEmpty => OrderOutcome::Done(make_empty(table, node).await),
        NodeTask::PrepareAmend { options, force } => OrderOutcome::Done(
            async { driver(table, node)?.image().prepare_amend(&options, force).await }.await,
        ),
        NodeTask::Amend { options, force } => OrderOutcome::Done(amend(table, node, &options, force).await),
        NodeTask::MarkBitmaps => OrderOutcome::Done(mark_bitmaps(table, node).await),
        NodeTask::StoreAndLog => OrderOutcome::Done(store_and_log(table, node).await),
        NodeTask::UnstoreBitmap { bitmap } => OrderOutcome::Done(unstore_bitmap(table, node, bitmap).await),
        NodeTask::ChangeSnapshots(change) => OrderOutcome::Snapshot(snapshots(table, node, &change).await),
        NodeTask::SaveVmState { offset, state } => {
            OrderOutcome::Done(save_state(table, node, offset, state).await)
        }
        NodeTask::LoadVmState { offset, len } => {
            OrderOutcome::VmState(load_state(table, node, offset, len).await)
        }
        NodeTask::MergeBitmap(merge) => OrderOutcome::Bits(merge_bitmap(table, node, merge).await),
        NodeTask::ChangeBackingFile { link } => {
            OrderOutcome::Done(async { driver(table, node)?.image().change_backing_file(link).await }.await)
        }
    }
}

async fn flush_node(table: &NodeTable, node: NodeId) -> Result<()> {
    let flushed = flush::flush(&found(table, node)?).await;
    flushed.map_err(|error| Error::io("Could not flush", error))
}

/// The node, which must be here.
pub fn found(table: &NodeTable, node: NodeId) -> Result<Rc<NodeCell>> {
    table
        .node(node)
        .ok_or_else(|| Error::new(ErrorKind::NotFound, "The node is not in this iothread"))
}

/// The driver of a node that must be here.
pub fn driver(table: &NodeTable, node: NodeId) -> Result<Rc<dyn Driver>> {
    found(table, node)?
        .driver()
        .map_err(|error| Error::io("The node is closing", error))
}

/// A driver's length. Every range check relies on a node no longer than the limit.
pub async fn length_of(driver: &dyn Driver) -> Result<u64> {
    match driver.length().await {
        Ok(size) if size > MAX_LENGTH => Err(IoError::from_errno(EFBIG)),
        other => other,
    }
    .map_err(|error| Error::io("Could not refresh total sector count", error))
}

async fn reopen_prepare(
    table: &NodeTable,
    node: NodeId,
    request: ReopenRequest,
    settings: NodeSettings,
) -> Result<()> {
    let cell = found(table, node)?;
    let flags = request.flags;
    if flags.is_read_only() && cell.copy_on_read() > 0 {
        let text = format!(
            "Can't set node '{}' to r/o with copy-on-read enabled",
            cell.name()
        );
        return Err(Error::new(ErrorKind::InvalidArgument, text));
    }
    // Once the node is read-only it is not flushed any more.
    flush::flush(&cell)
        .await
        .map_err(|error| Error::io("Error flushing drive", error))?;
    let driver = driver(table, node)?;
    stored::store_before(&cell, &*driver, flags).await?;
    driver.reopen_prepare(request).await?;
    cell.prepare_reopen(settings, flags);
    Ok(())
}

async fn exchange_prepare(table: &NodeTable, node: NodeId, slots: &[ChildSlot]) -> Result<()> {
    let cell = found(table, node)?;
    let driver = driver(table, node)?;
    stored::store(&cell, &*driver).await?;
    driver.exchange_prepare(slots).await?;
    // Writes that were acknowledged must be durable now, because later flushes go to the other data.
    flush::flush(&cell)
        .await
        .map_err(|error| Error::io("Error flushing drive", error))
}

async fn exchange(table: &NodeTable, node: NodeId, slots: &[ChildSlot]) -> Result<OpenFacts> {
    let cell = found(table, node)?;
    let driver = driver(table, node)?;
    if slots.is_empty() {
        cell.refresh()?;
        return Ok(cell.facts(None));
    }
    let exchanged = Rc::clone(&driver).exchange(slots).await?;
    match length_of(&*driver).await {
        Ok(size) => {
            let backing = exchanged.backing.clone();
            cell.exchange(exchanged, size)?;
            Ok(cell.facts(backing))
        }
        Err(error) => {
            exchanged.put_back();
            Err(error)
        }
    }
}

async fn invalidate(table: &NodeTable, node: NodeId) -> Result<OpenFacts> {
    let cell = found(table, node)?;
    let driver = driver(table, node)?;
    stored::store(&cell, &*driver).await?;
    driver.invalidate().await?;
    let size = length_of(&*driver).await?;
    cell.set_size(size);
    stored::keep_read(&cell);
    cell.refresh()?;
    Ok(cell.facts(None))
}

/// A node that is told to be quiet before that closes when it is: until then it is there for what it has in flight.
async fn close(table: &NodeTable, node: NodeId) -> Result<()> {
    if let Some(cell) = table.node(node) {
        cell.gate().quiet().await;
    }
    let Some(cell) = table.remove_node(node) else {
        return Ok(());
    };
    // What it has passed on is its children's to flush when they close: each node of a chain is flushed once.
    let flushed = match cell.durability().unflushed() {
        Some(_) => flush::flush(&cell).await,
        None => Ok(()),
    };
    let flushed = flushed.map_err(|error| Error::io("Could not flush", error));
    let Some(driver) = cell.take_driver() else {
        return flushed;
    };
    let stored = stored::store(&cell, &*driver).await;
    let closed = driver.close().await;
    for edge in cell.all_edges() {
        edge.connect(Behind::None);
    }
    let stored = stored.map_err(|error| {
        let name = cell.name();
        error.within(&format!(
            "Lost persistent bitmaps during inactivation of node '{name}'"
        ))
    });
    flushed.and(stored).and(closed)
}

async fn make_empty(table: &NodeTable, node: NodeId) -> Result<()> {
    let cell = found(table, node)?;
    let emptied = driver(table, node)?.image().make_empty().await;
    // The next flush must not be skipped: the image may be empty in memory only.
    cell.mark_unflushed();
    emptied
}

async fn check(table: &NodeTable, node: NodeId, repair: Repair) -> Result<CheckResult> {
    let cell = found(table, node)?;
    let checked = driver(table, node)?.image().check(repair).await;
    if repair.is_wanted() {
        // The next flush must not be skipped: repairs may be in memory only.
        cell.mark_unflushed();
    }
    checked
}

/// Merges on another thread, as that may take long. The node is still: nothing is marked meanwhile.
async fn merge_bitmap(table: &NodeTable, node: NodeId, merge: BitmapMerge) -> Result<Box<ChunkSet>> {
    let cell = found(table, node)?;
    let BitmapMerge {
        bitmap,
        mut into,
        sources,
    } = merge;
    let work = move || {
        sources.iter().for_each(|source| into.merge(source));
        into
    };
    let merged = table.local().ring().blocking(work).await;
    cell.bitmaps().replace(bitmap, *merged, cell.size()).map(Box::new)
}

async fn delete_file(table: &NodeTable, node: NodeId) -> Result<()> {
    let kind = Arc::clone(found(table, node)?.kind());
    let deleted = driver(table, node)?.image().delete_file().await;
    deleted.map_err(|error| match error.kind() {
        ErrorKind::Unsupported => {
            let text = format!("Driver '{}' does not support image deletion", kind.name());
            Error::new(ErrorKind::Unsupported, text)
        }
        _ => error,
    })
}

async fn snapshots(table: &NodeTable, node: NodeId, change: &SnapshotChange) -> Result<InternalSnapshot> {
    let changed = driver(table, node)?.image().change_snapshots(change).await;
    let refreshed = refresh(table, node).await;
    changed.and_then(|changed| refreshed.map(|()| changed))
}

async fn save_state(table: &NodeTable, node: NodeId, offset: u64, state: Vec<u8>) -> Result<()> {
    let saved = driver(table, node)?
        .image()
        .save_vm_state(offset, state.into())
        .await;
    found(table, node)?.mark_unflushed();
    saved.map_err(|error| Error::io("Could not save the machine's state", error))
}

async fn load_state(table: &NodeTable, node: NodeId, offset: u64, len: u64) -> Result<Vec<u8>> {
    let failed = |error| Error::io("Could not load the machine's state", error);
    let len = usize::try_from(len).map_err(|_| failed(IoError::OutOfRange))?;
    let loaded = driver(table, node)?.image().load_vm_state(offset, len).await;
    loaded.map(|state| state.to_vec()).map_err(failed)
}

async fn amend(table: &NodeTable, node: NodeId, options: &Options, force: bool) -> Result<()> {
    let amended = driver(table, node)?.image().amend(options, force).await;
    // Some of several changes may have been made before one failed.
    let refreshed = refresh(table, node).await;
    amended.and(refreshed)
}

/// Learns again what may have changed of a node's image.
async fn refresh(table: &NodeTable, node: NodeId) -> Result<()> {
    let cell = found(table, node)?;
    let length = driver(table, node)?.length().await;
    if let Ok(size) = length {
        cell.set_size(size);
    }
    cell.mark_unflushed();
    let refreshed = cell.refresh();
    length.map_err(|error| Error::io("Could not refresh total sector count", error))?;
    refreshed
}

/// What queries show of a node.
pub async fn describe(table: &NodeTable, node: NodeId) -> IoResult<Description> {
    let cell = table.node(node).ok_or(IoError::NoMedium)?;
    let driver = cell.driver()?;
    Ok(Description {
        facts: cell.facts(None),
        own_allocated_size: driver.allocated_size().await,
        info: driver.image().info(),
        write_threshold: cell.write_threshold().get(),
        bitmaps: cell.bitmaps().facts(),
        snapshots: driver.image().snapshots(),
        specific: driver.image().specific_info(),
    })
}

async fn mark_bitmaps(table: &NodeTable, node: NodeId) -> Result<()> {
    stored::mark(&*driver(table, node)?).await
}

async fn store_and_log(table: &NodeTable, node: NodeId) -> Result<()> {
    stored::store_and_log(&*found(table, node)?, &*driver(table, node)?).await
}

async fn unstore_bitmap(table: &NodeTable, node: NodeId, bitmap: BitmapId) -> Result<()> {
    stored::remove(&*found(table, node)?, &*driver(table, node)?, bitmap).await
}

async fn describe_device(table: &NodeTable, node: NodeId) -> IoResult<DeviceFacts> {
    let cell = table.node(node).ok_or(IoError::NoMedium)?;
    let driver = cell.driver()?;
    let device = driver.device();
    Ok(DeviceFacts {
        block_sizes: device.block_sizes().await.ok(),
        geometry: device.geometry().await.ok(),
        inserted: device.is_inserted().await.ok(),
        is_scsi_generic: device.is_scsi_generic(),
    })
}

/// Without effect where there is no medium that could be taken out.
async fn change_medium(table: &NodeTable, node: NodeId, order: MediumOrder) -> Result<()> {
    match driver(table, node)?.device().change_medium(order).await {
        Ok(()) | Err(IoError::NotSupported) => Ok(()),
        Err(error) => Err(Error::io("The device refuses", error)),
    }
}

async fn send_scsi(table: &NodeTable, node: NodeId, command: ScsiCommand) -> IoResult<ScsiAnswer> {
    let cell = table.node(node).ok_or(IoError::NoMedium)?;
    cell.driver()?.device().send_scsi(command).await
}

async fn read_head(table: &NodeTable, node: NodeId, len: usize) -> IoResult<Vec<u8>> {
    let cell = table.node(node).ok_or(IoError::NoMedium)?;
    let len = u64::try_from(len).unwrap_or(u64::MAX).min(cell.size());
    if len == 0 {
        return Ok(Vec::new());
    }
    read::read_whole(&cell, Range::between(0, len))
        .await
        .map(|buffers| buffers.to_vec())
}
