//! Changes that are carried out together.

use super::{
    AddChild, AddNode, Append, AttachChild, BitmapEdit, DelChild, DetachChild, DropFilter, InsertNode,
    MoveNode, Options, RecordBackingFile, ReplaceChild, ReplaceNode, SetBacking, SetIothread,
    SetRootPermissions, Snapshot,
};
use crate::common::{BitmapId, ChunkSet, InternalSnapshot, NodeId, Token};
use crate::error::Error;

/// A change that can be one of several: each of its steps can be undone.
#[derive(Debug, Clone)]
pub enum Action {
    /// Fail, so that none of the others is carried out.
    Abort,
    /// Put an overlay on top of a node.
    Snapshot(Snapshot),
    /// Make an overlay, and put it on top of a node.
    SnapshotSync(SnapshotSync),
    /// Take a snapshot inside a node's image.
    TakeSnapshot(TakeSnapshot),
    /// Open a node, with what it needs below it.
    AddNode(AddNode),
    /// Make a node the last of a parent's numbered children.
    AddChild(AddChild),
    /// Take a numbered child away.
    DelChild(DelChild),
    /// Put a node in the place of another, and the other behind it.
    Append(Append),
    /// Put a node in the place of another.
    ReplaceNode(ReplaceNode),
    /// Let one edge lead to another node.
    ReplaceChild(ReplaceChild),
    /// Open a node and put it in the place of its child.
    InsertNode(InsertNode),
    /// Take a filter out, and close it.
    DropFilter(DropFilter),
    /// Put a node behind another as its backing node.
    SetBacking(SetBacking),
    /// Put a node behind an edge that leads nowhere.
    AttachChild(AttachChild),
    /// Take away the node behind an edge.
    DetachChild(DetachChild),
    /// Let an image name another backing file.
    RecordBackingFile(RecordBackingFile),
    /// Move a node, and all that is joined to it, to an iothread.
    SetIothread(SetIothread),
    /// Move one node to an iothread.
    MoveNode(MoveNode),
    /// Change what a user of a node takes and shares.
    SetRootPermissions(SetRootPermissions),
    /// Change a dirty bitmap of a node.
    EditBitmap(BitmapEdit),
}

impl Action {
    /// Its name, in QMP where there is a command for it.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Abort => "abort",
            Self::Snapshot(_) => "blockdev-snapshot",
            Self::SnapshotSync(_) => "blockdev-snapshot-sync",
            Self::TakeSnapshot(_) => "blockdev-snapshot-internal-sync",
            Self::AddNode(_) => "blockdev-add",
            Self::AddChild(_) | Self::DelChild(_) => "x-blockdev-change",
            Self::Append(_) => "append",
            Self::ReplaceNode(_) => "replace",
            Self::ReplaceChild(_) => "replace-child",
            Self::InsertNode(_) => "insert",
            Self::DropFilter(_) => "drop-filter",
            Self::SetBacking(_) => "set-backing",
            Self::AttachChild(_) => "attach-child",
            Self::DetachChild(_) => "detach-child",
            Self::RecordBackingFile(_) => "change-backing-file",
            Self::SetIothread(_) => "x-blockdev-set-iothread",
            Self::MoveNode(_) => "x-millpond-move-node",
            Self::SetRootPermissions(_) => "set-permissions",
            Self::EditBitmap(edit) => edit.command(),
        }
    }
}

/// What the end of one action's job means for those of the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CompletionMode {
    /// Each job ends for itself.
    #[default]
    Individual,
    /// If one job fails, all do.
    Grouped,
}

/// An overlay that is made for a node, and put on top of it.
#[derive(Debug, Clone, Default)]
pub struct SnapshotSync {
    /// The device whose node is meant; there are none, so that it is only told in errors.
    pub device: Option<String>,
    /// The node to protect.
    pub node_name: Option<String>,
    /// The file of the overlay.
    pub snapshot_file: String,
    /// The name of the overlay.
    pub snapshot_node_name: Option<String>,
    /// The format of the overlay.
    pub format: String,
    /// The file is there, and is opened as it is.
    pub existing: bool,
}

/// A snapshot that is taken inside a node's image.
#[derive(Debug, Clone, Default)]
pub struct TakeSnapshot {
    /// The name of the node. A filter stands for what it filters.
    pub device: String,
    /// The name of the snapshot, and what else its maker says of it.
    pub snapshot: InternalSnapshot,
}

/// A change of which a job can be the rest.
#[derive(Debug, Clone)]
pub enum JobAction {
    /// A change that starts no job.
    Change(Action),
    /// Put a filter over a node, so that a target keeps what the node has now.
    Backup(Box<BackupStart>),
}

impl JobAction {
    /// Its name, in QMP where there is a command for it.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Change(action) => action.name(),
            Self::Backup(start) => match start.target {
                BackupTarget::Node(_) => "blockdev-backup",
                BackupTarget::File(_) => "drive-backup",
            },
        }
    }
}

/// The start of a backup: all of it that belongs to the moment.
#[derive(Debug, Clone)]
pub struct BackupStart {
    /// The node to be backed up, as its user named it.
    pub device: String,
    /// What it is copied to.
    pub target: BackupTarget,
    /// The target is written to compressed.
    pub compress: bool,
    /// Options of the filter, but for its children.
    pub filter: Options,
    /// What is told to those whom the job keeps from something.
    pub reason: String,
    /// Arguments that cannot be, which is told once both nodes are found.
    pub refused: Option<String>,
    /// The bitmap that has a part in it.
    pub bitmap: Option<BackupBitmap>,
    /// The job cannot be made, which is told once the filter is in place.
    pub refused_job: Option<String>,
    /// The job cannot be started, which is told once it is made.
    pub refused_start: Option<String>,
}

/// A dirty bitmap that has a part in a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupBitmap {
    /// Its name at the node that is backed up.
    pub name: String,
    /// Nothing but what is dirty by it is copied.
    pub limits: bool,
    /// It says something else when the backup has ended.
    pub changes: bool,
    /// What is missing of the arguments, which is told once it is found.
    pub lacks: Option<String>,
    /// Why it is of no use, which is told once it could be used.
    pub refused: Option<String>,
}

/// What a backup writes to.
#[derive(Debug, Clone)]
pub enum BackupTarget {
    /// The node of this name.
    Node(String),
    /// An image that is opened for the backup, and closed after it.
    File(BackupFile),
}

/// The file that a backup writes to.
#[derive(Debug, Clone)]
pub struct BackupFile {
    /// The name of the file.
    pub filename: String,
    /// Its format: that of what is backed up, if the file is made.
    pub format: Option<String>,
    /// The file is there, and is opened as it is.
    pub existing: bool,
    /// What it shows where it has nothing of its own.
    pub below: BelowBackup,
}

/// What the target of a backup stands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BelowBackup {
    /// Nothing: it has all of what is backed up.
    Nothing,
    /// The backing image of what is backed up, if there is one.
    Backing,
    /// What is backed up itself.
    Source,
}

/// What has come of actions that start jobs.
#[derive(Debug, Default)]
pub struct Transacted {
    /// What is told of the images that were made, a line each.
    pub told: Vec<String>,
    /// The backups that were prepared, in the order of their actions. Where the whole failed they were undone.
    pub backups: Vec<BackupStarted>,
    /// Why all was undone.
    pub failure: Option<Error>,
    /// The action that failed had a job already.
    pub failed_started: bool,
}

/// A dirty bitmap that is split while a backup goes on: what is written meanwhile is kept apart from what was dirty before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartedBitmap {
    /// The number of its node.
    pub node: NodeId,
    /// The number of the bitmap.
    pub bitmap: BitmapId,
    /// What was dirty by it, where nothing else is copied.
    pub limit: Option<Box<ChunkSet>>,
}

impl StartedBitmap {
    /// The end of the split: what was dirty before is so again, beside what has been written since.
    #[must_use]
    pub const fn joined(&self) -> JoinBitmap {
        JoinBitmap {
            node: self.node,
            bitmap: self.bitmap,
            keeps: true,
            left_of: None,
        }
    }
}

/// The end of a split of a dirty bitmap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinBitmap {
    /// The number of its node.
    pub node: NodeId,
    /// The number of the bitmap.
    pub bitmap: BitmapId,
    /// What was dirty before the split is so again.
    pub keeps: bool,
    /// The filter of the backup, where what that has not copied is dirty too.
    pub left_of: Option<String>,
}

/// A backup of which nothing is missing but the job.
#[derive(Debug, Clone)]
pub struct BackupStarted {
    /// The name of the filter.
    pub filter: String,
    /// The name of the target.
    pub target: String,
    /// How many bytes are to be copied.
    pub size: u64,
    /// What was never written to the target reads as zeroes, and no image below it will ever show through.
    pub target_is_zero: bool,
    /// The target was to stand on a backing image, and there is none.
    pub lacks_backing: bool,
    /// What keeps others from both until the job does.
    pub blocker: Token,
    /// The bitmap that has a part in it.
    pub bitmap: Option<StartedBitmap>,
}
