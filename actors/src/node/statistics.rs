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

/// The live counters. Each is a cell of its own: a request changes two of them.
#[derive(Debug, Default)]
pub struct Counters {
    reads: Counted,
    writes: Counted,
    zero_writes: Counted,
    discards: Counted,
    flushes: Counted,
    failed: Cell<u64>,
    highest_write: Cell<u64>,
}

/// Requests of one kind, and bytes.
#[derive(Debug, Default)]
struct Counted {
    requests: Cell<u64>,
    bytes: Cell<u64>,
}

impl Counted {
    fn new(requests: u64, bytes: u64) -> Self {
        Self {
            requests: Cell::new(requests),
            bytes: Cell::new(bytes),
        }
    }

    #[inline]
    fn add(&self, bytes: u64) {
        self.requests.set(self.requests.get().wrapping_add(1));
        self.bytes.set(self.bytes.get().wrapping_add(bytes));
    }
}

impl Counters {
    /// Goes on from counters brought along.
    pub fn from_statistics(statistics: Statistics) -> Self {
        Self {
            reads: Counted::new(statistics.reads, statistics.read_bytes),
            writes: Counted::new(statistics.writes, statistics.written_bytes),
            zero_writes: Counted::new(statistics.zero_writes, statistics.zeroed_bytes),
            discards: Counted::new(statistics.discards, statistics.discarded_bytes),
            flushes: Counted::new(statistics.flushes, 0),
            failed: Cell::new(statistics.failed),
            highest_write: Cell::new(statistics.highest_write),
        }
    }

    /// The counters now.
    pub fn get(&self) -> Statistics {
        Statistics {
            reads: self.reads.requests.get(),
            read_bytes: self.reads.bytes.get(),
            writes: self.writes.requests.get(),
            written_bytes: self.writes.bytes.get(),
            zero_writes: self.zero_writes.requests.get(),
            zeroed_bytes: self.zero_writes.bytes.get(),
            discards: self.discards.requests.get(),
            discarded_bytes: self.discards.bytes.get(),
            flushes: self.flushes.requests.get(),
            failed: self.failed.get(),
            highest_write: self.highest_write.get(),
        }
    }

    /// Data was stored up to `end`.
    pub fn wrote(&self, end: u64) {
        self.highest_write.set(self.highest_write.get().max(end));
    }

    /// What was written so far is other data's now.
    pub fn set_highest_write(&self, end: u64) {
        self.highest_write.set(end);
    }

    /// Counts an answered request.
    #[inline]
    pub fn count(&self, kind: OperationKind, len: u64, failed: bool) {
        if failed {
            self.failed.set(self.failed.get().wrapping_add(1));
            return;
        }
        match kind {
            OperationKind::Read => self.reads.add(len),
            OperationKind::Write => self.writes.add(len),
            OperationKind::WriteZeroes => self.zero_writes.add(len),
            OperationKind::Discard => self.discards.add(len),
            OperationKind::Flush => self.flushes.add(0),
            OperationKind::Truncate | OperationKind::BlockStatus | OperationKind::Query => {}
        }
    }
}
