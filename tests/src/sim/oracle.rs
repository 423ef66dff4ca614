//! What each sector of the disk may read as: now, and after a loss of power.
//!
//! Every write gives its sectors a version of their own. No two writes to a sector are in flight at once, so what it may
//! show is told by the list of what happened to it.

/// Bytes of a sector.
pub const SECTOR: u64 = 512;

/// What was done to a sector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Done {
    Written(u32),
    Zeroed,
    /// It may read as zeroes, or as before.
    Discarded,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    InFlight,
    /// Acknowledged, as the so manieth thing.
    Acknowledged(u64),
    /// It failed, or its answer was lost: it may have happened.
    Unsure,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    done: Done,
    state: State,
    durable: bool,
}

impl Entry {
    /// Nothing before it shows through.
    fn covers(&self) -> bool {
        self.done != Done::Discarded
    }

    fn allows(&self, found: Found) -> bool {
        match (self.done, found) {
            (Done::Written(version), Found::Version(found)) => version == found,
            (Done::Zeroed | Done::Discarded, Found::Zero) => true,
            _ => false,
        }
    }
}

/// What a sector was read as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Zero,
    Version(u32),
}

#[derive(Debug)]
struct Sector {
    entries: Vec<Entry>,
    busy: bool,
}

impl Sector {
    /// What was acknowledged last: nothing before it may be seen.
    fn base(&self, holds: impl Fn(&Entry) -> bool) -> usize {
        let covers = |entry: &Entry| entry.covers() && holds(entry);
        self.entries.iter().rposition(covers).unwrap_or(0)
    }

    fn now(&self) -> usize {
        self.base(|entry| matches!(entry.state, State::Acknowledged(_)))
    }
}

/// A change that is in flight.
#[derive(Debug)]
#[must_use = "its sectors stay busy until it is said how it ended"]
pub struct Change {
    first: u64,
    count: u64,
}

/// A read that is in flight: from where on in each sector's list what it shows is right.
#[derive(Debug)]
pub struct Look {
    first: u64,
    bases: Vec<usize>,
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
    /// It failed.
    Unsure,
    /// Nobody will ever say. It may still happen, so that nothing else is done to its sectors.
    Unknown,
}

/// What is known of a disk.
#[derive(Debug)]
pub struct Oracle {
    sectors: Vec<Sector>,
    version: u32,
    events: u64,
}

/// The bytes of a sector at a version.
fn stamp(sector: u64, version: u32) -> [u8; 8] {
    // Disks have fewer sectors than that.
    let sector = u32::try_from(sector).unwrap_or(u32::MAX);
    let mut word = [0; 8];
    word[..4].copy_from_slice(&sector.to_le_bytes());
    word[4..].copy_from_slice(&version.to_le_bytes());
    word
}

impl Oracle {
    /// A disk of zeroes, `size` bytes long.
    #[must_use]
    pub fn new(size: u64) -> Self {
        let fresh = || Sector {
            entries: vec![Entry {
                done: Done::Zeroed,
                state: State::Acknowledged(0),
                durable: true,
            }],
            busy: false,
        };
        Self {
            sectors: (0..size / SECTOR).map(|_| fresh()).collect(),
            version: 0,
            events: 0,
        }
    }

    /// Sectors of the disk.
    #[must_use]
    pub fn sectors(&self) -> u64 {
        self.sectors.len() as u64
    }

    fn range(&mut self, first: u64, count: u64) -> &mut [Sector] {
        let (first, count) = (first as usize, count as usize);
        &mut self.sectors[first..first + count]
    }

    fn change(&mut self, first: u64, count: u64, done: Done) -> Option<Change> {
        let sectors = self.range(first, count);
        if sectors.iter().any(|sector| sector.busy) {
            return None;
        }
        for sector in sectors {
            sector.busy = true;
            sector.entries.push(Entry {
                done,
                state: State::InFlight,
                durable: false,
            });
        }
        Some(Change { first, count })
    }

    /// Begins a write of sectors, and makes up its bytes. None if one of them is being changed.
    pub fn write(&mut self, first: u64, count: u64) -> Option<(Change, Vec<u8>)> {
        let version = self.version + 1;
        let change = self.change(first, count, Done::Written(version))?;
        self.version = version;
        let words = SECTOR as usize / 8;
        let bytes = (first..first + count).flat_map(|sector| stamp(sector, version).repeat(words));
        Some((change, bytes.collect()))
    }

    /// Begins to zero sectors. None if one of them is being changed.
    pub fn zero(&mut self, first: u64, count: u64) -> Option<Change> {
        self.change(first, count, Done::Zeroed)
    }

    /// Begins to discard sectors. None if one of them is being changed.
    pub fn discard(&mut self, first: u64, count: u64) -> Option<Change> {
        self.change(first, count, Done::Discarded)
    }

    /// A change has ended.
    pub fn ended(&mut self, change: &Change, how: Ended) {
        self.events += 1;
        let (state, durable) = match how {
            Ended::Well { durable } => (State::Acknowledged(self.events), durable),
            Ended::Unsure | Ended::Unknown => (State::Unsure, false),
        };
        for sector in self.range(change.first, change.count) {
            sector.busy = how == Ended::Unknown;
            if let Some(entry) = sector.entries.last_mut() {
                entry.state = state;
                entry.durable = durable;
            }
        }
    }

    /// Begins a read.
    pub fn look(&mut self, first: u64, count: u64) -> Look {
        let bases = self.range(first, count).iter().map(Sector::now).collect();
        Look { first, bases }
    }

    /// Begins a flush.
    pub fn barrier(&mut self) -> Barrier {
        Barrier(self.events)
    }

    /// A flush was acknowledged: what had been acknowledged before it is on the disk for good.
    pub fn flushed(&mut self, barrier: &Barrier) {
        for sector in &mut self.sectors {
            let before =
                |entry: &Entry| matches!(entry.state, State::Acknowledged(when) if when <= barrier.0);
            let last = sector.base(before);
            sector.entries[last].durable = true;
        }
    }

    /// Holds what a read has given against what it may have.
    ///
    /// # Errors
    /// The sector, what it holds, and what it might.
    pub fn seen(&self, look: &Look, bytes: &[u8]) -> Result<(), String> {
        for (index, (base, bytes)) in look.bases.iter().zip(bytes.chunks(SECTOR as usize)).enumerate() {
            self.sector_seen(look.first + index as u64, *base, bytes)?;
        }
        Ok(())
    }

    /// Holds the whole disk against what it must be now that nothing is in flight.
    ///
    /// # Errors
    /// As [`Oracle::seen`].
    pub fn reads_now(&self, bytes: &[u8]) -> Result<(), String> {
        for (number, (sector, bytes)) in self.sectors.iter().zip(bytes.chunks(SECTOR as usize)).enumerate() {
            self.sector_seen(number as u64, sector.now(), bytes)?;
        }
        Ok(())
    }

    /// Holds the whole disk against what it may be after a loss of power.
    ///
    /// # Errors
    /// As [`Oracle::seen`].
    pub fn survived(&self, bytes: &[u8]) -> Result<(), String> {
        for (number, (sector, bytes)) in self.sectors.iter().zip(bytes.chunks(SECTOR as usize)).enumerate() {
            let base = sector.base(|entry| entry.durable);
            self.sector_seen(number as u64, base, bytes)?;
        }
        Ok(())
    }

    fn sector_seen(&self, number: u64, base: usize, bytes: &[u8]) -> Result<(), String> {
        let may_be = &self.sectors[number as usize].entries[base..];
        let found = if bytes.iter().all(|byte| *byte == 0) {
            Found::Zero
        } else {
            let version = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
            if bytes.chunks(8).any(|word| *word != stamp(number, version)) {
                let start = &bytes[..16];
                return Err(format!(
                    "sector {number} holds bytes that nobody wrote there: {start:02x?}..."
                ));
            }
            Found::Version(version)
        };
        if may_be.iter().any(|entry| entry.allows(found)) {
            return Ok(());
        }
        Err(format!(
            "sector {number} reads as {found:?}, but it may only be one of {may_be:?}"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WELL: Ended = Ended::Well { durable: false };

    fn written(oracle: &mut Oracle, how: Ended) -> Vec<u8> {
        let (change, bytes) = oracle.write(0, 1).expect("the sector is not busy");
        oracle.ended(&change, how);
        bytes
    }

    #[test]
    fn a_read_shows_what_was_acknowledged_last_or_what_overlaps_it() {
        let mut oracle = Oracle::new(4096);
        let first = written(&mut oracle, WELL);
        let look = oracle.look(0, 1);
        let (change, second) = oracle.write(0, 1).expect("the sector is not busy");
        assert!(oracle.write(0, 2).is_none(), "one write to a sector at a time");
        assert_eq!(oracle.seen(&look, &first), Ok(()));
        assert_eq!(oracle.seen(&look, &second), Ok(()));
        assert!(oracle.seen(&look, &[0; 512]).is_err(), "older than the read");
        oracle.ended(&change, WELL);
        let look = oracle.look(0, 1);
        assert!(oracle.seen(&look, &first).is_err(), "lost");
        assert!(oracle.seen(&oracle.look_at_next(), &second).is_err(), "misplaced");
    }

    impl Oracle {
        fn look_at_next(&self) -> Look {
            Look {
                first: 1,
                bases: vec![0],
            }
        }
    }

    #[test]
    fn what_was_flushed_survives_and_the_rest_may() {
        let mut oracle = Oracle::new(512);
        let first = written(&mut oracle, WELL);
        let barrier = oracle.barrier();
        let second = written(&mut oracle, WELL);
        oracle.flushed(&barrier);
        assert_eq!(oracle.survived(&first), Ok(()));
        assert_eq!(oracle.survived(&second), Ok(()));
        assert!(oracle.survived(&[0; 512]).is_err());
        let barrier = oracle.barrier();
        oracle.flushed(&barrier);
        assert!(oracle.survived(&first).is_err());
        let third = written(&mut oracle, Ended::Unsure);
        assert_eq!(oracle.survived(&second), Ok(()));
        assert_eq!(oracle.survived(&third), Ok(()));
    }

    #[test]
    fn a_discarded_sector_is_old_or_zero() {
        let mut oracle = Oracle::new(512);
        let first = written(&mut oracle, WELL);
        let change = oracle.discard(0, 1).expect("the sector is not busy");
        oracle.ended(&change, WELL);
        let look = oracle.look(0, 1);
        assert_eq!(oracle.seen(&look, &first), Ok(()));
        assert_eq!(oracle.seen(&look, &[0; 512]), Ok(()));
    }
}
