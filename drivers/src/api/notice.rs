//! Notices: facts that a driver reports to the users of its node without having been asked.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use millpond_messages::IoError;
use millpond_messages::qapi::QuorumOpType;

/// Notices of one node that may be on their way at once: a disk that fails every request must not fill the memory.
const ON_THEIR_WAY: usize = 64;

/// Something that happened in a driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// The image's metadata is wrong.
    Corrupted {
        /// What was found to be wrong, for people.
        message: String,
        /// Where in the image file, in bytes.
        offset: Option<u64>,
        /// How many bytes are concerned.
        size: Option<u64>,
        /// The image was made unusable by it.
        fatal: bool,
    },
    /// No version of a range has enough votes.
    NoQuorum {
        /// The range's start, in bytes.
        offset: u64,
        /// Its length, in bytes.
        len: u64,
    },
    /// A child failed, or its data is not what the others have.
    BadChild {
        /// The operation during which it was found.
        operation: QuorumOpType,
        /// Why it failed; `None` if its data differs.
        error: Option<IoError>,
        /// The child's index among the handles that the driver was given.
        child: usize,
        /// The range's start, in bytes.
        offset: u64,
        /// Its length, in bytes.
        len: u64,
    },
    /// The driver was told to compare, and what it compared differs: the program is to end.
    Mismatch {
        /// Where and what, for people.
        message: String,
    },
    /// A write ended past the node's write threshold. Reported for the node rather than by its driver.
    PassedThreshold {
        /// By how many bytes.
        exceeded: u64,
        /// The threshold, which holds no more.
        threshold: u64,
    },
    /// The driver panicked: all that the node is asked from now on fails.
    Broken {
        /// What the panic said.
        message: String,
    },
}

/// A notice on its way. It counts until it is dropped.
#[derive(Debug)]
pub struct Posted {
    /// The notice, without the node's name.
    pub notice: Notice,
    on_their_way: Arc<AtomicUsize>,
}

impl Drop for Posted {
    fn drop(&mut self) {
        self.on_their_way.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Where a driver's notices go. It stays valid when the node moves to another iothread.
#[derive(Clone)]
pub struct Notices {
    post: Arc<dyn Fn(Posted) + Send + Sync>,
    on_their_way: Arc<AtomicUsize>,
}

impl Notices {
    /// Notices go to `post`, which must not wait for anything.
    pub fn new(post: impl Fn(Posted) + Send + Sync + 'static) -> Self {
        Self {
            post: Arc::new(post),
            on_their_way: Arc::default(),
        }
    }

    /// Notices that go nowhere.
    #[must_use]
    pub fn nowhere() -> Self {
        Self::new(drop)
    }

    /// Reports a notice to the node's users. While too many are on their way further ones are lost, except
    /// [`Notice::Broken`], the last that a driver causes.
    pub fn report(&self, notice: Notice) {
        let before = self.on_their_way.fetch_add(1, Ordering::Relaxed);
        let posted = Posted {
            notice,
            on_their_way: Arc::clone(&self.on_their_way),
        };
        if before < ON_THEIR_WAY || matches!(posted.notice, Notice::Broken { .. }) {
            (self.post)(posted);
        }
    }
}

impl std::fmt::Debug for Notices {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Notices").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn notices_that_nobody_takes_away_are_bounded_and_room_comes_back() {
        let (sender, receiver) = mpsc::channel();
        // A receiver that is gone drops what it is sent.
        let notices = Notices::new(move |posted| drop(sender.send(posted)));
        let notice = |offset| Notice::NoQuorum { offset, len: 512 };
        (0..1000).for_each(|offset| notices.report(notice(offset)));
        let taken: Vec<Posted> = receiver.try_iter().collect();
        assert_eq!(taken.len(), ON_THEIR_WAY);
        drop(taken);
        notices.report(notice(7));
        assert_eq!(receiver.try_recv().unwrap().notice, notice(7));
    }
}
