//! Mirrors: jobs that follow what is written.

use super::job::{BlockdevOnError, JobType, MirrorSyncMode};
use super::node::NewImageMode;
use crate::qapi::row::qapi;

qapi! {
    /// When a mirrored write is answered.
    enum MirrorCopyMode {
        /// Once the node has it; it is copied later.
        Background = "background",
        /// Once the target has it too.
        WriteBlocking = "write-blocking",
    }

    /// Copies a node to another while it is written, until a user ends that.
    command BlockdevMirror = "blockdev-mirror" {
        /// The id of the job; there must be one.
        job_id: Option<String>,
        /// The node that is copied.
        device: String,
        /// The node that is copied to.
        target: String,
        /// The node that the target takes the place of; the one that is copied if none is named.
        replaces: Option<String>,
        /// What is copied at first.
        sync: MirrorSyncMode,
        /// The speed limit in bytes a second, 0 for none.
        speed: Option<i64>,
        /// What is copied as a whole, in bytes: a power of two from 512 to 64 MiB, or 0 for what suits the target.
        granularity: Option<u32>,
        /// The most bytes under way, 0 for what suits.
        buf_size: Option<i64>,
        /// What is done about an error of the node.
        on_source_error: Option<BlockdevOnError>,
        /// What is done about an error of the target.
        on_target_error: Option<BlockdevOnError>,
        /// The name of the filter that the job puts over the node.
        filter_node_name: Option<String>,
        /// When a write is answered.
        copy_mode: Option<MirrorCopyMode>,
        /// Its result is final without a user's word.
        auto_finalize: Option<bool>,
        /// It is forgotten without a user's word.
        auto_dismiss: Option<bool>,
        /// The target reads as zeroes. That is looked at in any case, so it is no more than a hint.
        target_is_zero: Option<bool>,
    };

    /// Copies a node to a file while it is written, until a user ends that.
    command DriveMirror = "drive-mirror" {
        /// The id of the job; there must be one.
        job_id: Option<String>,
        /// The node that is copied.
        device: String,
        /// The name of the file that is copied to.
        target: String,
        /// Its format: that of the node, if the file is made.
        format: Option<String>,
        /// The name of the node that the file is opened as.
        node_name: Option<String>,
        /// The node that the target takes the place of; the one that is copied if none is named.
        replaces: Option<String>,
        /// What is copied at first.
        sync: MirrorSyncMode,
        /// Whether the file is made, or is there.
        mode: Option<NewImageMode>,
        /// The speed limit in bytes a second, 0 for none.
        speed: Option<i64>,
        /// What is copied as a whole, in bytes: a power of two from 512 to 64 MiB, or 0 for what suits the target.
        granularity: Option<u32>,
        /// The most bytes under way, 0 for what suits.
        buf_size: Option<i64>,
        /// What is done about an error of the node.
        on_source_error: Option<BlockdevOnError>,
        /// What is done about an error of the target.
        on_target_error: Option<BlockdevOnError>,
        /// Zeroes give space of the target back; default true.
        unmap: Option<bool>,
        /// When a write is answered.
        copy_mode: Option<MirrorCopyMode>,
        /// Its result is final without a user's word.
        auto_finalize: Option<bool>,
        /// It is forgotten without a user's word.
        auto_dismiss: Option<bool>,
    };

    /// What of a block job is to change.
    union BlockJobChangeOptions {
        /// The id of the job.
        id: String,
        @kind: BlockJobChangeKind,
    }

    /// What only some kinds of block job can change.
    branches BlockJobChangeKind by "type": JobType {
        /// Nothing.
        Commit = "commit",
        /// Nothing.
        Stream = "stream",
        /// When a write is answered.
        Mirror = "mirror": BlockJobChangeOptionsMirror,
        /// Nothing.
        Backup = "backup",
        /// Nothing.
        Create = "create",
        /// Nothing.
        Amend = "amend",
        /// Nothing.
        SnapshotLoad = "snapshot-load",
        /// Nothing.
        SnapshotSave = "snapshot-save",
        /// Nothing.
        SnapshotDelete = "snapshot-delete",
    }

    /// What of a mirror is to change.
    struct BlockJobChangeOptionsMirror {
        /// When a write is answered.
        copy_mode: MirrorCopyMode,
    }

    /// Changes a block job while it runs.
    command BlockJobChange = "block-job-change" (BlockJobChangeOptions);
}
