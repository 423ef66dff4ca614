//! The log of an image's dirty bitmaps: which regions of the disk have changed, or may have, since the bitmaps were stored.
//!
//! ```text
//!   bitmap directory:   | entries ...          | unused | bits | foot |
//!                                `-------- its last cluster ---------'
//! ```
//! It lies in what the directory's entries leave of the directory's last cluster. So it has no cluster of its own that a
//! program without logs would take for a leak, or for free; it cannot be elsewhere than it is looked for; and the header
//! names bitmaps and the log that begins with them by the same write. The foot tells the size of a region, and by its digest
//! that it belongs to this directory. The log counts only while the header has its autoclear flag, which programs that do
//! not know it take away as they open the image for writing. QEMU does not where it has opened the image read-only before,
//! and reopens it for writing: of what it writes then to an image that a crash has left, no log knows.
//!
//! There is a bit for each region, 1 where it is dirty. The last one stands for all that lies behind, too: the disk may have
//! become longer.

use millpond_messages::{ChunkSet, MAX_LENGTH, Range, SECTOR_SIZE};
use sha2::{Digest, Sha256};

use super::listed::{IN_USE, Listed, directory_of};
use crate::format::qcow2::layout::bytes::{be32, be64};
use crate::format::qcow2::layout::geometry::Geometry;
use crate::format::qcow2::layout::space::HostOffset;

/// The first bytes of a foot.
const MAGIC: [u8; 8] = *b"MILLPLOG";
/// Bytes of a foot, and of its digest, which are the last of them.
const FOOT: u64 = 48;
const DIGEST: usize = 16;
/// The fewest and the most bytes of bits: 32,768 regions, as many as one page of a set has.
const LEAST_BITS: u64 = 8;
const MOST_BITS: u64 = 4096;
/// log2 of the bytes of the smallest region.
const LEAST_REGION_BITS: u32 = 16;

/// Where a bitmap directory is, whose last cluster has room for a log.
#[derive(Debug, Clone, Copy)]
pub(in crate::format::qcow2) struct Home {
    /// The byte at which the directory starts.
    pub directory: HostOffset,
    /// The end of the directory's last cluster.
    end: HostOffset,
    /// The bytes of that cluster which the directory does not use.
    room: u64,
    /// The most bytes of bits that may be taken of them.
    most: u64,
}

impl Home {
    /// What a directory of `len` bytes leaves. It is in one piece, and starts where a cluster does.
    pub fn new(directory: HostOffset, len: u64, geometry: &Geometry) -> Self {
        let whole = geometry.bytes(geometry.clusters(len));
        Self {
            directory,
            end: directory.saturating_add(whole),
            room: whole - len,
            most: MOST_BITS.min(geometry.cluster_size() / 8),
        }
    }

    /// The part of the file that a log can be in, if there is room for one: where it starts, and how many bytes it has.
    pub fn tail(&self) -> Option<(HostOffset, u64)> {
        let len = self.room.min(MOST_BITS + FOOT);
        (len >= LEAST_BITS + FOOT).then(|| (self.end - len, len))
    }

    /// The bytes of bits that a new log gets: a power of two, so that the regions are as many.
    fn bits(&self) -> Option<u64> {
        let most = self.most.min(self.room.checked_sub(FOOT)?);
        let bits = most.checked_ilog2().map(|log| 1_u64 << log)?;
        (bits >= LEAST_BITS).then_some(bits)
    }
}

/// A log, as it is kept while the image is open.
#[derive(Debug, Clone)]
pub(in crate::format::qcow2) struct Log {
    /// The offset of the bits in the file, and their bytes.
    start: HostOffset,
    bits: u64,
    /// The bytes of the disk when the bitmaps were stored.
    pub(super) disk: u64,
    /// What is dirty, and what the file says durably of it.
    dirty: ChunkSet,
    durable: ChunkSet,
    /// Why nothing may change before the header was written anew.
    pub(super) doubt: Option<Doubt>,
}

/// What is wrong with a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Doubt {
    /// The header may name other bitmaps than those that it belongs to, since a change of them failed.
    Unnamed,
    /// The bitmaps have become what they were not stored as: it is to be given up.
    Outdated,
}

/// What the file is to have of a log, and has not durably.
pub(in crate::format::qcow2) struct Missing {
    /// The place in the file that it goes to.
    pub offset: HostOffset,
    /// The bits as they are to be there.
    pub bytes: Vec<u8>,
    /// What is dirty by them.
    dirty: ChunkSet,
}

impl Log {
    /// The log of a disk of `disk` bytes whose bitmaps are stored: nothing is dirty. None where there is no room.
    pub fn new(home: &Home, disk: u64) -> Option<Self> {
        let bits = home.bits()?;
        let region = disk.div_ceil(bits * 8).checked_next_power_of_two()?;
        Self::of(home, bits, region.trailing_zeros().max(LEAST_REGION_BITS), disk)
    }

    fn of(home: &Home, bits: u64, region_bits: u32, disk: u64) -> Option<Self> {
        let len = (bits * 8).checked_mul(1_u64.checked_shl(region_bits)?)?;
        let clean = ChunkSet::new(len, 1 << region_bits).ok()?;
        Some(Self {
            start: home.end - FOOT - bits,
            bits,
            disk,
            dirty: clean.clone(),
            durable: clean,
            doubt: None,
        })
    }

    /// The log that a directory of these bitmaps has, by the bytes of its [`Home::tail`]. None where there is none that
    /// belongs to them.
    pub fn parse(home: &Home, tail: &[u8], listed: &[Listed]) -> Option<Self> {
        let foot = tail.last_chunk::<{ FOOT as usize }>()?;
        let (bits, region_bits) = (u64::from(be32(foot, 28)), be32(foot, 24));
        let (disk, directory) = (be64(foot, 8), HostOffset::new(be64(foot, 16)));
        let (told, digest) = foot.split_last_chunk::<DIGEST>()?;
        let fits = bits.is_power_of_two()
            && (LEAST_BITS..=MOST_BITS).contains(&bits)
            && (tail.len() as u64)
                .checked_sub(FOOT)
                .is_some_and(|room| bits <= room)
            && (LEAST_REGION_BITS..64).contains(&region_bits)
            && disk <= MAX_LENGTH;
        if !fits
            || !told.starts_with(&MAGIC)
            || directory != home.directory
            || digest_of(told, listed) != *digest
        {
            return None;
        }
        let mut log = Self::of(home, bits, region_bits, disk)?;
        let before_foot = tail.len() - FOOT as usize;
        let stored = tail.get(before_foot - bits as usize..before_foot)?;
        let words = stored.as_chunks::<8>().0.iter();
        log.dirty
            .insert_words(0, words.map(|word| u64::from_le_bytes(*word)));
        log.durable = log.dirty.clone();
        Some(log)
    }

    /// The same log where a directory is that lists some of the same bitmaps, as they are stored: for a disk of at most `disk`
    /// bytes now. All of it is durable once it is written there.
    pub fn moved(&self, home: &Home, disk: u64) -> Option<Self> {
        let mut moved = Self {
            disk: self.disk,
            ..Self::new(home, disk.max(self.disk))?
        };
        self.runs().for_each(|run| moved.note(run));
        moved.durable = moved.dirty.clone();
        Some(moved)
    }

    /// What of the log a range is.
    fn within(&self, range: Range) -> Range {
        let (last, end) = (self.dirty.len() - 1, self.dirty.len());
        let start = range.offset().min(last);
        match range.is_empty() {
            true => Range::between(start, start),
            false => Range::between(start, range.end().clamp(start + 1, end)),
        }
    }

    /// Whether the file says durably that all of a range is dirty.
    pub fn has(&self, range: Range) -> bool {
        let range = self.within(range);
        let missing = self.durable.next_absent(range.offset());
        missing.is_none_or(|missing| missing >= range.end())
    }

    /// A range is dirty.
    pub fn note(&mut self, range: Range) {
        self.dirty.insert(self.within(range));
    }

    /// What of the log is not durable: whole sectors of the file, as far as they are bits.
    pub fn missing(&self) -> Option<Missing> {
        let words: Vec<(u64, u64)> = self.dirty.words().zip(self.durable.words()).collect();
        let differs = |(dirty, durable): &(u64, u64)| dirty != durable;
        let (first, last) = (words.iter().position(differs)?, words.iter().rposition(differs)?);
        let (start, end) = (self.start.get(), self.start.get() + self.bits);
        let sector = |word: usize| (start + word as u64 * 8) / SECTOR_SIZE * SECTOR_SIZE;
        let from = sector(first).max(start);
        let to = (sector(last) + SECTOR_SIZE).min(end);
        let bytes = self.bytes();
        let part = bytes.get((from - start) as usize..(to - start) as usize)?;
        Some(Missing {
            offset: HostOffset::new(from),
            bytes: part.to_vec(),
            dirty: self.dirty.clone(),
        })
    }

    /// What was missing is durable.
    pub fn written(&mut self, missing: &Missing) {
        self.durable.merge(&missing.dirty);
    }

    fn bytes(&self) -> Vec<u8> {
        self.dirty.words().flat_map(u64::to_le_bytes).collect()
    }

    /// The log as it lies at the end of a directory of these bitmaps.
    pub fn encode(&self, home: &Home, listed: &[Listed]) -> Vec<u8> {
        let mut told = MAGIC.to_vec();
        told.extend_from_slice(&self.disk.to_be_bytes());
        told.extend_from_slice(&home.directory.get().to_be_bytes());
        told.extend_from_slice(&self.dirty.chunk().trailing_zeros().to_be_bytes());
        // It has at most 4096 bytes of bits.
        told.extend_from_slice(&u32::try_from(self.bits).unwrap_or(0).to_be_bytes());
        let digest = digest_of(&told, listed);
        [self.bytes(), told, digest.to_vec()].concat()
    }

    /// The place in the file that [`Log::encode`] goes to.
    pub const fn start(&self) -> HostOffset {
        self.start
    }

    /// The runs of a disk's bytes that are dirty.
    pub fn runs(&self) -> impl Iterator<Item = Range> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let run = self.dirty.next_run(at)?;
            at = run.end();
            let end = if at == self.dirty.len() { u64::MAX } else { at };
            Some(Range::between(run.offset(), end))
        })
    }
}

/// What a foot's digest is. That bitmaps are in use is said beside the log, and no part of it.
fn digest_of(told: &[u8], listed: &[Listed]) -> [u8; DIGEST] {
    let listed: Vec<Listed> = listed
        .iter()
        .cloned()
        .map(|one| Listed {
            flags: one.flags & !IN_USE,
            ..one
        })
        .collect();
    let digest = Sha256::new()
        .chain_update(told)
        .chain_update(directory_of(&listed))
        .finalize();
    digest.first_chunk().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::qcow2::bitmaps::listed::AUTO;

    const DISK: u64 = 100 << 30;

    fn listed(flags: u32) -> [Listed; 1] {
        [Listed {
            name: b"a".to_vec(),
            table: HostOffset::new(0x50000),
            entries: 1,
            flags,
            granularity_bits: 16,
            is_inconsistent: false,
        }]
    }

    fn home(len: u64, cluster_bits: u32) -> Home {
        Home::new(
            HostOffset::new(0x80000),
            len,
            &Geometry::new(cluster_bits, 4, 512, 3),
        )
    }

    fn range(offset: u64, len: u64) -> Range {
        Range::new(offset, len).unwrap()
    }

    /// A log of a disk of 100 GiB in clusters of 64 KiB, with what lies at the end of its directory.
    fn stored() -> (Home, Log, Vec<u8>) {
        let home = home(32, 16);
        let mut log = Log::new(&home, DISK).unwrap();
        log.note(range(5 << 30, 1));
        log.note(range(DISK - 1, 1));
        let tail = log.encode(&home, &listed(AUTO | IN_USE));
        (home, log, tail)
    }

    #[test]
    fn a_log_reads_back_as_it_was_written_whether_or_not_its_bitmaps_are_in_use() {
        let (home, log, tail) = stored();
        for flags in [AUTO, AUTO | IN_USE] {
            let read = Log::parse(&home, &tail, &listed(flags)).unwrap();
            assert_eq!(
                (&read.dirty, read.disk, read.start),
                (&log.dirty, DISK, log.start)
            );
            assert!(read.missing().is_none(), "all of it is durable");
        }
        let (start, len) = home.tail().unwrap();
        assert_eq!(log.start() + tail.len() as u64, start + len);
        assert!(
            Log::parse(&home, &tail, &listed(IN_USE)).is_none(),
            "another directory"
        );
    }

    /// Whatever is crafted is no log, or one that is no larger than any.
    #[test]
    fn crafted_feet_are_no_log() {
        let (home, _, tail) = stored();
        let foot = tail.len() - FOOT as usize;
        for at in foot..tail.len() {
            let mut changed = tail.clone();
            changed[at] ^= 1;
            assert!(Log::parse(&home, &changed, &listed(AUTO)).is_none(), "byte {at}");
        }
        for (at, field) in [
            (8, (MAX_LENGTH + 1).to_be_bytes()),
            (16, 0x90000_u64.to_be_bytes()),
            (24, (u64::from(15_u32) << 32 | 4096).to_be_bytes()),
            (24, (u64::from(49_u32) << 32 | 4096).to_be_bytes()),
            (24, (u64::from(64_u32) << 32 | 4096).to_be_bytes()),
            (24, (u64::from(u32::MAX) << 32 | 4096).to_be_bytes()),
            (24, (u64::from(22_u32) << 32 | 8192).to_be_bytes()),
            (24, (u64::from(22_u32) << 32 | 4000).to_be_bytes()),
            (24, (u64::from(22_u32) << 32).to_be_bytes()),
        ] {
            let mut changed = tail.clone();
            changed[foot + at..foot + at + 8].copy_from_slice(&field);
            let digest = digest_of(&changed[foot..foot + 32], &listed(AUTO));
            changed[foot + 32..].copy_from_slice(&digest);
            assert!(
                Log::parse(&home, &changed, &listed(AUTO)).is_none(),
                "{field:?} at {at}"
            );
        }
        assert!(
            Log::parse(&home, &tail[1..], &listed(AUTO)).is_none(),
            "too short"
        );
        assert!(Log::parse(&home, &[], &listed(AUTO)).is_none());
    }

    #[test]
    fn regions_are_as_small_as_the_room_for_them_allows() {
        let region = |len, cluster_bits, disk| {
            let log = Log::new(&home(len, cluster_bits), disk);
            log.map(|log| (log.bits, log.dirty.chunk()))
        };
        assert_eq!(region(32, 16, 2 << 30), Some((4096, 64 << 10)));
        assert_eq!(region(32, 16, 100 << 30), Some((4096, 4 << 20)));
        assert_eq!(region(32, 16, MAX_LENGTH), Some((4096, 1 << 48)));
        assert_eq!(region(32, 9, 1 << 30), Some((64, 2 << 20)));
        assert_eq!(region(512 - 56, 9, 1 << 30), Some((8, 16 << 20)));
        assert_eq!(region(512 - 55, 9, 1 << 30), None);
        assert_eq!(region(512, 9, 1 << 30), None);
        assert_eq!(region(65_536 + 8, 16, 0), Some((4096, 64 << 10)));
    }

    #[test]
    fn what_is_missing_is_the_sectors_that_changed_and_durable_only_once_it_is_written() {
        let (_, mut log, _) = stored();
        let missing = log.missing().unwrap();
        assert_eq!(missing.offset.get() % 512, 0);
        assert!(!log.has(range(5 << 30, 1)));
        log.note(range(6 << 30, 1));
        log.written(&missing);
        assert!(log.has(range(5 << 30, 4096)) && log.has(range(DISK - 4096, 4096)));
        assert!(!log.has(range(6 << 30, 1)), "it came after what was written");
        assert!(!log.has(range((5 << 30) - 1, 2)), "the region before");
        let missing = log.missing().unwrap();
        assert_eq!(missing.bytes.len(), 512);
        log.written(&missing);
        assert!(log.missing().is_none());
    }

    #[test]
    fn a_disk_that_has_grown_is_dirty_behind_the_last_region() {
        let (_, mut log, _) = stored();
        let end = log.dirty.len();
        log.note(range(end + 5, 1));
        let missing = log.missing().unwrap();
        log.written(&missing);
        assert!(log.has(range(end - 1, 1)) && log.has(range(end, 1 << 40)));
        assert_eq!(log.runs().last().unwrap().end(), u64::MAX);
    }

    #[test]
    fn nothing_is_dirty_by_a_range_without_bytes() {
        let home = home(32, 16);
        let mut log = Log::new(&home, DISK).unwrap();
        for offset in [0, 5 << 30, log.dirty.len(), u64::MAX] {
            log.note(Range::between(offset, offset));
            assert!(log.missing().is_none() && log.has(Range::between(offset, offset)));
        }
    }

    #[test]
    fn a_log_that_moves_stays_dirty_where_it_was() {
        let (_, log, _) = stored();
        for (len, cluster_bits, disk) in [
            (32, 16, DISK),
            (32, 9, DISK),
            (32, 16, 4 * DISK),
            (32, 16, 1 << 20),
        ] {
            let moved = log.moved(&home(len, cluster_bits), disk).unwrap();
            assert_eq!(moved.disk, DISK);
            assert!(moved.has(range(5 << 30, 1)) && moved.has(range(DISK - 1, 1)));
            assert!(!moved.has(range(50 << 30, 1)));
            assert!(moved.missing().is_none(), "it is written with its directory");
        }
    }
}
