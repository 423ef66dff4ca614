//! Snapshots inside images.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::daemon::Daemon;
use millpond_messages::graph::{ChangeSnapshots, TakeSnapshot};
use millpond_messages::qapi::schema::{BlockdevSnapshotDeleteInternalSync, BlockdevSnapshotInternalSync};
use millpond_messages::qapi::{QmpError, SnapshotInfo};
use millpond_messages::{InternalSnapshot, SnapshotChange, SnapshotName};

/// What a snapshot that is taken now says of itself. There is no machine here: its clock is the host's, as in QEMU's daemon.
pub(super) fn taking(arguments: BlockdevSnapshotInternalSync) -> TakeSnapshot {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let snapshot = InternalSnapshot {
        name: arguments.name,
        // The field ends in 2106.
        date_sec: u32::try_from(now.as_secs()).unwrap_or(u32::MAX),
        date_nsec: now.subsec_nanos(),
        vm_clock_nsec: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
        ..InternalSnapshot::default()
    };
    TakeSnapshot {
        device: arguments.device,
        snapshot,
    }
}

pub(super) async fn take(daemon: Daemon, arguments: BlockdevSnapshotInternalSync) -> Result<(), QmpError> {
    let TakeSnapshot { device, snapshot } = taking(arguments);
    let change = SnapshotChange::Create(snapshot);
    daemon
        .graph(ChangeSnapshots {
            device,
            change,
            any_name: false,
        })
        .await
        .map(drop)
}

pub(super) async fn delete(
    daemon: Daemon,
    arguments: BlockdevSnapshotDeleteInternalSync,
) -> Result<SnapshotInfo, QmpError> {
    let BlockdevSnapshotDeleteInternalSync { device, id, name } = arguments;
    let change = SnapshotChange::Delete(SnapshotName { id, name });
    let deleted = daemon
        .graph(ChangeSnapshots {
            device,
            change,
            any_name: false,
        })
        .await?;
    Ok(SnapshotInfo::from(&deleted))
}
