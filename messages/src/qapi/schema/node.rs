//! Options of nodes.

use super::define::{
    Alternate, AlternateType, BOOL, Enum, EnumType, I64, List, NULL, STR, Struct, StructType, U64, alternate,
    enumeration, opt, req, structure,
};
use super::filter::{
    BLOCKDEV_OPTIONS_BLKDEBUG, BLOCKDEV_OPTIONS_BLKLOGWRITES, BLOCKDEV_OPTIONS_BLKVERIFY,
    BLOCKDEV_OPTIONS_COR, BLOCKDEV_OPTIONS_PREALLOCATE, BLOCKDEV_OPTIONS_THROTTLE,
};

/// The arguments of `blockdev-add`, also what `--blockdev` takes.
pub static BLOCKDEV_OPTIONS: StructType = structure(
    "BlockdevOptions",
    &[
        req("driver", Enum(&BLOCKDEV_DRIVER)),
        opt("node-name", STR),
        opt("discard", Enum(&BLOCKDEV_DISCARD_OPTIONS)),
        opt("cache", Struct(&BLOCKDEV_CACHE_OPTIONS)),
        opt("active", BOOL),
        opt("read-only", BOOL),
        opt("auto-read-only", BOOL),
        opt("force-share", BOOL),
        opt("detect-zeroes", Enum(&BLOCKDEV_DETECT_ZEROES_OPTIONS)),
    ],
)
.union(
    "driver",
    &[
        ("blkdebug", &BLOCKDEV_OPTIONS_BLKDEBUG),
        ("blklogwrites", &BLOCKDEV_OPTIONS_BLKLOGWRITES),
        ("blkverify", &BLOCKDEV_OPTIONS_BLKVERIFY),
        ("compress", &BLOCKDEV_OPTIONS_GENERIC_FORMAT),
        ("copy-on-read", &BLOCKDEV_OPTIONS_COR),
        ("file", &BLOCKDEV_OPTIONS_FILE),
        ("host_device", &BLOCKDEV_OPTIONS_FILE),
        ("null-aio", &BLOCKDEV_OPTIONS_NULL),
        ("null-co", &BLOCKDEV_OPTIONS_NULL),
        ("preallocate", &BLOCKDEV_OPTIONS_PREALLOCATE),
        ("qcow2", &BLOCKDEV_OPTIONS_QCOW2),
        ("quorum", &BLOCKDEV_OPTIONS_QUORUM),
        ("raw", &BLOCKDEV_OPTIONS_RAW),
        ("throttle", &BLOCKDEV_OPTIONS_THROTTLE),
    ],
);

pub(super) static BLOCKDEV_DRIVER: EnumType = enumeration(
    "BlockdevDriver",
    &[
        "blkdebug",
        "blklogwrites",
        "blkverify",
        "compress",
        "copy-on-read",
        "file",
        "host_device",
        "null-aio",
        "null-co",
        "preallocate",
        "qcow2",
        "quorum",
        "raw",
        "throttle",
    ],
);

pub(super) static BLOCKDEV_DISCARD_OPTIONS: EnumType =
    enumeration("BlockdevDiscardOptions", &["ignore", "unmap"]);

pub(super) static BLOCKDEV_CACHE_OPTIONS: StructType = structure(
    "BlockdevCacheOptions",
    &[opt("direct", BOOL), opt("no-flush", BOOL)],
);

pub(super) static BLOCKDEV_DETECT_ZEROES_OPTIONS: EnumType =
    enumeration("BlockdevDetectZeroesOptions", &["off", "on", "unmap"]);

pub(super) static BLOCKDEV_OPTIONS_FILE: StructType = structure(
    "BlockdevOptionsFile",
    &[
        req("filename", STR),
        opt("pr-manager", STR),
        opt("locking", Enum(&ON_OFF_AUTO)),
        opt("aio", Enum(&BLOCKDEV_AIO_OPTIONS)),
        opt("aio-max-batch", I64),
        opt("drop-cache", BOOL),
        opt("x-check-cache-dropped", BOOL).with(&["unstable"]),
    ],
)
.with(&["dynamic-auto-read-only"]);

pub(super) static ON_OFF_AUTO: EnumType = enumeration("OnOffAuto", &["auto", "on", "off"]);

pub(super) static BLOCKDEV_AIO_OPTIONS: EnumType =
    enumeration("BlockdevAioOptions", &["threads", "native", "io_uring"]);

pub(super) static BLOCKDEV_OPTIONS_GENERIC_FORMAT: StructType = structure(
    "BlockdevOptionsGenericFormat",
    &[req("file", Alternate(&BLOCKDEV_REF))],
);

pub(super) static BLOCKDEV_OPTIONS_NULL: StructType = structure(
    "BlockdevOptionsNull",
    &[opt("size", I64), opt("latency-ns", U64), opt("read-zeroes", BOOL)],
);

pub(super) static BLOCKDEV_OPTIONS_QCOW2: StructType = structure(
    "BlockdevOptionsQcow2",
    &[
        req("file", Alternate(&BLOCKDEV_REF)),
        opt("backing", Alternate(&BLOCKDEV_REF_OR_NULL)),
        opt("lazy-refcounts", BOOL),
        opt("pass-discard-request", BOOL),
        opt("pass-discard-snapshot", BOOL),
        opt("pass-discard-other", BOOL),
        opt("discard-no-unref", BOOL),
        opt("overlap-check", Alternate(&QCOW2_OVERLAP_CHECKS)),
        opt("cache-size", I64),
        opt("l2-cache-size", I64),
        opt("l2-cache-entry-size", I64),
        opt("refcount-cache-size", I64),
        opt("cache-clean-interval", I64),
        opt("data-file", Alternate(&BLOCKDEV_REF)),
    ],
);

pub(super) static BLOCKDEV_REF: AlternateType = alternate("BlockdevRef", &[Struct(&BLOCKDEV_OPTIONS), STR]);

pub(super) static BLOCKDEV_REF_OR_NULL: AlternateType =
    alternate("BlockdevRefOrNull", &[Struct(&BLOCKDEV_OPTIONS), STR, NULL]);

pub(super) static QCOW2_OVERLAP_CHECKS: AlternateType = alternate(
    "Qcow2OverlapChecks",
    &[
        Struct(&QCOW2_OVERLAP_CHECK_FLAGS),
        Enum(&QCOW2_OVERLAP_CHECK_MODE),
    ],
);

pub(super) static QCOW2_OVERLAP_CHECK_FLAGS: StructType = structure(
    "Qcow2OverlapCheckFlags",
    &[
        opt("template", Enum(&QCOW2_OVERLAP_CHECK_MODE)),
        opt("main-header", BOOL),
        opt("active-l1", BOOL),
        opt("active-l2", BOOL),
        opt("refcount-table", BOOL),
        opt("refcount-block", BOOL),
        opt("snapshot-table", BOOL),
        opt("inactive-l1", BOOL),
        opt("inactive-l2", BOOL),
        opt("bitmap-directory", BOOL),
    ],
);

pub(super) static QCOW2_OVERLAP_CHECK_MODE: EnumType =
    enumeration("Qcow2OverlapCheckMode", &["none", "constant", "cached", "all"]);

pub(super) static BLOCKDEV_OPTIONS_QUORUM: StructType = structure(
    "BlockdevOptionsQuorum",
    &[
        opt("blkverify", BOOL),
        req("children", List(&Alternate(&BLOCKDEV_REF))),
        req("vote-threshold", I64),
        opt("rewrite-corrupted", BOOL),
        opt("read-pattern", Enum(&QUORUM_READ_PATTERN)),
    ],
);

pub(super) static QUORUM_READ_PATTERN: EnumType = enumeration("QuorumReadPattern", &["quorum", "fifo"]);

pub(super) static BLOCKDEV_OPTIONS_RAW: StructType = structure(
    "BlockdevOptionsRaw",
    &[
        req("file", Alternate(&BLOCKDEV_REF)),
        opt("offset", I64),
        opt("size", I64),
    ],
);

pub(super) static STR_OR_NULL: AlternateType = alternate("StrOrNull", &[STR, NULL]);
