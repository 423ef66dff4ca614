//! Devices and statistics. The graph shows them as JSON: what has a row here and stays an object is put together there.

use super::image::BlockDeviceInfo;
use super::node::BlockdevDriver;
use crate::qapi::row::qapi;

qapi! {
    /// A device as it is shown. There are none.
    struct BlockInfo {
        /// The name of the device.
        device: String,
        /// The path of the guest's device.
        qdev: Option<String>,
        /// What QEMU says of every device.
        kind as "type": String,
        /// Whether the medium can be taken out.
        removable: bool,
        /// Whether the guest holds the medium.
        locked: bool,
        /// The node that it shows.
        inserted: Option<BlockDeviceInfo>,
        /// Whether its tray is open.
        tray_open as "tray_open": Option<bool>,
        /// How its last requests went.
        io_status: Option<BlockDeviceIoStatus>,
    }

    /// How the last requests of a device or a job went.
    enum BlockDeviceIoStatus {
        /// None of them has failed.
        Ok = "ok",
        /// One of them has failed.
        Failed = "failed",
        /// One of them found the disk full.
        Nospace = "nospace",
    }

    /// Shows the devices: none.
    command QueryBlock = "query-block" {} -> Vec<BlockInfo>;

    /// What has passed a node.
    open struct BlockStats {
        device: Option<String>,
        qdev: Option<String>,
        node_name: Option<String>,
        stats: BlockDeviceStats,
        driver_specific: Option<BlockStatsSpecific>,
        parent: Option<BlockStats>,
        backing: Option<BlockStats>,
    }

    /// The counters of a node.
    open struct BlockDeviceStats {
        rd_bytes as "rd_bytes": i64,
        wr_bytes as "wr_bytes": i64,
        zone_append_bytes as "zone_append_bytes": i64,
        unmap_bytes as "unmap_bytes": i64,
        rd_operations as "rd_operations": i64,
        wr_operations as "wr_operations": i64,
        zone_append_operations as "zone_append_operations": i64,
        flush_operations as "flush_operations": i64,
        unmap_operations as "unmap_operations": i64,
        rd_total_time_ns as "rd_total_time_ns": i64,
        wr_total_time_ns as "wr_total_time_ns": i64,
        zone_append_total_time_ns as "zone_append_total_time_ns": i64,
        flush_total_time_ns as "flush_total_time_ns": i64,
        unmap_total_time_ns as "unmap_total_time_ns": i64,
        wr_highest_offset as "wr_highest_offset": i64,
        rd_merged as "rd_merged": i64,
        wr_merged as "wr_merged": i64,
        zone_append_merged as "zone_append_merged": i64,
        unmap_merged as "unmap_merged": i64,
        idle_time_ns as "idle_time_ns": Option<i64>,
        failed_rd_operations as "failed_rd_operations": i64,
        failed_wr_operations as "failed_wr_operations": i64,
        failed_zone_append_operations as "failed_zone_append_operations": i64,
        failed_flush_operations as "failed_flush_operations": i64,
        failed_unmap_operations as "failed_unmap_operations": i64,
        invalid_rd_operations as "invalid_rd_operations": i64,
        invalid_wr_operations as "invalid_wr_operations": i64,
        invalid_zone_append_operations as "invalid_zone_append_operations": i64,
        invalid_flush_operations as "invalid_flush_operations": i64,
        invalid_unmap_operations as "invalid_unmap_operations": i64,
        account_invalid as "account_invalid": bool,
        account_failed as "account_failed": bool,
        timed_stats as "timed_stats": Vec<BlockDeviceTimedStats>,
        rd_latency_histogram as "rd_latency_histogram": Option<BlockLatencyHistogramInfo>,
        wr_latency_histogram as "wr_latency_histogram": Option<BlockLatencyHistogramInfo>,
        zone_append_latency_histogram as "zone_append_latency_histogram": Option<BlockLatencyHistogramInfo>,
        flush_latency_histogram as "flush_latency_histogram": Option<BlockLatencyHistogramInfo>,
    }

    /// Counters over one interval of time.
    open struct BlockDeviceTimedStats {
        interval_length as "interval_length": i64,
        min_rd_latency_ns as "min_rd_latency_ns": i64,
        max_rd_latency_ns as "max_rd_latency_ns": i64,
        avg_rd_latency_ns as "avg_rd_latency_ns": i64,
        min_wr_latency_ns as "min_wr_latency_ns": i64,
        max_wr_latency_ns as "max_wr_latency_ns": i64,
        avg_wr_latency_ns as "avg_wr_latency_ns": i64,
        min_zone_append_latency_ns as "min_zone_append_latency_ns": i64,
        max_zone_append_latency_ns as "max_zone_append_latency_ns": i64,
        avg_zone_append_latency_ns as "avg_zone_append_latency_ns": i64,
        min_flush_latency_ns as "min_flush_latency_ns": i64,
        max_flush_latency_ns as "max_flush_latency_ns": i64,
        avg_flush_latency_ns as "avg_flush_latency_ns": i64,
        avg_rd_queue_depth as "avg_rd_queue_depth": f64,
        avg_wr_queue_depth as "avg_wr_queue_depth": f64,
        avg_zone_append_queue_depth as "avg_zone_append_queue_depth": f64,
    }

    /// How many requests took how long.
    open struct BlockLatencyHistogramInfo {
        boundaries: Vec<u64>,
        bins: Vec<u64>,
    }

    /// What only some drivers count.
    open union BlockStatsSpecific {
        @"driver": BlockdevDriver {
            "file": BlockStatsSpecificFile,
            "host_device": BlockStatsSpecificFile,
        },
    }

    /// What only files count.
    open struct BlockStatsSpecificFile {
        discard_nb_ok: u64,
        discard_nb_failed: u64,
        discard_bytes_ok: u64,
    }

    /// Shows what has passed each device, or each node.
    command QueryBlockstats = "query-blockstats" {
        /// Of nodes, rather than of devices.
        query_nodes: bool = default,
    } -> Vec<BlockStats>;

    /// Has the first write to a node that ends past an offset reported, by the event `BLOCK_WRITE_THRESHOLD`.
    command BlockSetWriteThreshold = "block-set-write-threshold" {
        /// The node that is meant.
        node_name: String,
        /// The offset in bytes; 0 for none.
        write_threshold: u64,
    };

    /// Has a node count how long its requests take. As QEMU's `block-latency-histogram-set`, but of a node.
    command XMillpondLatencyHistogramSet = "x-millpond-latency-histogram-set" {
        /// The node that counts.
        node_name: String,
        /// Where one bin ends and the next begins, in nanoseconds, for all kinds of request.
        boundaries: Option<Vec<u64>>,
        /// The same for reads alone.
        boundaries_read: Option<Vec<u64>>,
        /// The same for writes alone.
        boundaries_write: Option<Vec<u64>>,
        /// The same for flushes alone.
        boundaries_flush: Option<Vec<u64>>,
    } ["unstable"];
}
