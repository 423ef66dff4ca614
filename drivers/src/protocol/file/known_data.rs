//! A cache of one answer: the range of a file that was last found to be data.

use std::cell::Cell;

/// A range known to be data, so that walking through a file does not ask the kernel at every step.
///
/// Only zero writes, discards and truncation make holes; all of them go through [`KnownData::forget`]. Another
/// process may make holes as well: then data is reported where zeroes could be, which is never wrong.
#[derive(Debug, Default)]
pub(super) struct KnownData {
    range: Cell<Option<(u64, u64)>>,
    /// Counts what may have made holes, so that an answer that was under way meanwhile is not remembered.
    changes: Cell<u64>,
}

impl KnownData {
    /// Holes may have come about, or are about to.
    pub(super) fn forget(&self) {
        self.range.set(None);
        self.changes.set(self.changes.get().wrapping_add(1));
    }

    /// How many bytes from `offset` on are known to be data.
    pub(super) fn len_from(&self, offset: u64) -> Option<u64> {
        let (start, end) = self.range.get()?;
        (start <= offset && offset < end).then(|| end - offset)
    }

    /// What has been counted so far of what may have made holes.
    pub(super) fn changes(&self) -> u64 {
        self.changes.get()
    }

    /// Remembers a range as data, unless holes may have come about since `changes` was read.
    pub(super) fn remember(&self, changes: u64, start: u64, end: u64) {
        if changes == self.changes.get() {
            self.range.set(Some((start, end)));
        }
    }
}
