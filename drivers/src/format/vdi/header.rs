//! The header of an image: what is read from it, what is refused, and what a new one is.

use millpond_messages::{ChildSlot, Error, ErrorKind, Result, SECTOR_SIZE};

use crate::format::blocks::BlockLayout;

/// Bytes of the header that have a meaning, in a sector of its own.
pub(super) const HEADER_LEN: usize = SECTOR_SIZE as usize;
/// Bytes of a block: the only size that QEMU reads.
pub(super) const BLOCK: u64 = 1 << 20;
/// Entries from here on have no place: the last says never written, the one before it says discarded.
const FIRST_SPECIAL: u32 = 0xffff_fffe;
/// The most blocks that QEMU takes.
const MAX_BLOCKS: u32 = 0x1fff_ff80;
/// The longest disk that an image may have, in bytes.
pub(super) const MAX_SIZE: u64 = MAX_BLOCKS as u64 * BLOCK;
/// The text that images by QEMU begin with.
const TEXT: &[u8] = b"<<< QEMU VM Virtual Disk Image >>>\n";
const SIGNATURE: u32 = 0xbeda_107f;
const VERSION: u32 = 0x0001_0001;

/// The types of images.
const DYNAMIC: u32 = 1;
const STATIC: u32 = 2;

const SIGNATURE_AT: usize = 64;
const VERSION_AT: usize = 68;
const HEADER_SIZE_AT: usize = 72;
const TYPE_AT: usize = 76;
const TABLE_AT: usize = 340;
const DATA_AT: usize = 344;
const SECTOR_AT: usize = 360;
const SIZE_AT: usize = 368;
const BLOCK_AT: usize = 376;
const BLOCKS_AT: usize = 384;
/// Where the header counts the blocks that are stored.
pub(super) const COUNT_AT: usize = 388;
const UUID_AT: usize = 392;
const LAST_SNAPSHOT_AT: usize = 408;
const LINK_AT: usize = 424;
const PARENT_AT: usize = 440;
const UUID_LEN: usize = 16;

fn le32(bytes: &[u8], at: usize) -> u32 {
    let field = bytes.get(at..).and_then(|rest| rest.first_chunk());
    field.map_or(0, |field| u32::from_le_bytes(*field))
}

fn le64(bytes: &[u8], at: usize) -> u64 {
    let field = bytes.get(at..).and_then(|rest| rest.first_chunk());
    field.map_or(0, |field| u64::from_le_bytes(*field))
}

/// Whether an image that begins like this is one.
pub(super) fn is_vdi(head: &[u8]) -> bool {
    head.len() >= HEADER_LEN && le32(head, SIGNATURE_AT) == SIGNATURE
}

/// The error for a disk that is longer than the format has it.
pub(super) fn too_long(size: u64) -> Error {
    let text = format!("Unsupported VDI image size (size is 0x{size:x}, max supported is 0x{MAX_SIZE:x})");
    Error::new(ErrorKind::Unsupported, text)
}

/// What is known of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    /// Bytes of the disk, whole sectors.
    pub size: u64,
    /// How many blocks are stored.
    pub count: u32,
    /// Where table and blocks are.
    pub layout: BlockLayout,
}

impl Header {
    /// Reads a header.
    ///
    /// # Errors
    /// Says what is not as it has to be, in QEMU's words.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let size = le64(bytes, SIZE_AT);
        if size > MAX_SIZE {
            return Err(too_long(size));
        }
        // QEMU writes no length that is not in whole sectors, and VirtualBox none either.
        let size = size.next_multiple_of(SECTOR_SIZE);
        let signature = le32(bytes, SIGNATURE_AT);
        if signature != SIGNATURE {
            let text = format!("Image not in VDI format (bad signature {signature:08x})");
            return Err(Error::new(ErrorKind::InvalidArgument, text));
        }
        if let Some(problem) = Self::problem(bytes, size) {
            let text = format!("unsupported VDI image ({problem})");
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        Ok(Self {
            size,
            count: le32(bytes, COUNT_AT),
            layout: BlockLayout {
                table: le32(bytes, TABLE_AT).into(),
                entries: le32(bytes, BLOCKS_AT).into(),
                data: le32(bytes, DATA_AT).into(),
                block: BLOCK,
                first_special: FIRST_SPECIAL,
                is_static: le32(bytes, TYPE_AT) == STATIC,
                file: ChildSlot::FILE,
            },
        })
    }

    /// What is not as it has to be.
    fn problem(bytes: &[u8], size: u64) -> Option<String> {
        let [version, table, data, sector] =
            [VERSION_AT, TABLE_AT, DATA_AT, SECTOR_AT].map(|at| le32(bytes, at));
        let [block, blocks] = [BLOCK_AT, BLOCKS_AT].map(|at| le32(bytes, at));
        let room = u64::from(blocks) * BLOCK;
        let has = |at: usize| bytes.iter().skip(at).take(UUID_LEN).any(|&byte| byte != 0);
        let is_odd = |offset: u32| !u64::from(offset).is_multiple_of(SECTOR_SIZE);
        Some(if version != VERSION {
            format!("version {}.{}", version >> 16, version & 0xffff)
        } else if is_odd(table) {
            format!("unaligned block map offset 0x{table:x}")
        } else if is_odd(data) {
            format!("unaligned data offset 0x{data:x}")
        } else if u64::from(sector) != SECTOR_SIZE {
            format!("sector size {sector} is not {SECTOR_SIZE}")
        } else if u64::from(block) != BLOCK {
            format!("block size {block} is not {BLOCK}")
        } else if size > room {
            format!("disk size {size}, image bitmap has room for {room}")
        } else if has(LINK_AT) {
            "non-NULL link UUID".to_owned()
        } else if has(PARENT_AT) {
            "non-NULL parent UUID".to_owned()
        } else if blocks > MAX_BLOCKS {
            format!("too many blocks {blocks}, max is {MAX_BLOCKS}")
        } else {
            return None;
        })
    }
}

/// What a new image is.
#[derive(Debug, Clone, Copy)]
pub(super) struct NewHeader {
    /// Bytes of the disk.
    pub size: u64,
    /// All blocks have their places from the start.
    pub is_static: bool,
    /// Numbers that tell the image from others: its own, and that of its last snapshot.
    pub uuids: [[u8; UUID_LEN]; 2],
}

impl NewHeader {
    /// How many blocks the disk has.
    pub const fn blocks(&self) -> u64 {
        self.size.div_ceil(BLOCK)
    }

    /// Bytes of the table, in whole sectors.
    pub const fn table_len(&self) -> u64 {
        (self.blocks() * 4).next_multiple_of(SECTOR_SIZE)
    }

    /// Where the blocks begin.
    pub const fn data(&self) -> u64 {
        HEADER_LEN as u64 + self.table_len()
    }

    /// The header as it is stored.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; HEADER_LEN];
        let mut put = |at: usize, field: &[u8]| {
            let place = bytes.iter_mut().skip(at).zip(field);
            place.for_each(|(byte, value)| *byte = *value);
        };
        // None is cut short: a disk that is not too long has fewer blocks than a field can say.
        let number = |number: u64| u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes();
        put(0, TEXT);
        put(SIGNATURE_AT, &SIGNATURE.to_le_bytes());
        put(VERSION_AT, &VERSION.to_le_bytes());
        put(HEADER_SIZE_AT, &number(0x180));
        put(
            TYPE_AT,
            &if self.is_static { STATIC } else { DYNAMIC }.to_le_bytes(),
        );
        put(TABLE_AT, &number(HEADER_LEN as u64));
        put(DATA_AT, &number(self.data()));
        put(SECTOR_AT, &number(SECTOR_SIZE));
        put(SIZE_AT, &self.size.to_le_bytes());
        put(BLOCK_AT, &number(BLOCK));
        put(BLOCKS_AT, &number(self.blocks()));
        put(COUNT_AT, &number(if self.is_static { self.blocks() } else { 0 }));
        put(UUID_AT, &self.uuids[0]);
        put(LAST_SNAPSHOT_AT, &self.uuids[1]);
        bytes
    }

    /// The entries of the table from `first` on, as they are stored, up to `count` of them; behind the last block zeroes.
    pub fn table_part(&self, first: u64, count: u64) -> Vec<u8> {
        let entry = |index: u64| match (index < self.blocks(), self.is_static) {
            (false, _) => 0,
            (true, true) => u32::try_from(index).unwrap_or(u32::MAX),
            (true, false) => u32::MAX,
        };
        let entries = first..first.saturating_add(count);
        entries.flat_map(|index| entry(index).to_le_bytes()).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn new(size: u64) -> NewHeader {
        NewHeader {
            size,
            is_static: false,
            uuids: [[1; UUID_LEN], [2; UUID_LEN]],
        }
    }

    #[test]
    fn new_headers_are_read_as_what_they_are() {
        let header = Header::parse(&new(5 << 20).encode()).expect("it is one");
        assert_eq!(
            (header.size, header.count, header.layout.entries),
            (5 << 20, 0, 5)
        );
        assert_eq!((header.layout.table, header.layout.data), (512, 1024));
        assert!(Header::parse(&new(MAX_SIZE).encode()).is_ok());
        assert!(Header::parse(&new(MAX_SIZE + 1).encode()).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(
            changes in prop::collection::vec((0..HEADER_LEN, any::<u8>()), 0..40),
            len in 0..=HEADER_LEN,
        ) {
            let mut bytes = new(7 << 20).encode();
            for (at, byte) in changes {
                bytes[at] = byte;
            }
            if let Ok(header) = Header::parse(&bytes) {
                prop_assert!(header.size <= header.layout.entries * BLOCK && header.size.is_multiple_of(SECTOR_SIZE));
                prop_assert!(header.layout.entries <= u64::from(MAX_BLOCKS));
            }
            let _ = (Header::parse(&bytes[..len]), is_vdi(&bytes[..len]));
        }
    }
}
