//! What is left of a disk to copy: shared by the copy and by those who see writes to its source, on one iothread.
//!
//! A chunk leaves the set when a piece with it is taken, before the piece is read. So a write that ends while the piece is on
//! its way brings the chunk back, and it is copied once more; not before the first copy has ended, since two writes of one
//! chunk to the target would have no order.

use millpond_messages::{ChunkSet, Range};

/// What a range of the target needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Nothing: the target shows there what it should.
    Nothing,
    /// To read as zeroes.
    Zeroes,
    /// The bytes of the source.
    Data,
}

/// What is to be done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Find out what the start of this range needs, and say so by [`Left::learn`].
    Look(Range),
    /// This piece: it has been taken, and is given back by [`Left::ended`].
    Piece(Range, Need),
    /// Wait for a piece that is under way.
    Wait,
    /// Nothing is left, and nothing under way.
    Nothing,
}

/// How much is looked at in one go: a status query walks a map of the image meanwhile.
const LOOK_MOST: u64 = 1 << 30;
/// How much is zeroed in one go at most, so that a drained section waits for no more than that.
const ZEROES_MOST: u64 = 256 << 20;

/// A piece that is being copied.
#[derive(Debug, Clone, Copy)]
struct UnderWay {
    range: Range,
    /// Both ends have been written there since it was taken.
    is_old: bool,
}

/// What is left to copy, what is under way, and what is known of the chunks ahead.
#[derive(Debug, Clone)]
pub struct Left {
    chunks: ChunkSet,
    /// Where the next look begins.
    cursor: u64,
    under_way: Vec<UnderWay>,
    /// What the next chunks need.
    ahead: Option<(Range, Need)>,
    /// What is being looked at.
    looked_at: Option<Range>,
    /// Where somebody has written to that meanwhile: from here on, what the look finds may be old.
    written_from: u64,
    piece: u64,
    zeroes_most: u64,
}

impl Left {
    /// `chunks` are to be copied, in pieces of `piece` bytes at most, but of one chunk at least.
    #[must_use]
    pub fn new(chunks: ChunkSet, piece: u64) -> Self {
        let piece = piece.max(chunks.chunk()) / chunks.chunk() * chunks.chunk();
        Self {
            chunks,
            cursor: 0,
            under_way: Vec::new(),
            ahead: None,
            looked_at: None,
            written_from: u64::MAX,
            piece,
            zeroes_most: ZEROES_MOST,
        }
    }

    /// The same, with no more than so many bytes zeroed in one go, of one chunk at least.
    #[must_use]
    pub fn with_zeroes_most(mut self, most: u64) -> Self {
        let chunk = self.chunks.chunk();
        self.zeroes_most = most.max(chunk) / chunk * chunk;
        self
    }

    /// The most that is copied by one piece, in bytes.
    #[must_use]
    pub const fn piece(&self) -> u64 {
        self.piece
    }

    /// The chunks that are left and not under way.
    #[must_use]
    pub const fn chunks(&self) -> &ChunkSet {
        &self.chunks
    }

    /// Bytes in which the target may differ from the source, with those that are under way.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let under_way = self.under_way.iter().map(|piece| piece.range.len());
        under_way.fold(self.chunks.bytes(), u64::saturating_add)
    }

    /// A write to the source has ended: what it touched is to be copied, whatever was known of it. That it needs the bytes of
    /// the source stays right.
    pub fn mark(&mut self, range: Range) {
        self.chunks.insert(range);
        self.forget(range);
    }

    /// What was known of a range may be old.
    fn forget(&mut self, range: Range) {
        if let Some((known, Need::Zeroes | Need::Nothing)) = self.ahead
            && known.overlaps(range)
        {
            self.ahead = None;
        }
        if self.looked_at.is_some_and(|known| known.overlaps(range)) {
            self.written_from = self.written_from.min(range.offset());
        }
    }

    /// A write has reached the source and the target. The chunks that it has written as a whole are left no more; no other
    /// chunk is for that reason, since the rest of it may differ still.
    pub fn written_to_both(&mut self, range: Range) {
        let chunk = self.chunks.chunk();
        let end = match range.end() >= self.chunks.len() {
            true => self.chunks.len(),
            false => range.end() / chunk * chunk,
        };
        let first = range.offset().next_multiple_of(chunk);
        if first < end {
            self.chunks.remove(Range::between(first, end));
        }
        self.forget(range);
        for piece in &mut self.under_way {
            piece.is_old |= piece.range.overlaps(range);
        }
    }

    /// Whether somebody has written to what is being looked at since that began.
    #[must_use]
    pub const fn look_is_old(&self) -> bool {
        self.written_from != u64::MAX
    }

    /// Whether what was known of a piece as it was taken may be old: both ends have been written there since.
    #[must_use]
    pub fn is_old(&self, piece: Range) -> bool {
        let mut pieces = self.under_way.iter();
        pieces.any(|under_way| under_way.range == piece && under_way.is_old)
    }

    /// What to do next.
    pub fn take_next(&mut self) -> Next {
        let Some((known, need)) = self.ahead else {
            return self.next_look();
        };
        let run = self.chunks.next_run(known.offset());
        let Some(run) = run.filter(|run| run.offset() < known.end()) else {
            self.ahead = None;
            return self.next_look();
        };
        let most = match need {
            Need::Data => self.piece,
            Need::Zeroes | Need::Nothing => self.zeroes_most,
        };
        let run = Range::between(run.offset(), run.end().min(known.end())).first(most);
        let Some(free) = self.free_part(run) else {
            return Next::Wait;
        };
        self.ahead = Some((known.after(free.end() - known.offset()), need));
        self.chunks.remove(free);
        self.under_way.push(UnderWay {
            range: free,
            is_old: false,
        });
        Next::Piece(free, need)
    }

    fn next_look(&mut self) -> Next {
        for mut from in [self.cursor, 0] {
            while let Some(run) = self.chunks.next_run(from) {
                if let Some(free) = self.free_part(run.first(LOOK_MOST)) {
                    self.looked_at = Some(free);
                    self.written_from = u64::MAX;
                    return Next::Look(free);
                }
                let busy = self.busy(run.first(1));
                from = busy.map(|busy| busy.end()).max().unwrap_or(run.end());
            }
        }
        match self.under_way.is_empty() {
            true => Next::Nothing,
            false => Next::Wait,
        }
    }

    /// What is under way within a range.
    fn busy(&self, range: Range) -> impl Iterator<Item = Range> {
        let pieces = self.under_way.iter().map(|piece| piece.range);
        pieces.filter(move |busy| busy.overlaps(range))
    }

    /// The start of `run` up to what is under way; none where it begins with that.
    fn free_part(&self, run: Range) -> Option<Range> {
        let busy = self.busy(run);
        let end = busy.map(|busy| busy.offset()).min().unwrap_or(run.end());
        let free = Range::between(run.offset(), end);
        (!free.is_empty()).then_some(free)
    }

    /// The first `len` bytes of what was looked at need this. What needs nothing counts as copied; answers how many bytes
    /// those are. A look is never in vain, however much is written meanwhile: of one chunk it is known at least that data is
    /// right.
    pub fn learn(&mut self, len: u64, need: Need) -> u64 {
        let Some(range) = self.looked_at.take() else {
            return 0;
        };
        let chunk = self.chunks.chunk();
        let first_chunk = (range.offset() / chunk + 1).saturating_mul(chunk);
        let end = match need {
            Need::Data => range.first(len).end(),
            Need::Zeroes | Need::Nothing => range.first(len).end().min(self.written_from),
        };
        let whole = if end == self.chunks.len() {
            end
        } else {
            end / chunk * chunk
        };
        let (end, need) = match need {
            // A chunk that needs data somewhere needs it as a whole.
            Need::Data => (end.next_multiple_of(chunk), need),
            _ if whole <= range.offset() => (first_chunk, Need::Data),
            _ => (whole, need),
        };
        let known = Range::between(range.offset(), end.min(range.end()));
        self.cursor = known.end();
        if need != Need::Nothing {
            self.ahead = Some((known, need));
            return 0;
        }
        let before = self.chunks.bytes();
        self.chunks.remove(known);
        before - self.chunks.bytes()
    }

    /// A piece has ended. If it was not copied, it is left again.
    pub fn ended(&mut self, range: Range, copied: bool) {
        if let Some(place) = self.under_way.iter().position(|busy| busy.range == range) {
            self.under_way.swap_remove(place);
        }
        if !copied {
            self.mark(range);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: u64 = 4096;

    fn range(first: u64, chunks: u64) -> Range {
        Range::new(first * CHUNK, chunks * CHUNK).unwrap()
    }

    /// A disk of `chunks` chunks and 100 bytes, all of it left.
    fn all(chunks: u64) -> Left {
        let mut set = ChunkSet::new(chunks * CHUNK + 100, CHUNK).unwrap();
        set.insert(Range::new(0, u64::MAX).unwrap());
        Left::new(set, 4 * CHUNK)
    }

    #[test]
    fn all_is_taken_in_pieces_and_once() {
        let mut left = all(9);
        assert_eq!(
            left.take_next(),
            Next::Look(Range::new(0, 9 * CHUNK + 100).unwrap())
        );
        assert_eq!(left.learn(u64::MAX, Need::Data), 0);
        let last = Range::new(8 * CHUNK, CHUNK + 100).unwrap();
        for piece in [range(0, 4), range(4, 4), last] {
            assert_eq!(left.take_next(), Next::Piece(piece, Need::Data));
        }
        assert_eq!(left.take_next(), Next::Wait);
        for piece in [range(4, 4), last, range(0, 4)] {
            left.ended(piece, true);
        }
        assert_eq!(left.take_next(), Next::Nothing);
    }

    #[test]
    fn a_chunk_that_needs_zeroes_only_in_part_is_copied_and_one_that_needs_nothing_is_not() {
        let mut left = all(8);
        left.take_next();
        assert_eq!(left.learn(3 * CHUNK + 1, Need::Nothing), 3 * CHUNK);
        assert_eq!(
            left.take_next(),
            Next::Look(Range::new(3 * CHUNK, 5 * CHUNK + 100).unwrap())
        );
        left.learn(CHUNK - 1, Need::Zeroes);
        assert_eq!(left.take_next(), Next::Piece(range(3, 1), Need::Data));
        assert_eq!(
            left.take_next(),
            Next::Look(Range::new(4 * CHUNK, 4 * CHUNK + 100).unwrap())
        );
        left.learn(2 * CHUNK + 9, Need::Zeroes);
        assert_eq!(left.take_next(), Next::Piece(range(4, 2), Need::Zeroes));
        assert!(matches!(left.take_next(), Next::Look(_)));
        // The last chunk of the disk is whole where the disk ends.
        left.learn(2 * CHUNK + 100, Need::Nothing);
        assert_eq!(left.take_next(), Next::Wait);
    }

    #[test]
    fn what_is_written_while_it_is_on_its_way_is_copied_again_afterwards() {
        let mut left = all(4);
        left.take_next();
        left.learn(4 * CHUNK, Need::Data);
        assert_eq!(left.take_next(), Next::Piece(range(0, 4), Need::Data));
        left.mark(Range::new(2 * CHUNK + 5, 1).unwrap());
        assert_eq!(left.take_next(), Next::Look(Range::new(4 * CHUNK, 100).unwrap()));
        left.learn(100, Need::Nothing);
        assert_eq!(left.take_next(), Next::Wait, "two copies of one chunk at once");
        left.ended(range(0, 4), true);
        assert_eq!(left.take_next(), Next::Look(range(2, 1)));
    }

    #[test]
    fn what_was_known_of_a_range_is_forgotten_from_where_it_is_written() {
        // While it is looked at.
        let mut left = all(4);
        left.take_next();
        left.mark(Range::new(2 * CHUNK + 7, 1).unwrap());
        left.mark(range(3, 1));
        assert_eq!(left.learn(4 * CHUNK, Need::Nothing), 2 * CHUNK);
        assert_eq!(left.chunks.bytes(), 2 * CHUNK + 100);
        // And before it is taken.
        left.take_next();
        left.learn(2 * CHUNK, Need::Zeroes);
        left.mark(range(3, 1));
        assert_eq!(left.take_next(), Next::Look(Range::new(4 * CHUNK, 100).unwrap()));
    }

    #[test]
    fn a_look_beside_endless_writes_still_gets_a_chunk_copied() {
        let mut left = all(4);
        left.take_next();
        left.mark(range(0, 4));
        assert_eq!(left.learn(4 * CHUNK, Need::Zeroes), 0);
        assert_eq!(left.take_next(), Next::Piece(range(0, 1), Need::Data));
        left.take_next();
        left.mark(range(0, 4));
        left.learn(2 * CHUNK, Need::Data);
        assert_eq!(left.take_next(), Next::Piece(range(1, 2), Need::Data));
    }

    #[test]
    fn what_is_on_its_way_does_not_hold_up_the_rest() {
        let mut left = all(4);
        left.take_next();
        left.learn(4 * CHUNK, Need::Data);
        assert!(matches!(left.take_next(), Next::Piece(..)));
        left.ended(range(0, 4), true);
        left.mark(range(1, 1));
        left.mark(range(3, 1));
        left.cursor = 0;
        assert_eq!(left.take_next(), Next::Look(range(1, 1)));
        left.learn(CHUNK, Need::Data);
        assert_eq!(left.take_next(), Next::Piece(range(1, 1), Need::Data));
        left.mark(range(1, 1));
        left.cursor = 0;
        let rest = Range::new(3 * CHUNK, CHUNK + 100).unwrap();
        assert_eq!(left.take_next(), Next::Look(rest));
    }

    #[test]
    fn a_piece_that_failed_is_left_again() {
        let mut left = all(4);
        left.take_next();
        left.learn(4 * CHUNK, Need::Data);
        let Next::Piece(piece, _) = left.take_next() else {
            panic!("no piece")
        };
        left.ended(piece, false);
        assert_eq!(left.chunks.bytes(), 4 * CHUNK + 100);
    }

    #[test]
    fn a_write_to_both_ends_takes_whole_chunks_off_and_makes_what_was_known_old() {
        let mut left = all(8);
        left.take_next();
        left.learn(4 * CHUNK, Need::Zeroes);
        let Next::Piece(piece, Need::Zeroes) = left.take_next() else {
            panic!("no piece")
        };
        assert!(!left.is_old(piece));
        // Part of chunk 1, all of chunk 2, part of chunk 3; and the last, which is shorter than a chunk.
        left.written_to_both(Range::new(CHUNK + 1, 2 * CHUNK + 5).unwrap());
        assert!(left.is_old(piece));
        left.ended(piece, false);
        left.written_to_both(Range::new(2 * CHUNK, CHUNK + 5).unwrap());
        left.written_to_both(Range::new(8 * CHUNK, 100).unwrap());
        let chunks = [0, 1, 3, 4, 5, 6, 7].map(|chunk| left.chunks().contains(chunk * CHUNK));
        assert_eq!(chunks, [true; 7]);
        assert!(!left.chunks().contains(2 * CHUNK));
        assert_eq!(left.bytes(), 7 * CHUNK);
    }

    #[test]
    fn a_chunk_written_in_part_on_both_ends_is_not_zeroed_by_what_was_known_before() {
        let mut left = all(4);
        left.take_next();
        left.learn(4 * CHUNK, Need::Zeroes);
        left.written_to_both(Range::new(CHUNK, 1).unwrap());
        assert_eq!(
            left.take_next(),
            Next::Look(Range::new(4 * CHUNK, 100).unwrap()),
            "it is looked at again"
        );
    }
}
