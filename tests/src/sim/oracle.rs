//! What each part of the disk may read as: now, and after a loss of power.
//!
//! Every write gives the cells that it covers a version of their own. Requests overlap freely, so a cell keeps the list of
//! what was done to it and when. What began after another change was over replaces it; changes that were under way
//! together may have happened in either order, until a read shows which.

/// Bytes of a cell, the smallest part of the disk that requests begin and end at: less than a sector, so that what
/// changes sectors in part is seen to leave the rest alone.
pub const CELL: u64 = 128;

/// Bytes of a sector, which a disk writes whole or not at all.
pub const SECTOR: u64 = 512;

/// What was done to a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Done {
    Written(u32),
    Zeroed,
    /// It may read as zeroes, or as before.
    Discarded,
}

/// Something done to a cell. Times are counted in beginnings and ends of requests.
#[derive(Debug, Clone, Copy)]
struct Entry {
    done: Done,
    /// When it was asked for, which no other change shares.
    began: u64,
    /// It cannot happen later than that.
    until: u64,
    /// A read has shown that something which began then happened after it.
    before: u64,
    /// When it was acknowledged.
    acknowledged: Option<u64>,
    durable: bool,
}

impl Entry {
    /// Nothing before it shows through.
    fn covers(&self) -> bool {
        self.done != Done::Discarded
    }

    /// Whether it happened before `other`: it was over by then, or reads have shown it.
    fn precedes(&self, other: &Self) -> bool {
        self.until < other.began || self.before.min(self.until) < other.began.min(other.before)
    }

    fn allows(&self, found: Found) -> bool {
        match (self.done, found) {
            (Done::Written(version), Found::Version(found)) => version == found,
            (Done::Zeroed | Done::Discarded, Found::Zero) => true,
            _ => false,
        }
    }
}

/// What a cell was read as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Zero,
    Version(u32),
}

#[derive(Debug, Clone)]
struct Cell {
    entries: Vec<Entry>,
}

impl Cell {
    /// A cell that reads as zeroes.
    fn fresh() -> Self {
        Self {
            entries: vec![Entry {
                done: Done::Zeroed,
                began: 0,
                until: 0,
                before: u64::MAX,
                acknowledged: Some(0),
                durable: true,
            }],
        }
    }

    /// What the cell may hold where those that `hold` have happened for certain: nothing that one of them replaced.
    fn may_be(&self, hold: impl Fn(&Entry) -> bool) -> impl Iterator<Item = &Entry> {
        let firm = |entry: &&Entry| entry.covers() && hold(entry);
        let firm: Vec<&Entry> = self.entries.iter().filter(firm).collect();
        let entries = self.entries.iter();
        entries.filter(move |entry| !firm.iter().any(|firm| entry.precedes(firm)))
    }

    /// A read that began at `when` has shown a version: what was over by then and is not that happened before it.
    fn order(&mut self, when: u64, version: u32) {
        let shown = self
            .entries
            .iter()
            .find(|entry| entry.done == Done::Written(version));
        let Some(&Entry { began, until, .. }) = shown else {
            return;
        };
        if until >= when {
            return;
        }
        for entry in &mut self.entries {
            if entry.began != began && entry.until < when {
                entry.before = entry.before.min(began.saturating_sub(1));
            }
        }
    }
}

/// A change that is in flight.
#[derive(Debug)]
#[must_use = "it may happen at any time until it is said how it ended"]
pub struct Change {
    first: u64,
    count: u64,
    began: u64,
}

/// A read that is in flight.
#[derive(Debug)]
pub struct Look {
    first: u64,
    count: u64,
    began: u64,
}

impl Look {
    /// Some of its cells, counted from its first; those that it has of them.
    #[must_use]
    pub fn part(&self, first: u64, count: u64) -> Self {
        Self {
            first: self.first + first,
            count: count.min(self.count.saturating_sub(first)),
            began: self.began,
        }
    }
}

/// A flush that is in flight.
#[derive(Debug)]
pub struct Barrier(u64);

/// How a change ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It was acknowledged.
    Well {
        /// And is on the disk for good.
        durable: bool,
    },
    /// It failed: it may have happened, and will not any more.
    Unsure,
    /// Nobody will ever say. It may happen at any time.
    Unknown,
    /// It was withdrawn before it began.
    Never,
}

/// What is known of a disk.
#[derive(Debug, Clone)]
pub struct Oracle {
    cells: Vec<Cell>,
    version: u32,
    now: u64,
}

/// The bytes of a cell at a version, over and over.
fn stamp(cell: u64, version: u32) -> [u8; 8] {
    // Disks have fewer cells than that.
    let cell = u32::try_from(cell).unwrap_or(u32::MAX);
    let mut word = [0; 8];
    word[..4].copy_from_slice(&cell.to_le_bytes());
    word[4..].copy_from_slice(&version.to_le_bytes());
    word
}

/// Whether these bytes, as they are to be written somewhere, are what users write rather than a format's tables. Neither
/// cells nor versions are so many that the last byte of their numbers would be used, as it is in entries of tables.
#[must_use]
pub fn is_payload(bytes: &[u8]) -> bool {
    let mut cells = bytes.chunks_exact(CELL as usize);
    let stamped = |cell: &[u8]| {
        let (word, rest) = cell.split_at(8);
        let is_stamp = matches!(word, [_, _, _, 0, version @ .., 0] if *version != [0, 0, 0]);
        is_stamp && rest.chunks_exact(8).all(|other| other == word)
    };
    cells.any(stamped)
}

impl Oracle {
    /// A disk of zeroes, `size` bytes long.
    #[must_use]
    pub fn new(size: u64) -> Self {
        Self {
            cells: (0..size / CELL).map(|_| Cell::fresh()).collect(),
            version: 0,
            now: 0,
        }
    }

    /// Cells of the disk.
    #[must_use]
    pub fn cells(&self) -> u64 {
        self.cells.len() as u64
    }

    /// The disk gets another length: what it loses is gone, and what it gains is zeroes. Nothing is in flight behind the
    /// shorter length.
    pub fn resize(&mut self, size: u64) {
        self.cells.resize_with((size / CELL) as usize, Cell::fresh);
    }

    /// Whatever may still happen has happened by now, or never will.
    pub fn settle(&mut self) {
        let now = self.tick();
        for entry in self.cells.iter_mut().flat_map(|cell| &mut cell.entries) {
            entry.until = entry.until.min(now);
        }
    }

    fn tick(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    fn range(&mut self, first: u64, count: u64) -> &mut [Cell] {
        let (first, count) = (first as usize, count as usize);
        &mut self.cells[first..first + count]
    }

    /// Whether something may still happen to one of these cells.
    #[must_use]
    pub fn is_busy(&self, first: u64, count: u64) -> bool {
        let cells = self.cells.iter().skip(first as usize).take(count as usize);
        cells
            .flat_map(|cell| &cell.entries)
            .any(|entry| entry.until == u64::MAX)
    }

    fn change(&mut self, first: u64, count: u64, done: Done) -> Change {
        let began = self.tick();
        for cell in self.range(first, count) {
            cell.entries.push(Entry {
                done,
                began,
                until: u64::MAX,
                before: u64::MAX,
                acknowledged: None,
                durable: false,
            });
        }
        Change { first, count, began }
    }

    /// Begins a write of cells, and makes up its bytes.
    pub fn write(&mut self, first: u64, count: u64) -> (Change, Vec<u8>) {
        self.version += 1;
        let version = self.version;
        let change = self.change(first, count, Done::Written(version));
        let words = CELL as usize / 8;
        let bytes = (first..first + count).flat_map(|cell| stamp(cell, version).repeat(words));
        (change, bytes.collect())
    }

    /// Begins to zero cells.
    pub fn zero(&mut self, first: u64, count: u64) -> Change {
        self.change(first, count, Done::Zeroed)
    }

    /// Begins to discard cells.
    pub fn discard(&mut self, first: u64, count: u64) -> Change {
        self.change(first, count, Done::Discarded)
    }

    /// A change has ended.
    pub fn ended(&mut self, change: &Change, how: Ended) {
        let now = self.tick();
        let &Change { first, count, began } = change;
        for cell in self.range(first, count) {
            let Some(at) = cell.entries.iter().rposition(|entry| entry.began == began) else {
                continue;
            };
            let entry = &mut cell.entries[at];
            match how {
                Ended::Well { durable } => {
                    (entry.until, entry.acknowledged) = (now, Some(now));
                    entry.durable = durable;
                }
                Ended::Unsure => entry.until = now,
                Ended::Unknown => {}
                Ended::Never => {
                    cell.entries.remove(at);
                }
            }
        }
    }

    /// Begins a read.
    pub fn look(&mut self, first: u64, count: u64) -> Look {
        let began = self.tick();
        Look { first, count, began }
    }

    /// Begins a flush.
    pub fn barrier(&mut self) -> Barrier {
        Barrier(self.tick())
    }

    /// A flush was acknowledged: what had been acknowledged before it is on the disk for good.
    pub fn flushed(&mut self, barrier: &Barrier) {
        for entry in self.cells.iter_mut().flat_map(|cell| &mut cell.entries) {
            entry.durable |= entry.acknowledged.is_some_and(|when| when < barrier.0);
        }
    }

    /// Holds what a read has given against what it may have.
    ///
    /// # Errors
    /// The cell, what it holds, and what it might.
    pub fn seen(&mut self, look: &Look, bytes: &[u8]) -> Result<(), String> {
        let &Look { first, count, began } = look;
        for (number, bytes) in (first..first + count).zip(bytes.chunks(CELL as usize)) {
            let cell = &mut self.cells[number as usize];
            if let Found::Version(version) = cell_seen(cell, number, acknowledged_by(began), bytes)? {
                cell.order(began, version);
            }
        }
        Ok(())
    }

    /// Holds the whole disk against what it must be now that nothing is in flight.
    ///
    /// # Errors
    /// As [`Oracle::seen`].
    pub fn reads_now(&self, bytes: &[u8]) -> Result<(), String> {
        self.whole(bytes, acknowledged_by(u64::MAX))
    }

    /// Holds the whole disk against what it may be after a loss of power.
    ///
    /// # Errors
    /// As [`Oracle::seen`].
    pub fn survived(&self, bytes: &[u8]) -> Result<(), String> {
        self.whole(bytes, |entry| entry.durable)
    }

    fn whole(&self, bytes: &[u8], holds: impl Fn(&Entry) -> bool + Copy) -> Result<(), String> {
        if (bytes.len() as u64) < self.cells() * CELL {
            return Err(format!(
                "there are {} bytes for {} cells",
                bytes.len(),
                self.cells()
            ));
        }
        for ((number, cell), bytes) in (0..).zip(&self.cells).zip(bytes.chunks(CELL as usize)) {
            cell_seen(cell, number, holds, bytes)?;
        }
        Ok(())
    }
}

/// What was acknowledged before `when` holds then.
fn acknowledged_by(when: u64) -> impl Fn(&Entry) -> bool + Copy {
    move |entry| entry.acknowledged.is_some_and(|at| at < when)
}

/// What a cell was read as, if it may have been, where those that `hold` have happened for certain.
fn cell_seen(
    cell: &Cell,
    number: u64,
    holds: impl Fn(&Entry) -> bool,
    bytes: &[u8],
) -> Result<Found, String> {
    let found = if bytes.iter().all(|byte| *byte == 0) {
        Found::Zero
    } else {
        let version = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
        if bytes.chunks(8).any(|word| *word != stamp(number, version)) {
            let start = &bytes[..16];
            return Err(format!(
                "cell {number} (at byte {}) holds bytes that nobody wrote there: {start:02x?}...",
                number * CELL
            ));
        }
        Found::Version(version)
    };
    let may_be: Vec<&Entry> = cell.may_be(holds).collect();
    if may_be.iter().any(|entry| entry.allows(found)) {
        return Ok(found);
    }
    Err(format!(
        "cell {number} (at byte {}) reads as {found:?}, but it may only be one of {may_be:?}",
        number * CELL
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WELL: Ended = Ended::Well { durable: false };
    const ZEROES: [u8; CELL as usize] = [0; CELL as usize];

    fn written(oracle: &mut Oracle, how: Ended) -> Vec<u8> {
        let (change, bytes) = oracle.write(0, 1);
        oracle.ended(&change, how);
        bytes
    }

    #[test]
    fn a_read_shows_what_was_acknowledged_last_or_what_overlaps_it() {
        let mut oracle = Oracle::new(4096);
        let first = written(&mut oracle, WELL);
        let look = oracle.look(0, 1);
        let (change, second) = oracle.write(0, 1);
        assert_eq!(oracle.seen(&look, &first), Ok(()));
        assert_eq!(oracle.seen(&look, &second), Ok(()));
        assert!(oracle.seen(&look, &ZEROES).is_err(), "older than the read");
        oracle.ended(&change, WELL);
        let look = oracle.look(0, 1);
        assert!(oracle.seen(&look, &first).is_err(), "lost");
        let elsewhere = oracle.look(1, 1);
        assert!(oracle.seen(&elsewhere, &second).is_err(), "misplaced");
    }

    #[test]
    fn writes_side_by_side_end_in_either_order_which_a_read_settles() {
        let mut oracle = Oracle::new(4096);
        let (one, first) = oracle.write(0, 2);
        let (other, second) = oracle.write(0, 1);
        oracle.ended(&other, WELL);
        oracle.ended(&one, WELL);
        let first = &first[..CELL as usize];
        let barrier = oracle.barrier();
        oracle.flushed(&barrier);
        let look = oracle.look(0, 1);
        assert_eq!(oracle.seen(&look, first), Ok(()));
        let look = oracle.look(0, 1);
        assert_eq!(oracle.seen(&look, first), Ok(()));
        assert!(oracle.seen(&look, &second).is_err(), "it was the other order");
    }

    #[test]
    fn what_was_flushed_survives_though_a_later_write_replaced_it() {
        let mut oracle = Oracle::new(CELL);
        let oldest = written(&mut oracle, WELL);
        let (long, replacement) = oracle.write(0, 1);
        let flushed = written(&mut oracle, WELL);
        let barrier = oracle.barrier();
        oracle.flushed(&barrier);
        oracle.ended(&long, WELL);
        let look = oracle.look(0, 1);
        assert_eq!(oracle.seen(&look, &replacement), Ok(()));
        assert_eq!(oracle.survived(&flushed), Ok(()));
        assert_eq!(oracle.survived(&replacement), Ok(()));
        assert!(oracle.survived(&oldest).is_err(), "it was replaced for good");
        assert!(oracle.reads_now(&flushed).is_err(), "it was replaced");
    }

    #[test]
    fn what_was_flushed_survives_and_the_rest_may() {
        let mut oracle = Oracle::new(CELL);
        let first = written(&mut oracle, WELL);
        let barrier = oracle.barrier();
        let second = written(&mut oracle, WELL);
        oracle.flushed(&barrier);
        assert_eq!(oracle.survived(&first), Ok(()));
        assert_eq!(oracle.survived(&second), Ok(()));
        assert!(oracle.survived(&ZEROES).is_err());
        let barrier = oracle.barrier();
        oracle.flushed(&barrier);
        assert!(oracle.survived(&first).is_err());
        let third = written(&mut oracle, Ended::Unsure);
        assert_eq!(oracle.survived(&second), Ok(()));
        assert_eq!(oracle.survived(&third), Ok(()));
        let fourth = written(&mut oracle, WELL);
        assert_eq!(oracle.reads_now(&fourth), Ok(()));
        assert!(
            oracle.reads_now(&third).is_err(),
            "what failed does not come later"
        );
    }

    #[test]
    fn payload_is_told_from_tables() {
        let (_change, bytes) = Oracle::new(4096).write(3, 2);
        assert!(is_payload(&bytes) && is_payload(&[&ZEROES[..], &bytes].concat()));
        let tables = [
            [0, 1].repeat(256),
            [0, 0, 0, 0, 0, 0, 0, 1].repeat(64),
            vec![0; 512],
        ];
        assert!(!tables.iter().any(|table| is_payload(table)));
    }

    #[test]
    fn what_was_withdrawn_does_not_happen() {
        let mut oracle = Oracle::new(CELL);
        let first = written(&mut oracle, WELL);
        let second = written(&mut oracle, Ended::Never);
        assert_eq!(oracle.reads_now(&first), Ok(()));
        assert!(oracle.reads_now(&second).is_err());
    }

    #[test]
    fn a_discarded_cell_is_old_or_zero_until_it_is_seen() {
        for shows_old in [false, true] {
            let mut oracle = Oracle::new(CELL);
            let first = written(&mut oracle, WELL);
            let change = oracle.discard(0, 1);
            oracle.ended(&change, WELL);
            let look = oracle.look(0, 1);
            let shown = if shows_old { &first[..] } else { &ZEROES };
            assert_eq!(oracle.seen(&look, shown), Ok(()));
            assert_eq!(oracle.reads_now(shown), Ok(()));
            if shows_old {
                assert!(oracle.reads_now(&ZEROES).is_err(), "it did nothing");
            }
        }
    }
}
