//! Jobs: where each stands in its life.

use serde::{Deserialize, Serialize};

use super::SavedOptions;
use crate::RootId;

/// A job. What a kind of job needs to go on is in its options; it begins where its progress says.
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
    /// How often it was paused by users and drained sections.
    pub pauses: u32,
    /// The root edges by which it holds nodes.
    pub roots: Vec<RootId>,
}
