//! Devices and their statistics.

use super::define::{
    BOOL, Enum, EnumType, I64, List, NUMBER, STR, Struct, StructType, enumeration, opt, req, structure,
};
use super::image::BLOCK_DEVICE_INFO;
use super::node::BLOCKDEV_DRIVER;

pub(super) static BLOCK_INFO: StructType = structure(
    "BlockInfo",
    &[
        req("device", STR),
        opt("qdev", STR),
        req("type", STR),
        req("removable", BOOL),
        req("locked", BOOL),
        opt("inserted", Struct(&BLOCK_DEVICE_INFO)),
        opt("tray_open", BOOL),
        opt("io-status", Enum(&BLOCK_DEVICE_IO_STATUS)),
    ],
);

pub(super) static BLOCK_DEVICE_IO_STATUS: EnumType =
    enumeration("BlockDeviceIoStatus", &["ok", "failed", "nospace"]);

pub(super) static BLOCK_STATS: StructType = structure(
    "BlockStats",
    &[
        opt("device", STR),
        opt("qdev", STR),
        opt("node-name", STR),
        req("stats", Struct(&BLOCK_DEVICE_STATS)),
        opt("driver-specific", Struct(&BLOCK_STATS_SPECIFIC)),
        opt("parent", Struct(&BLOCK_STATS)),
        opt("backing", Struct(&BLOCK_STATS)),
    ],
);

pub(super) static BLOCK_DEVICE_STATS: StructType = structure(
    "BlockDeviceStats",
    &[
        req("rd_bytes", I64),
        req("wr_bytes", I64),
        req("zone_append_bytes", I64),
        req("unmap_bytes", I64),
        req("rd_operations", I64),
        req("wr_operations", I64),
        req("zone_append_operations", I64),
        req("flush_operations", I64),
        req("unmap_operations", I64),
        req("rd_total_time_ns", I64),
        req("wr_total_time_ns", I64),
        req("zone_append_total_time_ns", I64),
        req("flush_total_time_ns", I64),
        req("unmap_total_time_ns", I64),
        req("wr_highest_offset", I64),
        req("rd_merged", I64),
        req("wr_merged", I64),
        req("zone_append_merged", I64),
        req("unmap_merged", I64),
        opt("idle_time_ns", I64),
        req("failed_rd_operations", I64),
        req("failed_wr_operations", I64),
        req("failed_zone_append_operations", I64),
        req("failed_flush_operations", I64),
        req("failed_unmap_operations", I64),
        req("invalid_rd_operations", I64),
        req("invalid_wr_operations", I64),
        req("invalid_zone_append_operations", I64),
        req("invalid_flush_operations", I64),
        req("invalid_unmap_operations", I64),
        req("account_invalid", BOOL),
        req("account_failed", BOOL),
        req("timed_stats", List(&Struct(&BLOCK_DEVICE_TIMED_STATS))),
        opt("rd_latency_histogram", Struct(&BLOCK_LATENCY_HISTOGRAM_INFO)),
        opt("wr_latency_histogram", Struct(&BLOCK_LATENCY_HISTOGRAM_INFO)),
        opt(
            "zone_append_latency_histogram",
            Struct(&BLOCK_LATENCY_HISTOGRAM_INFO),
        ),
        opt("flush_latency_histogram", Struct(&BLOCK_LATENCY_HISTOGRAM_INFO)),
    ],
);

pub(super) static BLOCK_DEVICE_TIMED_STATS: StructType = structure(
    "BlockDeviceTimedStats",
    &[
        req("interval_length", I64),
        req("min_rd_latency_ns", I64),
        req("max_rd_latency_ns", I64),
        req("avg_rd_latency_ns", I64),
        req("min_wr_latency_ns", I64),
        req("max_wr_latency_ns", I64),
        req("avg_wr_latency_ns", I64),
        req("min_zone_append_latency_ns", I64),
        req("max_zone_append_latency_ns", I64),
        req("avg_zone_append_latency_ns", I64),
        req("min_flush_latency_ns", I64),
        req("max_flush_latency_ns", I64),
        req("avg_flush_latency_ns", I64),
        req("avg_rd_queue_depth", NUMBER),
        req("avg_wr_queue_depth", NUMBER),
        req("avg_zone_append_queue_depth", NUMBER),
    ],
);

pub(super) static BLOCK_LATENCY_HISTOGRAM_INFO: StructType = structure(
    "BlockLatencyHistogramInfo",
    &[req("boundaries", List(&I64)), req("bins", List(&I64))],
);

pub(super) static BLOCK_STATS_SPECIFIC: StructType =
    structure("BlockStatsSpecific", &[req("driver", Enum(&BLOCKDEV_DRIVER))]).union(
        "driver",
        &[
            ("file", &BLOCK_STATS_SPECIFIC_FILE),
            ("host_device", &BLOCK_STATS_SPECIFIC_FILE),
        ],
    );

pub(super) static BLOCK_STATS_SPECIFIC_FILE: StructType = structure(
    "BlockStatsSpecificFile",
    &[
        req("discard-nb-ok", I64),
        req("discard-nb-failed", I64),
        req("discard-bytes-ok", I64),
    ],
);
