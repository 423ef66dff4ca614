//! What verification writes, and how it is recognised: each sector says which it is and how often it was written.
//!
//! The part of the disk that a connection has is cut into units, each with a count of the changes made to it. A sector
//! (512 bytes) begins with a stamp of run, offset and count, and goes on with words that follow from them, so that a
//! sector that was lost, torn, misplaced or brought back from an earlier time is told from the right one.
//!
//! While a request changes a unit nothing else touches it, and while one reads it nothing changes it: what a read must
//! find is known without doubt. After a trim nothing is known of a unit until it is written again.

use std::fmt;
use std::ops::Range;

use super::generate::Ask;
use super::spec::Kind;
use crate::Outcome;

/// Bytes with a stamp of their own.
const SECTOR: u64 = 512;

/// The most units that a connection keeps count of: 5 bytes of memory each.
const MOST_UNITS: u64 = 256 << 20;

/// The first bytes of every sector.
const MAGIC: [u8; 8] = *b"millpond";

/// Bytes of a stamp: magic, run, offset and count, each of 8.
const STAMP: usize = 32;

/// The two upper bits of a unit's state: what it holds. The other bits count its changes.
const KNOWN: u32 = 3 << 30;
const WRITTEN: u32 = 1 << 30;
const ZERO: u32 = 2 << 30;
const COUNT: u32 = !KNOWN;

/// The use of a unit by requests in flight: how many read it, or that one changes it.
const CHANGING: u8 = u8::MAX;

/// What one connection has written.
#[derive(Debug)]
pub(super) struct Stamps {
    run: u64,
    part: Range<u64>,
    unit: u64,
    units: Vec<u32>,
    used: Vec<u8>,
}

/// A byte that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// Where, in bytes from the front of the disk.
    pub offset: u64,
    /// What was written last, in words and as bytes from `offset` on.
    pub expected: (String, Vec<u8>),
    /// What was read.
    pub found: (String, Vec<u8>),
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = |bytes: &[u8]| {
            bytes
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect::<Vec<_>>()
                .join(" ")
        };
        write!(
            f,
            "verification failed at offset {}: expected {} ({}), found {} ({})",
            self.offset,
            self.expected.0,
            hex(&self.expected.1),
            self.found.0,
            hex(&self.found.1)
        )
    }
}

impl std::error::Error for Mismatch {}

impl Stamps {
    /// Nothing is known of `part` yet. `run` tells this run's sectors from those of others, and `grain` is what all
    /// offsets and lengths are multiples of, in bytes.
    ///
    /// # Errors
    /// The part has more units than can be kept count of.
    pub fn new(run: u64, part: Range<u64>, grain: u64) -> Outcome<Stamps> {
        let unit = 1 << grain.trailing_zeros();
        let count = (part.end - part.start) / unit;
        if count > MOST_UNITS {
            return Err(format!(
                "verification keeps count of {MOST_UNITS} blocks of {unit} bytes a connection: use a smaller span"
            )
            .into());
        }
        // The count is bounded above.
        let count = count as usize;
        Ok(Stamps {
            run,
            part,
            unit,
            units: vec![0; count],
            used: vec![0; count],
        })
    }

    fn range(&self, offset: u64, len: u32) -> Range<usize> {
        let first = (offset - self.part.start) / self.unit;
        let last = first + u64::from(len) / self.unit;
        first as usize..last as usize
    }

    /// Whether nothing is in flight that this request may not overlap.
    #[inline]
    pub fn is_free(&self, ask: &Ask) -> bool {
        let used = &self.used[self.range(ask.offset, ask.len)];
        if ask.kind.changes() {
            used.iter().all(|used| *used == 0)
        } else {
            used.iter().all(|used| *used < CHANGING - 1)
        }
    }

    /// Notes that a request is in flight.
    #[inline]
    pub fn begin(&mut self, ask: &Ask) {
        let range = self.range(ask.offset, ask.len);
        for used in &mut self.used[range] {
            *used = if ask.kind.changes() { CHANGING } else { *used + 1 };
        }
    }

    /// Fills the data of a write that is about to begin.
    pub fn fill(&self, ask: &Ask, data: &mut [u8]) {
        let mut offset = ask.offset;
        for sector in data.chunks_exact_mut(SECTOR as usize) {
            let count = (self.units[self.range(offset, 0).start] & COUNT).wrapping_add(1) & COUNT;
            fill_sector(self.run, offset, count, sector);
            offset += SECTOR;
        }
    }

    /// Notes that a request has ended well.
    #[inline]
    pub fn end(&mut self, ask: &Ask) {
        let range = self.range(ask.offset, ask.len);
        if !ask.kind.changes() {
            for used in &mut self.used[range] {
                *used -= 1;
            }
            return;
        }
        let holds = match ask.kind {
            Kind::Write => WRITTEN,
            Kind::Zero => ZERO,
            _ => 0,
        };
        self.used[range.clone()].fill(0);
        for unit in &mut self.units[range] {
            *unit = holds | (*unit & COUNT).wrapping_add(1) & COUNT;
        }
    }

    /// Checks a piece of what a read has brought, from `offset` on, and returns how many of its bytes were known.
    ///
    /// # Errors
    /// The first byte that is wrong.
    pub fn check(&self, mut offset: u64, mut data: &[u8]) -> Result<u64, Box<Mismatch>> {
        let mut known = 0;
        while !data.is_empty() {
            let within = (offset % SECTOR) as usize;
            let (piece, rest) = data.split_at(data.len().min(SECTOR as usize - within));
            let unit = self.units[self.range(offset, 0).start];
            if unit & KNOWN != 0 {
                let mut sector = [0; SECTOR as usize];
                if unit & KNOWN == WRITTEN {
                    fill_sector(self.run, offset - within as u64, unit & COUNT, &mut sector);
                }
                let expected = &sector[within..within + piece.len()];
                if expected != piece {
                    return Err(self.mismatch(offset, unit, expected, piece));
                }
                known += piece.len() as u64;
            }
            offset += piece.len() as u64;
            data = rest;
        }
        Ok(known)
    }

    #[cold]
    fn mismatch(&self, offset: u64, unit: u32, expected: &[u8], found: &[u8]) -> Box<Mismatch> {
        let at = expected.iter().zip(found).position(|(one, other)| one != other);
        let at = at.unwrap_or_default();
        let some = |bytes: &[u8]| bytes[at..bytes.len().min(at + 16)].to_vec();
        let words = match unit & KNOWN {
            WRITTEN => format!("change {} of this place", unit & COUNT),
            _ => "zeroes".to_owned(),
        };
        Box::new(Mismatch {
            offset: offset + at as u64,
            expected: (words, some(expected)),
            found: (self.describe(offset, expected, found), some(found)),
        })
    }

    /// What a piece of a sector seems to be.
    fn describe(&self, offset: u64, expected: &[u8], found: &[u8]) -> String {
        if found.iter().all(|byte| *byte == 0) {
            return "zeroes".to_owned();
        }
        if found.len() > STAMP && expected.starts_with(&found[..STAMP]) {
            return "that very sector with other bytes in it".to_owned();
        }
        let word = |index: usize| {
            let bytes = found.get(index * 8..).and_then(|rest| rest.first_chunk::<8>());
            bytes.map(|bytes| u64::from_le_bytes(*bytes))
        };
        let whole_stamp = offset.is_multiple_of(SECTOR) && found.starts_with(&MAGIC);
        match (whole_stamp, word(1), word(2), word(3)) {
            (true, Some(run), ..) if run != self.run => "a sector of another run".to_owned(),
            (true, _, Some(place), Some(count)) if place != offset => {
                format!("a sector of change {count} of offset {place}")
            }
            (true, _, _, Some(count)) => format!("a sector of change {count} of this place"),
            _ => "something else".to_owned(),
        }
    }

    /// The first range from `from` on whose bytes are known, of `most` bytes at the most.
    pub fn next_known(&self, from: u64, most: u64) -> Option<Ask> {
        let first = self.range(from.max(self.part.start), 0).start;
        let known = |unit: &u32| unit & KNOWN != 0;
        let start = first + self.units.get(first..)?.iter().position(known)?;
        let most = (most / self.unit).max(1) as usize;
        let length = self.units[start..]
            .iter()
            .take(most)
            .take_while(|unit| known(unit))
            .count();
        Some(Ask {
            kind: Kind::Read,
            offset: self.part.start + start as u64 * self.unit,
            // `most` is at most the largest request.
            len: (length as u64 * self.unit) as u32,
        })
    }
}

/// Makes the contents of a sector.
#[inline]
fn fill_sector(run: u64, offset: u64, count: u32, sector: &mut [u8]) {
    let (stamp, body) = sector.split_at_mut(STAMP);
    stamp[..8].copy_from_slice(&MAGIC);
    stamp[8..16].copy_from_slice(&run.to_le_bytes());
    stamp[16..24].copy_from_slice(&offset.to_le_bytes());
    stamp[24..].copy_from_slice(&u64::from(count).to_le_bytes());
    let mut word = mixed(run ^ mixed(offset ^ mixed(u64::from(count))));
    for bytes in body.chunks_exact_mut(8) {
        // An odd step: no word of a sector is like another, and few are like those of others.
        word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
        bytes.copy_from_slice(&word.to_le_bytes());
    }
}

/// Spreads every bit over all (the finaliser of splitmix64).
pub(super) fn mixed(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PART: Range<u64> = 1 << 20..(1 << 20) + (64 << 10);

    fn stamps() -> Stamps {
        Stamps::new(7, PART, 4096).unwrap()
    }

    fn ask(kind: Kind, offset: u64, len: u32) -> Ask {
        Ask {
            kind,
            offset: PART.start + offset,
            len,
        }
    }

    fn written(stamps: &mut Stamps, ask: &Ask) -> Vec<u8> {
        let mut data = vec![0; ask.len as usize];
        stamps.fill(ask, &mut data);
        stamps.begin(ask);
        stamps.end(ask);
        data
    }

    #[test]
    fn what_was_written_is_right_in_pieces_of_any_size() {
        let mut stamps = stamps();
        let write = ask(Kind::Write, 4096, 8192);
        let data = written(&mut stamps, &write);
        for size in [1, 3, 511, 512, 513, 8192] {
            let mut offset = write.offset;
            for piece in data.chunks(size) {
                assert_eq!(
                    stamps.check(offset, piece),
                    Ok(piece.len() as u64),
                    "pieces of {size}"
                );
                offset += piece.len() as u64;
            }
        }
    }

    #[test]
    fn each_wrong_byte_is_found() {
        let mut stamps = stamps();
        let write = ask(Kind::Write, 0, 4096);
        let data = written(&mut stamps, &write);
        for at in (0..4096).step_by(7) {
            let mut wrong = data.clone();
            wrong[at] ^= 1;
            let mismatch = stamps.check(write.offset, &wrong).unwrap_err();
            assert_eq!(mismatch.offset, write.offset + at as u64);
            assert_eq!(mismatch.expected.1[0] ^ 1, mismatch.found.1[0]);
            let behind_stamp = at % SECTOR as usize >= STAMP;
            assert_eq!(
                mismatch.found.0.starts_with("that very sector"),
                behind_stamp,
                "{at}"
            );
        }
    }

    #[test]
    fn an_older_write_a_misplaced_one_and_zeroes_are_named() {
        let mut stamps = stamps();
        let (here, there) = (ask(Kind::Write, 0, 4096), ask(Kind::Write, 4096, 4096));
        let old = written(&mut stamps, &here);
        let new = written(&mut stamps, &here);
        let other = written(&mut stamps, &there);
        assert_eq!(stamps.check(here.offset, &new), Ok(4096));
        let found = |data: &[u8]| stamps.check(here.offset, data).unwrap_err().found.0;
        assert_eq!(found(&old), "a sector of change 1 of this place");
        assert_eq!(
            found(&other),
            format!("a sector of change 1 of offset {}", there.offset)
        );
        assert_eq!(found(&[0; 4096]), "zeroes");
        let foreign = written(&mut Stamps::new(8, PART, 4096).unwrap(), &here);
        assert_eq!(found(&foreign), "a sector of another run");
    }

    #[test]
    fn zeroes_are_checked_and_what_was_trimmed_is_not() {
        let mut stamps = stamps();
        written(&mut stamps, &ask(Kind::Write, 0, 8192));
        let (zero, trim) = (ask(Kind::Zero, 0, 4096), ask(Kind::Trim, 4096, 4096));
        for ask in [zero, trim] {
            stamps.begin(&ask);
            stamps.end(&ask);
        }
        assert_eq!(stamps.check(PART.start, &[0; 8192]), Ok(4096));
        let mut wrong = [0; 4096];
        wrong[4095] = 1;
        assert!(stamps.check(PART.start, &wrong).is_err());
    }

    #[test]
    fn changes_exclude_everything_and_reads_exclude_changes() {
        let mut stamps = stamps();
        let (read, write) = (ask(Kind::Read, 4096, 8192), ask(Kind::Write, 8192, 8192));
        stamps.begin(&read);
        stamps.begin(&read);
        assert!(stamps.is_free(&read));
        assert!(!stamps.is_free(&write));
        stamps.end(&read);
        assert!(!stamps.is_free(&write));
        stamps.end(&read);
        assert!(stamps.is_free(&write));
        stamps.begin(&write);
        assert!(!stamps.is_free(&read) && !stamps.is_free(&write));
        assert!(stamps.is_free(&ask(Kind::Read, 4096, 4096)));
    }

    #[test]
    fn the_read_back_visits_everything_known_once() {
        let mut stamps = stamps();
        for offset in [0, 4096, 16384] {
            written(&mut stamps, &ask(Kind::Write, offset, 4096));
        }
        let (mut from, mut found) = (0, Vec::new());
        while let Some(ask) = stamps.next_known(from, 65536) {
            found.push((ask.offset - PART.start, ask.len));
            from = ask.offset + u64::from(ask.len);
        }
        assert_eq!(found, [(0, 8192), (16384, 4096)]);
    }
}
