//! How much of an export may be in flight: what bounds the memory that its users make the daemon hold.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};

use millpond_ring::fuse::FuseEntry;

use super::standing::Standing;
use super::wire::{Asked, MAX_TRANSFER};

/// The most requests in flight on an iothread: taken from the kernel, and not answered.
pub(super) const MOST: usize = 64;
/// The most bytes of data that they hold, but for those of one batch that is being taken.
const MOST_BYTES: usize = 32 << 20;

const _: () = assert!(
    MOST_BYTES > MAX_TRANSFER as usize,
    "a request of any size has room"
);

/// The requests in flight of an export, on an iothread that serves it.
pub(super) struct Slots {
    standing: Arc<Standing>,
    requests: Cell<usize>,
    bytes: Cell<usize>,
    /// Who waits for room, or for all to be given back: the task alone that takes requests.
    waiter: RefCell<Option<Waker>>,
}

/// A request's share, given back when dropped.
pub(super) struct Slot {
    slots: Rc<Slots>,
    bytes: usize,
    /// Others can know of it.
    is_counted: bool,
    /// What it came by, if that was not the device.
    entry: Option<FuseEntry>,
}

impl Slots {
    pub(super) fn new(standing: &Arc<Standing>) -> Rc<Self> {
        Rc::new(Self {
            standing: Arc::clone(standing),
            requests: Cell::new(0),
            bytes: Cell::new(0),
            waiter: RefCell::default(),
        })
    }

    /// How many more requests may be taken now; `waker` is called when that changes.
    pub(super) fn room(&self, waker: &Waker) -> usize {
        let room = match self.bytes.get() < MOST_BYTES {
            true => MOST.saturating_sub(self.requests.get()),
            false => 0,
        };
        if room == 0 {
            self.waiter.replace(Some(waker.clone()));
        }
        room
    }

    /// Counts a request. What asks nothing of the node does not make the export one that is used.
    pub(super) fn take(self: &Rc<Self>, asked: &Asked, entry: Option<FuseEntry>) -> Slot {
        let (bytes, asks_node) = (asked.data_len(), asked.asks_node());
        self.requests.set(self.requests.get() + 1);
        self.bytes.set(self.bytes.get() + bytes);
        if asks_node {
            self.standing.begun();
        }
        Slot {
            slots: Rc::clone(self),
            bytes,
            is_counted: asks_node,
            entry,
        }
    }

    /// Waits until nothing is in flight, and does something about each answer meanwhile.
    pub(super) async fn settled(&self, answered: impl Fn()) {
        poll_fn(|context| {
            answered();
            match self.requests.get() {
                0 => Poll::Ready(()),
                _ => {
                    self.waiter.replace(Some(context.waker().clone()));
                    Poll::Pending
                }
            }
        })
        .await;
    }
}

impl Slot {
    /// What its answer goes by; nothing for one that goes to the device.
    pub(super) fn entry(&mut self) -> Option<FuseEntry> {
        self.entry.take()
    }

    /// The answer is about to be sent: who gets it must not find that the export is in use.
    pub(super) fn answering(&mut self) {
        if std::mem::take(&mut self.is_counted) {
            self.slots.standing.ended();
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.answering();
        let slots = &self.slots;
        slots.requests.set(slots.requests.get() - 1);
        slots.bytes.set(slots.bytes.get() - self.bytes);
        if let Some(waiter) = slots.waiter.take() {
            waiter.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::attributes::Rules;
    use super::super::lengths::Lengths;
    use super::super::standing::Agreement;
    use super::*;

    #[test]
    fn room_ends_by_requests_and_by_bytes() {
        let rules = Rules {
            writable: true,
            growable: false,
            allow_other: false,
        };
        let agreement = Agreement {
            direct: true,
            max_transfer: MAX_TRANSFER,
        };
        let standing = Arc::new(Standing::new(rules, agreement, Lengths::new().0));
        let slots = Slots::new(&standing);
        let waker = Waker::noop();
        let taken: Vec<_> = (0..MOST).map(|_| slots.take(&Asked::Flush, None)).collect();
        assert_eq!(slots.room(waker), 0);
        assert_eq!(standing.in_flight(), MOST as u32);
        drop(taken);
        assert_eq!(slots.room(waker), MOST);
        assert_eq!(standing.in_flight(), 0);
        let open = slots.take(&Asked::Open, None);
        assert_eq!((slots.room(waker), standing.in_flight()), (MOST - 1, 0));
        drop(open);
        let (offset, len) = (0, MAX_TRANSFER);
        for asked in [Asked::Read { offset, len }, Asked::Write { offset, len }] {
            let most = MOST_BYTES / MAX_TRANSFER as usize;
            let mut large: Vec<_> = (1..most).map(|_| slots.take(&asked, None)).collect();
            assert_eq!(slots.room(waker), MOST - most + 1);
            large.push(slots.take(&asked, None));
            assert_eq!(slots.room(waker), 0);
            drop(large);
            assert_eq!((slots.room(waker), standing.in_flight()), (MOST, 0));
        }
    }
}
