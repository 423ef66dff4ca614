//! Jobs: shown, and told what to do.

use super::statistics::BlockDeviceIoStatus;
use crate::qapi::row::qapi;

qapi! {
    /// The kinds of job.
    enum JobType {
        /// Merges an overlay down.
        Commit = "commit",
        /// Copies backing data up.
        Stream = "stream",
        /// Copies a node, then follows its writes.
        Mirror = "mirror",
        /// Copies a node as it was when the job began.
        Backup = "backup",
        /// Makes an image (`blockdev-create`).
        Create = "create",
        /// Changes an image's options.
        Amend = "amend",
        /// Loads a snapshot with the machine's state.
        SnapshotLoad = "snapshot-load",
        /// Saves a snapshot with the machine's state.
        SnapshotSave = "snapshot-save",
        /// Deletes a snapshot with the machine's state.
        SnapshotDelete = "snapshot-delete",
    }

    /// The states of a job, in the order it goes through them.
    enum JobStatus {
        /// Not made yet; no client sees it.
        Undefined = "undefined",
        /// Made, and not started yet.
        Created = "created",
        /// Started, and doing its work.
        Running = "running",
        /// Held by a user or a drain.
        Paused = "paused",
        /// Converged: source and target are alike, and are kept so.
        Ready = "ready",
        /// Paused after it was ready.
        Standby = "standby",
        /// Done, waits for the rest of its transaction.
        Waiting = "waiting",
        /// Done, waits to be finalized.
        Pending = "pending",
        /// Failed or cancelled, cleaning up.
        Aborting = "aborting",
        /// Over; its result can still be asked for.
        Concluded = "concluded",
        /// Gone from the list; no client sees it.
        Null = "null",
    }

    /// A job as it is shown.
    #[derive(Eq)]
    struct JobInfo {
        /// The id that its maker gave it.
        id: String,
        /// The kind of job.
        kind as "type": JobType,
        /// The state that it is in now.
        status: JobStatus,
        /// How far it is; a number without unit.
        current_progress: i64,
        /// Where it will be when done; may grow.
        total_progress: i64,
        /// Why it failed, if it did.
        error: Option<String>,
    }

    /// Shows all jobs, the newest first.
    command QueryJobs = "query-jobs" {} -> Vec<JobInfo>;

    /// Holds a job until it is resumed.
    command JobPause = "job-pause" {
        /// The id of the job.
        id: String,
    };

    /// Lets a job go on that was paused.
    command JobResume = "job-resume" {
        /// The id of the job.
        id: String,
    };

    /// Ends a job before it is done.
    command JobCancel = "job-cancel" {
        /// The id of the job.
        id: String,
    };

    /// Ends a job that is ready.
    command JobComplete = "job-complete" {
        /// The id of the job.
        id: String,
    };

    /// Lets a job that is done take effect.
    command JobFinalize = "job-finalize" {
        /// The id of the job.
        id: String,
    };

    /// Forgets a job that is over.
    command JobDismiss = "job-dismiss" {
        /// The id of the job.
        id: String,
    };

    /// A block job as older clients are shown it. There are none.
    open union BlockJobInfo {
        @"type": JobType { "mirror": BlockJobInfoMirror },
        device: String,
        len: i64,
        offset: i64,
        busy: bool,
        paused: bool,
        speed: i64,
        io_status: BlockDeviceIoStatus,
        ready: bool,
        status: JobStatus,
        auto_finalize: bool,
        auto_dismiss: bool,
        error: Option<String>,
    }

    /// What only a mirror shows.
    open struct BlockJobInfoMirror {
        actively_synced: bool,
    }

    /// Shows the block jobs: none.
    command QueryBlockJobs = "query-block-jobs" {} -> Vec<BlockJobInfo>;
}
