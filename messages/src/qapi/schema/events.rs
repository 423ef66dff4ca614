//! The events.

use super::define::{BOOL, Enum, EnumType, Event, I64, STR, enumeration, event, opt, req};
use super::job::{JOB_STATUS, JOB_TYPE};

pub(super) static IO_OPERATION_TYPE: EnumType = enumeration("IoOperationType", &["read", "write"]);

pub(super) static BLOCK_ERROR_ACTION: EnumType =
    enumeration("BlockErrorAction", &["ignore", "report", "stop"]);

pub(super) static QUORUM_OP_TYPE: EnumType = enumeration("QuorumOpType", &["read", "write", "flush"]);

/// Every event of the schema.
pub static EVENTS: &[Event] = &[
    event(
        "JOB_STATUS_CHANGE",
        &[req("id", STR), req("status", Enum(&JOB_STATUS))],
    ),
    event(
        "BLOCK_IMAGE_CORRUPTED",
        &[
            req("device", STR),
            opt("node-name", STR),
            req("msg", STR),
            opt("offset", I64),
            opt("size", I64),
            req("fatal", BOOL),
        ],
    ),
    // Millpond's own.
    event(
        "BLOCK_NODE_BROKEN",
        &[req("node-name", STR), req("driver", STR), req("msg", STR)],
    ),
    event(
        "BLOCK_IO_ERROR",
        &[
            req("qom-path", STR),
            req("device", STR),
            opt("node-name", STR),
            req("operation", Enum(&IO_OPERATION_TYPE)),
            req("action", Enum(&BLOCK_ERROR_ACTION)),
            opt("nospace", BOOL),
            req("reason", STR),
        ],
    ),
    event(
        "BLOCK_JOB_COMPLETED",
        &[
            req("type", Enum(&JOB_TYPE)),
            req("device", STR),
            req("len", I64),
            req("offset", I64),
            req("speed", I64),
            opt("error", STR),
        ],
    ),
    event(
        "BLOCK_JOB_CANCELLED",
        &[
            req("type", Enum(&JOB_TYPE)),
            req("device", STR),
            req("len", I64),
            req("offset", I64),
            req("speed", I64),
        ],
    ),
    event(
        "BLOCK_JOB_ERROR",
        &[
            req("device", STR),
            req("operation", Enum(&IO_OPERATION_TYPE)),
            req("action", Enum(&BLOCK_ERROR_ACTION)),
        ],
    ),
    event(
        "BLOCK_JOB_READY",
        &[
            req("type", Enum(&JOB_TYPE)),
            req("device", STR),
            req("len", I64),
            req("offset", I64),
            req("speed", I64),
        ],
    ),
    event(
        "BLOCK_JOB_PENDING",
        &[req("type", Enum(&JOB_TYPE)), req("id", STR)],
    ),
    event(
        "BLOCK_WRITE_THRESHOLD",
        &[
            req("node-name", STR),
            req("amount-exceeded", I64),
            req("write-threshold", I64),
        ],
    ),
    event(
        "QUORUM_FAILURE",
        &[
            req("reference", STR),
            req("sector-num", I64),
            req("sectors-count", I64),
        ],
    ),
    event(
        "QUORUM_REPORT_BAD",
        &[
            req("type", Enum(&QUORUM_OP_TYPE)),
            opt("error", STR),
            req("node-name", STR),
            req("sector-num", I64),
            req("sectors-count", I64),
        ],
    ),
    event("BLOCK_EXPORT_DELETED", &[req("id", STR)]),
];
