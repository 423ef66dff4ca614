//! Options of filters.

use super::define::{
    Alternate, BOOL, Enum, EnumType, I32, I64, List, STR, Struct, StructType, U32, U64, enumeration, opt,
    req, structure,
};
use super::graph::BLOCK_PERMISSION;
use super::node::BLOCKDEV_REF;
use crate::common::DebugEvent;

pub(super) static BLOCKDEV_OPTIONS_BLKDEBUG: StructType = structure(
    "BlockdevOptionsBlkdebug",
    &[
        req("image", Alternate(&BLOCKDEV_REF)),
        opt("config", STR),
        opt("align", I64),
        opt("max-transfer", I32),
        opt("opt-write-zero", I32),
        opt("max-write-zero", I32),
        opt("opt-discard", I32),
        opt("max-discard", I32),
        opt("inject-error", List(&Struct(&BLKDEBUG_INJECT_ERROR_OPTIONS))),
        opt("set-state", List(&Struct(&BLKDEBUG_SET_STATE_OPTIONS))),
        opt("take-child-perms", List(&Enum(&BLOCK_PERMISSION))),
        opt("unshare-child-perms", List(&Enum(&BLOCK_PERMISSION))),
    ],
);

pub(super) static BLOCKDEV_OPTIONS_BLKLOGWRITES: StructType = structure(
    "BlockdevOptionsBlklogwrites",
    &[
        req("file", Alternate(&BLOCKDEV_REF)),
        req("log", Alternate(&BLOCKDEV_REF)),
        opt("log-sector-size", U32),
        opt("log-append", BOOL),
        opt("log-super-update-interval", U64),
    ],
);

pub(super) static BLOCKDEV_OPTIONS_BLKVERIFY: StructType = structure(
    "BlockdevOptionsBlkverify",
    &[
        req("test", Alternate(&BLOCKDEV_REF)),
        req("raw", Alternate(&BLOCKDEV_REF)),
    ],
);

static BLKDEBUG_INJECT_ERROR_OPTIONS: StructType = structure(
    "BlkdebugInjectErrorOptions",
    &[
        req("event", Enum(&BLKDEBUG_EVENT)),
        opt("state", I64),
        opt("iotype", Enum(&BLKDEBUG_IO_TYPE)),
        opt("errno", I64),
        opt("sector", I64),
        opt("once", BOOL),
        opt("immediately", BOOL),
    ],
);

static BLKDEBUG_SET_STATE_OPTIONS: StructType = structure(
    "BlkdebugSetStateOptions",
    &[
        req("event", Enum(&BLKDEBUG_EVENT)),
        opt("state", I64),
        req("new_state", I64),
    ],
);

static BLKDEBUG_EVENT: EnumType = enumeration("BlkdebugEvent", DebugEvent::NAMES);

static BLKDEBUG_IO_TYPE: EnumType = enumeration(
    "BlkdebugIOType",
    &[
        "read",
        "write",
        "write-zeroes",
        "discard",
        "flush",
        "block-status",
    ],
);

pub(super) static BLOCKDEV_OPTIONS_THROTTLE: StructType = structure(
    "BlockdevOptionsThrottle",
    &[req("throttle-group", STR), req("file", Alternate(&BLOCKDEV_REF))],
);

pub(super) static BLOCKDEV_OPTIONS_COR: StructType = structure(
    "BlockdevOptionsCor",
    &[req("file", Alternate(&BLOCKDEV_REF)), opt("bottom", STR)],
);

pub(super) static BLOCKDEV_OPTIONS_PREALLOCATE: StructType = structure(
    "BlockdevOptionsPreallocate",
    &[
        req("file", Alternate(&BLOCKDEV_REF)),
        opt("prealloc-align", I64),
        opt("prealloc-size", I64),
    ],
);
