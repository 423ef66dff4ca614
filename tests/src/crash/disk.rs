//! A disk in memory that remembers what was done to it and when, takes its time, and fails where it is told to.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use millpond_messages::IoError;

/// The unit that a disk writes whole or not at all.
pub const SECTOR: u64 = 512;

/// Orders what happens on several disks and at their users.
#[derive(Debug, Default)]
pub struct Clock(AtomicU64);

impl Clock {
    /// A time later than all before.
    pub fn tick(&self) -> u64 {
        self.0.fetch_add(1, Ordering::SeqCst) + 1
    }
}

/// What changed on a disk.
#[derive(Debug, Clone)]
pub enum Change {
    /// Bytes were stored at an offset.
    Write(u64, Vec<u8>),
    /// A range became zeroes.
    Zero(u64, u64),
    /// A range was forgotten.
    Discard(u64, u64),
    /// The length was changed.
    Truncate(u64),
}

/// A change, with when it was asked for and when it was answered.
#[derive(Debug, Clone)]
pub struct Record {
    /// When it was asked for.
    pub began: u64,
    /// When it was answered.
    pub ended: Option<u64>,
    /// What it was.
    pub change: Change,
}

/// What can be asked of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A read.
    Read,
    /// A write.
    Write,
    /// A write of zeroes.
    Zero,
    /// A discard.
    Discard,
    /// A flush.
    Flush,
    /// A change of the length.
    Truncate,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Read,
        Self::Write,
        Self::Zero,
        Self::Discard,
        Self::Flush,
        Self::Truncate,
    ];
}

/// Which requests fail.
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    /// Of this kind,
    pub kind: Kind,
    /// the one of this number, counted from 0,
    pub nth: u64,
    /// with this error,
    pub error: IoError,
    /// and all of the kind after it.
    pub stays: bool,
}

/// All that happened to a disk while it was recorded.
#[derive(Debug, Clone, Default)]
pub struct Recording {
    /// The contents before.
    pub start: Vec<u8>,
    /// The changes, in the order in which they took effect.
    pub records: Vec<Record>,
    /// When flushes were asked for and answered.
    pub flushes: Vec<(u64, u64)>,
}

#[derive(Debug)]
struct Inner {
    bytes: Vec<u8>,
    recording: Option<Recording>,
    pauses: fastrand::Rng,
    most_pauses: u32,
    fault: Option<Fault>,
    is_suspended: bool,
    counts: HashMap<Kind, u64>,
    hits: u64,
    running: u64,
}

/// A disk in memory.
#[derive(Debug)]
pub struct Disk {
    clock: Arc<Clock>,
    /// What requests must be multiples of.
    pub alignment: u32,
    forgets_to_zeroes: AtomicBool,
    inner: Mutex<Inner>,
}

impl Disk {
    /// A disk that contains this, and whose requests take up to `most_pauses` turns before and after their effect.
    pub fn new(bytes: Vec<u8>, clock: &Arc<Clock>, alignment: u32, seed: u64, most_pauses: u32) -> Arc<Self> {
        Arc::new(Self {
            clock: Arc::clone(clock),
            alignment,
            forgets_to_zeroes: AtomicBool::new(false),
            inner: Mutex::new(Inner {
                bytes,
                recording: None,
                pauses: fastrand::Rng::with_seed(seed),
                most_pauses,
                fault: None,
                is_suspended: false,
                counts: HashMap::new(),
                hits: 0,
                running: 0,
            }),
        })
    }

    /// What is forgotten is zeroes afterwards, as in a file. A guest's discard reaches a data file before the tables that say
    /// so are durable, and a disk may then have anything there.
    pub fn forget_to_zeroes(&self) {
        self.forgets_to_zeroes.store(true, Ordering::Relaxed);
    }

    /// The change that forgets a range.
    pub(super) fn forgetting(&self, offset: u64, len: u64) -> Change {
        match self.forgets_to_zeroes.load(Ordering::Relaxed) {
            true => Change::Zero(offset, len),
            false => Change::Discard(offset, len),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to record.
    pub fn record(&self) {
        let mut inner = self.inner();
        let start = inner.bytes.clone();
        inner.recording = Some(Recording {
            start,
            ..Recording::default()
        });
    }

    /// What was recorded.
    pub fn recording(&self) -> Recording {
        self.inner().recording.clone().unwrap_or_default()
    }

    /// What it contains now.
    pub fn bytes(&self) -> Vec<u8> {
        self.inner().bytes.clone()
    }

    /// Counts requests from now on, and fails those that `fault` names.
    pub fn set_fault(&self, fault: Option<Fault>) {
        let mut inner = self.inner();
        inner.fault = fault;
        inner.counts.clear();
        inner.hits = 0;
    }

    /// Neither counts nor fails requests for a while.
    pub fn suspend_fault(&self, suspended: bool) {
        self.inner().is_suspended = suspended;
    }

    /// How many requests failed since the fault was set.
    pub fn hits(&self) -> u64 {
        self.inner().hits
    }

    /// How many requests are being worked on.
    pub fn running(&self) -> u64 {
        self.inner().running
    }

    /// The length.
    pub fn len(&self) -> u64 {
        self.inner().bytes.len() as u64
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes in a request: when it began, and whether it is to fail.
    pub(super) fn begin(&self, kind: Kind) -> (u64, Result<(), IoError>) {
        let began = self.clock.tick();
        let mut inner = self.inner();
        inner.running += 1;
        if inner.is_suspended {
            return (began, Ok(()));
        }
        let count = inner.counts.entry(kind).or_default();
        let n = *count;
        *count += 1;
        let fault = inner
            .fault
            .filter(|fault| fault.kind == kind && (n == fault.nth || (fault.stays && n > fault.nth)));
        match fault {
            Some(fault) => {
                inner.hits += 1;
                (began, Err(fault.error))
            }
            None => (began, Ok(())),
        }
    }

    /// How many turns to wait.
    pub(super) fn pause(&self) -> u32 {
        let mut inner = self.inner();
        let most = inner.most_pauses;
        inner.pauses.u32(0..=most)
    }

    /// Has a change take effect; answers its number.
    pub(super) fn apply(&self, began: u64, change: Change) -> Option<usize> {
        let mut inner = self.inner();
        change.apply(&mut inner.bytes);
        let recording = inner.recording.as_mut()?;
        recording.records.push(Record {
            began,
            ended: None,
            change,
        });
        Some(recording.records.len() - 1)
    }

    pub(super) fn read(&self, offset: u64, into: &mut [u8]) {
        let inner = self.inner();
        into.fill(0);
        if let Some(from) = inner.bytes.get(offset as usize..) {
            let len = into.len().min(from.len());
            into[..len].copy_from_slice(&from[..len]);
        }
    }

    /// Takes note of a request's end; a flush is told by `flushed`, when it began.
    pub(super) fn end(&self, record: Option<usize>, flushed: Option<u64>) {
        let mut inner = self.inner();
        inner.running -= 1;
        let now = self.clock.tick();
        if let Some(recording) = &mut inner.recording {
            if let Some(record) = record.and_then(|at| recording.records.get_mut(at)) {
                record.ended = Some(now);
            }
            recording.flushes.extend(flushed.map(|began| (began, now)));
        }
    }
}

impl Change {
    /// Changes `bytes`. What is forgotten is not zeroes afterwards, so that whoever relies on that is found out.
    pub fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Write(offset, data) => room(bytes, *offset, data.len() as u64).copy_from_slice(data),
            Self::Zero(offset, len) => room(bytes, *offset, *len).fill(0),
            Self::Discard(offset, len) => {
                let end = bytes.len().min((offset + len) as usize);
                if let Some(range) = bytes.get_mut(*offset as usize..end) {
                    range.fill(0xdd);
                }
            }
            Self::Truncate(size) => bytes.resize(*size as usize, 0),
        }
    }

    /// Changes those sectors of `bytes` that `keeps` says yes to, where the change has sectors.
    pub fn apply_some(&self, bytes: &mut Vec<u8>, mut keeps: impl FnMut() -> bool) {
        let (offset, len) = match self {
            Self::Write(offset, data) => (*offset, data.len() as u64),
            Self::Zero(offset, len) => (*offset, *len),
            Self::Discard(..) | Self::Truncate(_) => {
                if keeps() {
                    self.apply(bytes);
                }
                return;
            }
        };
        let mut at = offset;
        while at < offset + len {
            let next = ((at / SECTOR + 1) * SECTOR).min(offset + len);
            if keeps() {
                let part = room(bytes, at, next - at);
                match self {
                    Self::Write(_, data) => {
                        part.copy_from_slice(&data[(at - offset) as usize..(next - offset) as usize]);
                    }
                    _ => part.fill(0),
                }
            }
            at = next;
        }
    }

    /// Whether it stores something at or behind `size`.
    fn reaches(&self, size: u64) -> bool {
        match self {
            Self::Write(offset, data) => offset + data.len() as u64 > size,
            Self::Zero(offset, len) => offset + len > size,
            Self::Discard(..) => false,
            Self::Truncate(to) => *to > size,
        }
    }
}

fn room(bytes: &mut Vec<u8>, offset: u64, len: u64) -> &mut [u8] {
    let end = (offset + len) as usize;
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    &mut bytes[offset as usize..end]
}

/// What becomes of a change that no flush has made durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is on the disk.
    Kept,
    /// It is not.
    Lost,
    /// Some of its sectors are.
    Torn,
}

impl Recording {
    /// The changes that had been asked for at `point` and that no flush answered by then covers.
    pub fn volatile(&self, point: u64) -> Vec<usize> {
        let barrier = self.barrier(point);
        (0..self.records.len())
            .filter(|&at| self.records[at].began <= point && !self.is_durable(at, barrier))
            .collect()
    }

    fn barrier(&self, point: u64) -> u64 {
        let answered = self.flushes.iter().filter(|(_, ended)| *ended <= point);
        answered.map(|(began, _)| *began).max().unwrap_or(0)
    }

    fn is_durable(&self, at: usize, barrier: u64) -> bool {
        self.records[at].ended.is_some_and(|ended| ended < barrier)
    }

    /// What the disk contains after a crash at `point`, where `fates` says what became of [`Recording::volatile`]'s
    /// changes. The file's length is kept in order, as every file system's journal does: where a cut got lost, so did what
    /// was stored behind it later.
    pub fn image(&self, point: u64, fates: &[Fate], rng: &mut fastrand::Rng) -> Vec<u8> {
        let barrier = self.barrier(point);
        let mut bytes = self.start.clone();
        let mut fates = fates.iter();
        let mut uncut: Option<u64> = None;
        for (at, record) in self.records.iter().enumerate() {
            if record.began > point {
                continue;
            }
            if self.is_durable(at, barrier) {
                record.change.apply(&mut bytes);
                continue;
            }
            let fate = fates.next().copied().unwrap_or(Fate::Kept);
            let lost = fate == Fate::Lost || uncut.is_some_and(|size| record.change.reaches(size));
            match (&record.change, lost) {
                (Change::Truncate(size), true) => uncut = Some(uncut.unwrap_or(u64::MAX).min(*size)),
                (_, true) => {}
                (change, false) if fate == Fate::Torn => change.apply_some(&mut bytes, || rng.bool()),
                (change, false) => change.apply(&mut bytes),
            }
        }
        bytes
    }

    /// The times just before something happened on this disk.
    pub fn points(&self) -> Vec<u64> {
        let mut points: Vec<u64> = self.records.iter().map(|record| record.began).collect();
        points.extend(self.records.iter().filter_map(|record| record.ended));
        points.extend(self.flushes.iter().flat_map(|&(began, ended)| [began, ended]));
        points
    }
}
