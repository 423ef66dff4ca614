//! What a virtio block device tells of itself: its features and its configuration (Virtio 1.2, section 5.2).

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{Immutable, IntoBytes};

/// The features of block devices and of rings, as bits.
pub(in crate::export) mod feature {
    pub const SEG_MAX: u64 = 1 << 2;
    pub const RO: u64 = 1 << 5;
    pub const BLK_SIZE: u64 = 1 << 6;
    pub const FLUSH: u64 = 1 << 9;
    pub const CONFIG_WCE: u64 = 1 << 11;
    pub const MQ: u64 = 1 << 12;
    pub const DISCARD: u64 = 1 << 13;
    pub const WRITE_ZEROES: u64 = 1 << 14;
    pub const RING_INDIRECT_DESC: u64 = 1 << 28;
    pub const RING_EVENT_IDX: u64 = 1 << 29;
    /// Of vhost-user: the two programs can agree on more. Not of the guest.
    pub const PROTOCOL_FEATURES: u64 = 1 << 30;
    pub const VERSION_1: u64 = 1 << 32;
    /// Addresses are not the guest's own, but what the platform makes of them.
    pub const ACCESS_PLATFORM: u64 = 1 << 33;
}

/// The most sectors that a guest may ask to discard or to zero at once.
pub(in crate::export) const MAX_SECTORS: u32 = 32768;
/// Descriptors of a request that are not of its data: header and status.
const NO_DATA: u16 = 2;
/// Where the configuration says whether there is a write cache, in bytes.
pub(in crate::export) const WCE_AT: u32 = 32;

/// `struct virtio_blk_config`, as far as devices of ours have it.
#[derive(Debug, Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
pub(in crate::export) struct Config {
    /// Sectors of 512 bytes.
    pub(in crate::export) capacity: U64,
    /// No limit is told of.
    size_max: U32,
    seg_max: U32,
    geometry: [u8; 4],
    blk_size: U32,
    physical_block_exp: u8,
    alignment_offset: u8,
    min_io_size: U16,
    opt_io_size: U32,
    wce: u8,
    unused: u8,
    num_queues: U16,
    max_discard_sectors: U32,
    max_discard_seg: U32,
    discard_sector_alignment: U32,
    max_write_zeroes_sectors: U32,
    max_write_zeroes_seg: U32,
    write_zeroes_may_unmap: u8,
    padding: [u8; 3],
}

/// What is told of a device.
#[derive(Debug, Clone, Copy)]
pub(in crate::export) struct Facts {
    /// The device's length in bytes.
    pub(in crate::export) size: u64,
    /// In bytes, a power of two from 512 on.
    pub(in crate::export) block_size: u32,
    pub(in crate::export) queues: u16,
    /// How many descriptors a request has at most.
    pub(in crate::export) longest: u16,
    pub(in crate::export) writable: bool,
    /// What is written is kept in a cache until it is flushed.
    pub(in crate::export) write_cache: bool,
    /// The features of how guests reach it.
    pub(in crate::export) transport: u64,
}

impl Facts {
    /// The features that it offers.
    pub(in crate::export) const fn features(&self) -> u64 {
        use feature as f;
        let rings = f::RING_INDIRECT_DESC | f::RING_EVENT_IDX | f::VERSION_1;
        let block = f::SEG_MAX | f::BLK_SIZE | f::FLUSH | f::MQ | f::DISCARD | f::WRITE_ZEROES;
        rings | block | self.transport | if self.writable { 0 } else { f::RO }
    }

    /// The configuration that the guest reads.
    pub(in crate::export) fn config(&self) -> Config {
        Config {
            capacity: U64::new(self.size / 512),
            size_max: U32::ZERO,
            seg_max: U32::new(self.longest.saturating_sub(NO_DATA).into()),
            geometry: [0; 4],
            blk_size: U32::new(self.block_size),
            physical_block_exp: 0,
            alignment_offset: 0,
            min_io_size: U16::ZERO,
            opt_io_size: U32::ZERO,
            wce: self.write_cache.into(),
            unused: 0,
            num_queues: U16::new(self.queues),
            max_discard_sectors: U32::new(MAX_SECTORS),
            max_discard_seg: U32::new(1),
            discard_sector_alignment: U32::new(self.block_size / 512),
            max_write_zeroes_sectors: U32::new(MAX_SECTORS),
            max_write_zeroes_seg: U32::new(1),
            write_zeroes_may_unmap: 1,
            padding: [0; 3],
        }
    }
}

const _: () = assert!(size_of::<Config>() == 60);
const _: () = assert!(std::mem::offset_of!(Config, wce) == WCE_AT as usize);
