//! What a node notes of writes and discards as they end, in the step in which they are answered.

use millpond_messages::{IoError, IoResult, Range};

use super::node::NodeCell;

impl NodeCell {
    /// Notes that a write to a range has ended, in the step in which the driver answered it. A write that failed may have
    /// stored any part of its data: that is to be flushed, is dirty, and may have made the node longer.
    #[inline]
    pub fn write_done(&self, range: Range, result: IoResult<()>) {
        self.rewrite_done(range, result);
        self.bitmaps().mark(range);
    }

    /// Notes the end of a write of what the range read as before: nothing has become dirty.
    #[inline]
    pub fn rewrite_done(&self, range: Range, result: IoResult<()>) {
        #[cfg(test)]
        super::observed::note(self.id, range, result);
        self.changed(result);
        if result.is_ok() {
            self.counters.wrote(range.end());
            if range.end() > self.size.get() {
                self.set_size(range.end());
            }
        }
    }

    /// Notes that a discard of a range has ended. The range may read differently now; the node's length is the same.
    /// A driver that discards nothing has done what was asked.
    pub fn discard_done(&self, range: Range, result: IoResult<()>) -> IoResult<()> {
        self.counters.driver_discarded(range.len(), result.is_err());
        let result = match result {
            Err(IoError::NotSupported) => Ok(()),
            result => result,
        };
        #[cfg(test)]
        super::observed::note(self.id, range, result);
        self.changed(result);
        self.bitmaps().mark(range);
        result
    }

    /// Notes that what a range reads as has changed, or may have.
    #[inline]
    fn changed(&self, result: IoResult<()>) {
        self.mark_unflushed();
        if result.is_err() {
            self.kept.changed();
        }
    }
}
