//! Devices and statistics.

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
    #[derive(Default)]
    struct BlockStats {
        /// The device; there are none.
        device: Option<String>,
        /// The path of the guest's device.
        qdev: Option<String>,
        /// The node's name in the graph.
        node_name: Option<String>,
        /// What is counted of every node.
        stats: BlockDeviceStats,
        /// What only its driver counts.
        driver_specific: Option<BlockStatsSpecific>,
        /// The same of the file below.
        parent: Option<Box<BlockStats>>,
        /// The same of the image below.
        backing: Option<Box<BlockStats>>,
    }

    /// The counters of a node.
    #[derive(Default)]
    struct BlockDeviceStats {
        /// Bytes of all reads.
        rd_bytes as "rd_bytes": i64,
        /// Bytes of all writes.
        wr_bytes as "wr_bytes": i64,
        /// Bytes of all appends to zones.
        zone_append_bytes as "zone_append_bytes": i64,
        /// Bytes of all discards.
        unmap_bytes as "unmap_bytes": i64,
        /// How many reads there were.
        rd_operations as "rd_operations": i64,
        /// How many writes there were.
        wr_operations as "wr_operations": i64,
        /// How many appends to zones there were.
        zone_append_operations as "zone_append_operations": i64,
        /// How many flushes there were.
        flush_operations as "flush_operations": i64,
        /// How many discards there were.
        unmap_operations as "unmap_operations": i64,
        /// Nanoseconds that all reads took.
        rd_total_time_ns as "rd_total_time_ns": i64,
        /// Nanoseconds that all writes took.
        wr_total_time_ns as "wr_total_time_ns": i64,
        /// Nanoseconds that all appends to zones took.
        zone_append_total_time_ns as "zone_append_total_time_ns": i64,
        /// Nanoseconds that all flushes took.
        flush_total_time_ns as "flush_total_time_ns": i64,
        /// Nanoseconds that all discards took.
        unmap_total_time_ns as "unmap_total_time_ns": i64,
        /// The end of the write that ended farthest from the start.
        wr_highest_offset as "wr_highest_offset": i64,
        /// How many reads were merged with others.
        rd_merged as "rd_merged": i64,
        /// How many writes were merged with others.
        wr_merged as "wr_merged": i64,
        /// How many appends to zones were merged with others.
        zone_append_merged as "zone_append_merged": i64,
        /// How many discards were merged with others.
        unmap_merged as "unmap_merged": i64,
        /// Nanoseconds since the last request ended.
        idle_time_ns as "idle_time_ns": Option<i64>,
        /// How many reads failed.
        failed_rd_operations as "failed_rd_operations": i64,
        /// How many writes failed.
        failed_wr_operations as "failed_wr_operations": i64,
        /// How many appends to zones failed.
        failed_zone_append_operations as "failed_zone_append_operations": i64,
        /// How many flushes failed.
        failed_flush_operations as "failed_flush_operations": i64,
        /// How many discards failed.
        failed_unmap_operations as "failed_unmap_operations": i64,
        /// How many reads were refused.
        invalid_rd_operations as "invalid_rd_operations": i64,
        /// How many writes were refused.
        invalid_wr_operations as "invalid_wr_operations": i64,
        /// How many appends to zones were refused.
        invalid_zone_append_operations as "invalid_zone_append_operations": i64,
        /// How many flushes were refused.
        invalid_flush_operations as "invalid_flush_operations": i64,
        /// How many discards were refused.
        invalid_unmap_operations as "invalid_unmap_operations": i64,
        /// Whether refused requests count for idle times.
        account_invalid as "account_invalid": bool,
        /// The same of those that failed.
        account_failed as "account_failed": bool,
        /// Counters over intervals: there are none.
        timed_stats as "timed_stats": Vec<BlockDeviceTimedStats>,
        /// How long reads took, where that is counted.
        rd_latency_histogram as "rd_latency_histogram": Option<BlockLatencyHistogramInfo>,
        /// How long writes took, where that is counted.
        wr_latency_histogram as "wr_latency_histogram": Option<BlockLatencyHistogramInfo>,
        /// How long appends to zones took, where that is counted.
        zone_append_latency_histogram as "zone_append_latency_histogram": Option<BlockLatencyHistogramInfo>,
        /// How long flushes took, where that is counted.
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
    struct BlockLatencyHistogramInfo {
        /// Where one bin ends and the next begins, in nanoseconds.
        boundaries: Vec<u64>,
        /// How many requests are in each bin.
        bins: Vec<u64>,
    }

    /// What only some drivers count.
    branches BlockStatsSpecific by "driver": BlockdevDriver {
        /// A file of the host.
        File = "file": BlockStatsSpecificFile,
        /// A device of the host.
        HostDevice = "host_device": BlockStatsSpecificFile,
    }

    /// What only files count.
    struct BlockStatsSpecificFile {
        /// How many discards were done.
        discard_nb_ok: u64,
        /// How many discards failed.
        discard_nb_failed: u64,
        /// Bytes that were discarded.
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
