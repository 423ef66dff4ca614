//! Requests of jobs to the filters that they put over nodes: for the moment of its past that a node keeps, and for what it
//! mirrors of itself.

use std::rc::Rc;

use millpond_messages::io::{MirrorRequest, Outcome, SnapshotRequest, Value};
use millpond_ring::buffer::Buffers;

use super::request::{done, with_buffers};
use crate::node::cell::node::NodeCell;

/// Asks the node's driver, which keeps such a moment or says that it does not. The range was checked.
pub async fn snapshot(cell: &Rc<NodeCell>, request: SnapshotRequest<Buffers>) -> Outcome<Buffers> {
    let driver = match cell.driver() {
        Ok(driver) => driver,
        Err(error) => {
            let buffers = match request {
                SnapshotRequest::Read { buffers, .. } => Some(buffers),
                _ => None,
            };
            let result = Err(error);
            return Outcome { result, buffers };
        }
    };
    let kept = driver.snapshot_access();
    match request {
        SnapshotRequest::Read { offset, buffers } => with_buffers(kept.read_then(offset, buffers).await),
        SnapshotRequest::Status { range } => Outcome::plain(kept.status_then(range).await.map(Value::Status)),
        SnapshotRequest::Discard { range } => done(kept.discard_then(range).await),
        SnapshotRequest::Copy { range } => Outcome::plain(kept.copy_then(range).await.map(Value::Copied)),
        SnapshotRequest::Join(line) => done(kept.join(line).await),
    }
}

/// Asks the node's driver, which mirrors its child or says that it does not. The range was checked.
pub async fn mirror(cell: &Rc<NodeCell>, request: MirrorRequest) -> Outcome<Buffers> {
    match cell.driver() {
        Ok(driver) => Outcome::plain(driver.mirrored().mirror(request).await),
        Err(error) => Outcome::plain(Err(error)),
    }
}
