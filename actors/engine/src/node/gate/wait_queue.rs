//! The queue of operations parked at a closed gate, in the order in which they arrived.
//!
//! The first operation passes when the gate is open, and wakes the next as it leaves, so that nothing overtakes what came
//! before it. The queue is generic over the operations, so that the graph's model checker drives this very code.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// The operations `O` that are parked at one root edge. One that moved with its edge to another iothread has its answer
/// through an `A`.
pub struct WaitQueue<O, A> {
    waiting: RefCell<VecDeque<Rc<Parked<O, A>>>>,
}

/// An operation's place in the queue.
pub struct Parked<O, A> {
    state: RefCell<State<O, A>>,
    waker: RefCell<Option<Waker>>,
}

enum State<O, A> {
    Waiting(O),
    Forwarded(A),
    Ended(O),
    /// The operation has left the gate.
    Gone,
}

/// How an operation's wait ends.
pub enum WaitEnd<O, A> {
    /// The operation may pass the gate.
    Pass(O),
    /// The edge moved to another iothread and took the operation along; the answer comes from there.
    Elsewhere(A),
    /// The edge ended before the operation began.
    Ended(O),
}

impl<O, A> Default for WaitQueue<O, A> {
    fn default() -> Self {
        Self {
            waiting: RefCell::default(),
        }
    }
}

impl<O, A> WaitQueue<O, A> {
    /// Whether nothing waits: only then may a newcomer pass an open gate at once.
    pub fn is_empty(&self) -> bool {
        self.waiting.borrow().is_empty()
    }

    /// Puts an operation at the end of the queue. [`WaitQueue::leave`] must follow when the operation goes on, or when its
    /// asker gives up.
    pub fn join(&self, operation: O) -> Rc<Parked<O, A>> {
        let parked = Rc::new(Parked {
            state: RefCell::new(State::Waiting(operation)),
            waker: RefCell::default(),
        });
        self.waiting.borrow_mut().push_back(Rc::clone(&parked));
        parked
    }

    /// Whether an operation's wait has ended, where `open` tells if the gate is open now. If it has not, `waker` is called
    /// when that may have changed.
    pub fn poll(&self, parked: &Rc<Parked<O, A>>, open: bool, waker: &Waker) -> Poll<WaitEnd<O, A>> {
        let waiting = self.waiting.borrow();
        let first = waiting.front().is_some_and(|front| Rc::ptr_eq(front, parked));
        match parked.state.replace(State::Gone) {
            State::Waiting(operation) if first && open => Poll::Ready(WaitEnd::Pass(operation)),
            State::Waiting(operation) => {
                parked.state.replace(State::Waiting(operation));
                parked.waker.replace(Some(waker.clone()));
                Poll::Pending
            }
            State::Forwarded(answer) => Poll::Ready(WaitEnd::Elsewhere(answer)),
            State::Ended(operation) => Poll::Ready(WaitEnd::Ended(operation)),
            State::Gone => Poll::Pending,
        }
    }

    /// Takes an operation out of the queue, and lets the first one look again.
    pub fn leave(&self, parked: &Rc<Parked<O, A>>) {
        self.waiting
            .borrow_mut()
            .retain(|other| !Rc::ptr_eq(other, parked));
        self.wake_first();
    }

    /// Lets the first operation look again: the gate has opened, or the one before it has left.
    pub fn wake_first(&self) {
        let first = self.waiting.borrow().front().cloned();
        if let Some(parked) = first {
            parked.wake();
        }
    }

    /// Takes all operations out in order, to go along to another iothread. For each, `answer` makes the sender of the
    /// answer and what waits for it here.
    pub fn take<R>(&self, mut answer: impl FnMut() -> (R, A)) -> Vec<(O, R)> {
        let mut taken = Vec::new();
        for parked in self.waiting.take() {
            let (reply, awaited) = answer();
            if let State::Waiting(operation) = parked.state.replace(State::Forwarded(awaited)) {
                taken.push((operation, reply));
            }
            parked.wake();
        }
        taken
    }

    /// Ends the wait of all operations, because their edge ends.
    pub fn end(&self) {
        for parked in self.waiting.take() {
            let state = parked.state.replace(State::Gone);
            if let State::Waiting(operation) = state {
                parked.state.replace(State::Ended(operation));
            }
            parked.wake();
        }
    }
}

impl<O, A> Parked<O, A> {
    /// Asks `look` about the operation if it still waits; true otherwise.
    pub fn operation(&self, look: impl FnOnce(&O) -> bool) -> bool {
        match &*self.state.borrow() {
            State::Waiting(operation) => look(operation),
            State::Forwarded(_) | State::Ended(_) | State::Gone => true,
        }
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}
