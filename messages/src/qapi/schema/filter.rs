//! Options of filters. They are checked and stay objects, for the drivers to read.

use super::export::BlockDirtyBitmap;
use super::graph::BlockPermission;
use super::node::BlockdevRef;
use crate::common::DebugEvent;
use crate::qapi::define::{EnumType, Qapi, Type};
use crate::qapi::row::qapi;

qapi! {
    /// Options of the filter `blkdebug`.
    open struct BlockdevOptionsBlkdebug {
        image: BlockdevRef,
        config: Option<String>,
        align: Option<i64>,
        max_transfer: Option<i32>,
        opt_write_zero: Option<i32>,
        max_write_zero: Option<i32>,
        opt_discard: Option<i32>,
        max_discard: Option<i32>,
        inject_error: Option<Vec<BlkdebugInjectErrorOptions>>,
        set_state: Option<Vec<BlkdebugSetStateOptions>>,
        take_child_perms: Option<Vec<BlockPermission>>,
        unshare_child_perms: Option<Vec<BlockPermission>>,
    }

    /// When a request is to fail, and how.
    open struct BlkdebugInjectErrorOptions {
        event: DebugEvent,
        state: Option<i64>,
        iotype: Option<BlkdebugIOType>,
        errno: Option<i64>,
        sector: Option<i64>,
        once: Option<bool>,
        immediately: Option<bool>,
    }

    /// When the rules' state is to change.
    open struct BlkdebugSetStateOptions {
        event: DebugEvent,
        state: Option<i64>,
        new_state as "new_state": i64,
    }

    /// The requests that a rule is for.
    enum BlkdebugIOType {
        /// Reads of the filter's user.
        Read = "read",
        /// Writes of the filter's user.
        Write = "write",
        /// Writes that are zeroes by request.
        WriteZeroes = "write-zeroes",
        /// Discards of the filter's user.
        Discard = "discard",
        /// Flushes of the filter's user.
        Flush = "flush",
        /// Questions about where data is.
        BlockStatus = "block-status",
    }

    /// Options of the filter `blklogwrites`.
    open struct BlockdevOptionsBlklogwrites {
        file: BlockdevRef,
        log: BlockdevRef,
        log_sector_size: Option<u32>,
        log_append: Option<bool>,
        log_super_update_interval: Option<u64>,
    }

    /// Options of the filter `blkverify`.
    open struct BlockdevOptionsBlkverify {
        test: BlockdevRef,
        raw: BlockdevRef,
    }

    /// Options of the filter `throttle`.
    open struct BlockdevOptionsThrottle {
        throttle_group: String,
        file: BlockdevRef,
    }

    /// Options of the filter `copy-before-write`.
    open struct BlockdevOptionsCbw {
        file: BlockdevRef,
        target: BlockdevRef,
        bitmap: Option<BlockDirtyBitmap>,
        on_cbw_error: Option<OnCbwError>,
        cbw_timeout: Option<u32>,
        min_cluster_size: Option<u64>,
    }

    /// What becomes of a write whose old data cannot be kept.
    enum OnCbwError {
        /// It fails.
        BreakGuestWrite = "break-guest-write",
        /// It goes on, and what was kept is lost.
        BreakSnapshot = "break-snapshot",
    }

    /// Options of the filter `copy-on-read`.
    open struct BlockdevOptionsCor {
        file: BlockdevRef,
        bottom: Option<String>,
    }

    /// Options of the filter `preallocate`.
    open struct BlockdevOptionsPreallocate {
        file: BlockdevRef,
        prealloc_align: Option<i64>,
        prealloc_size: Option<i64>,
    }
}

impl Qapi for DebugEvent {
    const TYPE: Type = Type::Enum(|| {
        static SCHEMA: EnumType = EnumType {
            name: "BlkdebugEvent",
            values: DebugEvent::NAMES,
            features: &[],
        };
        &SCHEMA
    });
}
