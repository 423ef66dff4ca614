//! What a disk's users asked for and were told, and what the disk may read as according to that.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::census::Census;
use super::disk::{Clock, SECTOR};
use super::kept::Kept;
use super::keys::Keys;

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// The pattern of the request's number, from an offset on for a length.
    Write(u64, u64),
    /// Zeroes.
    Zero(u64, u64),
    /// A range is forgotten.
    Discard(u64, u64),
    /// What was answered before is to be durable.
    Flush,
    /// The disk's length changes from one to another.
    Resize(u64, u64),
    /// The disk becomes what it was once, by the number of [`History::restore`].
    Restore(usize),
}

/// A request, with when it was made and answered.
#[derive(Debug, Clone, Copy)]
pub struct Request {
    /// When it was made.
    pub began: u64,
    /// When it was answered.
    pub ended: Option<u64>,
    /// The answer was an error.
    pub failed: bool,
    /// It is durable once it is answered.
    pub durable: bool,
    /// What it was.
    pub asked: Asked,
}

impl Request {
    /// The bytes that read otherwise afterwards.
    fn range(&self) -> (u64, u64) {
        match self.asked {
            Asked::Write(offset, len) | Asked::Zero(offset, len) | Asked::Discard(offset, len) => {
                (offset, offset + len)
            }
            Asked::Flush => (0, 0),
            Asked::Resize(old, new) => (new.min(old), old),
            Asked::Restore(_) => (0, u64::MAX),
        }
    }

    /// After it nothing older can be read.
    fn replaces(&self) -> bool {
        !matches!(self.asked, Asked::Discard(..) | Asked::Flush)
    }
}

/// The byte at `at` that request `number` writes. What every other request writes can be compressed.
pub fn pattern(number: usize, at: u64) -> u8 {
    let place = if number.is_multiple_of(2) {
        at / 8
    } else {
        at / SECTOR
    };
    let mut word = (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ place;
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word.to_le_bytes()[(at % 8) as usize]
}

/// The bytes that request `number` writes.
pub fn payload(number: usize, offset: u64, len: u64) -> Vec<u8> {
    (offset..offset + len).map(|at| pattern(number, at)).collect()
}

/// Whether what a request did cannot get lost by a crash at `point`.
fn durable_at(requests: &[Request], point: u64) -> impl Fn(&Request) -> bool + use<> {
    let flushes = requests.iter().filter(|request| {
        request.asked == Asked::Flush && !request.failed && request.ended.is_some_and(|end| end <= point)
    });
    let barrier = flushes.map(|flush| flush.began).max().unwrap_or(0);
    move |request| {
        let ended = request.ended.filter(|_| !request.failed);
        ended.is_some_and(|ended| ended < barrier || (request.durable && ended <= point))
    }
}

/// All requests to one disk.
#[derive(Debug)]
pub struct History {
    clock: Arc<Clock>,
    /// What the disk read as at first, and zeroes behind it.
    initial: Vec<u8>,
    size: u64,
    requests: Mutex<Vec<Request>>,
    /// When the disk's user last lost it without having flushed.
    lost: AtomicU64,
    /// What the disk is to become again.
    restored: Mutex<Vec<Vec<u8>>>,
    /// What its image keeps besides.
    pub kept: Kept,
    /// The passwords that open it.
    pub keys: Keys,
}

impl History {
    /// A disk of `size` bytes that begins with `initial`.
    pub fn new(clock: &Arc<Clock>, initial: Vec<u8>, size: u64) -> Arc<Self> {
        Arc::new(Self {
            clock: Arc::clone(clock),
            initial,
            size,
            requests: Mutex::default(),
            lost: AtomicU64::new(0),
            restored: Mutex::default(),
            kept: Kept::default(),
            keys: Keys::default(),
        })
    }

    /// The requests so far.
    pub fn requests(&self) -> MutexGuard<'_, Vec<Request>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A time later than all before.
    pub fn now(&self) -> u64 {
        self.clock.tick()
    }

    /// A request is made; answers its number.
    pub fn begin(&self, asked: Asked, durable: bool) -> usize {
        let mut requests = self.requests();
        requests.push(Request {
            began: self.clock.tick(),
            ended: None,
            failed: false,
            durable,
            asked,
        });
        requests.len() - 1
    }

    /// It is answered.
    pub fn end(&self, number: usize, ok: bool) {
        let mut requests = self.requests();
        let now = self.clock.tick();
        if let Some(request) = requests.get_mut(number) {
            (request.ended, request.failed) = (Some(now), !ok);
        }
    }

    /// The disk is to become what it was; answers the request's number.
    pub fn restore(&self, contents: Vec<u8>) -> usize {
        let mut restored = self.restored.lock().unwrap_or_else(PoisonError::into_inner);
        restored.push(contents);
        self.begin(Asked::Restore(restored.len() - 1), true)
    }

    /// Requires that an image that a crash at `point` left, and that reads as `disk`, keeps what it was asked to.
    pub fn check_kept(&self, point: u64, found: &Census, disk: &[u8]) -> Result<(), String> {
        let requests = self.requests().clone();
        self.kept.check(point, found, disk, &requests)
    }

    /// The disk is opened anew after a close that failed: what was not durable may be gone.
    pub fn lose(&self) {
        self.lost.store(self.clock.tick(), Ordering::SeqCst);
    }

    /// Requires that `found` may be what a disk opened after a crash at `point` contains, all of it.
    pub fn check_crash(&self, point: u64, found: &[u8]) -> Result<(), String> {
        let requests = self.requests().clone();
        let lost = self.lost.load(Ordering::SeqCst);
        let (settled_then, settled_now) = (
            durable_at(&requests, lost.min(point)),
            durable_at(&requests, point),
        );
        let settled = |request: &Request| {
            settled_now(request) && (request.began > lost || lost > point || settled_then(request))
        };
        self.check_size(&requests, point, &settled, found.len() as u64)?;
        self.check(&requests, point, &settled, 0, found)
    }

    /// Requires that `found` may be what a read of a disk in use, made at `began`, answered just now.
    pub fn check_read(&self, began: u64, offset: u64, found: &[u8]) -> Result<(), String> {
        let requests = self.requests().clone();
        let lost = self.lost.load(Ordering::SeqCst);
        let settled_then = durable_at(&requests, lost);
        let settled = |request: &Request| {
            let ended = !request.failed && request.ended.is_some_and(|ended| ended < began);
            ended && (request.began > lost || settled_then(request))
        };
        self.check(&requests, u64::MAX, &settled, offset, found)
    }

    fn check_size(
        &self,
        requests: &[Request],
        point: u64,
        settled: &dyn Fn(&Request) -> bool,
        size: u64,
    ) -> Result<(), String> {
        let mut sizes = vec![self.size];
        for request in requests.iter().filter(|request| request.began <= point) {
            if let Asked::Resize(_, new) = request.asked {
                if settled(request) {
                    sizes.clear();
                }
                sizes.push(new);
            }
        }
        if sizes.contains(&size) {
            return Ok(());
        }
        Err(format!("the disk has {size} bytes, not {sizes:?}"))
    }

    fn check(
        &self,
        requests: &[Request],
        point: u64,
        settled: &dyn Fn(&Request) -> bool,
        offset: u64,
        found: &[u8],
    ) -> Result<(), String> {
        let end = offset + found.len() as u64;
        let mut sectors: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
        for (number, request) in requests.iter().enumerate() {
            let (from, to) = request.range();
            if request.began > point || from >= to || from >= end || to <= offset {
                continue;
            }
            for sector in from.max(offset) / SECTOR..to.min(end).div_ceil(SECTOR) {
                sectors.entry(sector).or_default().push(number);
            }
        }
        for sector in offset / SECTOR..end.div_ceil(SECTOR) {
            let range = (sector * SECTOR).max(offset)..((sector + 1) * SECTOR).min(end);
            let numbers = sectors.get(&sector).map_or(&[][..], Vec::as_slice);
            let mut edges = BTreeSet::from([range.start, range.end]);
            for &number in numbers {
                let (from, to) = requests[number].range();
                edges.extend([from, to].into_iter().filter(|edge| range.contains(edge)));
            }
            let edges: Vec<u64> = edges.into_iter().collect();
            for pair in edges.windows(2) {
                let part = &found[(pair[0] - offset) as usize..(pair[1] - offset) as usize];
                self.check_part(requests, numbers, point, settled, pair[0], part)?;
            }
        }
        Ok(())
    }

    fn check_part(
        &self,
        requests: &[Request],
        numbers: &[usize],
        point: u64,
        settled: &dyn Fn(&Request) -> bool,
        at: u64,
        part: &[u8],
    ) -> Result<(), String> {
        let covers = |number: &&usize| {
            let (from, to) = requests[**number].range();
            from <= at && at < to
        };
        let numbers: Vec<usize> = numbers.iter().filter(covers).copied().collect();
        let firm: Vec<&Request> = numbers.iter().map(|number| &requests[*number]).collect();
        let firm: Vec<&Request> = firm
            .into_iter()
            .filter(|request| request.replaces() && settled(request))
            .collect();
        let zeroes = || part.iter().all(|byte| *byte == 0);
        let initial = || (at..).zip(part).all(|(at, byte)| self.initial_byte(at) == *byte);
        if firm.is_empty() && initial() {
            return Ok(());
        }
        for number in &numbers {
            let request = &requests[*number];
            let replaced = |by: &&Request| request.ended.is_some_and(|ended| ended < by.began);
            if firm.iter().any(replaced) {
                continue;
            }
            let fits = match request.asked {
                Asked::Write(..) => (at..).zip(part).all(|(at, byte)| pattern(*number, at) == *byte),
                Asked::Zero(..) => zeroes(),
                Asked::Discard(..) => zeroes() || initial(),
                Asked::Resize(..) if request.ended.is_none_or(|ended| ended > point) || request.failed => {
                    zeroes() || initial()
                }
                Asked::Resize(..) => zeroes(),
                Asked::Restore(which) => self.is_restored(which, at, part),
                Asked::Flush => false,
            };
            if fits {
                return Ok(());
            }
        }
        Err(self.describe(requests, &numbers, at, part, &initial))
    }

    fn describe(
        &self,
        requests: &[Request],
        numbers: &[usize],
        at: u64,
        part: &[u8],
        initial: &dyn Fn() -> bool,
    ) -> String {
        let is = if part.iter().all(|byte| *byte == 0) {
            "zeroes".to_owned()
        } else if initial() {
            "what it read at first".to_owned()
        } else {
            let writer = (0..requests.len())
                .find(|number| (at..).zip(part).all(|(at, byte)| pattern(*number, at) == *byte));
            match writer {
                Some(number) => format!("what request {number} wrote"),
                None => format!("{:02x?}...", &part[..part.len().min(16)]),
            }
        };
        let list: Vec<String> = numbers
            .iter()
            .map(|number| format!("  {number}: {:?}", requests[*number]))
            .collect();
        format!(
            "byte {at:#x} and {} more read {is}; requests there:\n{}",
            part.len() - 1,
            list.join("\n")
        )
    }

    fn is_restored(&self, which: usize, at: u64, part: &[u8]) -> bool {
        let restored = self.restored.lock().unwrap_or_else(PoisonError::into_inner);
        let byte = |at: u64| restored.get(which).and_then(|bytes| bytes.get(at as usize));
        (at..)
            .zip(part)
            .all(|(at, found)| byte(at).copied().unwrap_or(0) == *found)
    }

    fn initial_byte(&self, at: u64) -> u8 {
        self.initial.get(at as usize).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history() -> Arc<History> {
        History::new(&Arc::default(), vec![7; 2048], 4096)
    }

    fn write(history: &History, offset: u64, len: u64) -> usize {
        let number = history.begin(Asked::Write(offset, len), false);
        history.end(number, true);
        number
    }

    fn flush(history: &History) {
        let number = history.begin(Asked::Flush, false);
        history.end(number, true);
    }

    fn disk(writes: &[(usize, u64, u64)]) -> Vec<u8> {
        let mut bytes = vec![7; 2048];
        bytes.resize(4096, 0);
        for &(number, offset, len) in writes {
            let range = offset as usize..(offset + len) as usize;
            bytes[range].copy_from_slice(&payload(number, offset, len));
        }
        bytes
    }

    #[test]
    fn what_was_flushed_must_be_there_and_the_rest_may() {
        let history = history();
        let first = write(&history, 100, 1000);
        let unflushed = history.now();
        flush(&history);
        let second = write(&history, 512, 512);
        let end = history.now();
        assert!(history.check_crash(unflushed, &disk(&[])).is_ok());
        assert!(history.check_crash(end, &disk(&[])).is_err());
        assert!(history.check_crash(end, &disk(&[(first, 100, 1000)])).is_ok());
        let both = disk(&[(first, 100, 1000), (second, 512, 512)]);
        assert!(history.check_crash(end, &both).is_ok());
        assert!(history.check_crash(unflushed, &both).is_err(), "from the future");
        let torn = disk(&[(first, 100, 1000), (second, 512, 256)]);
        assert!(history.check_crash(end, &torn).is_err(), "a torn sector");
    }

    #[test]
    fn a_failed_write_replaces_nothing() {
        let history = history();
        let number = history.begin(Asked::Write(0, 512), true);
        history.end(number, false);
        flush(&history);
        let end = history.now();
        assert!(history.check_crash(end, &disk(&[])).is_ok());
        assert!(history.check_crash(end, &disk(&[(number, 0, 512)])).is_ok());
    }

    #[test]
    fn lengths_are_those_asked_for() {
        let history = history();
        let number = history.begin(Asked::Resize(4096, 1024), true);
        let during = history.now();
        history.end(number, true);
        let after = history.now();
        let (long, short) = (disk(&[]), disk(&[])[..1024].to_vec());
        assert!(history.check_crash(during, &long).is_ok() && history.check_crash(during, &short).is_ok());
        assert!(history.check_crash(after, &long).is_err() && history.check_crash(after, &short).is_ok());
    }
}
