//! The log's bytes, as the kernel's dm-log-writes target lays them out: a superblock, then for each request an entry and
//! its data, everything little-endian and each part beginning a sector of its own.

use millpond_ring::buffer::Buffer;

/// Bytes of the superblock and of an entry that mean something; the rest of their sector is zero.
pub(super) const SUPERBLOCK_LEN: usize = 28;
pub(super) const ENTRY_LEN: usize = 32;

const MAGIC: u64 = 0x006a_7366_7773_6872;
const VERSION: u64 = 1;

/// The smallest sector that an entry fits into, and one more than the largest.
const SECTOR_MIN: u64 = 32;
const SECTOR_END: u64 = 1 << 24;

/// The kind of request that an entry logs. Writes without a flag have data behind the entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Write,
    Flush,
    Discard,
}

impl Kind {
    const FLUSH: u64 = 1;
    const DISCARD: u64 = 1 << 2;
    /// All flags: those of [`Kind`], and FUA and MARK, which other programs write.
    const ALL: u64 = 0b1111;

    fn flags(self) -> u64 {
        match self {
            Self::Write => 0,
            Self::Flush => Self::FLUSH,
            Self::Discard => Self::DISCARD,
        }
    }
}

/// The size of a log's sectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sector(u32);

impl Sector {
    /// `None` if sectors cannot be of that size.
    pub fn of(bytes: u64) -> Option<Self> {
        let fits = bytes.is_power_of_two() && (SECTOR_MIN..SECTOR_END).contains(&bytes);
        u32::try_from(bytes).ok().filter(|_| fits).map(Self)
    }

    pub fn bytes(self) -> u32 {
        self.0
    }

    /// How many sectors a range takes.
    pub fn count(self, len: u64) -> u64 {
        len.div_ceil(u64::from(self.0))
    }

    /// Where a sector starts, if that can be.
    pub fn start(self, sector: u64) -> Option<u64> {
        sector.checked_mul(u64::from(self.0))
    }

    /// A sector that starts with these fields.
    fn with<const N: usize>(self, fields: [&[u8]; N]) -> Option<Buffer> {
        let mut buffer = Buffer::try_zeroed(usize::try_from(self.0).ok()?)?;
        let mut rest = &mut buffer[..];
        for field in fields {
            let (place, behind) = rest.split_at_mut_checked(field.len())?;
            place.copy_from_slice(field);
            rest = behind;
        }
        Some(buffer)
    }

    /// The superblock of a log; `None` without memory.
    pub fn superblock(self, entries: u64) -> Option<Buffer> {
        self.with([
            &MAGIC.to_le_bytes(),
            &VERSION.to_le_bytes(),
            &entries.to_le_bytes(),
            &self.0.to_le_bytes(),
        ])
    }

    /// The entry of a request; `None` without memory.
    pub fn entry(self, kind: Kind, offset: u64, len: u64) -> Option<Buffer> {
        let (first, count) = (offset / u64::from(self.0), self.count(len));
        self.with([
            &first.to_le_bytes(),
            &count.to_le_bytes(),
            &kind.flags().to_le_bytes(),
            &0_u64.to_le_bytes(),
        ])
    }
}

/// Why an existing log cannot be continued, in QEMU's words.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unusable {
    #[error("Invalid log superblock magic")]
    Magic,
    #[error("Unsupported log version {0}")]
    Version(u64),
    #[error("Invalid log sector size {0}")]
    Sector(u64),
    #[error("Invalid flags 0x{flags:x} in log entry {index}")]
    Flags { flags: u64, index: u64 },
    #[error("Log entry {0} ends beyond every file")]
    TooLong(u64),
}

/// The sector size and the number of entries that a superblock states.
pub(super) fn read_superblock(bytes: &[u8]) -> Result<(Sector, u64), Unusable> {
    if word(bytes, 0) != MAGIC {
        return Err(Unusable::Magic);
    }
    match word(bytes, 8) {
        VERSION => {}
        other => return Err(Unusable::Version(other)),
    }
    // The field has four bytes, and nothing follows it.
    let size = word(bytes, 24) & u64::from(u32::MAX);
    let sector = Sector::of(size).ok_or(Unusable::Sector(size))?;
    Ok((sector, word(bytes, 16)))
}

/// How many sectors the entry that `bytes` start with takes, its data included.
pub(super) fn entry_sectors(bytes: &[u8], index: u64) -> Result<u64, Unusable> {
    let flags = word(bytes, 16);
    if flags & !Kind::ALL != 0 {
        return Err(Unusable::Flags { flags, index });
    }
    if flags & Kind::DISCARD != 0 {
        return Ok(1);
    }
    word(bytes, 8).checked_add(1).ok_or(Unusable::TooLong(index))
}

/// The number at `at`; what is missing at the end counts as zero.
fn word(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    for (to, from) in word.iter_mut().zip(bytes.iter().skip(at)) {
        *to = *from;
    }
    u64::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let sector = Sector::of(4096).unwrap();
        assert_eq!(read_superblock(&sector.superblock(7).unwrap()), Ok((sector, 7)));
        let sectors = |kind, len| entry_sectors(&sector.entry(kind, 8192, len).unwrap(), 0);
        assert_eq!(sectors(Kind::Write, 12288), Ok(4));
        assert_eq!(sectors(Kind::Discard, 12288), Ok(1));
        assert_eq!(sectors(Kind::Flush, 0), Ok(1));
    }

    #[test]
    fn a_log_of_somebody_else_is_refused() {
        let sector = Sector::of(512).unwrap();
        let good = sector.superblock(0).unwrap();
        let changed = |at: usize, value: u8| {
            let mut bytes = good.to_vec();
            bytes[at] = value;
            read_superblock(&bytes).unwrap_err().to_string()
        };
        assert_eq!(changed(0, 0), "Invalid log superblock magic");
        assert_eq!(changed(8, 2), "Unsupported log version 2");
        assert_eq!(changed(24, 1), "Invalid log sector size 513");
        assert_eq!(read_superblock(b"abc"), Err(Unusable::Magic));
        assert_eq!(
            entry_sectors(&[16; 32], 3).unwrap_err().to_string(),
            "Invalid flags 0x1010101010101010 in log entry 3"
        );
        let long = [[0; 8], [255; 8], [0; 8], [0; 8]].concat();
        assert_eq!(entry_sectors(&long, 0), Err(Unusable::TooLong(0)));
    }

    #[test]
    fn sectors_are_powers_of_two_of_some_size() {
        for (bytes, good) in [
            (0, false),
            (16, false),
            (32, true),
            (513, false),
            (1 << 23, true),
            (1 << 24, false),
        ] {
            assert_eq!(Sector::of(bytes).is_some(), good, "{bytes}");
        }
    }
}
