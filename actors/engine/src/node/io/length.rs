//! Lengths: asking, changing, and how much the host stores.

use std::rc::Rc;

use millpond_messages::io::{Operation, Preallocation};
use millpond_messages::{
    Error, ErrorKind, IoError, IoResult, Range, RequestFlags, Result, Role, check_length,
};

use super::passage::By;
use crate::node::cell::edge::EdgeCell;
use crate::node::cell::kept::AskedAt;
use crate::node::cell::node::NodeCell;

/// The length as the driver knows it now. A parent is told the kept length, where there is one.
pub async fn length(cell: &Rc<NodeCell>, by: By<'_>) -> IoResult<u64> {
    let driver = cell.driver()?;
    let is_for_parent = !by.is_admitted();
    if !is_for_parent || !cell.keeps_length() {
        let asked = AskedAt::now();
        let size = driver.length().await?;
        cell.set_size(size);
        cell.keep_length(asked);
    }
    if is_for_parent {
        cell.rely_on_length();
    }
    Ok(cell.size())
}

/// Changes the length of the node.
pub async fn truncate(
    cell: &Rc<NodeCell>,
    size: u64,
    exact: bool,
    preallocation: Preallocation,
    flags: RequestFlags,
) -> Result<()> {
    check_length(size)?;
    if cell.is_read_only() {
        return Err(Error::new(ErrorKind::ReadOnly, "Image is read-only"));
    }
    let kept = cell.size().min(size);
    // No other request may touch the range that appears or goes away.
    let alone = cell
        .tracker()
        .begin(Range::between(kept, u64::MAX), true, false)
        .await;
    let _alone = alone.map_err(|error| Error::io("Could not resize", error))?;
    let driver = cell
        .driver()
        .map_err(|error| Error::io("Could not resize", error))?;
    cell.bitmaps().check_len(size)?;
    let flags = if size > kept && would_show_backing(cell, kept).await? {
        flags | RequestFlags::ZERO_WRITE
    } else {
        flags
    };
    let changed = driver.truncate(size, exact, preallocation, flags).await;
    // What failed at its end may have changed the length all the same: nobody may write beyond the end of what is stored.
    let now = driver.length().await;
    if let Ok(now) = now {
        cell.set_size(now);
    }
    cell.mark_unflushed();
    let refreshed = cell.refresh();
    changed?;
    now.map_err(|error| Error::io("Could not refresh total sector count", error))?;
    refreshed
}

/// Whether a write up to `end` passes the end of a node that does not grow by being written to. Only a parent's write does.
pub fn falls_short(cell: &NodeCell, end: u64) -> bool {
    end > cell.size() && {
        let abilities = cell.abilities();
        !abilities.grows && !abilities.transparent
    }
}

/// Makes such a node as long as a write up to `end` needs it.
pub async fn reach(cell: &Rc<NodeCell>, end: u64) -> IoResult<()> {
    if !falls_short(cell, end) {
        return Ok(());
    }
    let _alone = cell
        .tracker()
        .begin(Range::between(cell.size(), u64::MAX), true, false)
        .await?;
    // Another write may have made the node longer meanwhile.
    if !falls_short(cell, end) {
        return Ok(());
    }
    let driver = cell.driver()?;
    let alignment = u64::from(cell.limits().request_alignment).max(1);
    let size = end
        .checked_next_multiple_of(alignment)
        .ok_or(IoError::OutOfRange)?;
    let followed = cell.bitmaps().check_len(size);
    followed.map_err(|error| IoError::from_errno(error.errno()))?;
    let grown = driver
        .truncate(size, false, Preallocation::Off, RequestFlags::empty())
        .await;
    let now = driver.length().await;
    if let Ok(now) = now {
        cell.set_size(now);
    }
    cell.mark_unflushed();
    let refreshed = cell.refresh();
    grown.map_err(|error| IoError::from_errno(error.errno()))?;
    now?;
    refreshed.map_err(|error| IoError::from_errno(error.errno()))?;
    if cell.size() < end {
        return Err(IoError::NoSpace);
    }
    Ok(())
}

/// Whether the backing file has something behind the end of a node, which would come to light if it just grew.
async fn would_show_backing(cell: &Rc<NodeCell>, end: u64) -> Result<bool> {
    let Some(backing) = cell.backing_edge().filter(|edge| edge.is_connected()) else {
        return Ok(false);
    };
    let len = backing.pass_down(Operation::Length).await.into_bytes();
    let len = len.map_err(|error| Error::io("Could not get backing file size", error))?;
    Ok(len > end)
}

/// The edges behind which the node's own data is: for a filter, what it filters.
fn storage(cell: &NodeCell) -> impl Iterator<Item = Rc<EdgeCell>> {
    let declared = cell.edges().iter().zip(cell.kind().children());
    let is_filter = cell.kind().is_filter();
    let declared = declared.filter(move |(_, child)| match is_filter {
        true => child.role.contains(Role::FILTERED),
        false => !child.role.contains(Role::COW),
    });
    let mut edges: Vec<_> = declared.map(|(edge, _)| Rc::clone(edge)).collect();
    edges.extend(cell.numbered().into_iter().map(|(_, edge)| edge));
    edges.into_iter().filter(|edge| edge.is_connected())
}

/// How many bytes the node takes on the host, its storage children included.
pub async fn allocated_size(cell: &Rc<NodeCell>) -> IoResult<u64> {
    let driver = cell.driver()?;
    match driver.allocated_size().await {
        // As QEMU has it, what filenames can stand for speaks for itself: its children are not asked.
        Err(IoError::NotSupported) if !cell.kind().has_filenames() => {}
        result => return result,
    }
    let mut sum: u64 = 0;
    let mut any = false;
    for edge in storage(cell) {
        sum = sum.saturating_add(edge.pass_down(Operation::AllocatedSize).await.into_bytes()?);
        any = true;
    }
    if any { Ok(sum) } else { Err(IoError::NotSupported) }
}
