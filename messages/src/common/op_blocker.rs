//! Op blockers: kinds of global operation that something in progress may forbid on a node.

use serde::{Deserialize, Serialize};

/// A kind of operation that can be blocked, each with the reason of whoever blocks it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OpBlocker {
    /// Being the source of a backup.
    BackupSource,
    /// Being the target of a backup.
    BackupTarget,
    /// Changing the medium.
    Change,
    /// Being the source of a commit.
    CommitSource,
    /// Being the target of a commit.
    CommitTarget,
    /// Being given to a dataplane.
    Dataplane,
    /// Deleting the drive.
    DriveDel,
    /// Ejecting the medium.
    Eject,
    /// An external snapshot.
    ExternalSnapshot,
    /// An internal snapshot.
    InternalSnapshot,
    /// Deleting an internal snapshot.
    InternalSnapshotDelete,
    /// Being the source of a mirror.
    MirrorSource,
    /// Being the target of a mirror.
    MirrorTarget,
    /// Changing the length.
    Resize,
    /// Streaming.
    Stream,
    /// Being replaced when a mirror completes.
    Replace,
}
