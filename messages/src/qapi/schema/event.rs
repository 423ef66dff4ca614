//! Events: what the daemon tells every monitor without being asked.

use super::job::{JobStatus, JobType};
use crate::qapi::Object;
use crate::qapi::row::{events, qapi};
use serde_json::{Value, json};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

qapi! {
    /// The operation that failed.
    enum IoOperationType {
        /// A read of the device failed.
        Read = "read",
        /// A write, discard or flush failed.
        Write = "write",
    }

    /// What was done about a request that failed.
    enum BlockErrorAction {
        /// The error was left out of account.
        Ignore = "ignore",
        /// The user was told of the error.
        Report = "report",
        /// The user was stopped.
        Stop = "stop",
    }

    /// The operation on which a quorum child failed.
    enum QuorumOpType {
        /// A read, of which the votes differ.
        Read = "read",
        /// A write, of which a child failed.
        Write = "write",
        /// A flush, of which a child failed.
        Flush = "flush",
    }
}

events! {
    /// An event; in JSON it is QMP's `event` and `data` members.
    enum QmpEvent {
        /// A job changed state.
        JobStatusChange = "JOB_STATUS_CHANGE" {
            /// The id of the job.
            id: String,
            /// The state that the job is in now.
            status: JobStatus,
        },
        /// A format driver found its metadata to be wrong.
        BlockImageCorrupted = "BLOCK_IMAGE_CORRUPTED" {
            /// The name of the device, empty for a node without one.
            device: String,
            /// The node's name, where it has one.
            node_name: Option<String>,
            /// What was found to be wrong, for people.
            msg: String,
            /// Where in the image file, in bytes.
            offset: Option<u64>,
            /// How many bytes are concerned.
            size: Option<u64>,
            /// The image was made unusable by it.
            fatal: bool,
        },
        /// A node's driver panicked: whatever the node is asked from now on fails, until it is deleted. An event of Millpond's
        /// own.
        BlockNodeBroken = "BLOCK_NODE_BROKEN" {
            /// The name of the node that is broken.
            node_name: String,
            /// The name of the node's driver.
            driver: String,
            /// What the driver said as it panicked.
            msg: String,
        },
        /// A request failed and the device's error policy was applied.
        BlockIoError = "BLOCK_IO_ERROR" {
            /// The QOM path of the device.
            qom_path: String,
            /// The name of the device, empty for a node without one.
            device: String,
            /// The node's name, where it has one.
            node_name: Option<String>,
            /// Whether a read or a write failed.
            operation: IoOperationType,
            /// What was done about it.
            action: BlockErrorAction,
            /// The reason was a full disk.
            nospace: Option<bool>,
            /// The reason as text.
            reason: String,
        },
        /// A block job ended, with an error text if it failed.
        BlockJobCompleted = "BLOCK_JOB_COMPLETED" {
            /// The kind of job.
            kind as "type": JobType,
            /// The id of the job.
            device: String,
            /// Bytes the job has to do in all.
            len: i64,
            /// How many bytes are done.
            offset: i64,
            /// The speed limit in bytes a second, 0 for none.
            speed: i64,
            /// Why the job failed, if it did.
            error: Option<String>,
        },
        /// A block job ended by being cancelled.
        BlockJobCancelled = "BLOCK_JOB_CANCELLED" {
            /// The kind of job.
            kind as "type": JobType,
            /// The id of the job.
            device: String,
            /// Bytes the job has to do in all.
            len: i64,
            /// How many bytes are done.
            offset: i64,
            /// The speed limit in bytes a second, 0 for none.
            speed: i64,
        },
        /// A request of a job failed.
        BlockJobError = "BLOCK_JOB_ERROR" {
            /// The id of the job.
            device: String,
            /// Whether a read or a write failed.
            operation: IoOperationType,
            /// What was done about it.
            action: BlockErrorAction,
        },
        /// A mirror or an active commit has converged.
        BlockJobReady = "BLOCK_JOB_READY" {
            /// The kind of job.
            kind as "type": JobType,
            /// The id of the job.
            device: String,
            /// Bytes the job has to do in all.
            len: i64,
            /// How many bytes are done.
            offset: i64,
            /// The speed limit in bytes a second, 0 for none.
            speed: i64,
        },
        /// A job waits to be finalized.
        BlockJobPending = "BLOCK_JOB_PENDING" {
            /// The kind of job.
            kind as "type": JobType,
            /// The id of the job.
            id: String,
        },
        /// A write passed the threshold set on a node.
        BlockWriteThreshold = "BLOCK_WRITE_THRESHOLD" {
            /// The name of the node.
            node_name: String,
            /// By how many bytes.
            amount_exceeded: u64,
            /// The threshold in bytes.
            write_threshold: u64,
        },
        /// A quorum did not come about.
        QuorumFailure = "QUORUM_FAILURE" {
            /// The device or node.
            reference: String,
            /// First sector, of 512 bytes.
            sector_num: i64,
            /// How many sectors the request had.
            sectors_count: i64,
        },
        /// A child of a quorum failed or disagreed.
        QuorumReportBad = "QUORUM_REPORT_BAD" {
            /// Which operation the vote was about.
            operation as "type": QuorumOpType,
            /// Why it failed; absent if the child disagreed.
            error: Option<String>,
            /// The name of the child that failed.
            node_name: String,
            /// First sector, of 512 bytes.
            sector_num: i64,
            /// How many sectors the request had.
            sectors_count: i64,
        },
        /// A port of a guest was opened or closed. No part of Millpond has such.
        VserportChange = "VSERPORT_CHANGE" {
            /// The id of the port.
            id: String,
            /// Whether it is open now.
            open: bool,
        },
        /// An export is gone: its last reference was dropped.
        BlockExportDeleted = "BLOCK_EXPORT_DELETED" {
            /// The id of the export.
            id: String,
        },
    }
}

/// An event and the time it happened.
#[derive(Clone, Debug, PartialEq)]
pub struct TimedEvent {
    /// What happened, with its data.
    pub event: QmpEvent,
    /// When, since the epoch.
    pub since_epoch: Duration,
}

impl TimedEvent {
    /// The event, with the time that it is now.
    pub fn now(event: QmpEvent) -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { event, since_epoch }
    }

    /// The event as a monitor sends it.
    pub fn to_json(&self) -> Object {
        let mut object = match serde_json::to_value(&self.event) {
            Ok(Value::Object(object)) => object,
            _ => Object::new(),
        };
        let time = json!({
            "seconds": self.since_epoch.as_secs(),
            "microseconds": self.since_epoch.subsec_micros(),
        });
        object.insert("timestamp".into(), time);
        object
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qapi::to_compact;

    fn text(event: QmpEvent) -> String {
        let timed = TimedEvent {
            event,
            since_epoch: Duration::from_micros(1_000_002),
        };
        to_compact(&Value::Object(timed.to_json()))
    }

    #[test]
    fn events_are_written_as_qemu_writes_them() {
        assert_eq!(
            text(QmpEvent::JobStatusChange {
                id: "j".into(),
                status: JobStatus::Created
            }),
            r#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "JOB_STATUS_CHANGE", "data": {"status": "created", "id": "j"}}"#
        );
        assert_eq!(
            text(QmpEvent::BlockJobCompleted {
                kind: JobType::Commit,
                device: "j".into(),
                len: 3,
                offset: 2,
                speed: 0,
                error: Some("no".into())
            }),
            r#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "BLOCK_JOB_COMPLETED", "data": {"device": "j", "len": 3, "offset": 2, "speed": 0, "type": "commit", "error": "no"}}"#
        );
    }
}
