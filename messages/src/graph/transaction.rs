//! Changes that are carried out together.

use super::{
    AddChild, AddNode, Append, AttachChild, DelChild, DetachChild, DropFilter, InsertNode, MoveNode,
    RecordBackingFile, ReplaceChild, ReplaceNode, SetBacking, SetIothread, SetRootPermissions, Snapshot,
};

/// A change that can be one of several: each of its steps can be undone.
#[derive(Debug, Clone)]
pub enum Action {
    /// Fail, so that none of the others is carried out.
    Abort,
    /// Put an overlay on top of a node.
    Snapshot(Snapshot),
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
}

impl Action {
    /// Its name, in QMP where there is a command for it.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Abort => "abort",
            Self::Snapshot(_) => "blockdev-snapshot",
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
