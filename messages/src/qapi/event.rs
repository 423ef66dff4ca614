//! QMP events: what the daemon tells every monitor without being asked.

use super::Object;
use super::types::{JobStatus, JobType};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The operation that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IoOperation {
    /// A read of the device failed.
    Read,
    /// A write, discard or flush.
    Write,
}

/// The operation on which a quorum child failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum QuorumOperation {
    /// A read, of which the votes differ.
    Read,
    /// A write, of which a child failed.
    Write,
    /// A flush, of which a child failed.
    Flush,
}

/// Where a block job stands when it becomes ready or ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobEnd {
    /// The kind of job.
    #[serde(rename = "type")]
    pub kind: JobType,
    /// The id of the job.
    pub device: String,
    /// Bytes the job has to do in all.
    pub len: i64,
    /// How many bytes are done.
    pub offset: i64,
    /// The speed limit in bytes a second, 0 for none.
    pub speed: i64,
}

/// An event; the serialised form is QMP's `event` and `data` members.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(
    tag = "event",
    content = "data",
    rename_all = "SCREAMING_SNAKE_CASE",
    rename_all_fields = "kebab-case"
)]
pub enum Event {
    /// An export is gone: its last reference was dropped.
    BlockExportDeleted {
        /// The id of the export.
        id: String,
    },
    /// A format driver found its metadata to be wrong.
    BlockImageCorrupted {
        /// The name of the device, empty for a node without one.
        device: String,
        /// The node's name, where it has one.
        #[serde(skip_serializing_if = "Option::is_none")]
        node_name: Option<String>,
        /// What was found to be wrong, for people.
        msg: String,
        /// Where in the image file, in bytes.
        #[serde(skip_serializing_if = "Option::is_none")]
        offset: Option<u64>,
        /// How many bytes are concerned.
        #[serde(skip_serializing_if = "Option::is_none")]
        size: Option<u64>,
        /// The image was made unusable by it.
        fatal: bool,
    },
    /// A request failed and the device's error policy was applied.
    BlockIoError {
        /// The QOM path of the device.
        qom_path: String,
        /// The name of the device, empty for a node without one.
        device: String,
        /// The node's name, where it has one.
        #[serde(skip_serializing_if = "Option::is_none")]
        node_name: Option<String>,
        /// Whether a read or a write failed.
        operation: IoOperation,
        /// What was done: `ignore`, `report` or `stop`.
        action: String,
        /// The reason was a full disk.
        #[serde(skip_serializing_if = "Option::is_none")]
        nospace: Option<bool>,
        /// The reason as text.
        reason: String,
    },
    /// A block job ended by being cancelled.
    BlockJobCancelled(JobEnd),
    /// A block job ended, with an error text if it failed.
    BlockJobCompleted {
        /// The job as it ended.
        #[serde(flatten)]
        end: JobEnd,
        /// Why the job failed, if it did.
        #[serde(skip_serializing_if = "Option::is_none")]
        error: Option<String>,
    },
    /// A request of a job failed.
    BlockJobError {
        /// The id of the job.
        device: String,
        /// Whether a read or a write failed.
        operation: IoOperation,
        /// What was done: `ignore`, `report` or `stop`.
        action: String,
    },
    /// A job waits to be finalized.
    BlockJobPending {
        /// The kind of job.
        #[serde(rename = "type")]
        kind: JobType,
        /// The id of the job.
        id: String,
    },
    /// A mirror or an active commit has converged.
    BlockJobReady(JobEnd),
    /// A node's driver panicked: whatever the node is asked from now on fails, until it is deleted. An event of Millpond's own.
    BlockNodeBroken {
        /// The name of the node that waits.
        node_name: String,
        /// The name of the node's driver.
        driver: String,
        /// What the driver said as it panicked.
        msg: String,
    },
    /// A write passed the threshold set on a node.
    BlockWriteThreshold {
        /// The name of the node that is broken.
        node_name: String,
        /// By how many bytes.
        amount_exceeded: u64,
        /// The threshold in bytes.
        write_threshold: u64,
    },
    /// A job changed state.
    JobStatusChange {
        /// The id of the job.
        id: String,
        /// The state that the job is in now.
        status: JobStatus,
    },
    /// A quorum did not come about.
    QuorumFailure {
        /// The device or node.
        reference: String,
        /// First sector, of 512 bytes.
        sector_num: i64,
        /// How many sectors the request had.
        sectors_count: i64,
    },
    /// A child of a quorum failed or disagreed.
    QuorumReportBad {
        /// Which operation the vote was about.
        #[serde(rename = "type")]
        operation: QuorumOperation,
        /// Why it failed; absent if the child disagreed.
        #[serde(skip_serializing_if = "Option::is_none")]
        error: Option<String>,
        /// The name of the child that failed.
        node_name: String,
        /// First sector, of 512 bytes.
        sector_num: i64,
        /// How many sectors the request had.
        sectors_count: i64,
    },
}

/// An event and the time it happened.
#[derive(Clone, Debug, PartialEq)]
pub struct TimedEvent {
    /// What happened, with its data.
    pub event: Event,
    /// When, since the epoch.
    pub since_epoch: Duration,
}

impl TimedEvent {
    /// The event, with the time that it is now.
    pub fn now(event: Event) -> Self {
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

    fn text(event: Event) -> String {
        let timed = TimedEvent {
            event,
            since_epoch: Duration::from_micros(1_000_002),
        };
        to_compact(&Value::Object(timed.to_json()))
    }

    #[test]
    fn events_are_written_as_qemu_writes_them() {
        assert_eq!(
            text(Event::JobStatusChange {
                id: "j".into(),
                status: JobStatus::Created
            }),
            r#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "JOB_STATUS_CHANGE", "data": {"status": "created", "id": "j"}}"#
        );
        let end = JobEnd {
            kind: JobType::Commit,
            device: "j".into(),
            len: 3,
            offset: 2,
            speed: 0,
        };
        assert_eq!(
            text(Event::BlockJobCompleted {
                end,
                error: Some("no".into())
            }),
            r#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "BLOCK_JOB_COMPLETED", "data": {"device": "j", "len": 3, "offset": 2, "speed": 0, "type": "commit", "error": "no"}}"#
        );
    }
}
