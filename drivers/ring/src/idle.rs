//! Which workers of a pool have nothing to do: a set that its members join and leave by themselves, and from which the
//! pool's owner takes those that it gives work to.
//!
//! Each member is a bit. Whoever clears it decides what becomes of the worker, and nobody else does: so a worker that finds
//! its bit cleared knows that it was taken, and one that is taken is never taken twice. With the fences here, of a worker
//! that joins and then looks at the queue, and an owner that queues and then takes, at least one sees the other.

#[cfg(not(loom))]
use std::sync::atomic::{AtomicU64, Ordering, fence};

#[cfg(loom)]
use loom::sync::atomic::{AtomicU64, Ordering, fence};

/// A set of workers by number.
#[derive(Debug)]
pub(super) struct Idle {
    words: Box<[AtomicU64]>,
}

const BITS: usize = u64::BITS as usize;

impl Idle {
    /// A set for the workers below `most`, none of which is in it.
    pub(super) fn none(most: usize) -> Self {
        let words = (0..most.div_ceil(BITS)).map(|_| AtomicU64::new(0));
        Self {
            words: words.collect(),
        }
    }

    /// A set of all workers below `most`.
    pub(super) fn all(most: usize) -> Self {
        let bits = |word: usize| match most.saturating_sub(word * BITS) {
            count if count < BITS => (1 << count) - 1,
            _ => u64::MAX,
        };
        let words = (0..most.div_ceil(BITS)).map(|word| AtomicU64::new(bits(word)));
        Self {
            words: words.collect(),
        }
    }

    /// The worker joins. What it looks at afterwards was put there by somebody who may take it, or who has.
    pub(super) fn join(&self, worker: usize) {
        if let Some(word) = self.words.get(worker / BITS) {
            word.fetch_or(1 << (worker % BITS), Ordering::AcqRel);
            fence(Ordering::SeqCst);
        }
    }

    /// The worker leaves. False if it was taken before it could.
    #[must_use]
    pub(super) fn leave(&self, worker: usize) -> bool {
        let bit = 1 << (worker % BITS);
        let word = self.words.get(worker / BITS);
        word.is_some_and(|word| word.fetch_and(!bit, Ordering::AcqRel) & bit != 0)
    }

    /// Takes one. Where there is none, whoever joins later sees what was queued before this.
    #[must_use]
    pub(super) fn take(&self) -> Option<usize> {
        fence(Ordering::SeqCst);
        for (index, word) in self.words.iter().enumerate() {
            loop {
                let bits = word.load(Ordering::Relaxed);
                if bits == 0 {
                    break;
                }
                let worker = index * BITS + bits.trailing_zeros() as usize;
                // Fails only if the worker has just left by itself.
                if self.leave(worker) {
                    return Some(worker);
                }
            }
        }
        None
    }

    /// Whether all below `most` are in it.
    pub(super) fn is_all(&self, most: usize) -> bool {
        let count = |word: &AtomicU64| word.load(Ordering::Acquire).count_ones() as usize;
        self.words.iter().map(count).sum::<usize>() >= most
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn all_are_taken_once_each_lowest_first() {
        for most in [1, 63, 64, 65, 130] {
            let idle = Idle::all(most);
            assert!(idle.is_all(most));
            let taken: Vec<usize> = std::iter::from_fn(|| idle.take()).collect();
            assert_eq!(taken, (0..most).collect::<Vec<_>>());
        }
    }

    #[test]
    fn who_was_taken_cannot_leave() {
        let idle = Idle::none(70);
        assert_eq!(idle.take(), None);
        idle.join(69);
        assert_eq!(idle.take(), Some(69));
        assert!(!idle.leave(69));
        idle.join(69);
        assert!(idle.leave(69) && !idle.leave(69));
        assert_eq!(idle.take(), None);
    }
}
