//! Jobs as they are shown.

use super::define::{BOOL, Enum, EnumType, I64, STR, StructType, enumeration, opt, req, structure};
use super::statistics::BLOCK_DEVICE_IO_STATUS;

pub(super) static BLOCK_JOB_INFO: StructType = structure(
    "BlockJobInfo",
    &[
        req("type", Enum(&JOB_TYPE)),
        req("device", STR),
        req("len", I64),
        req("offset", I64),
        req("busy", BOOL),
        req("paused", BOOL),
        req("speed", I64),
        req("io-status", Enum(&BLOCK_DEVICE_IO_STATUS)),
        req("ready", BOOL),
        req("status", Enum(&JOB_STATUS)),
        req("auto-finalize", BOOL),
        req("auto-dismiss", BOOL),
        opt("error", STR),
    ],
)
.union("type", &[("mirror", &BLOCK_JOB_INFO_MIRROR)]);

pub(super) static JOB_TYPE: EnumType = enumeration(
    "JobType",
    &[
        "commit",
        "stream",
        "mirror",
        "backup",
        "create",
        "amend",
        "snapshot-load",
        "snapshot-save",
        "snapshot-delete",
    ],
);

pub(super) static JOB_STATUS: EnumType = enumeration(
    "JobStatus",
    &[
        "undefined",
        "created",
        "running",
        "paused",
        "ready",
        "standby",
        "waiting",
        "pending",
        "aborting",
        "concluded",
        "null",
    ],
);

pub(super) static BLOCK_JOB_INFO_MIRROR: StructType =
    structure("BlockJobInfoMirror", &[req("actively-synced", BOOL)]);

pub(super) static JOB_INFO: StructType = structure(
    "JobInfo",
    &[
        req("id", STR),
        req("type", Enum(&JOB_TYPE)),
        req("status", Enum(&JOB_STATUS)),
        req("current-progress", I64),
        req("total-progress", I64),
        opt("error", STR),
    ],
);
