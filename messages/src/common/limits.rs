//! Limits: of every request, and of a particular node.

use serde::{Deserialize, Serialize};

use super::range::Range;
use crate::error::{Error, ErrorKind, IoError, Result};

/// Bytes in a sector.
pub const SECTOR_SIZE: u64 = 512;
/// The most sectors one request may span.
pub const REQUEST_MAX_SECTORS: u64 = REQUEST_MAX_BYTES / SECTOR_SIZE;
/// The most bytes one request with data may span: what a signed 32-bit count of bytes holds, in whole sectors.
pub const REQUEST_MAX_BYTES: u64 = (i32::MAX as u64) / SECTOR_SIZE * SECTOR_SIZE;
/// The largest alignment that a node may ask for, in bytes.
pub const MAX_ALIGNMENT: u64 = 1 << 30;
/// The longest that a node may be, in bytes: the largest aligned offset that a signed 64-bit number holds.
pub const MAX_LENGTH: u64 = (i64::MAX as u64) / MAX_ALIGNMENT * MAX_ALIGNMENT;

/// What a node asks of the requests it is sent, merged from its driver and its children. Sizes are in bytes; 0 means
/// that there is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Offsets and lengths of reads and writes must be multiples of this power of two.
    pub request_alignment: u32,
    /// Addresses of buffers must be multiples of this power of two.
    pub mem_alignment: u32,
    /// Addresses of buffers had better be multiples of this power of two.
    pub opt_mem_alignment: u32,
    /// The most data in one request.
    pub max_transfer: u32,
    /// The amount of data that goes fastest.
    pub opt_transfer: u32,
    /// The longest zero write.
    pub max_write_zeroes: u64,
    /// Zero writes are best multiples of this.
    pub write_zeroes_alignment: u32,
    /// The longest discard, in bytes; 0 for no limit.
    pub max_discard: u64,
    /// Discards are best multiples of this.
    pub discard_alignment: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            request_alignment: 1,
            mem_alignment: 1,
            opt_mem_alignment: 4096,
            max_transfer: 0,
            opt_transfer: 0,
            max_write_zeroes: 0,
            write_zeroes_alignment: 0,
            max_discard: 0,
            discard_alignment: 0,
        }
    }
}

/// What a driver asks of requests that no request can be made to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    /// An alignment is larger than [`MAX_ALIGNMENT`].
    #[error("Driver requires too large request alignment")]
    Alignment,
    /// Blocks are found by masks.
    #[error("Driver requires an alignment of {0} bytes, which is no power of two")]
    NoPowerOfTwo(u32),
}

impl From<LimitError> for crate::Error {
    fn from(error: LimitError) -> Self {
        Self::new(crate::ErrorKind::InvalidArgument, error.to_string())
    }
}

impl Limits {
    /// Holds what must be true of the limits of every node: alignments are powers of two, and that of requests is no larger
    /// than [`MAX_ALIGNMENT`].
    ///
    /// # Errors
    /// Says which alignment cannot be.
    pub fn check(&self) -> Result<(), LimitError> {
        if u64::from(self.request_alignment) > MAX_ALIGNMENT {
            return Err(LimitError::Alignment);
        }
        for alignment in [self.request_alignment, self.mem_alignment, self.opt_mem_alignment] {
            if !alignment.is_power_of_two() {
                return Err(LimitError::NoPowerOfTwo(alignment));
            }
        }
        Ok(())
    }

    /// Takes over what a child demands of memory and transfers: the stricter of both.
    pub fn merge_child(&mut self, child: &Self) {
        self.mem_alignment = self.mem_alignment.max(child.mem_alignment);
        self.opt_mem_alignment = self.opt_mem_alignment.max(child.opt_mem_alignment);
        self.opt_transfer = self.opt_transfer.max(child.opt_transfer);
        self.max_transfer = match (self.max_transfer, child.max_transfer) {
            (0, other) | (other, 0) => other,
            (a, b) => a.min(b),
        };
    }
}

/// Why a request's range is refused before any driver sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// `offset + len` does not fit.
    #[error("the range at {offset} of {len} bytes passes the largest offset")]
    Overflow {
        /// The request's first byte.
        offset: u64,
        /// The request's length in bytes.
        len: u64,
    },
    /// More data than one request may carry.
    #[error("{len} bytes are more than one request may carry")]
    TooLong {
        /// The request's length in bytes.
        len: u64,
    },
}

impl From<RangeError> for IoError {
    fn from(_: RangeError) -> Self {
        Self::OutOfRange
    }
}

/// Checks that a request may span a range: its end within [`MAX_LENGTH`], and no more than [`REQUEST_MAX_BYTES`] where it
/// carries data.
///
/// # Errors
/// Says which of the two is broken.
pub const fn check_range(range: Range, carries_data: bool) -> Result<(), RangeError> {
    let (offset, len) = (range.offset(), range.len());
    if range.end() > MAX_LENGTH {
        return Err(RangeError::Overflow { offset, len });
    }
    if carries_data && len > REQUEST_MAX_BYTES {
        return Err(RangeError::TooLong { len });
    }
    Ok(())
}

/// Checks a length that an image is to get: at most [`MAX_LENGTH`].
///
/// # Errors
/// It is longer. What does not fit in a signed number is one below zero to those who sent it.
pub fn check_length(size: u64) -> Result<()> {
    let text = if i64::try_from(size).is_err() {
        "Image size cannot be negative".to_owned()
    } else if size > MAX_LENGTH {
        format!("offset({size}) exceeds maximum({MAX_LENGTH})")
    } else {
        return Ok(());
    };
    Err(Error::new(ErrorKind::InvalidArgument, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_past_the_limit_are_refused() {
        let text = |size| check_length(size).unwrap_err().to_string();
        assert!(check_length(MAX_LENGTH).is_ok());
        assert_eq!(
            text(MAX_LENGTH + 1),
            "offset(9223372035781033985) exceeds maximum(9223372035781033984)"
        );
        assert_eq!(text(1 << 63), "Image size cannot be negative");
    }

    #[test]
    fn ranges_past_the_limits_are_refused() {
        let check = |offset, len, data| check_range(Range::new(offset, len)?, data);
        assert!(check(0, REQUEST_MAX_BYTES, true).is_ok());
        assert_eq!(
            check(0, REQUEST_MAX_BYTES + 1, true),
            Err(RangeError::TooLong {
                len: REQUEST_MAX_BYTES + 1
            })
        );
        assert!(check(0, REQUEST_MAX_BYTES + 1, false).is_ok());
        assert!(check(MAX_LENGTH, 1, false).is_err());
        assert!(check(u64::MAX, 1, false).is_err());
        assert_eq!(REQUEST_MAX_SECTORS * SECTOR_SIZE, REQUEST_MAX_BYTES);
        assert_eq!(MAX_LENGTH % MAX_ALIGNMENT, 0);
    }

    #[test]
    fn the_stricter_limit_wins() {
        let mut limits = Limits {
            max_transfer: 0,
            ..Limits::default()
        };
        limits.merge_child(&Limits {
            max_transfer: 1 << 20,
            mem_alignment: 512,
            ..Limits::default()
        });
        assert_eq!((limits.max_transfer, limits.mem_alignment), (1 << 20, 512));
        limits.merge_child(&Limits {
            max_transfer: 1 << 16,
            ..Limits::default()
        });
        assert_eq!(limits.max_transfer, 1 << 16);
    }
}
