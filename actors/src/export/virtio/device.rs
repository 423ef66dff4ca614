//! The device that all queues of an export share.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::config::Facts;

/// What the guest reads where it asks for the device's name; at most 20 bytes.
pub(in crate::export) const SERIAL: &[u8] = b"vhost_user_blk";

/// The device behind an export. Its length and its cache change while it is used.
#[derive(Debug)]
pub(in crate::export) struct Device {
    size: AtomicU64,
    write_cache: AtomicBool,
    block_size: u32,
    queues: u16,
    writable: bool,
}

impl Device {
    /// A device of so many bytes, with a write cache.
    pub(in crate::export) fn new(size: u64, block_size: u32, queues: u16, writable: bool) -> Self {
        Self {
            size: AtomicU64::new(size),
            write_cache: AtomicBool::new(true),
            block_size,
            queues,
            writable,
        }
    }

    /// How many queues it has.
    pub(in crate::export) const fn queues(&self) -> u16 {
        self.queues
    }

    /// Whether guests may write.
    pub(in crate::export) const fn is_writable(&self) -> bool {
        self.writable
    }

    /// What requests must be aligned to, in bytes.
    pub(in crate::export) const fn block_size(&self) -> u32 {
        self.block_size
    }

    /// Its length in bytes.
    pub(in crate::export) fn size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    /// Notes its length in bytes; true if it was another.
    pub(in crate::export) fn set_size(&self, size: u64) -> bool {
        self.size.swap(size, Ordering::Relaxed) != size
    }

    /// Whether what is written is kept in a cache until it is flushed.
    pub(in crate::export) fn has_write_cache(&self) -> bool {
        self.write_cache.load(Ordering::Relaxed)
    }

    /// Gives it a write cache, or none.
    pub(in crate::export) fn set_write_cache(&self, on: bool) {
        self.write_cache.store(on, Ordering::Relaxed);
    }

    /// What guests are told of it now.
    pub(in crate::export) fn facts(&self) -> Facts {
        Facts {
            size: self.size(),
            block_size: self.block_size,
            queues: self.queues,
            writable: self.writable,
            write_cache: self.has_write_cache(),
        }
    }
}
