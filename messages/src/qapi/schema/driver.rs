//! Options of protocols and formats. They are checked and stay objects, for the drivers to read.

use super::crypto::BlockdevQcow2Encryption;
use super::node::{BlockdevRef, BlockdevRefOrNull};
use super::socket::SocketAddress;
use crate::qapi::row::qapi;

qapi! {
    /// Options of `file` and `host_device`.
    open struct BlockdevOptionsFile ["dynamic-auto-read-only"] {
        filename: String,
        pr_manager: Option<String>,
        locking: Option<OnOffAuto>,
        aio: Option<BlockdevAioOptions>,
        aio_max_batch: Option<i64>,
        drop_cache: Option<bool>,
        x_check_cache_dropped: Option<bool> ["unstable"],
    }

    /// On, off, or whichever fits.
    enum OnOffAuto {
        /// Whichever of the two fits.
        Auto = "auto",
        /// On, or an error if impossible.
        On = "on",
        /// Off, whatever would be possible.
        Off = "off",
    }

    /// How a file's requests are given to the host.
    enum BlockdevAioOptions {
        /// System calls on threads of a pool.
        Threads = "threads",
        /// Linux's old interface for direct requests.
        Native = "native",
        /// Linux's rings of requests and answers.
        IoUring = "io_uring",
    }

    /// Options of drivers that have a file and nothing else.
    open struct BlockdevOptionsGenericFormat {
        file: BlockdevRef,
    }

    /// Options of the driver `nbd`.
    open struct BlockdevOptionsNbd {
        server: SocketAddress,
        export: Option<String>,
        tls_creds: Option<String>,
        tls_hostname: Option<String>,
        x_dirty_bitmap: Option<String> ["unstable"],
        reconnect_delay: Option<u32>,
        open_timeout: Option<u32>,
    }

    /// Options of `null-co` and `null-aio`.
    open struct BlockdevOptionsNull {
        size: Option<i64>,
        latency_ns: Option<u64>,
        read_zeroes: Option<bool>,
    }

    /// Options of the driver `qcow2`.
    open struct BlockdevOptionsQcow2 {
        file: BlockdevRef,
        backing: Option<BlockdevRefOrNull>,
        lazy_refcounts: Option<bool>,
        pass_discard_request: Option<bool>,
        pass_discard_snapshot: Option<bool>,
        pass_discard_other: Option<bool>,
        discard_no_unref: Option<bool>,
        overlap_check: Option<Qcow2OverlapChecks>,
        cache_size: Option<i64>,
        l2_cache_size: Option<i64>,
        l2_cache_entry_size: Option<i64>,
        refcount_cache_size: Option<i64>,
        cache_clean_interval: Option<i64>,
        encrypt: Option<BlockdevQcow2Encryption>,
        data_file: Option<BlockdevRef>,
        // Not QEMU's: a log keeps what changes dirty by the image's bitmaps, whatever becomes of who has it open.
        x_millpond_bitmap_log: Option<bool> ["unstable"],
    }

    /// Which structures a write of qcow2's is checked against.
    open alternate Qcow2OverlapChecks [Qcow2OverlapCheckFlags, Qcow2OverlapCheckMode];

    /// Each structure by itself, beginning with a template.
    open struct Qcow2OverlapCheckFlags {
        template: Option<Qcow2OverlapCheckMode>,
        main_header: Option<bool>,
        active_l1: Option<bool>,
        active_l2: Option<bool>,
        refcount_table: Option<bool>,
        refcount_block: Option<bool>,
        snapshot_table: Option<bool>,
        inactive_l1: Option<bool>,
        inactive_l2: Option<bool>,
        bitmap_directory: Option<bool>,
    }

    /// How much of an image's structure writes are checked against.
    enum Qcow2OverlapCheckMode {
        /// Nothing of it is checked.
        None = "none",
        /// What takes the same time for every image.
        Constant = "constant",
        /// What is in memory anyway.
        Cached = "cached",
        /// All of it, at whatever price.
        All = "all",
    }

    /// How qcow2 compresses clusters.
    enum Qcow2CompressionType {
        /// The older one, which every version has.
        Zlib = "zlib",
        /// The newer one, which is faster.
        Zstd = "zstd",
    }

    /// Options of the driver `quorum`.
    open struct BlockdevOptionsQuorum {
        blkverify: Option<bool>,
        children: Vec<BlockdevRef>,
        vote_threshold: i64,
        rewrite_corrupted: Option<bool>,
        read_pattern: Option<QuorumReadPattern>,
    }

    /// How a quorum reads its children.
    enum QuorumReadPattern {
        /// It reads all and lets them vote.
        Quorum = "quorum",
        /// It reads the first that answers.
        Fifo = "fifo",
    }

    /// Options of the driver `raw`.
    open struct BlockdevOptionsRaw {
        file: BlockdevRef,
        offset: Option<i64>,
        size: Option<i64>,
    }
}
