//! Jobs: where each stands in its life.

use serde::{Deserialize, Serialize};

use super::SavedOptions;
use crate::RootId;

/// A job. What a kind of job needs to go on is in its options, its policies with them, and in its work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedJob {
    /// The id of the job.
    pub id: String,
    /// The type of job, as QAPI's `JobType` has it.
    pub kind: String,
    /// The state that it is in, as QAPI's `JobStatus` has it.
    pub status: String,
    /// What it was started with.
    pub options: SavedOptions,
    /// How much is done, in the units of the next.
    pub current_progress: u64,
    /// How much there is to do, as far as known.
    pub total_progress: u64,
    /// Why it failed, if it has.
    pub error: Option<String>,
    /// The most bytes a second; 0 for no limit.
    pub speed: u64,
    /// It waits for a command before it becomes visible in the graph.
    pub manual_finalize: bool,
    /// It stays when it has ended, until it is dismissed.
    pub manual_dismiss: bool,
    /// A user or an error has paused it, and nobody has resumed it.
    pub user_paused: bool,
    /// Whether an error has stopped it, as QAPI's `BlockDeviceIoStatus` has it.
    pub io_status: String,
    /// How it goes on by itself when its target is full, if it does.
    pub retry: Option<SavedRetry>,
    /// What users want of it that it has not come to yet.
    pub wishes: SavedWishes,
    /// Jobs of the same number end alike.
    pub group: u64,
    /// How far its end is.
    pub step: SavedStep,
    /// What has been decided of its group.
    pub fate: SavedFate,
    /// The root edges by which it holds nodes.
    pub roots: Vec<RootId>,
    /// What it has done to the graph, and is to undo.
    pub work: SavedWork,
}

/// How a job that was stopped for want of room is tried again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedRetry {
    /// The most seconds between two tries.
    pub most: u64,
    /// Seconds until the next try after the one that is waited for.
    pub next: u64,
    /// How much was done when the job was last stopped.
    pub done: i64,
}

/// What users want of a job that it has not come to yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SavedWishes {
    /// It is to end without a result.
    pub cancel: bool,
    /// It is to end with its result, being ready.
    pub complete: bool,
    /// It is to end as it is, being ready.
    pub stop: bool,
}

/// How far the end of a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SavedStep {
    /// It has work to do.
    AtWork,
    /// Its work has ended, and it stands still.
    Ran,
    /// Its result is being made final.
    Preparing,
    /// Its result is final, if those of its group are.
    Prepared,
    /// What it left is being taken away.
    Settling,
}

/// What has been decided of all jobs of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SavedFate {
    /// Nothing has been decided yet.
    Open,
    /// Their results become final.
    Final,
    /// They end without a result.
    Aborted,
}

/// What a job has done to the graph besides holding nodes. What is left to copy is for a backup and a mirror in the state of
/// their filter's driver; streams and commits copy in the order of the disk, so that it begins where their progress ends.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SavedWork {
    /// The node of the filter that it has put into the graph.
    pub filter: Option<String>,
    /// The node that is to be read-only again when it ends.
    pub made_writable: Option<String>,
    /// How a mirror answers writes now, which its user may have changed since it began.
    pub copy_mode: Option<String>,
    /// What a backup copies, where that is not what was asked for: all, of a node that stands on nothing.
    pub sync: Option<String>,
    /// A backup's target showed zeroes all over when it began.
    pub target_was_zero: bool,
    /// The errno of the first error that a stream has passed over, 0 for none.
    pub passed_over: i32,
}
