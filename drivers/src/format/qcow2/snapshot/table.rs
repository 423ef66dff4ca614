//! The table of snapshots, as it is read and written.

use std::ops::Range;

use millpond_messages::{Error, ErrorKind, InternalSnapshot, IoError, IoResult, Result, SnapshotName};

use crate::format::qcow2::file::ImageFile;
use crate::format::qcow2::header::{Header, MAX_L1_BYTES, MAX_SNAPSHOTS};
use crate::format::qcow2::layout::bytes::{be32, be64, text};
use crate::format::qcow2::layout::space::HostOffset;

/// Bytes of an entry without what has a length of its own.
const ENTRY: usize = 40;
/// Bytes of the extra data that is known here, and always written: the state's size, the disk's, the machine's counter.
const EXTRA: usize = 24;
/// How much of it every entry of an image of version 3 has.
const LEAST_EXTRA: usize = 16;
/// How much an entry may say beyond what is defined, as QEMU limits it.
const MAX_EXTRA: usize = 1024;
/// How long the table may be: 1 KiB for each of the most that there may be.
const MAX_TABLE: u64 = 64 << 20;
/// So much is read at once: a table of a few entries whole.
const WINDOW: usize = 64 << 10;

/// An entry of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Snapshot {
    /// Where its L1 table is. Not checked: see [`Snapshot::check_l1`].
    pub l1_offset: HostOffset,
    pub l1_entries: u32,
    pub id: Vec<u8>,
    pub name: Vec<u8>,
    pub date_sec: u32,
    pub date_nsec: u32,
    pub vm_clock_nsec: u64,
    pub vm_state_size: u64,
    pub disk_size: u64,
    /// All ones stand for none.
    pub icount: u64,
    /// Extra data that is not known here: it stays as it is.
    pub extra: Vec<u8>,
    /// It was read without all of the extra data that images of version 3 must have.
    pub is_incomplete: bool,
}

/// All entries, and where the table ends.
#[derive(Debug, Default)]
pub(crate) struct SnapshotTable {
    pub entries: Vec<Snapshot>,
    pub end: HostOffset,
    /// How many entries were left out, or lost a part of their extra data.
    pub cut: u64,
}

impl Snapshot {
    /// Refuses an L1 table that cannot be one.
    pub fn check_l1(&self, header: &Header) -> Result<()> {
        let entries = u64::from(self.l1_entries);
        header.check_table("Snapshot L1 table", self.l1_offset, entries, 8, MAX_L1_BYTES)
    }

    /// The same for others.
    pub fn shown(&self) -> InternalSnapshot {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        InternalSnapshot {
            id: text(&self.id),
            name: text(&self.name),
            vm_state_size: self.vm_state_size,
            date_sec: self.date_sec,
            date_nsec: self.date_nsec,
            vm_clock_nsec: self.vm_clock_nsec,
            icount: Some(self.icount).filter(|count| *count != u64::MAX),
            disk_size: self.disk_size,
        }
    }

    /// The entry as it is written. Its extra data is whole, whatever was read.
    fn encode(&self, bytes: &mut Vec<u8>) -> IoResult<()> {
        let length = |text: &[u8]| u16::try_from(text.len()).map_err(|_| IoError::Invalid);
        bytes.extend(self.l1_offset.get().to_be_bytes());
        bytes.extend(self.l1_entries.to_be_bytes());
        bytes.extend(length(&self.id)?.to_be_bytes());
        bytes.extend(length(&self.name)?.to_be_bytes());
        bytes.extend(self.date_sec.to_be_bytes());
        bytes.extend(self.date_nsec.to_be_bytes());
        bytes.extend(self.vm_clock_nsec.to_be_bytes());
        // Who does not know of the larger field sees a snapshot without a state rather than with a part of it.
        let short = u32::try_from(self.vm_state_size).unwrap_or(0);
        bytes.extend(short.to_be_bytes());
        // What was read is bounded far below.
        bytes.extend(((EXTRA + self.extra.len()) as u32).to_be_bytes());
        for number in [self.vm_state_size, self.disk_size, self.icount] {
            bytes.extend(number.to_be_bytes());
        }
        for part in [&self.extra, &self.id, &self.name] {
            bytes.extend_from_slice(part);
        }
        Ok(())
    }
}

/// The table's bytes.
///
/// # Errors
/// It would be too long.
pub(crate) fn encode(snapshots: &[Snapshot]) -> IoResult<Vec<u8>> {
    let mut bytes = Vec::new();
    for snapshot in snapshots {
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        snapshot.encode(&mut bytes)?;
        if bytes.len() as u64 > MAX_TABLE {
            return Err(IoError::Os(millpond_messages::error::errno::EFBIG));
        }
    }
    Ok(bytes)
}

/// The number of the snapshot that is meant, if there is one.
pub(crate) fn find(snapshots: &[Snapshot], name: &SnapshotName) -> Option<usize> {
    snapshots.iter().position(|snapshot| name.fits(&snapshot.shown()))
}

/// An id that no snapshot has.
pub(crate) fn new_id(snapshots: &[Snapshot]) -> Vec<u8> {
    let number = |id: &[u8]| {
        let digits = id.iter().take_while(|byte| byte.is_ascii_digit());
        digits.fold(0_u64, |number, digit| {
            number.saturating_mul(10).saturating_add(u64::from(digit - b'0'))
        })
    };
    let largest = snapshots.iter().map(|snapshot| number(&snapshot.id)).max();
    largest.unwrap_or(0).saturating_add(1).to_string().into_bytes()
}

/// Reads a table of unknown length, a window at a time.
struct Reader<'a> {
    file: &'a ImageFile,
    start: HostOffset,
    window: Vec<u8>,
}

impl Reader<'_> {
    /// The bytes of the file from `offset`, `len` of them.
    async fn bytes(&mut self, offset: HostOffset, len: usize) -> IoResult<&[u8]> {
        let within = |start: HostOffset, have: usize| -> Option<Range<usize>> {
            let at = usize::try_from(offset.get().checked_sub(start.get())?).ok()?;
            let end = at.checked_add(len)?;
            (end <= have).then_some(at..end)
        };
        if within(self.start, self.window.len()).is_none() {
            // Near the last offset there can be, a whole window has no room.
            let read = match self.file.read_vec(offset, len.max(WINDOW)).await {
                Err(_) => self.file.read_vec(offset, len).await?,
                Ok(read) => read,
            };
            (self.start, self.window) = (offset, read.to_vec());
        }
        let range = within(self.start, self.window.len()).unwrap_or_default();
        Ok(self.window.get(range).unwrap_or_default())
    }

    /// The entry at `offset` of a table of a disk of `disk_size` bytes, where it ends, and whether all its extra data is in it.
    async fn entry(&mut self, offset: HostOffset, disk_size: u64) -> Result<(Snapshot, HostOffset, bool)> {
        let failed = |error: IoError| Error::io("Failed to read snapshot table", error);
        let fixed = self.bytes(offset, ENTRY).await.map_err(failed)?.to_vec();
        let mut sizes = Sizes::of(&fixed);
        let extra_at = offset + ENTRY as u64;
        let texts_at = extra_at.saturating_add(sizes.extra as u64);
        let whole = sizes.extra <= MAX_EXTRA;
        sizes.extra = sizes.extra.min(MAX_EXTRA);
        let mut rest = self.bytes(extra_at, sizes.extra).await.map_err(failed)?.to_vec();
        let texts = self.bytes(texts_at, sizes.id + sizes.name).await;
        rest.extend_from_slice(texts.map_err(failed)?);
        let end = texts_at.saturating_add((sizes.id + sizes.name) as u64);
        Ok((decode(&fixed, &sizes, &rest, disk_size), end, whole))
    }
}

/// Reads the table that a header tells of. What is beyond the limits is an error, or is cut off with `mends`.
pub(crate) async fn read(file: &ImageFile, header: &Header, mends: bool) -> Result<SnapshotTable> {
    header.check_snapshot_table(mends)?;
    let start = header.snapshots_offset;
    let mut reader = Reader {
        file,
        start,
        window: Vec::new(),
    };
    let count = u64::from(header.snapshots).min(MAX_SNAPSHOTS);
    let mut table = SnapshotTable {
        entries: Vec::new(),
        end: start,
        cut: u64::from(header.snapshots) - count,
    };
    for index in 0..count {
        // The header's checks leave room behind the table's start, which is on a multiple of 8.
        let offset = start + (table.end - start).next_multiple_of(8);
        let (snapshot, end, whole) = reader.entry(offset, header.size).await?;
        if !whole && !mends {
            let text = format!("Too much extra metadata in snapshot table entry {index}");
            return Err(Error::new(ErrorKind::Corrupt, text));
        }
        if end - start > MAX_TABLE {
            if !mends {
                return Err(Error::new(ErrorKind::Corrupt, "Snapshot table is too big"));
            }
            table.cut += count - index;
            break;
        }
        table.cut += u64::from(!whole);
        table.entries.push(snapshot);
        table.end = end;
    }
    Ok(table)
}

/// Lengths that an entry tells.
struct Sizes {
    extra: usize,
    id: usize,
    name: usize,
}

impl Sizes {
    fn of(fixed: &[u8]) -> Self {
        let texts = be32(fixed, 12) as usize;
        Self {
            extra: be32(fixed, 36) as usize,
            id: texts >> 16,
            name: texts & 0xffff,
        }
    }

    #[cfg(test)]
    const fn sum(&self) -> usize {
        self.extra + self.id + self.name
    }
}

fn decode(fixed: &[u8], sizes: &Sizes, rest: &[u8], disk_size: u64) -> Snapshot {
    let extra = rest.get(..sizes.extra).unwrap_or_default();
    let texts = rest.get(sizes.extra..).unwrap_or_default();
    let known = |number: usize| (extra.len() >= (number + 1) * 8).then(|| be64(extra, number * 8));
    Snapshot {
        l1_offset: HostOffset::new(be64(fixed, 0)),
        l1_entries: be32(fixed, 8),
        id: text(texts.get(..sizes.id).unwrap_or_default()).to_vec(),
        name: text(texts.get(sizes.id..).unwrap_or_default()).to_vec(),
        date_sec: be32(fixed, 16),
        date_nsec: be32(fixed, 20),
        vm_clock_nsec: be64(fixed, 24),
        vm_state_size: known(0).unwrap_or(u64::from(be32(fixed, 32))),
        disk_size: known(1).unwrap_or(disk_size),
        icount: known(2).unwrap_or(u64::MAX),
        extra: extra.get(EXTRA..).unwrap_or_default().to_vec(),
        is_incomplete: extra.len() < LEAST_EXTRA,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(id: &str) -> Snapshot {
        Snapshot {
            l1_offset: HostOffset::new(0x50000),
            l1_entries: 3,
            id: id.into(),
            name: b"a name".to_vec(),
            date_sec: 7,
            date_nsec: 8,
            vm_clock_nsec: 9,
            vm_state_size: 5 << 32,
            disk_size: 1 << 20,
            icount: 11,
            extra: b"later".to_vec(),
            is_incomplete: false,
        }
    }

    #[test]
    fn an_entry_reads_back() {
        let mut bytes = Vec::new();
        snapshot("12").encode(&mut bytes).unwrap();
        let sizes = Sizes::of(&bytes);
        assert_eq!((sizes.extra, sizes.id, sizes.name), (29, 2, 6));
        assert_eq!(bytes.len(), ENTRY + sizes.sum());
        assert_eq!(decode(&bytes, &sizes, &bytes[ENTRY..], 1), snapshot("12"));
        assert_eq!(be32(&bytes, 32), 0, "a state of 20 GiB does not fit there");
        let two = encode(&[snapshot("1"), snapshot("2")]).unwrap();
        assert_eq!(
            be32(&two, 80 + 8),
            3,
            "the second entry starts at a multiple of 8"
        );
    }

    #[test]
    fn what_an_old_entry_does_not_say_is_made_up_for() {
        let mut bytes = Vec::new();
        snapshot("1").encode(&mut bytes).unwrap();
        let sizes = Sizes {
            extra: 0,
            id: 1,
            name: 6,
        };
        let old = decode(&bytes, &sizes, b"1a name", 4096);
        assert_eq!(
            (old.vm_state_size, old.disk_size, old.icount),
            (0, 4096, u64::MAX)
        );
        assert!(old.is_incomplete);
        assert_eq!(old.shown().icount, None);
    }

    #[test]
    fn ids_go_on_behind_the_largest() {
        assert_eq!(new_id(&[]), b"1");
        assert_eq!(new_id(&[snapshot("9"), snapshot("10x"), snapshot("x")]), b"11");
    }
}
