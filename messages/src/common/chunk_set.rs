//! Sets of equal chunks of a disk: what is dirty, what is left to copy.
//!
//! ```text
//!   pages    [ empty | full | mixed | empty ]     32,768 chunks each
//!                               |
//!                               words of 64 chunks, and how many chunks are in the page
//! ```
//! Only a page that is mixed has storage, so a set costs what its disk has of places where that changes, not what the disk is
//! long. A write is noted without an allocation, but for the first one in a page.

mod whole;

use super::range::Range;

const WORDS: usize = 512;
const WORD_BITS: u64 = 64;
const PAGE_CHUNKS: u64 = 32_768;

/// The most pages that a set may have: 4 PiB in chunks of 64 KiB.
const MAX_PAGES: u64 = 1 << 21;

/// Some of a disk's chunks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkSet {
    len: u64,
    /// The bytes of a chunk are two to the power of this.
    shift: u32,
    pages: Vec<Page>,
    count: u64,
}

/// The disk has more chunks of this size than a set can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("A disk of {len} bytes has too many chunks of {chunk} bytes")]
pub struct TooManyChunks {
    /// The bytes of the disk.
    pub len: u64,
    /// The bytes of a chunk.
    pub chunk: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Page {
    Empty,
    Full,
    Mixed(Box<Mixed>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Mixed {
    count: u32,
    words: [u64; WORDS],
}

/// Chunks of one page: from the first on, up to and without the second.
type Span = (u64, u64);

/// The bits of a word from `start` on, up to and without `end`, which lies behind it.
const fn mask(start: u64, end: u64) -> u64 {
    (u64::MAX << start) & (u64::MAX >> (WORD_BITS - end))
}

/// Each word of a page that a span touches, and which of its bits.
fn words((start, end): Span) -> impl Iterator<Item = (usize, u64)> {
    let (first, last) = (start / WORD_BITS, end.div_ceil(WORD_BITS));
    (first..last).map(move |word| {
        let base = word * WORD_BITS;
        let (from, to) = (start.max(base) - base, end.min(base + WORD_BITS) - base);
        // A page has 512 words.
        (usize::try_from(word).unwrap_or(WORDS), mask(from, to))
    })
}

/// How many pages a disk of `len` bytes has.
fn pages_of(len: u64, chunk: u64) -> Result<usize, TooManyChunks> {
    let pages = len.div_ceil(chunk).div_ceil(PAGE_CHUNKS);
    let pages = usize::try_from(pages).ok().filter(|_| pages <= MAX_PAGES);
    pages.ok_or(TooManyChunks { len, chunk })
}

impl Page {
    fn count(&self) -> u64 {
        match self {
            Self::Empty => 0,
            Self::Full => PAGE_CHUNKS,
            Self::Mixed(mixed) => u64::from(mixed.count),
        }
    }

    fn mixed(&mut self) -> &mut Mixed {
        if !matches!(self, Self::Mixed(_)) {
            let (count, word) = match self {
                Self::Full => (32_768, u64::MAX),
                _ => (0, 0),
            };
            let words = [word; WORDS];
            *self = Self::Mixed(Box::new(Mixed { count, words }));
        }
        match self {
            Self::Mixed(mixed) => mixed,
            Self::Empty | Self::Full => unreachable!("it was made mixed"),
        }
    }

    /// Gives the storage of a page back that is not mixed any more.
    fn settle(&mut self) {
        match self.count() {
            0 => *self = Self::Empty,
            PAGE_CHUNKS => *self = Self::Full,
            _ => {}
        }
    }

    fn insert(&mut self, span: Span) {
        if matches!(self, Self::Full) {
            return;
        }
        if span == (0, PAGE_CHUNKS) {
            *self = Self::Full;
            return;
        }
        let mixed = self.mixed();
        for (word, bits) in words(span) {
            mixed.count += (bits & !mixed.words[word]).count_ones();
            mixed.words[word] |= bits;
        }
        self.settle();
    }

    fn remove(&mut self, span: Span) {
        if matches!(self, Self::Empty) {
            return;
        }
        if span == (0, PAGE_CHUNKS) {
            *self = Self::Empty;
            return;
        }
        let mixed = self.mixed();
        for (word, bits) in words(span) {
            mixed.count -= (bits & mixed.words[word]).count_ones();
            mixed.words[word] &= !bits;
        }
        self.settle();
    }

    /// The first chunk of the page, from `from` on, that is in the set, or that is not.
    fn next(&self, from: u64, wanted: bool) -> Option<u64> {
        match self {
            Self::Empty => (!wanted).then_some(from),
            Self::Full => wanted.then_some(from),
            Self::Mixed(mixed) => words((from, PAGE_CHUNKS)).find_map(|(index, bits)| {
                let word = mixed.words[index];
                let found = bits & if wanted { word } else { !word };
                let base = u64::try_from(index).unwrap_or(0) * WORD_BITS;
                (found != 0).then(|| base + u64::from(found.trailing_zeros()))
            }),
        }
    }
}

impl ChunkSet {
    /// None of the chunks of a disk of `len` bytes. `chunk` is the bytes of each; it is taken as the power of two that is no
    /// smaller.
    ///
    /// # Errors
    /// There would be more than a set can have.
    pub fn new(len: u64, chunk: u64) -> Result<Self, TooManyChunks> {
        let rounded = chunk.max(1).checked_next_power_of_two();
        let chunk = rounded.ok_or(TooManyChunks { len, chunk })?;
        Ok(Self {
            len,
            shift: chunk.trailing_zeros(),
            pages: vec![Page::Empty; pages_of(len, chunk)?],
            count: 0,
        })
    }

    /// The bytes of the disk.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// The bytes of a chunk.
    #[must_use]
    pub const fn chunk(&self) -> u64 {
        1 << self.shift
    }

    /// Whether no chunk is in it.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// How many chunks are in it.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// How many bytes its chunks have; the last one of the disk may be shorter than others.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let missing = match self.len.checked_sub(1) {
            Some(last) if self.contains(last) => self.chunks() * self.chunk() - self.len,
            _ => 0,
        };
        self.count * self.chunk() - missing
    }

    const fn chunks(&self) -> u64 {
        self.len.div_ceil(self.chunk())
    }

    /// Takes in every chunk that `range` touches.
    pub fn insert(&mut self, range: Range) {
        if range.is_empty() {
            return;
        }
        let end = range.end().min(self.len).div_ceil(self.chunk());
        self.each_page(range.offset() >> self.shift, end, Page::insert);
    }

    /// Takes out every chunk that lies in `range` as a whole. The last one of the disk ends where the disk does.
    pub fn remove(&mut self, range: Range) {
        let end = match range.end() >= self.len {
            true => self.chunks(),
            false => range.end() >> self.shift,
        };
        self.each_page(range.offset().div_ceil(self.chunk()), end, Page::remove);
    }

    fn each_page(&mut self, mut chunk: u64, end: u64, change: fn(&mut Page, Span)) {
        while chunk < end {
            let (page, start) = (chunk / PAGE_CHUNKS, chunk % PAGE_CHUNKS);
            let span_end = PAGE_CHUNKS.min(end - page * PAGE_CHUNKS);
            let Some(page) = usize::try_from(page)
                .ok()
                .and_then(|page| self.pages.get_mut(page))
            else {
                return;
            };
            let before = page.count();
            change(page, (start, span_end));
            self.count = self.count - before + page.count();
            chunk += span_end - start;
        }
    }

    /// Whether the chunk with the byte at `offset` is in it.
    #[must_use]
    pub fn contains(&self, offset: u64) -> bool {
        offset < self.len && self.find(offset >> self.shift, true) == Some(offset >> self.shift)
    }

    /// Whether it has a chunk that `range` touches.
    #[must_use]
    pub fn touches(&self, range: Range) -> bool {
        !range.is_empty() && self.next(range.offset()).is_some_and(|first| first < range.end())
    }

    /// The first byte from `offset` on whose chunk is in it.
    #[must_use]
    pub fn next(&self, offset: u64) -> Option<u64> {
        self.next_byte(offset, true)
    }

    /// The first byte from `offset` on whose chunk is not in it.
    #[must_use]
    pub fn next_absent(&self, offset: u64) -> Option<u64> {
        self.next_byte(offset, false)
    }

    fn next_byte(&self, offset: u64, wanted: bool) -> Option<u64> {
        if offset >= self.len {
            return None;
        }
        let byte = self.find(offset >> self.shift, wanted)? << self.shift;
        Some(byte.max(offset)).filter(|byte| *byte < self.len)
    }

    /// The first run of bytes from `offset` on whose chunks are in it; its end is that of a chunk or of the disk.
    #[must_use]
    pub fn next_run(&self, offset: u64) -> Option<Range> {
        let start = self.next(offset)?;
        let end = self.next_absent(start).unwrap_or(self.len);
        Some(Range::between(start, end))
    }

    /// The first chunk from `chunk` on that is in it, or that is not. What is not may lie behind the end of the disk.
    fn find(&self, chunk: u64, wanted: bool) -> Option<u64> {
        let first = usize::try_from(chunk / PAGE_CHUNKS).ok()?;
        let mut from = chunk % PAGE_CHUNKS;
        for (index, page) in self.pages.iter().enumerate().skip(first) {
            if let Some(found) = page.next(from, wanted) {
                return Some(u64::try_from(index).ok()? * PAGE_CHUNKS + found);
            }
            from = 0;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Insert(u64, u64),
        Remove(u64, u64),
    }

    fn step(len: u64) -> impl Strategy<Value = Step> {
        let place = (0..=len, prop_oneof![Just(0), 0..200_u64, 0..=len]);
        (any::<bool>(), place).prop_map(|(insert, (start, bytes))| match insert {
            true => Step::Insert(start, bytes),
            false => Step::Remove(start, bytes),
        })
    }

    /// What a set does, one byte at a time.
    fn carry_out(model: &mut [bool], chunk: usize, step: &Step) {
        let disk = model.len();
        let mut whole = |start: usize, value: bool| {
            model[start..(start + chunk).min(disk)].fill(value);
        };
        match *step {
            Step::Insert(start, bytes) => {
                let (start, end) = (start as usize, ((start + bytes) as usize).min(disk));
                (start..end).for_each(|byte| whole(byte / chunk * chunk, true));
            }
            Step::Remove(start, bytes) => {
                let (start, end) = (start as usize, (start + bytes) as usize);
                let starts = (0..disk).step_by(chunk);
                let within = starts.filter(|first| *first >= start && (first + chunk).min(disk) <= end);
                within.for_each(|first| whole(first, false));
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        // Chunks of 1 byte make a disk of two pages and a bit; larger ones end with one that is shorter.
        #[test]
        fn a_set_says_of_each_byte_what_a_list_of_bytes_says(
            chunk in prop_oneof![Just(1_u64), Just(8), Just(64)],
            steps in prop::collection::vec(step(70_003), 1..12),
            looks in prop::collection::vec(0..70_010_u64, 8),
        ) {
            let mut set = ChunkSet::new(70_003, chunk).unwrap();
            let mut model = vec![false; 70_003];
            for step in &steps {
                match *step {
                    Step::Insert(start, bytes) => set.insert(Range::new(start, bytes).unwrap()),
                    Step::Remove(start, bytes) => set.remove(Range::new(start, bytes).unwrap()),
                }
                carry_out(&mut model, chunk as usize, step);
            }
            prop_assert_eq!(set.bytes(), model.iter().filter(|byte| **byte).count() as u64);
            prop_assert_eq!(set.is_empty(), set.next(0).is_none());
            for look in looks {
                let from = (look as usize).min(model.len());
                let next = model[from..].iter().position(|byte| *byte).map(|at| (from + at) as u64);
                let absent = model[from..].iter().position(|byte| !*byte).map(|at| (from + at) as u64);
                prop_assert_eq!(set.next(look), next);
                prop_assert_eq!(set.next_absent(look), absent);
                prop_assert_eq!(set.contains(look), next == Some(look));
                let run = next.map(|start| {
                    let rest = &model[start as usize..];
                    Range::new(start, rest.iter().take_while(|byte| **byte).count() as u64).unwrap()
                });
                prop_assert_eq!(set.next_run(look), run);
                let near = Range::new(look, 100).unwrap();
                prop_assert_eq!(set.touches(near), next.is_some_and(|next| next < look + 100));
            }
        }
    }

    #[test]
    fn a_set_of_all_or_none_of_the_largest_disk_takes_no_memory_for_chunks() {
        let disk = Range::new(0, 4 << 50).unwrap();
        let mut set = ChunkSet::new(disk.len(), 65_536).unwrap();
        set.insert(disk);
        assert_eq!(set.bytes(), disk.len());
        assert!(set.pages.iter().all(|page| matches!(page, Page::Full)));
        set.remove(Range::new(65_536, 1 << 20).unwrap());
        let mixed = set.pages.iter().filter(|page| matches!(page, Page::Mixed(_)));
        assert_eq!(mixed.count(), 1);
        set.insert(Range::new(65_536, 1 << 20).unwrap());
        assert!(
            set.pages.iter().all(|page| matches!(page, Page::Full)),
            "storage stays"
        );
    }

    #[test]
    fn a_disk_with_more_chunks_than_a_set_can_have_is_refused() {
        let text = "A disk of 9223372036854775807 bytes has too many chunks of 65536 bytes";
        let refused = ChunkSet::new(i64::MAX as u64, 65_536).unwrap_err();
        assert_eq!(refused.to_string(), text);
        assert!(ChunkSet::new(1, u64::MAX).is_err());
        let empty = ChunkSet::new(0, 65_536).unwrap();
        assert_eq!(
            (empty.next(0), empty.next_absent(0), empty.bytes()),
            (None, None, 0)
        );
    }
}
