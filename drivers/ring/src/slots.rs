//! The table of operations in flight.

use std::task::{Poll, Waker};

use slab::Slab;

use super::op::{Op, SlotId};

#[derive(Debug)]
enum State {
    /// In flight, and this is whom to tell.
    Waiting(Option<Waker>),
    /// In flight, and nobody waits any more.
    Orphan,
    /// Completed with this result; its future has yet to fetch it.
    Done(i32),
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    op: Op,
    state: State,
}

/// Every operation that was submitted and not yet both completed and fetched.
#[derive(Debug, Default)]
pub struct Slots {
    slab: Slab<Slot>,
    next: u32,
}

/// What a completion left to do, outside of any borrow of the ring.
pub(super) enum Completed {
    /// The task that waits for the operation.
    Wake(Waker),
    /// Drop what the operation owned.
    Dispose(Op, i32),
    /// Nobody has asked yet, or the slot is unknown.
    Nothing,
}

impl Slots {
    /// The operation of a slot, if that use of the slot is still on.
    #[inline]
    pub fn get_mut(&mut self, id: SlotId) -> Option<&mut Op> {
        self.slot(id).map(|slot| &mut slot.op)
    }

    /// How many slots are in use.
    pub fn len(&self) -> usize {
        self.slab.len()
    }

    /// Whether no slot is in use.
    pub fn is_empty(&self) -> bool {
        self.slab.is_empty()
    }

    #[inline]
    fn slot(&mut self, id: SlotId) -> Option<&mut Slot> {
        self.slab
            .get_mut(id.index as usize)
            .filter(|slot| slot.generation == id.generation)
    }

    #[inline]
    pub(super) fn insert(&mut self, op: Op) -> SlotId {
        let generation = self.next;
        // Backends use the top bits of a generation for tags of their own.
        self.next = (self.next + 1) & SlotId::GENERATIONS;
        // More than 2^32 operations do not fit in memory.
        let index = self.slab.insert(Slot {
            generation,
            op,
            state: State::Waiting(None),
        }) as u32;
        SlotId { index, generation }
    }

    /// Ends a flight. The slot stays until its future fetches the result, or goes if there is no future.
    #[inline]
    pub(super) fn complete(&mut self, id: SlotId, result: i32) -> Completed {
        let Some(slot) = self.slot(id) else {
            tracing::error!(?id, result, "completion for an operation that is not in flight");
            return Completed::Nothing;
        };
        match std::mem::replace(&mut slot.state, State::Done(result)) {
            State::Waiting(Some(waker)) => Completed::Wake(waker),
            State::Waiting(None) => Completed::Nothing,
            State::Orphan => Completed::Dispose(self.slab.remove(id.index as usize).op, result),
            State::Done(first) => {
                tracing::error!(?id, result, "second completion of an operation");
                slot.state = State::Done(first);
                Completed::Nothing
            }
        }
    }

    /// Whether a future still waits for the operation, which is in flight.
    pub(super) fn is_wanted(&mut self, id: SlotId) -> bool {
        self.slot(id)
            .is_some_and(|slot| matches!(slot.state, State::Waiting(_)))
    }

    /// The future's poll. The second value is a waker to be dropped by the caller outside of any borrow: the drop
    /// may run a task's destructor, which may come back here.
    #[inline]
    pub(super) fn poll(&mut self, id: SlotId, waker: &Waker) -> (Poll<(i32, Op)>, Option<Waker>) {
        let Some(slot) = self.slot(id) else {
            return (Poll::Pending, None);
        };
        match &mut slot.state {
            State::Done(result) => {
                let result = *result;
                (
                    Poll::Ready((result, self.slab.remove(id.index as usize).op)),
                    None,
                )
            }
            State::Waiting(Some(old)) if old.will_wake(waker) => (Poll::Pending, None),
            State::Waiting(old) => (Poll::Pending, old.replace(waker.clone())),
            State::Orphan => (Poll::Pending, None),
        }
    }

    /// The future is gone. The caller must cancel if the first value is true, and drop the others.
    pub(super) fn abandon(&mut self, id: SlotId) -> (bool, Option<Waker>, Option<(Op, i32)>) {
        let Some(slot) = self.slot(id) else {
            return (false, None, None);
        };
        match std::mem::replace(&mut slot.state, State::Orphan) {
            State::Waiting(waker) => (true, waker, None),
            State::Orphan => (false, None, None),
            State::Done(result) => (
                false,
                None,
                Some((self.slab.remove(id.index as usize).op, result)),
            ),
        }
    }
}

impl SlotId {
    /// The generations there are: 30 bits.
    pub(super) const GENERATIONS: u32 = (1 << 30) - 1;
}
