//! What the directory of an image's bitmaps says, and what is known of them while the image is open.

use millpond_messages::qapi::{Qcow2BitmapInfo, Qcow2BitmapInfoFlags};
use millpond_messages::{Error, ErrorKind};

use super::log::Log;
use crate::api::ImageBitmap;
use crate::format::qcow2::layout::bytes::{be32, be64};
use crate::format::qcow2::layout::geometry::Geometry;
use crate::format::qcow2::layout::space::HostOffset;

/// The most entries of a bitmap's table, and bytes of the clusters that a table stands for.
const MAX_TABLE_ENTRIES: u64 = 0x800_0000;
pub(super) const MAX_BITS_BYTES: u64 = 512 << 20;
/// How many bytes a bit may stand for, as powers of two.
pub(super) const GRANULARITY_BITS: std::ops::RangeInclusive<u8> = 9..=31;
/// Bytes of the longest name.
pub(super) const MAX_NAME: usize = 1023;
/// Bytes of a directory's entry without its texts.
const ENTRY: usize = 24;
/// The offset of the flags in an entry.
pub(super) const FLAGS: usize = 12;
/// The bitmap was not stored as a change of the image left it.
pub(super) const IN_USE: u32 = 1;
/// The bitmap records writes whenever the image is open.
pub(super) const AUTO: u32 = 2;
/// The only type of bitmap: what is dirty.
const DIRTY_TRACKING: u8 = 1;

/// Bits of a table's entry that must be zero.
const RESERVED: u64 = 0xff00_0000_0000_01fe;
/// The bits of an entry without an offset are all ones.
const ALL_ONES: u64 = 1;

/// What an entry of a bitmap's table stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::format::qcow2) enum Bits {
    Zeroes,
    Ones,
    Cluster(HostOffset),
}

impl Bits {
    /// What an entry says, if that is possible.
    pub fn of(entry: u64, geometry: &Geometry) -> Option<Self> {
        let offset = HostOffset::new(entry & !RESERVED & !ALL_ONES);
        match (entry & RESERVED, offset.get(), entry & ALL_ONES) {
            (0, 0, 0) => Some(Self::Zeroes),
            (0, 0, _) => Some(Self::Ones),
            (0, _, 0) if offset.is_aligned(geometry) => Some(Self::Cluster(offset)),
            _ => None,
        }
    }

    /// The entry that says this.
    pub const fn entry(self) -> u64 {
        match self {
            Self::Zeroes => 0,
            Self::Ones => ALL_ONES,
            Self::Cluster(offset) => offset.get(),
        }
    }
}

/// A bitmap as the directory lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::format::qcow2) struct Listed {
    pub name: Vec<u8>,
    /// The offset of its table in the file.
    pub table: HostOffset,
    /// How many entries the table has.
    pub entries: u32,
    pub(super) flags: u32,
    pub(super) granularity_bits: u8,
    /// Nobody knows what is dirty: the image was not closed by who wrote to it last.
    pub(super) is_inconsistent: bool,
}

/// What is known of an open image's bitmaps.
#[derive(Default)]
pub(in crate::format::qcow2) struct ImageBitmaps {
    /// The directory, as it is in the file.
    pub(super) listed: Vec<Listed>,
    /// What was read with the image, until the node takes it.
    pub(super) read: Vec<ImageBitmap>,
    /// The log of what has changed since they were stored, where there is one that counts.
    pub log: Option<Log>,
    /// Bitmaps were stored since the image was readied for changes: before the next one they must be called in use again.
    pub is_stored: bool,
}

/// What is wrong with a directory, in QEMU's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(in crate::format::qcow2) enum DirectoryFault {
    #[error("More bitmaps found than specified in header extension")]
    More,
    #[error("Less bitmaps found than specified in header extension")]
    Less,
    #[error("Broken bitmap directory")]
    Broken,
    #[error("Bitmap extra data is not supported")]
    ExtraData,
    #[error("Bitmap '{0}' doesn't satisfy the constraints")]
    Constraints(String),
}

impl From<DirectoryFault> for Error {
    fn from(fault: DirectoryFault) -> Self {
        Self::new(ErrorKind::InvalidArgument, fault.to_string())
    }
}

impl Listed {
    pub(super) fn entry_len(name: usize) -> usize {
        (ENTRY + name).next_multiple_of(8)
    }

    /// The bytes that a bit stands for.
    pub(super) const fn granularity(&self) -> u64 {
        1 << self.granularity_bits
    }

    pub(super) fn shown_name(&self) -> String {
        String::from_utf8_lossy(&self.name).into_owned()
    }

    /// The same with more flags.
    pub(super) fn with_flags(self, more: u32) -> Self {
        let flags = self.flags | more;
        Self { flags, ..self }
    }

    fn put(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&self.table.get().to_be_bytes());
        bytes.extend_from_slice(&self.entries.to_be_bytes());
        bytes.extend_from_slice(&self.flags.to_be_bytes());
        bytes.extend_from_slice(&[DIRTY_TRACKING, self.granularity_bits]);
        // A name has at most 1023 bytes, and there is no extra data.
        bytes.extend_from_slice(&u16::try_from(self.name.len()).unwrap_or(u16::MAX).to_be_bytes());
        bytes.extend_from_slice(&0_u32.to_be_bytes());
        bytes.extend_from_slice(&self.name);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
    }

    pub(super) fn info(&self) -> Qcow2BitmapInfo {
        let flags = [
            (IN_USE, Qcow2BitmapInfoFlags::InUse),
            (AUTO, Qcow2BitmapInfoFlags::Auto),
        ];
        let flags = flags.into_iter().filter(|(bit, _)| self.flags & bit != 0);
        Qcow2BitmapInfo {
            name: self.shown_name(),
            granularity: 1 << self.granularity_bits,
            flags: flags.map(|(_, flag)| flag).collect(),
        }
    }
}

/// The entries of the directory of a disk of `len` bytes.
pub(super) fn parse(
    bytes: &[u8],
    count: u32,
    geometry: &Geometry,
    len: u64,
) -> Result<Vec<Listed>, DirectoryFault> {
    let mut listed = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        if rest.len() < ENTRY {
            return Err(DirectoryFault::Broken);
        }
        if listed.len() >= count as usize {
            return Err(DirectoryFault::More);
        }
        let (name, extra) = ((be32(rest, 16) & 0xffff) as usize, be32(rest, 20) as usize);
        let end = Listed::entry_len(name.saturating_add(extra));
        let behind = rest.get(end..).ok_or(DirectoryFault::Broken)?;
        if extra != 0 {
            return Err(DirectoryFault::ExtraData);
        }
        listed.push(entry(rest, name, geometry, len)?);
        rest = behind;
    }
    if listed.len() < count as usize {
        return Err(DirectoryFault::Less);
    }
    Ok(listed)
}

/// The entry at the start of `bytes`, with a name of so many bytes, if what it says is possible.
fn entry(bytes: &[u8], name: usize, geometry: &Geometry, len: u64) -> Result<Listed, DirectoryFault> {
    let flags = be32(bytes, FLAGS);
    let [_, _, kind, granularity_bits] = (be32(bytes, 16) >> 16).to_be_bytes();
    let listed = Listed {
        name: bytes.get(ENTRY..ENTRY + name).unwrap_or_default().to_vec(),
        table: HostOffset::new(be64(bytes, 0)),
        entries: be32(bytes, 8),
        flags,
        granularity_bits,
        is_inconsistent: flags & IN_USE != 0,
    };
    let entries = u64::from(listed.entries);
    let bits = (entries << geometry.cluster_bits).saturating_mul(8);
    let possible = kind == DIRTY_TRACKING
        && GRANULARITY_BITS.contains(&granularity_bits)
        && flags & !(IN_USE | AUTO) == 0
        && name <= MAX_NAME
        && listed.table != HostOffset::default()
        && listed.table.is_aligned(geometry)
        && (1..=MAX_TABLE_ENTRIES).contains(&entries)
        && geometry.bytes(entries) <= MAX_BITS_BYTES
        // Room for the disk is asked only of those that are read.
        && (listed.is_inconsistent || bits >= len.div_ceil(listed.granularity()));
    match possible {
        true => Ok(listed),
        false => Err(DirectoryFault::Constraints(listed.shown_name())),
    }
}

/// The bytes of a directory that lists these.
pub(super) fn directory_of(listed: &[Listed]) -> Vec<u8> {
    let mut bytes = Vec::new();
    listed.iter().for_each(|one| one.put(&mut bytes));
    bytes
}

/// How many entries the table of a bitmap of a disk of `len` bytes has.
pub(super) fn entries_for(len: u64, granularity: u64, geometry: &Geometry) -> u64 {
    // A disk without a byte has a table too: one without an entry would be refused.
    geometry.clusters(len.div_ceil(granularity).div_ceil(8)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEN: u64 = 1 << 20;

    fn listed(table: u64, entries: u32, name: &str) -> Listed {
        Listed {
            name: name.as_bytes().to_vec(),
            table: HostOffset::new(table),
            entries,
            flags: AUTO,
            granularity_bits: 16,
            is_inconsistent: false,
        }
    }

    fn parsed(bytes: &[u8], count: u32) -> Result<Vec<Listed>, DirectoryFault> {
        parse(bytes, count, &Geometry::new(16, 4, 4096, 3), LEN)
    }

    fn changed(at: usize, bytes: &[u8]) -> Result<Vec<Listed>, DirectoryFault> {
        let mut directory = directory_of(&[listed(0x50000, 1, "first")]);
        directory[at..at + bytes.len()].copy_from_slice(bytes);
        parsed(&directory, 1)
    }

    #[test]
    fn a_directory_reads_back_as_it_was_written() {
        let all = [listed(0x50000, 1, "first"), listed(0x60000, 2, "b")];
        assert_eq!(parsed(&directory_of(&all), 2).unwrap(), all);
    }

    #[test]
    fn directories_that_contradict_themselves_are_not_read() {
        let bytes = directory_of(&[listed(0x50000, 1, "first")]);
        assert_eq!(parsed(&bytes, 2), Err(DirectoryFault::Less));
        assert_eq!(parsed(&bytes, 0), Err(DirectoryFault::More));
        assert_eq!(parsed(&bytes[..20], 1), Err(DirectoryFault::Broken));
        assert_eq!(changed(20, &u32::MAX.to_be_bytes()), Err(DirectoryFault::Broken));
        assert_eq!(changed(18, &1000_u16.to_be_bytes()), Err(DirectoryFault::Broken));
        assert_eq!(changed(20, &3_u32.to_be_bytes()), Err(DirectoryFault::ExtraData));
    }

    #[test]
    fn entries_that_no_bitmap_can_have_are_refused() {
        let refused = Err(DirectoryFault::Constraints("first".to_owned()));
        for (at, bytes) in [
            (0, &0_u64.to_be_bytes()[..]),
            (0, &0x50001_u64.to_be_bytes()),
            (8, &0_u32.to_be_bytes()),
            (8, &8193_u32.to_be_bytes()),
            (8, &u32::MAX.to_be_bytes()),
            (FLAGS, &4_u32.to_be_bytes()),
            (16, &[2]),
            (17, &[8]),
            (17, &[32]),
        ] {
            assert_eq!(changed(at, bytes), refused, "{bytes:?} at {at}");
        }
        assert!(changed(8, &8192_u32.to_be_bytes()).is_ok());
    }

    #[test]
    fn a_bitmap_that_is_too_short_for_its_disk_is_refused_unless_nobody_reads_it() {
        let geometry = Geometry::new(16, 4, 4096, 3);
        let mut short = listed(0x50000, 1, "b");
        short.granularity_bits = 9;
        let len = (65_536 * 8 + 1) * 512;
        let parsed = |listed: &Listed| parse(&directory_of(std::slice::from_ref(listed)), 1, &geometry, len);
        assert_eq!(parsed(&short), Err(DirectoryFault::Constraints("b".to_owned())));
        short.flags |= IN_USE;
        assert!(parsed(&short).unwrap()[0].is_inconsistent);
    }

    #[test]
    fn entries_of_tables_say_one_thing_or_are_refused() {
        let geometry = Geometry::new(16, 4, 4096, 3);
        for bits in [Bits::Zeroes, Bits::Ones, Bits::Cluster(HostOffset::new(0x50000))] {
            assert_eq!(Bits::of(bits.entry(), &geometry), Some(bits));
        }
        for entry in [2, 0x50001, 0x50200, 1 << 56, 0x50000 | 1 << 63] {
            assert_eq!(Bits::of(entry, &geometry), None, "{entry:#x}");
        }
    }
}
