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
    /// Putting another medium in.
    Change,
    /// Being the source of a commit.
    CommitSource,
    /// Being the target of a commit.
    CommitTarget,
    /// Being given to a dataplane.
    Dataplane,
    /// Deleting the drive that uses it.
    DriveDel,
    /// Taking the medium out.
    Eject,
    /// Putting an overlay on top.
    ExternalSnapshot,
    /// Making a snapshot inside the image.
    InternalSnapshot,
    /// Deleting an internal snapshot.
    InternalSnapshotDelete,
    /// Being the source of a mirror.
    MirrorSource,
    /// Being the target of a mirror.
    MirrorTarget,
    /// Changing the node's length.
    Resize,
    /// Copying backing data into it.
    Stream,
    /// Being replaced when a mirror completes.
    Replace,
}

impl OpBlocker {
    /// All kinds there are.
    pub const ALL: [Self; 16] = [
        Self::BackupSource,
        Self::BackupTarget,
        Self::Change,
        Self::CommitSource,
        Self::CommitTarget,
        Self::Dataplane,
        Self::DriveDel,
        Self::Eject,
        Self::ExternalSnapshot,
        Self::InternalSnapshot,
        Self::InternalSnapshotDelete,
        Self::MirrorSource,
        Self::MirrorTarget,
        Self::Resize,
        Self::Stream,
        Self::Replace,
    ];

    /// Whether a node that an overlay relies on as its backing node may still undergo this.
    #[must_use]
    pub const fn suits_backing(self) -> bool {
        matches!(
            self,
            Self::CommitTarget | Self::Stream | Self::BackupSource | Self::BackupTarget
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_listed_once_under_its_own_name() {
        let mut names: Vec<String> = OpBlocker::ALL
            .iter()
            .map(|kind| serde_json::to_string(kind).unwrap())
            .collect();
        assert_eq!(names.last().unwrap(), "\"replace\"");
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), OpBlocker::ALL.len());
        for name in &names {
            let kind: OpBlocker = serde_json::from_str(name).unwrap();
            // A kind that is added must be added to the list as well: this match tells.
            match kind {
                OpBlocker::BackupSource
                | OpBlocker::BackupTarget
                | OpBlocker::Change
                | OpBlocker::CommitSource
                | OpBlocker::CommitTarget
                | OpBlocker::Dataplane
                | OpBlocker::DriveDel
                | OpBlocker::Eject
                | OpBlocker::ExternalSnapshot
                | OpBlocker::InternalSnapshot
                | OpBlocker::InternalSnapshotDelete
                | OpBlocker::MirrorSource
                | OpBlocker::MirrorTarget
                | OpBlocker::Resize
                | OpBlocker::Stream
                | OpBlocker::Replace => assert_eq!(OpBlocker::ALL.len(), 16),
            }
        }
    }
}
