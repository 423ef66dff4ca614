//! The device that all queues of an export share.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use millpond_messages::{Error, ErrorKind, Result};

use super::config::Facts;

/// Bytes that the guest reads where it asks for the device's serial number.
pub(in crate::export) const SERIAL: usize = 20;

/// Bytes of a block if nothing else is said.
const DEFAULT_BLOCK_SIZE: u32 = 512;
/// The largest blocks that there are, in bytes.
const MAX_BLOCK_SIZE: u32 = 2 << 20;

/// What never changes of a device.
#[derive(Debug, Clone)]
pub(in crate::export) struct Shape {
    /// What requests must be aligned to, in bytes.
    pub(in crate::export) block_size: u32,
    /// How many queues it has.
    pub(in crate::export) queues: u16,
    /// How many descriptors a request has at most.
    pub(in crate::export) longest: u16,
    /// Whether guests may write.
    pub(in crate::export) writable: bool,
    /// What the guest reads where it asks for the device's serial number, with zeroes behind it.
    pub(in crate::export) serial: [u8; SERIAL],
    /// The features of how guests reach it.
    pub(in crate::export) transport: u64,
}

/// The device behind an export. Its length and its cache change while it is used.
#[derive(Debug)]
pub(in crate::export) struct Device {
    size: AtomicU64,
    write_cache: AtomicBool,
    shape: Shape,
}

/// The size of blocks that an option gives, in bytes. None is as good as 0: the usual one.
///
/// # Errors
/// QEMU's text: no block has that size.
pub(in crate::export) fn block_size(given: Option<u64>) -> Result<u32> {
    let given = match given.unwrap_or_default() {
        0 => return Ok(DEFAULT_BLOCK_SIZE),
        given => u32::try_from(given).ok(),
    };
    let possible =
        given.filter(|size| size.is_power_of_two() && (DEFAULT_BLOCK_SIZE..=MAX_BLOCK_SIZE).contains(size));
    possible.ok_or_else(|| {
        let text = "parameter logical-block-size must be a power of 2 between 512 and 2097152";
        Error::new(ErrorKind::InvalidArgument, text)
    })
}

/// A serial number as guests read it: cut where it is too long.
pub(in crate::export) fn serial(text: &str) -> [u8; SERIAL] {
    let mut serial = [0; SERIAL];
    for (byte, given) in serial.iter_mut().zip(text.bytes()) {
        *byte = given;
    }
    serial
}

impl Device {
    /// A device of so many bytes, with a write cache.
    pub(in crate::export) fn new(size: u64, shape: Shape) -> Self {
        Self {
            size: AtomicU64::new(size),
            write_cache: AtomicBool::new(true),
            shape,
        }
    }

    /// How many queues it has.
    pub(in crate::export) const fn queues(&self) -> u16 {
        self.shape.queues
    }

    /// Whether guests may write.
    pub(in crate::export) const fn is_writable(&self) -> bool {
        self.shape.writable
    }

    /// What requests must be aligned to, in bytes.
    pub(in crate::export) const fn block_size(&self) -> u32 {
        self.shape.block_size
    }

    /// What the guest reads where it asks for the device's serial number.
    pub(in crate::export) const fn serial(&self) -> &[u8; SERIAL] {
        &self.shape.serial
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
            block_size: self.shape.block_size,
            queues: self.shape.queues,
            longest: self.shape.longest,
            writable: self.shape.writable,
            write_cache: self.has_write_cache(),
            transport: self.shape.transport,
        }
    }
}
