//! Counters of what passes a node: plain numbers of its iothread, shown by `query-blockstats`.
//!
//! A request is counted once at each node that it passes, when it ends. Its time is taken from the clock that an iothread
//! looks at once for all that a task does: see [`now_ns`].

use std::cell::{Cell, RefCell};

use millpond_messages::io::OperationKind;
use millpond_messages::{LatencyHistograms, NodeStatistics, OperationCount};

use crate::iothread::now_ns;

/// A request as it arrived at a node, or a piece of one.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    kind: OperationKind,
    len: u64,
    since_ns: u64,
}

impl Asked {
    /// A request that arrives now.
    #[inline]
    pub fn now(kind: OperationKind, len: u64) -> Self {
        Self {
            kind,
            len,
            since_ns: now_ns(),
        }
    }

    /// The kind of the request.
    #[inline]
    pub fn kind(self) -> OperationKind {
        self.kind
    }

    /// The time at which it arrived, in nanoseconds.
    #[inline]
    pub fn since_ns(self) -> u64 {
        self.since_ns
    }

    /// How many bytes it is about.
    #[inline]
    pub fn len(self) -> u64 {
        self.len
    }

    /// Only its first `len` bytes.
    pub fn cut(self, len: u64) -> Self {
        Self { len, ..self }
    }
}

/// The kinds of operations, by their numbers.
const KINDS: usize = OperationKind::Query as usize + 1;

/// The live counters, all of one iothread.
#[derive(Debug, Clone, Default)]
pub struct Counters {
    kinds: [Counted; KINDS],
    /// What the driver was asked to discard.
    driver_discard: Counted,
    /// When a request ended last, or was refused; 0 if none was.
    last_ns: Cell<u64>,
    highest_write: Cell<u64>,
    /// Whether there are histograms, which every request looks at.
    has_histograms: Cell<bool>,
    histograms: RefCell<Option<Box<LatencyHistograms>>>,
}

/// Requests of one kind.
#[derive(Debug, Clone, Default)]
struct Counted {
    operations: Cell<u64>,
    bytes: Cell<u64>,
    total_time_ns: Cell<u64>,
    failed: Cell<u64>,
    invalid: Cell<u64>,
}

#[inline]
fn add(counter: &Cell<u64>, more: u64) {
    counter.set(counter.get().wrapping_add(more));
}

impl Counted {
    fn get(&self) -> OperationCount {
        OperationCount {
            operations: self.operations.get(),
            bytes: self.bytes.get(),
            failed: self.failed.get(),
            invalid: self.invalid.get(),
            total_time_ns: self.total_time_ns.get(),
        }
    }

    #[inline]
    fn ended(&self, len: u64, failed: bool) {
        if failed {
            add(&self.failed, 1);
        } else {
            add(&self.operations, 1);
            add(&self.bytes, len);
        }
    }
}

impl Counters {
    /// The counters at `now_ns`.
    pub fn get(&self, now_ns: u64) -> NodeStatistics {
        let of = |kind: OperationKind| self.kinds[kind as usize].get();
        let last = self.last_ns.get();
        NodeStatistics {
            read: of(OperationKind::Read),
            write: of(OperationKind::Write),
            write_zeroes: of(OperationKind::WriteZeroes),
            discard: of(OperationKind::Discard),
            flush: of(OperationKind::Flush),
            truncate: of(OperationKind::Truncate),
            block_status: of(OperationKind::BlockStatus),
            highest_write: self.highest_write.get(),
            idle_ns: (last > 0).then(|| now_ns.saturating_sub(last)),
            driver_discard: self.driver_discard.get(),
            histograms: self.histograms.borrow().as_deref().cloned().unwrap_or_default(),
        }
    }

    /// Data was stored up to `end`.
    pub fn wrote(&self, end: u64) {
        self.highest_write.set(self.highest_write.get().max(end));
    }

    /// The end of the highest write so far.
    pub fn highest_write(&self) -> u64 {
        self.highest_write.get()
    }

    /// What was written so far is other data's now.
    pub fn set_highest_write(&self, end: u64) {
        self.highest_write.set(end);
    }

    /// Counts a request that ended at `now_ns`.
    #[inline]
    pub fn count(&self, asked: Asked, now_ns: u64, failed: bool) {
        let took = now_ns.saturating_sub(asked.since_ns);
        let counted = &self.kinds[asked.kind as usize];
        counted.ended(asked.len, failed);
        add(&counted.total_time_ns, took);
        self.last_ns.set(now_ns);
        if self.has_histograms.get()
            && let Some(histograms) = self.histograms.borrow_mut().as_deref_mut()
        {
            histograms.count(asked.kind, took);
        }
    }

    /// Counts a request that was refused before a driver saw it.
    #[cold]
    pub fn refuse(&self, kind: OperationKind) {
        add(&self.kinds[kind as usize].invalid, 1);
        self.last_ns.set(now_ns());
    }

    /// Counts a discard that the driver was asked for.
    pub fn driver_discarded(&self, len: u64, failed: bool) {
        self.driver_discard.ended(len, failed);
    }

    /// Begins new histograms, in place of those of the same kinds; none at all ends those that there are.
    pub fn set_histograms(&self, new: LatencyHistograms) {
        let mut histograms = self.histograms.borrow_mut();
        self.has_histograms.set(!new.is_empty());
        if new.is_empty() {
            *histograms = None;
            return;
        }
        let kept = histograms.get_or_insert_default();
        kept.read = new.read.or(kept.read.take());
        kept.write = new.write.or(kept.write.take());
        kept.flush = new.flush.or(kept.flush.take());
    }
}
