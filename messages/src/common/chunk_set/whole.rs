//! What concerns a set as a whole: another length of its disk, another set, and its bits one after the other.

use super::{ChunkSet, Page, TooManyChunks, WORD_BITS, WORDS, mask, pages_of};

impl Page {
    fn merge(&mut self, other: &Self) {
        match (&mut *self, other) {
            (Self::Full, _) | (_, Self::Empty) => {}
            (_, Self::Full) => *self = Self::Full,
            (Self::Empty, Self::Mixed(_)) => *self = other.clone(),
            (Self::Mixed(mixed), Self::Mixed(theirs)) => {
                let mut count = 0;
                for (word, theirs) in mixed.words.iter_mut().zip(&theirs.words) {
                    *word |= theirs;
                    count += word.count_ones();
                }
                mixed.count = count;
                self.settle();
            }
        }
    }

    fn words(&self) -> impl Iterator<Item = u64> {
        (0..WORDS).map(move |index| match self {
            Self::Empty => 0,
            Self::Full => u64::MAX,
            Self::Mixed(mixed) => mixed.words[index],
        })
    }
}

impl ChunkSet {
    /// Whether the set could follow its disk to this length.
    ///
    /// # Errors
    /// There would be more chunks than a set can have.
    pub fn check_len(&self, len: u64) -> Result<(), TooManyChunks> {
        pages_of(len, self.chunk()).map(drop)
    }

    /// Follows the disk to another length. Chunks behind the new end are not in the set any more, and new ones are not either.
    ///
    /// # Errors
    /// There would be more chunks than a set can have. It is as it was.
    pub fn resize(&mut self, len: u64) -> Result<(), TooManyChunks> {
        let pages = pages_of(len, self.chunk())?;
        self.each_page(len.div_ceil(self.chunk()), self.chunks(), Page::remove);
        self.pages.resize(pages, Page::Empty);
        self.len = len;
        Ok(())
    }

    /// Takes in every chunk that touches a chunk of another set of the same disk.
    pub fn merge(&mut self, other: &Self) {
        if (self.shift, self.len) == (other.shift, other.len) {
            for (page, theirs) in self.pages.iter_mut().zip(&other.pages) {
                let before = page.count();
                page.merge(theirs);
                self.count = self.count - before + page.count();
            }
            return;
        }
        let mut from = 0;
        while let Some(run) = other.next_run(from) {
            self.insert(run);
            from = run.end();
        }
    }

    /// Takes in the chunks whose bits are set in words as [`ChunkSet::words`] has them, of which the first begins with chunk
    /// `first`. Bits behind the end of the disk are left out.
    pub fn insert_words(&mut self, first: u64, words: impl IntoIterator<Item = u64>) {
        let mut base = first;
        // A run of bits may go on in the next word.
        let mut run = first..first;
        for word in words {
            let mut left = word;
            while left != 0 {
                let start = u64::from(left.trailing_zeros());
                let end = start + u64::from((left >> start).trailing_ones());
                left &= !mask(start, end);
                if run.end != base + start {
                    self.insert_chunks(run);
                    run = base + start..base + start;
                }
                run.end = base + end;
            }
            base = base.saturating_add(WORD_BITS);
        }
        self.insert_chunks(run);
    }

    fn insert_chunks(&mut self, run: std::ops::Range<u64>) {
        self.each_page(run.start, run.end.min(self.chunks()), Page::insert);
    }

    /// A bit for each chunk, the first chunk of a word the lowest. There is one word at least, as in QEMU's bitmaps.
    pub fn words(&self) -> impl Iterator<Item = u64> {
        let count = usize::try_from(self.chunks().div_ceil(WORD_BITS).max(1)).unwrap_or(usize::MAX);
        let words = self.pages.iter().flat_map(Page::words);
        words.chain(std::iter::repeat(0)).take(count)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Range;

    const LEN: u64 = 70_003;

    fn set_of(len: u64, chunk: u64, ranges: &[(u64, u64)]) -> ChunkSet {
        let mut set = ChunkSet::new(len, chunk).unwrap();
        for (start, bytes) in ranges {
            set.insert(Range::new(*start, *bytes).unwrap());
        }
        set
    }

    fn ranges() -> impl Strategy<Value = Vec<(u64, u64)>> {
        prop::collection::vec((0..LEN, prop_oneof![1..200_u64, 0..=LEN]), 0..6)
    }

    fn chunk() -> impl Strategy<Value = u64> {
        prop_oneof![Just(1_u64), Just(8), Just(512)]
    }

    /// The set built byte by byte from those of another for which `keep` holds.
    fn rebuilt(len: u64, chunk: u64, keep: impl Fn(u64) -> bool) -> ChunkSet {
        let bytes = (0..len).filter(|byte| keep(*byte));
        let ranges: Vec<_> = bytes.map(|byte| (byte, 1)).collect();
        set_of(len, chunk, &ranges)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn a_set_that_follows_its_disk_loses_what_lies_behind_the_end_and_nothing_else(
            chunk in chunk(),
            ranges in ranges(),
            lens in prop::collection::vec(prop_oneof![Just(0), Just(32_768), Just(65_536), 0..2 * LEN], 1..4),
        ) {
            let mut set = set_of(LEN, chunk, &ranges);
            let (mut before, mut shortest) = (set.clone(), u64::MAX);
            for len in lens {
                set.resize(len).unwrap();
                shortest = shortest.min(len);
                let kept = |byte: u64| byte / chunk * chunk < shortest && before.contains(byte / chunk * chunk);
                prop_assert_eq!(&set, &rebuilt(len, chunk, kept));
                before = set.clone();
                shortest = len;
            }
        }

        #[test]
        fn a_merged_set_has_the_chunks_that_touch_those_of_either(
            (chunk, other) in (chunk(), chunk()),
            (ours, theirs) in (ranges(), ranges()),
        ) {
            let mut set = set_of(LEN, chunk, &ours);
            let theirs = set_of(LEN, other, &theirs);
            let before = set.clone();
            set.merge(&theirs);
            prop_assert_eq!(set, rebuilt(LEN, chunk, |byte| before.contains(byte) || theirs.contains(byte)));
        }

        #[test]
        fn each_chunk_has_its_bit(chunk in chunk(), ranges in ranges()) {
            let set = set_of(LEN, chunk, &ranges);
            let words: Vec<u64> = set.words().collect();
            prop_assert_eq!(words.len() as u64, LEN.div_ceil(chunk).div_ceil(64));
            for at in 0..words.len() as u64 * 64 {
                let bit = words[(at / 64) as usize] >> (at % 64) & 1 == 1;
                prop_assert_eq!(bit, set.contains(at * chunk), "chunk {}", at);
            }
        }
    }

    proptest! {
        #[test]
        fn a_set_is_made_again_from_its_words(chunk in chunk(), ranges in ranges(), split in 0..200_usize) {
            let set = set_of(LEN, chunk, &ranges);
            let words: Vec<u64> = set.words().collect();
            let mut made = ChunkSet::new(LEN, chunk).unwrap();
            let split = split.min(words.len());
            made.insert_words(split as u64 * 64, words[split..].iter().copied());
            made.insert_words(0, words[..split].iter().copied());
            prop_assert_eq!(made, set);
        }
    }

    #[test]
    fn bits_behind_the_end_of_the_disk_are_left_out() {
        let mut set = ChunkSet::new(100 * 512, 512).unwrap();
        set.insert_words(0, [u64::MAX; 4]);
        assert_eq!((set.count(), set.bytes()), (100, 100 * 512));
    }

    #[test]
    fn a_set_of_no_chunks_has_one_word() {
        let set = ChunkSet::new(0, 512).unwrap();
        assert_eq!(set.words().collect::<Vec<_>>(), [0]);
    }

    #[test]
    fn a_set_stays_as_it_was_where_it_cannot_follow_its_disk() {
        let mut set = set_of(1 << 20, 512, &[(0, 4096)]);
        let before = set.clone();
        assert!(set.check_len(1 << 46).is_err());
        assert!(set.resize(1 << 46).is_err());
        assert_eq!(set, before);
    }
}
