//! Counters of what a node was asked over its root edges and by its parents.

use std::cell::Cell;

use messages::io::OperationKind;

/// A node's counters at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Statistics {
    /// Reads answered.
    pub reads: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Writes answered.
    pub writes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Zero writes answered.
    pub zero_writes: u64,
    /// Bytes zeroed.
    pub zeroed_bytes: u64,
    /// Discards answered.
    pub discards: u64,
    /// Bytes discarded.
    pub discarded_bytes: u64,
    /// Flushes answered.
    pub flushes: u64,
    /// Requests that failed, of any kind.
    pub failed: u64,
    /// The highest offset ever written to, in bytes: the end of that write.
    pub highest_write: u64,
}

/// The live counters.
#[derive(Debug, Default)]
pub struct Counters(Cell<Statistics>);

impl Counters {
    /// Goes on from counters brought along.
    pub fn from_statistics(statistics: Statistics) -> Self {
        Self(Cell::new(statistics))
    }

    /// The counters now.
    pub fn get(&self) -> Statistics {
        self.0.get()
    }

    /// Data was stored up to `end`.
    pub fn wrote(&self, end: u64) {
        let mut now = self.0.get();
        now.highest_write = now.highest_write.max(end);
        self.0.set(now);
    }

    /// Counts an answered request.
    pub fn count(&self, kind: OperationKind, len: u64, failed: bool) {
        let mut now = self.0.get();
        if failed {
            now.failed = now.failed.wrapping_add(1);
        } else {
            now.add(kind, len);
        }
        self.0.set(now);
    }
}

impl Statistics {
    fn add(&mut self, kind: OperationKind, len: u64) {
        let (count, bytes) = match kind {
            OperationKind::Read => (&mut self.reads, &mut self.read_bytes),
            OperationKind::Write => (&mut self.writes, &mut self.written_bytes),
            OperationKind::WriteZeroes => (&mut self.zero_writes, &mut self.zeroed_bytes),
            OperationKind::Discard => (&mut self.discards, &mut self.discarded_bytes),
            OperationKind::Flush => {
                self.flushes = self.flushes.wrapping_add(1);
                return;
            }
            OperationKind::Truncate | OperationKind::BlockStatus | OperationKind::Query => return,
        };
        *count = count.wrapping_add(1);
        *bytes = bytes.wrapping_add(len);
    }
}
