//! Nodes and images as they are shown.

use super::create::QCOW2_COMPRESSION_TYPE;
use super::define::{
    BOOL, Enum, EnumType, I64, List, STR, Struct, StructType, enumeration, opt, req, structure,
};
use super::node::BLOCKDEV_DETECT_ZEROES_OPTIONS;

pub(super) static BLOCK_DEVICE_INFO: StructType = structure(
    "BlockDeviceInfo",
    &[
        req("file", STR),
        opt("node-name", STR),
        req("ro", BOOL),
        req("drv", STR),
        opt("backing_file", STR),
        req("backing_file_depth", I64),
        req("active", BOOL),
        req("encrypted", BOOL),
        req("detect_zeroes", Enum(&BLOCKDEV_DETECT_ZEROES_OPTIONS)),
        req("bps", I64),
        req("bps_rd", I64),
        req("bps_wr", I64),
        req("iops", I64),
        req("iops_rd", I64),
        req("iops_wr", I64),
        req("image", Struct(&IMAGE_INFO)),
        opt("bps_max", I64),
        opt("bps_rd_max", I64),
        opt("bps_wr_max", I64),
        opt("iops_max", I64),
        opt("iops_rd_max", I64),
        opt("iops_wr_max", I64),
        opt("bps_max_length", I64),
        opt("bps_rd_max_length", I64),
        opt("bps_wr_max_length", I64),
        opt("iops_max_length", I64),
        opt("iops_rd_max_length", I64),
        opt("iops_wr_max_length", I64),
        opt("iops_size", I64),
        opt("group", STR),
        req("cache", Struct(&BLOCKDEV_CACHE_INFO)),
        req("write_threshold", I64),
        opt("dirty-bitmaps", List(&Struct(&BLOCK_DIRTY_INFO))),
    ],
);

pub(super) static IMAGE_INFO: StructType = structure(
    "ImageInfo",
    &[
        req("filename", STR),
        req("format", STR),
        opt("dirty-flag", BOOL),
        opt("actual-size", I64),
        req("virtual-size", I64),
        opt("cluster-size", I64),
        opt("encrypted", BOOL),
        opt("compressed", BOOL),
        opt("backing-filename", STR),
        opt("full-backing-filename", STR),
        opt("backing-filename-format", STR),
        opt("snapshots", List(&Struct(&SNAPSHOT_INFO))),
        opt("format-specific", Struct(&IMAGE_INFO_SPECIFIC)),
        opt("backing-image", Struct(&IMAGE_INFO)),
    ],
);

pub(super) static SNAPSHOT_INFO: StructType = structure(
    "SnapshotInfo",
    &[
        req("id", STR),
        req("name", STR),
        req("vm-state-size", I64),
        req("date-sec", I64),
        req("date-nsec", I64),
        req("vm-clock-sec", I64),
        req("vm-clock-nsec", I64),
        opt("icount", I64),
    ],
);

pub(super) static IMAGE_INFO_SPECIFIC: StructType = structure(
    "ImageInfoSpecific",
    &[req("type", Enum(&IMAGE_INFO_SPECIFIC_KIND))],
)
.union(
    "type",
    &[
        ("qcow2", &IMAGE_INFO_SPECIFIC_QCOW2_WRAPPER),
        ("file", &IMAGE_INFO_SPECIFIC_FILE_WRAPPER),
    ],
);

pub(super) static IMAGE_INFO_SPECIFIC_KIND: EnumType =
    enumeration("ImageInfoSpecificKind", &["qcow2", "file"]);

pub(super) static IMAGE_INFO_SPECIFIC_QCOW2_WRAPPER: StructType = structure(
    "ImageInfoSpecificQCow2Wrapper",
    &[req("data", Struct(&IMAGE_INFO_SPECIFIC_QCOW2))],
);

pub(super) static IMAGE_INFO_SPECIFIC_QCOW2: StructType = structure(
    "ImageInfoSpecificQCow2",
    &[
        req("compat", STR),
        opt("data-file", STR),
        opt("data-file-raw", BOOL),
        opt("extended-l2", BOOL),
        opt("lazy-refcounts", BOOL),
        opt("corrupt", BOOL),
        req("refcount-bits", I64),
        opt("bitmaps", List(&Struct(&QCOW2_BITMAP_INFO))),
        req("compression-type", Enum(&QCOW2_COMPRESSION_TYPE)),
    ],
);

pub(super) static QCOW2_BITMAP_INFO: StructType = structure(
    "Qcow2BitmapInfo",
    &[
        req("name", STR),
        req("granularity", I64),
        req("flags", List(&Enum(&QCOW2_BITMAP_INFO_FLAGS))),
    ],
);

pub(super) static QCOW2_BITMAP_INFO_FLAGS: EnumType =
    enumeration("Qcow2BitmapInfoFlags", &["in-use", "auto"]);

pub(super) static IMAGE_INFO_SPECIFIC_FILE_WRAPPER: StructType = structure(
    "ImageInfoSpecificFileWrapper",
    &[req("data", Struct(&IMAGE_INFO_SPECIFIC_FILE))],
);

pub(super) static IMAGE_INFO_SPECIFIC_FILE: StructType =
    structure("ImageInfoSpecificFile", &[opt("extent-size-hint", I64)]);

pub(super) static BLOCKDEV_CACHE_INFO: StructType = structure(
    "BlockdevCacheInfo",
    &[req("writeback", BOOL), req("direct", BOOL), req("no-flush", BOOL)],
);

pub(super) static BLOCK_DIRTY_INFO: StructType = structure(
    "BlockDirtyInfo",
    &[
        opt("name", STR),
        req("count", I64),
        req("granularity", I64),
        req("recording", BOOL),
        req("busy", BOOL),
        req("persistent", BOOL),
        opt("inconsistent", BOOL),
    ],
);
