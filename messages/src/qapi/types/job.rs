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
    /// Makes an image (`blockdev-create`).
    Create,
    /// Changes an image's options.
    Amend,
    /// Loads a snapshot with the machine's state.
    SnapshotLoad,
    /// Saves a snapshot with the machine's state.
    SnapshotSave,
    /// Deletes a snapshot with the machine's state.
    SnapshotDelete,
}

/// The states of a job, in the order it goes through them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobStatus {
    /// Not made yet; no client sees it.
    Undefined,
    /// Made, and not started yet.
    Created,
    /// Started, and doing its work.
    Running,
    /// Held by a user or a drain.
    Paused,
    /// Converged: source and target are alike, and are kept so.
    Ready,
    /// Paused after it was ready.
    Standby,
    /// Done, waits for the rest of its transaction.
    Waiting,
    /// Done, waits to be finalized.
    Pending,
    /// Failed or cancelled, cleaning up.
    Aborting,
    /// Over; its result can still be asked for.
    Concluded,
    /// Gone from the list; no client sees it.
    Null,
}

/// One entry of the reply of `query-jobs`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct JobInfo {
    /// The id that its maker gave it.
    pub id: String,
    /// The kind of job.
    #[serde(rename = "type")]
    pub kind: JobType,
    /// The state that it is in now.
    pub status: JobStatus,
    /// How far it is; a number without unit.
    pub current_progress: i64,
    /// Where it will be when done; may grow.
    pub total_progress: i64,
    /// Why it failed, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}
