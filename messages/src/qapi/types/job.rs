//! Jobs as they are shown.

use serde::{Deserialize, Serialize};

/// The kinds of job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobType {
    /// Merges an overlay down.
    Commit,
    /// Copies backing data up.
    Stream,
    /// Copies a node, then follows its writes.
    Mirror,
    /// Copies a node as it was when the job began.
    Backup,
    /// Makes an image.
    Create,
    /// Changes an image's options.
    Amend,
    /// Loads a snapshot.
    SnapshotLoad,
    /// Saves a snapshot.
    SnapshotSave,
    /// Deletes a snapshot.
    SnapshotDelete,
}

/// The states of a job, in the order it goes through them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobStatus {
    /// Not yet made.
    Undefined,
    /// Made, not started.
    Created,
    /// Working.
    Running,
    /// Held by a user or a drain.
    Paused,
    /// Converged, still following.
    Ready,
    /// Held while ready.
    Standby,
    /// Done, waits for the rest of its transaction.
    Waiting,
    /// Done, waits to be finalized.
    Pending,
    /// Failed or cancelled, cleaning up.
    Aborting,
    /// Over; its result can still be asked for.
    Concluded,
    /// Forgotten.
    Null,
}

/// One entry of the reply of `query-jobs`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct JobInfo {
    /// The job's id.
    pub id: String,
    /// The kind of job.
    #[serde(rename = "type")]
    pub kind: JobType,
    /// Its state.
    pub status: JobStatus,
    /// How far it is; a number without unit.
    pub current_progress: i64,
    /// Where it will be when done; may grow.
    pub total_progress: i64,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}
