//! Options of images to be made.

use super::define::{
    Alternate, BOOL, Enum, EnumType, I64, SIZE, STR, StructType, enumeration, opt, req, structure,
};
use super::node::{BLOCKDEV_DRIVER, BLOCKDEV_REF};

pub(super) static BLOCKDEV_CREATE_OPTIONS: StructType =
    structure("BlockdevCreateOptions", &[req("driver", Enum(&BLOCKDEV_DRIVER))]).union(
        "driver",
        &[
            ("file", &BLOCKDEV_CREATE_OPTIONS_FILE),
            ("qcow2", &BLOCKDEV_CREATE_OPTIONS_QCOW2),
        ],
    );

pub(super) static BLOCKDEV_CREATE_OPTIONS_FILE: StructType = structure(
    "BlockdevCreateOptionsFile",
    &[
        req("filename", STR),
        req("size", SIZE),
        opt("preallocation", Enum(&PREALLOC_MODE)),
        opt("nocow", BOOL),
        opt("extent-size-hint", SIZE),
    ],
);

pub(super) static PREALLOC_MODE: EnumType =
    enumeration("PreallocMode", &["off", "metadata", "falloc", "full"]);

pub(super) static BLOCKDEV_CREATE_OPTIONS_QCOW2: StructType = structure(
    "BlockdevCreateOptionsQcow2",
    &[
        req("file", Alternate(&BLOCKDEV_REF)),
        opt("data-file", Alternate(&BLOCKDEV_REF)),
        opt("data-file-raw", BOOL),
        opt("extended-l2", BOOL),
        req("size", SIZE),
        opt("version", Enum(&BLOCKDEV_QCOW2_VERSION)),
        opt("backing-file", STR),
        opt("backing-fmt", Enum(&BLOCKDEV_DRIVER)),
        opt("cluster-size", SIZE),
        opt("preallocation", Enum(&PREALLOC_MODE)),
        opt("lazy-refcounts", BOOL),
        opt("refcount-bits", I64),
        opt("compression-type", Enum(&QCOW2_COMPRESSION_TYPE)),
    ],
);

pub(super) static BLOCKDEV_QCOW2_VERSION: EnumType = enumeration("BlockdevQcow2Version", &["v2", "v3"]);

pub(super) static QCOW2_COMPRESSION_TYPE: EnumType = enumeration("Qcow2CompressionType", &["zlib", "zstd"]);
