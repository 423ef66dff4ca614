//! What is to be copied: the disks of the sources one after the other, cut into pieces that are in one state each.

use std::collections::VecDeque;

use millpond_messages::io::Operation;
use millpond_messages::{BlockStatus, IoError, IoResult, Range, SECTOR_SIZE, StatusFlags};

use crate::node::Client;

/// An image that is copied.
pub struct Source {
    /// The handle to read it by.
    pub client: Client,
    /// Where it begins in the target.
    pub start: u64,
    /// The first byte of it that is copied.
    pub from: u64,
    /// How many bytes of it are copied.
    pub length: u64,
    /// What is read of it begins and ends at multiples of this.
    pub alignment: u64,
}

impl Source {
    /// Where it ends in the target, in whole sectors.
    pub const fn end(&self) -> u64 {
        self.start + self.length.next_multiple_of(SECTOR_SIZE)
    }

    /// The part of a range of the target that its bytes are for, as its own offsets; the rest is zeroes.
    pub fn part(&self, range: Range) -> Range {
        let begin = range.offset().saturating_sub(self.start).min(self.length);
        let end = range.end().saturating_sub(self.start).min(self.length);
        Range::between(self.from + begin, self.from + end)
    }
}

/// What a piece is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Bytes that have to be read.
    Data,
    /// It is known to be zeroes.
    Zero,
    /// What the target shows there already, as its backing image does.
    Backing,
}

/// A part of the target that is in one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Its place in the target.
    pub range: Range,
    /// What there is in it.
    pub kind: Kind,
}

/// What is copied, and how it is cut.
pub struct Shape {
    /// The sources in order, without a gap.
    pub sources: Vec<Source>,
    /// The target has a backing image that shows what the sources' backing images show.
    pub has_backing: bool,
    /// How long that backing image is, where that is known.
    pub backing_length: Option<u64>,
    /// The most bytes of data in one piece.
    pub most: u64,
    /// Zeroes are written as data is, and cut as that.
    pub writes_zeroes: bool,
    /// Pieces are whole clusters of so many bytes, since the target takes nothing else.
    pub cluster: Option<u64>,
    /// A source that fails is read as far as that goes.
    pub salvages: bool,
}

impl Shape {
    /// The bytes of all sources.
    pub fn total(&self) -> u64 {
        self.sources.last().map_or(0, Source::end)
    }

    /// The source that has a byte of the target, which is none behind the end.
    pub fn source_at(&self, at: u64) -> Option<(usize, &Source)> {
        let mut sources = self.sources.iter().enumerate();
        sources.find(|(_, source)| at < source.end())
    }
}

/// The status of a source could not be had there.
#[derive(Clone, Copy, Debug)]
pub struct Unknown {
    /// Where, in bytes of the source.
    pub offset: u64,
    /// The request's error that it was.
    pub error: IoError,
}

/// Goes through what is to be copied, from its start to its end.
pub struct Scan<'a> {
    shape: &'a Shape,
    at: u64,
    /// The state that holds up to `until`.
    kind: Kind,
    until: u64,
    extents: Extents,
    /// Told of what could not be known, and is taken for data.
    warn: &'a dyn Fn(Unknown),
}

impl<'a> Scan<'a> {
    /// Begins at the start. `warn` is told of each sector whose state cannot be known, where that is no reason to fail.
    pub fn new(shape: &'a Shape, warn: &'a dyn Fn(Unknown)) -> Self {
        Self {
            shape,
            at: 0,
            kind: Kind::Data,
            until: 0,
            extents: Extents::default(),
            warn,
        }
    }

    /// The next piece; none at the end.
    ///
    /// # Errors
    /// A source cannot tell what it is made of.
    pub async fn next(&mut self) -> Result<Option<Piece>, Unknown> {
        let (at, total) = (self.at, self.shape.total());
        let Some((index, source)) = self.shape.source_at(at) else {
            return Ok(None);
        };
        let backing = self.shape.backing_length;
        let mut end = source.end();
        if let Some(backing) = backing.filter(|backing| at < *backing) {
            end = end.min(backing);
        }
        if self.until <= at {
            let beyond = backing.is_some_and(|backing| at >= backing);
            (self.kind, self.until) = self.look(index, source, end, beyond).await?;
        }
        let mut len = self.until.min(end) - at;
        if self.kind == Kind::Data || (self.kind == Kind::Zero && self.shape.writes_zeroes) {
            len = len.min(self.shape.most);
        }
        if let Some(cluster) = self.shape.cluster {
            if len < cluster {
                len = cluster.min(total - at);
                self.kind = Kind::Data;
            } else {
                len -= len % cluster;
            }
        }
        self.at += len;
        let range = Range::between(at, at + len);
        let kind = self.kind;
        Ok(Some(Piece { range, kind }))
    }

    /// What is at the present place, and up to where.
    async fn look(
        &mut self,
        index: usize,
        source: &Source,
        end: u64,
        is_beyond_backing: bool,
    ) -> Result<(Kind, u64), Unknown> {
        let wanted = source.part(Range::between(self.at, end));
        let (flags, len) = self.status(index, source, wanted).await?;
        let mut len = len.next_multiple_of(SECTOR_SIZE).min(end - self.at);
        // What begins in the middle of a block would have it read twice.
        let tail = (self.at - source.start + len) % source.alignment;
        if len > tail {
            len -= tail;
        }
        let kind = if flags.contains(StatusFlags::ZERO) {
            match is_beyond_backing {
                true => Kind::Backing,
                false => Kind::Zero,
            }
        } else if flags.contains(StatusFlags::DATA) || !self.shape.has_backing {
            Kind::Data
        } else {
            Kind::Backing
        };
        Ok((kind, self.at + len))
    }

    async fn status(
        &mut self,
        index: usize,
        source: &Source,
        wanted: Range,
    ) -> Result<(StatusFlags, u64), Unknown> {
        let whole_chain = !self.shape.has_backing;
        if !self.shape.salvages {
            let offset = wanted.offset();
            return self
                .extents
                .at(index, source, wanted, whole_chain)
                .await
                .map_err(|error| Unknown { offset, error });
        }
        let mut len = wanted.len();
        loop {
            let offset = wanted.offset();
            let status = source.client.block_status(offset, len, true, whole_chain).await;
            match status {
                Ok(status) if status.len > 0 => return Ok((status.flags, status.len)),
                Ok(_) => (self.warn)(Unknown {
                    offset,
                    error: IoError::Corrupt,
                }),
                Err(_) if len > SECTOR_SIZE => {
                    len = (len / 4).next_multiple_of(SECTOR_SIZE);
                    continue;
                }
                Err(error) => (self.warn)(Unknown { offset, error }),
            }
            return Ok((StatusFlags::DATA, SECTOR_SIZE));
        }
    }
}

/// What of a status says how something is copied.
const TELLING: StatusFlags = StatusFlags::DATA
    .union(StatusFlags::ZERO)
    .union(StatusFlags::ALLOCATED);

/// Extents of a source that were told and not looked at yet.
#[derive(Default)]
struct Extents {
    source: usize,
    /// Where the first begins.
    offset: u64,
    told: VecDeque<BlockStatus>,
}

impl Extents {
    /// What is at the start of a range of a source, and for how many bytes that holds.
    async fn at(
        &mut self,
        index: usize,
        source: &Source,
        wanted: Range,
        whole_chain: bool,
    ) -> IoResult<(StatusFlags, u64)> {
        self.skip_to(index, wanted.offset());
        if self.told.is_empty() {
            let map = Operation::Map {
                range: Range::between(wanted.offset(), source.from + source.length),
                want_zero: true,
                whole_chain,
            };
            let told = source.client.request(map).await.into_map()?;
            self.told = told.into_vec().into();
            self.offset = wanted.offset();
        }
        let flags = self.told.front().map(|extent| extent.flags & TELLING);
        let flags = flags.ok_or(IoError::Corrupt)?;
        let alike = self
            .told
            .iter()
            .take_while(|extent| extent.flags & TELLING == flags);
        let end = alike.fold(self.offset, |end, extent| end.saturating_add(extent.len));
        match end.saturating_sub(wanted.offset()) {
            0 => Err(IoError::Corrupt),
            len => Ok((flags, len)),
        }
    }

    /// Forgets what lies before `offset`, and all of another source.
    fn skip_to(&mut self, index: usize, offset: u64) {
        if self.source != index || offset < self.offset {
            self.told.clear();
        }
        self.source = index;
        while let Some(first) = self.told.front() {
            let end = self.offset.saturating_add(first.len);
            if offset < end {
                break;
            }
            self.offset = end;
            self.told.pop_front();
        }
    }
}
