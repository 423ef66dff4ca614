//! Images that are one table of blocks: each entry says where a block of the disk is, and new blocks go behind the last.
//!
//! A write to a block that has no place is given one at once, and holds back others to the same block until its data is
//! stored: then the entry is set in memory. Entries reach the file with the next flush, in this order:
//!
//! ```text
//!   data of new blocks, head with the count of blocks  ->  flush  ->  table
//! ```
//! So a table never shows a block whose data is not stored, and a count is never behind the table: who opens the image
//! after a crash gives no block away twice. At worst the count tells of blocks that nothing refers to.

mod table;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;

use millpond_messages::{ChildSlot, IoError, IoResult, Range, RequestFlags};

use crate::api::{AllocationTicket, At, Child, Extent, Placement, Target};
use crate::format::wait::KeyedWait;
use table::{PagedTable, Piece};

/// How an image's blocks are laid out in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BlockLayout {
    /// Where the table begins.
    pub table: u64,
    /// How many blocks the disk has.
    pub entries: u64,
    /// Where the first block begins.
    pub data: u64,
    /// Bytes of a block.
    pub block: u64,
    /// Entries from here on stand for blocks that are not stored.
    pub first_special: u32,
    /// All blocks are there from the start, so the file knows better which are zeroes.
    pub is_static: bool,
    /// The child that is the file.
    pub file: ChildSlot,
}

/// The start of the file, which counts the blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Head {
    /// As it is in the file, but for the count.
    pub bytes: Vec<u8>,
    /// Where the count is.
    pub count_at: usize,
}

/// What requests wait for one another about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Key {
    /// A block of the disk that is being given a place.
    Block(u64),
    /// The write-back of the table.
    Writeback,
}

/// The blocks of an open image.
pub(super) struct Blocks {
    layout: BlockLayout,
    head: RefCell<Head>,
    table: PagedTable,
    /// The place behind all blocks.
    end: Cell<u32>,
    /// What `end` was when the head was last written.
    written_end: Cell<u32>,
    /// Places in front of it that a failed write gave back.
    free: RefCell<Vec<u32>>,
    /// Blocks that are being written for the first time, and their places.
    in_flight: RefCell<HashMap<u64, u32>>,
    waits: KeyedWait<Key>,
}

/// The blocks of a node on its way to another iothread.
pub(super) struct MovedBlocks {
    layout: BlockLayout,
    head: Head,
    pieces: HashMap<u64, Piece>,
    ends: [u32; 2],
    free: Vec<u32>,
}

/// Why a request cannot go on at once.
enum Blocked {
    /// The entry of this block is not in memory.
    Load(u64),
    /// This block is being given a place.
    Wait(u64),
    /// Too much is to be written back.
    Strained,
    /// It cannot be done at all.
    Fail(IoError),
}

impl Blocks {
    /// The blocks of an image that has `end` of them.
    pub fn new(layout: BlockLayout, head: Head, end: u32) -> Self {
        Self::arrive(MovedBlocks {
            layout,
            head,
            pieces: HashMap::new(),
            ends: [end; 2],
            free: Vec::new(),
        })
    }

    /// Goes on with blocks that came from another iothread.
    pub fn arrive(moved: MovedBlocks) -> Self {
        let MovedBlocks { layout, ends, .. } = moved;
        Self {
            layout,
            head: RefCell::new(moved.head),
            table: PagedTable::new(layout.table, layout.entries, moved.pieces),
            end: Cell::new(ends[0]),
            written_end: Cell::new(ends[1]),
            free: RefCell::new(moved.free),
            in_flight: RefCell::default(),
            waits: KeyedWait::default(),
        }
    }

    /// Gives up all that is in memory. No request is in flight.
    pub fn depart(&self) -> MovedBlocks {
        MovedBlocks {
            layout: self.layout,
            head: self.head.borrow().clone(),
            pieces: self.table.take_pieces(),
            ends: [self.end.get(), self.written_end.get()],
            free: self.free.take(),
        }
    }

    /// How many blocks the disk has.
    pub const fn len(&self) -> u64 {
        self.table.len()
    }

    /// How many blocks the image counts.
    pub const fn count(&self) -> u32 {
        self.end.get()
    }

    /// The place of a block, if it has one.
    fn stored(&self, block: u64) -> Result<Option<u32>, Blocked> {
        let entry = self.table.get(block).ok_or(Blocked::Load(block))?;
        Ok(Some(entry).filter(|entry| *entry < self.layout.first_special))
    }

    /// The place that an entry names, if it names one.
    pub fn place_of(&self, entry: u32) -> Option<u64> {
        (entry < self.layout.first_special).then(|| entry.into())
    }

    /// The file lacks something of the table.
    pub fn is_changed(&self) -> bool {
        self.table.is_changed()
    }

    /// An entry of the table, from the file if it is not in memory.
    pub async fn entry(&self, file: &Child, block: u64) -> IoResult<u32> {
        loop {
            if let Some(entry) = self.table.get(block) {
                return Ok(entry);
            }
            self.table.load(file, block).await?;
        }
    }

    /// Where a place is in the file.
    fn offset(&self, place: u32) -> Result<u64, Blocked> {
        let offset = u64::from(place).checked_mul(self.layout.block);
        let offset = offset.and_then(|offset| offset.checked_add(self.layout.data));
        offset.ok_or(Blocked::Fail(IoError::Corrupt))
    }

    /// How many bytes of a range are in its first block and those that follow while `is_next` says so of them, each by how
    /// many blocks it is behind the first.
    fn run(&self, range: Range, is_next: impl Fn(u64, Option<u32>) -> bool) -> u64 {
        let (first, size) = (range.offset() / self.layout.block, self.layout.block);
        let mut len = size - range.offset() % size;
        let mut behind = 1;
        while len < range.len() {
            let Ok(place) = self.stored(first.saturating_add(behind)) else {
                break;
            };
            if !is_next(behind, place) {
                break;
            }
            (len, behind) = (len.saturating_add(size), behind + 1);
        }
        len.min(range.len())
    }

    /// Whether a place is so many blocks behind another.
    fn follows(place: u32, behind: u64, next: Option<u32>) -> bool {
        next.map(u64::from) == u64::from(place).checked_add(behind)
    }

    fn child(&self, place: u32, in_block: u64) -> Result<(ChildSlot, u64), Blocked> {
        let offset = self.offset(place)?.checked_add(in_block);
        Ok((self.layout.file, offset.ok_or(Blocked::Fail(IoError::Corrupt))?))
    }

    fn try_locate(&self, range: Range) -> Result<Extent, Blocked> {
        let (block, in_block) = (
            range.offset() / self.layout.block,
            range.offset() % self.layout.block,
        );
        let Some(place) = self.stored(block)? else {
            let len = self.run(range, |_, next| next.is_none());
            return Ok(Extent::new(len, At::Zero { reserved: None }));
        };
        let (slot, offset) = self.child(place, in_block)?;
        let len = self.run(range, |behind, next| Self::follows(place, behind, next));
        Ok(Extent {
            recurse: self.layout.is_static,
            ..Extent::new(len, At::Child { slot, offset })
        })
    }

    fn try_place(&self, range: Range) -> Result<Placement, Blocked> {
        let (block, in_block) = (
            range.offset() / self.layout.block,
            range.offset() % self.layout.block,
        );
        if let Some(place) = self.stored(block)? {
            let (slot, offset) = self.child(place, in_block)?;
            let target = Target::Child { slot, offset };
            let len = self.run(range, |behind, next| Self::follows(place, behind, next));
            return Ok(Placement {
                target,
                ..Placement::own(len)
            });
        }
        if self.waits.is_held(Key::Block(block)) {
            return Err(Blocked::Wait(block));
        }
        if self.table.is_strained() {
            return Err(Blocked::Strained);
        }
        let place = self.take_place()?;
        let (slot, offset) = self.child(place, 0)?;
        self.waits.try_take(Key::Block(block));
        self.in_flight.borrow_mut().insert(block, place);
        let len = range.len().min(self.layout.block - in_block);
        Ok(Placement {
            len,
            target: Target::Child { slot, offset },
            head: in_block,
            tail: self.layout.block - in_block - len,
            ticket: Some(AllocationTicket(block)),
        })
    }

    fn take_place(&self) -> Result<u32, Blocked> {
        if let Some(place) = self.free.borrow_mut().pop() {
            return Ok(place);
        }
        let place = self.end.get();
        if place >= self.layout.first_special {
            return Err(Blocked::Fail(IoError::NoSpace));
        }
        self.end.set(place + 1);
        Ok(place)
    }

    /// Waits for what is in the way.
    async fn satisfy(&self, file: &Child, blocked: Blocked) -> IoResult<()> {
        match blocked {
            Blocked::Load(block) => self.table.load(file, block).await,
            Blocked::Wait(block) => {
                self.waits.wait(Key::Block(block)).await;
                Ok(())
            }
            Blocked::Strained => self.write_back(file).await,
            Blocked::Fail(error) => Err(error),
        }
    }

    /// Where the start of a range is; `None` if that has to be waited for.
    pub fn locate_now(&self, range: Range) -> Option<Extent> {
        self.try_locate(range).ok()
    }

    /// The same, waiting as long as it takes.
    pub async fn locate(&self, file: &Child, range: Range) -> IoResult<Extent> {
        loop {
            match self.try_locate(range) {
                Ok(extent) => return Ok(extent),
                Err(blocked) => self.satisfy(file, blocked).await?,
            }
        }
    }

    /// Where a write to the start of a range goes; `None` if that has to be waited for.
    pub fn place_now(&self, range: Range) -> Option<Placement> {
        self.try_place(range).ok()
    }

    /// The same, waiting as long as it takes.
    pub async fn place(&self, file: &Child, range: Range) -> IoResult<Placement> {
        loop {
            match self.try_place(range) {
                Ok(placement) => return Ok(placement),
                Err(blocked) => self.satisfy(file, blocked).await?,
            }
        }
    }

    /// The first write to a block has ended. Where the entry cannot be set its place is leaked rather than used.
    pub async fn settle(
        &self,
        file: &Child,
        ticket: AllocationTicket,
        written: IoResult<()>,
    ) -> IoResult<()> {
        let block = ticket.0;
        let place = self.in_flight.borrow_mut().remove(&block);
        let result = match (place, &written) {
            (Some(place), Ok(())) => self.set_entry(file, block, place).await,
            (Some(place), Err(_)) => {
                self.free.borrow_mut().push(place);
                written
            }
            (None, _) => written,
        };
        self.waits.release(Key::Block(block));
        result
    }

    async fn set_entry(&self, file: &Child, block: u64, place: u32) -> IoResult<()> {
        while !self.table.set(block, place) {
            self.table.load(file, block).await?;
        }
        Ok(())
    }

    /// Writes what the file lacks of table and count. They are durable with the next flush of the file.
    pub async fn write_back(&self, file: &Child) -> IoResult<()> {
        let _held = self.waits.hold(Key::Writeback).await;
        let taken = self.table.take_changed();
        if taken.is_empty() {
            return Ok(());
        }
        let written = async {
            self.write_head(file).await?;
            file.flush().await?;
            self.table.write(file, &taken).await
        };
        let written = written.await;
        self.table.written(&taken, written.is_ok());
        written
    }

    /// Writes how many blocks there are.
    async fn write_head(&self, file: &Child) -> IoResult<()> {
        let end = self.end.get();
        if end == self.written_end.get() {
            return Ok(());
        }
        let bytes = {
            let mut head = self.head.borrow_mut();
            let at = head.count_at;
            if let Some(count) = head.bytes.get_mut(at..).and_then(|rest| rest.first_chunk_mut()) {
                *count = end.to_le_bytes();
            }
            head.bytes.clone()
        };
        file.write_slice(0, &bytes, RequestFlags::empty()).await?;
        self.written_end.set(end);
        Ok(())
    }
}
