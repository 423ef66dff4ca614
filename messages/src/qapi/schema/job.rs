//! Jobs: shown, and told what to do.

use super::filter::OnCbwError;
use super::node::NewImageMode;
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
        /// Bytes that are left of a block job at work, once its rate is known.
        x_millpond_bytes_left: Option<i64> ["unstable"],
        /// Bytes a second over the last seconds.
        x_millpond_rate: Option<i64> ["unstable"],
        /// Seconds until it is done, if it stays as fast.
        x_millpond_seconds_left: Option<i64> ["unstable"],
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

    /// What a job does about a request of its own that fails.
    #[derive(Default)]
    enum BlockdevOnError {
        /// It ends with the error.
        #[default]
        Report = "report",
        /// It goes on; one that can try again does.
        Ignore = "ignore",
        /// It stops where the storage is full, and ends with any other error.
        Enospc = "enospc",
        /// It stops until it is resumed, and tries again then.
        Stop = "stop",
        /// It does what is best for its kind.
        Auto = "auto",
    }

    /// What only some kinds of block job show.
    branches BlockJobKind by "type": JobType {
        /// Merges an overlay down.
        Commit = "commit",
        /// Copies backing data up.
        Stream = "stream",
        /// Copies a node, then follows its writes.
        Mirror = "mirror": BlockJobInfoMirror,
        /// Copies a node as it was when the job began.
        Backup = "backup",
    }

    /// What only a mirror shows.
    struct BlockJobInfoMirror {
        /// Each write goes to the target before it is answered.
        actively_synced: bool,
    }

    /// A block job as older clients are shown it.
    union BlockJobInfo {
        @kind: BlockJobKind,
        /// The id that its maker gave it.
        device: String,
        /// Where its progress will be when done; may grow.
        len: i64,
        /// How far it is, in bytes.
        offset: i64,
        /// It has something to do just now.
        busy: bool,
        /// It is held by a user, an error or a drain.
        paused: bool,
        /// The speed limit in bytes a second, 0 for none.
        speed: i64,
        /// Whether an error has stopped it.
        io_status: BlockDeviceIoStatus,
        /// It can be completed.
        ready: bool,
        /// The state that it is in now.
        status: JobStatus,
        /// Its result is final without a user's word.
        auto_finalize: bool,
        /// It is forgotten without a user's word.
        auto_dismiss: bool,
        /// Why it failed, if it did.
        error: Option<String>,
    }

    /// Shows the block jobs, the newest first.
    command QueryBlockJobs = "query-block-jobs" {} -> Vec<BlockJobInfo>;

    /// Merges images of a chain into one below them.
    command BlockCommit = "block-commit" {
        /// The id of the job; there must be one.
        job_id: Option<String>,
        /// The node on top of the chain.
        device: String,
        /// The name of the node that all is merged into; the last of the chain if it is left out.
        base_node: Option<String>,
        /// The same by its filename.
        base: Option<String> ["deprecated"],
        /// The name of the topmost node that is merged; the device if it is left out.
        top_node: Option<String>,
        /// The same by its filename.
        top: Option<String> ["deprecated"],
        /// What the overlay of the top names as its backing file afterwards.
        backing_file: Option<String>,
        /// Where the base has no format, the overlay names it as raw.
        backing_mask_protocol: Option<bool>,
        /// The speed limit in bytes a second, 0 for none.
        speed: Option<i64>,
        /// What is done about an error.
        on_error: Option<BlockdevOnError>,
        /// The name of the filter that the job puts over the top.
        filter_node_name: Option<String>,
        /// Its result is final without a user's word.
        auto_finalize: Option<bool>,
        /// It is forgotten without a user's word.
        auto_dismiss: Option<bool>,
    };

    /// What of a node is copied.
    enum MirrorSyncMode {
        /// What its uppermost image has.
        Top = "top",
        /// All that it shows.
        Full = "full",
        /// What is written from now on.
        None = "none",
        /// What a bitmap says, which is cleared if that goes well.
        Incremental = "incremental",
        /// What a bitmap says.
        Bitmap = "bitmap",
    }

    /// What becomes of a bitmap by which is copied.
    enum BitmapSyncMode {
        /// It is cleared if the copy goes well.
        OnSuccess = "on-success",
        /// It stays.
        Never = "never",
        /// What was copied is cleared, however the copy ends.
        Always = "always",
    }

    /// How a backup goes about its work.
    struct BackupPerf {
        /// Files are copied by the kernel where that can be.
        use_copy_range: Option<bool>,
        /// The most requests under way.
        max_workers: Option<i64>,
        /// The most bytes of one request, 0 for no limit.
        max_chunk: Option<i64>,
        /// The least bytes that are copied as a whole.
        min_cluster_size: Option<u64>,
    }

    /// Copies a node as it is now to another.
    command BlockdevBackup = "blockdev-backup" {
        /// The id of the job; there must be one.
        job_id: Option<String>,
        /// The node that is copied.
        device: String,
        /// What of it is copied.
        sync: MirrorSyncMode,
        /// The speed limit in bytes a second, 0 for none.
        speed: Option<i64>,
        /// The name of the bitmap by which is copied.
        bitmap: Option<String>,
        /// What becomes of that.
        bitmap_mode: Option<BitmapSyncMode>,
        /// The target stores what is copied compressed.
        compress: Option<bool>,
        /// What is done about an error of the node.
        on_source_error: Option<BlockdevOnError>,
        /// What is done about an error of the target.
        on_target_error: Option<BlockdevOnError>,
        /// What becomes of a write whose old data cannot be copied first.
        on_cbw_error: Option<OnCbwError>,
        /// Its result is final without a user's word.
        auto_finalize: Option<bool>,
        /// It is forgotten without a user's word.
        auto_dismiss: Option<bool>,
        /// The name of the filter that the job puts over the node.
        filter_node_name: Option<String>,
        /// What was copied is discarded in the node.
        discard_source: Option<bool>,
        /// How the job goes about its work.
        x_perf: Option<BackupPerf> ["unstable"],
        /// The node that is copied to.
        target: String,
    };

    /// Copies a node as it is now to a file.
    command DriveBackup = "drive-backup" {
        /// The id of the job; there must be one.
        job_id: Option<String>,
        /// The node that is copied.
        device: String,
        /// What of it is copied.
        sync: MirrorSyncMode,
        /// The speed limit in bytes a second, 0 for none.
        speed: Option<i64>,
        /// The name of the bitmap by which is copied.
        bitmap: Option<String>,
        /// What becomes of that.
        bitmap_mode: Option<BitmapSyncMode>,
        /// The target stores what is copied compressed.
        compress: Option<bool>,
        /// What is done about an error of the node.
        on_source_error: Option<BlockdevOnError>,
        /// What is done about an error of the target.
        on_target_error: Option<BlockdevOnError>,
        /// What becomes of a write whose old data cannot be copied first.
        on_cbw_error: Option<OnCbwError>,
        /// Its result is final without a user's word.
        auto_finalize: Option<bool>,
        /// It is forgotten without a user's word.
        auto_dismiss: Option<bool>,
        /// The name of the filter that the job puts over the node.
        filter_node_name: Option<String>,
        /// What was copied is discarded in the node.
        discard_source: Option<bool>,
        /// How the job goes about its work.
        x_perf: Option<BackupPerf> ["unstable"],
        /// The file that is copied to.
        target: String,
        /// The format of the file: that of the node, if the file is made.
        format: Option<String>,
        /// What of the file is made: all, if left out.
        mode: Option<NewImageMode>,
    } ["deprecated"];

    /// Copies what a node has from below up into it.
    command BlockStream = "block-stream" {
        /// The id of the job; there must be one.
        job_id: Option<String>,
        /// The node that is copied to.
        device: String,
        /// The filename of the node that is its backing node afterwards.
        base: Option<String>,
        /// The same by its name.
        base_node: Option<String>,
        /// What the node names as its backing file afterwards.
        backing_file: Option<String>,
        /// Where the base has no format, the node names it as raw.
        backing_mask_protocol: Option<bool>,
        /// The last node from which is copied.
        bottom: Option<String>,
        /// The speed limit in bytes a second, 0 for none.
        speed: Option<i64>,
        /// What is done about an error.
        on_error: Option<BlockdevOnError>,
        /// The name of the filter that the job puts over the node.
        filter_node_name: Option<String>,
        /// Its result is final without a user's word.
        auto_finalize: Option<bool>,
        /// It is forgotten without a user's word.
        auto_dismiss: Option<bool>,
    };

    /// What a commit or a stream would do if it began now. Bytes are counted in the order of the disk, for no longer than two
    /// seconds: where `seen` is less than `len`, they are those of that part.
    #[derive(Eq)]
    struct MillpondBlockJobPlan {
        /// It becomes ready, and ends when a user says so.
        active: bool,
        /// The node that it writes to.
        target: String,
        /// Nodes that leave the chain, the topmost first.
        leaves: Vec<String>,
        /// The node whose image names another backing file afterwards.
        overlay: Option<String>,
        /// The node that this one stands on then; none where it needs no other.
        backing: Option<String>,
        /// Read-only nodes that are made writable while they are written to.
        reopens: Vec<String>,
        /// The size that the target is brought to first, being smaller.
        grows_to: Option<u64>,
        /// Bytes of the disk that it goes through.
        len: u64,
        /// Bytes of the disk that have been looked at for this answer.
        seen: u64,
        /// Bytes that it copies as data.
        data: u64,
        /// Bytes that it makes zeroes without copying them.
        zeroes: u64,
        /// Bytes of the data for which the target has no room yet, in whole clusters.
        room: u64,
    }

    /// Tells what `block-commit` with the same arguments would do, or its error. Nothing is taken or held up.
    command XMillpondBlockCommitPlan = "x-millpond-block-commit-plan" (BlockCommit) -> MillpondBlockJobPlan ["unstable"];

    /// Tells what `block-stream` with the same arguments would do, or its error. Nothing is taken or held up.
    command XMillpondBlockStreamPlan = "x-millpond-block-stream-plan" (BlockStream) -> MillpondBlockJobPlan ["unstable"];

    /// Changes how fast a block job may be.
    command BlockJobSetSpeed = "block-job-set-speed" {
        /// The id of the job.
        device: String,
        /// The speed limit in bytes a second, 0 for none.
        speed: i64,
    };

    /// Ends a block job before it is done.
    command BlockJobCancel = "block-job-cancel" {
        /// The id of the job.
        device: String,
        /// Also if it is paused, and without waiting for its target.
        force: Option<bool>,
    };

    /// Holds a block job until it is resumed.
    command BlockJobPause = "block-job-pause" {
        /// The id of the job.
        device: String,
    };

    /// Lets a block job go on that was paused.
    command BlockJobResume = "block-job-resume" {
        /// The id of the job.
        device: String,
    };

    /// Ends a block job that is ready.
    command BlockJobComplete = "block-job-complete" {
        /// The id of the job.
        device: String,
    };

    /// Forgets a block job that is over.
    command BlockJobDismiss = "block-job-dismiss" {
        /// The id of the job.
        id: String,
    };

    /// Has a block job that is stopped because its target is full try again by itself: after a second, then after twice as long
    /// each time.
    command XMillpondJobRetry = "x-millpond-job-retry" {
        /// The id of the job.
        id: String,
        /// The most seconds between two tries, an hour at most; 0 has it wait for a user.
        seconds: u64,
    } ["unstable"];

    /// Lets a block job that is done take effect.
    command BlockJobFinalize = "block-job-finalize" {
        /// The id of the job.
        id: String,
    };
}
