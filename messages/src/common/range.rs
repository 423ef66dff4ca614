//! Ranges of bytes, whose ends need no check once they are made.

use super::limits::RangeError;

/// So many bytes from an offset on. Its end fits in an offset: nobody who has one checks that again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Range {
    offset: u64,
    len: u64,
}

impl Range {
    /// `len` bytes from `offset` on.
    ///
    /// # Errors
    /// The end passes the largest offset.
    #[inline]
    pub const fn new(offset: u64, len: u64) -> Result<Self, RangeError> {
        match offset.checked_add(len) {
            Some(_) => Ok(Self { offset, len }),
            None => Err(RangeError::Overflow { offset, len }),
        }
    }

    /// The bytes from `start` up to `end`; none where that lies before.
    #[inline]
    #[must_use]
    pub const fn between(start: u64, end: u64) -> Self {
        Self {
            offset: start,
            len: end.saturating_sub(start),
        }
    }

    /// The first byte that is in it.
    #[inline]
    #[must_use]
    pub const fn offset(self) -> u64 {
        self.offset
    }

    /// How many bytes there are.
    #[inline]
    #[must_use]
    pub const fn len(self) -> u64 {
        self.len
    }

    /// The first byte that is not in it any more.
    #[inline]
    #[must_use]
    pub const fn end(self) -> u64 {
        self.offset + self.len
    }

    /// Whether there are no bytes in it.
    #[inline]
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.len == 0
    }

    /// Its first `len` bytes, or all where there are no more.
    #[inline]
    #[must_use]
    pub const fn first(self, len: u64) -> Self {
        Self {
            offset: self.offset,
            len: if len < self.len { len } else { self.len },
        }
    }

    /// What is left behind its first `len` bytes.
    #[inline]
    #[must_use]
    pub const fn after(self, len: u64) -> Self {
        let first = self.first(len);
        Self {
            offset: first.end(),
            len: self.len - first.len,
        }
    }

    /// As many bytes elsewhere.
    ///
    /// # Errors
    /// They would pass the largest offset there.
    #[inline]
    pub const fn moved_to(self, offset: u64) -> Result<Self, RangeError> {
        Self::new(offset, self.len)
    }

    /// All blocks of `block` bytes that it touches; 0 counts as 1.
    ///
    /// # Errors
    /// The last of them would pass the largest offset.
    #[inline]
    pub const fn widened_to(self, block: u64) -> Result<Self, RangeError> {
        let block = if block == 0 { 1 } else { block };
        let start = self.offset / block * block;
        match self.end().checked_next_multiple_of(block) {
            Some(end) => Ok(Self::between(start, end)),
            None => Err(RangeError::Overflow {
                offset: self.offset,
                len: self.len,
            }),
        }
    }

    /// Whether it begins and ends with a block of `block` bytes; 0 counts as 1.
    #[inline]
    #[must_use]
    pub const fn is_multiple_of(self, block: u64) -> bool {
        let block = if block == 0 { 1 } else { block };
        self.offset.is_multiple_of(block) && self.len.is_multiple_of(block)
    }

    /// Whether there is a byte in both.
    #[inline]
    #[must_use]
    pub const fn overlaps(self, other: Self) -> bool {
        self.offset < other.end() && other.offset < self.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(offset: u64, len: u64) -> Range {
        Range::new(offset, len).unwrap()
    }

    #[test]
    fn a_range_that_would_pass_the_largest_offset_is_not_made() {
        assert_eq!(range(u64::MAX, 0).end(), u64::MAX);
        assert_eq!(range(0, u64::MAX).end(), u64::MAX);
        let overflow = |offset, len| Err(RangeError::Overflow { offset, len });
        assert_eq!(Range::new(u64::MAX, 1), overflow(u64::MAX, 1));
        assert_eq!(Range::new(1, u64::MAX), overflow(1, u64::MAX));
        assert_eq!(range(10, 20).moved_to(u64::MAX - 19), overflow(u64::MAX - 19, 20));
        assert_eq!(range(u64::MAX - 1, 1).widened_to(512), overflow(u64::MAX - 1, 1));
    }

    #[test]
    fn parts_of_a_range_stay_within_it() {
        let whole = range(100, 50);
        assert_eq!(
            (whole.first(20), whole.after(20)),
            (range(100, 20), range(120, 30))
        );
        assert_eq!((whole.first(60), whole.after(60)), (whole, range(150, 0)));
        assert!(whole.after(50).is_empty());
        assert_eq!(Range::between(7, 3), range(7, 0));
    }

    #[test]
    fn blocks_that_a_range_touches_are_whole() {
        assert_eq!(range(513, 1).widened_to(512), Ok(range(512, 512)));
        assert_eq!(range(512, 512).widened_to(512), Ok(range(512, 512)));
        assert_eq!(range(511, 2).widened_to(512), Ok(range(0, 1024)));
        assert_eq!(range(7, 3).widened_to(0), Ok(range(7, 3)));
        assert!(range(512, 1024).is_multiple_of(512) && !range(512, 1000).is_multiple_of(512));
        assert!(range(3, 5).is_multiple_of(0));
    }

    #[test]
    fn ranges_that_only_touch_do_not_overlap() {
        assert!(range(0, 10).overlaps(range(9, 1)) && range(9, 1).overlaps(range(0, 10)));
        assert!(!range(0, 10).overlaps(range(10, 5)) && !range(10, 5).overlaps(range(0, 10)));
    }
}
