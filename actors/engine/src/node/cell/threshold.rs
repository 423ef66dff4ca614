//! The write threshold: an offset whose passing by a write is reported once, so that the storage below can be made longer
//! in time. As QEMU's: a write counts as it begins, with the whole blocks that it touches, and whether it succeeds or not.

use std::cell::Cell;

use millpond_drivers::api::Notice;

use super::node::NodeCell;

/// Stands for no threshold: no request ends past it, so that one compare is all that a write costs.
const NONE: u64 = u64::MAX;

/// The offset past which a write is reported, until one was.
pub struct WriteThreshold(Cell<u64>);

impl WriteThreshold {
    /// A threshold at an offset; 0 is none.
    pub fn new(offset: u64) -> Self {
        let threshold = Self(Cell::new(NONE));
        threshold.set(offset);
        threshold
    }

    /// Has writes past an offset reported; 0 for none.
    pub fn set(&self, offset: u64) {
        self.0.set(if offset == 0 { NONE } else { offset });
    }

    /// The offset; 0 if there is none.
    pub fn get(&self) -> u64 {
        match self.0.get() {
            NONE => 0,
            offset => offset,
        }
    }
}

impl NodeCell {
    /// Reports a write, zero write or discard that ends past the threshold, and forgets the threshold.
    #[inline]
    pub fn check_threshold(&self, end: u64) {
        if end > self.write_threshold().0.get() {
            self.pass_threshold(end);
        }
    }

    #[cold]
    fn pass_threshold(&self, end: u64) {
        let threshold = self.write_threshold().0.replace(NONE);
        let block = u64::from(self.limits().request_alignment).max(1);
        let end = end.checked_next_multiple_of(block).unwrap_or(end);
        let exceeded = end.saturating_sub(threshold);
        let notices = self.home().notices(self.id(), self.name());
        notices.report(Notice::PassedThreshold { exceeded, threshold });
    }
}
