//! The line at a closed gate: what waits there, in order of arrival.
//!
//! The first goes when the gate is open, and wakes the next as it leaves, so nothing that comes later overtakes it. Generic
//! over what waits, so that the model checker of the graph drives this very line.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::{Poll, Waker};

use super::sections::Opens;

/// What waits at one root edge: operations `O`. What is taken elsewhere is told its end by an `A`.
pub struct Line<O, A> {
    waiting: RefCell<VecDeque<Rc<Parked<O, A>>>>,
}

/// One in the line.
pub struct Parked<O, A> {
    state: RefCell<State<O, A>>,
    waker: RefCell<Option<Waker>>,
}

enum State<O, A> {
    Waiting(O),
    Forwarded(A),
    Ended(O),
    /// It has left the gate.
    Gone,
}

/// What one in the line hears in the end.
pub enum Turn<O, A> {
    /// It may pass the gate.
    Go(O),
    /// The edge moved to another iothread and took the operation along; the answer comes from there.
    Elsewhere(A),
    /// The edge ended before the operation began.
    Ended(O),
}

impl<O, A> Default for Line<O, A> {
    fn default() -> Self {
        Self {
            waiting: RefCell::default(),
        }
    }
}

impl<O, A> Line<O, A> {
    /// Whether nothing waits: only then may a newcomer pass an open gate at once.
    pub fn is_empty(&self) -> bool {
        self.waiting.borrow().is_empty()
    }

    /// Puts an operation at the end. It must be taken off by [`Line::leave`] when it goes on, or when its asker gives up.
    pub fn join(&self, operation: O) -> Rc<Parked<O, A>> {
        let parked = Rc::new(Parked {
            state: RefCell::new(State::Waiting(operation)),
            waker: RefCell::default(),
        });
        self.waiting.borrow_mut().push_back(Rc::clone(&parked));
        parked
    }

    /// Whether it is this one's turn, `open` being the gate's state now. If not, `waker` is called when it may be.
    pub fn poll(&self, parked: &Rc<Parked<O, A>>, open: bool, waker: &Waker) -> Poll<Turn<O, A>> {
        let waiting = self.waiting.borrow();
        let first = waiting.front().is_some_and(|front| Rc::ptr_eq(front, parked));
        match parked.state.replace(State::Gone) {
            State::Waiting(operation) if first && open => Poll::Ready(Turn::Go(operation)),
            State::Waiting(operation) => {
                parked.state.replace(State::Waiting(operation));
                parked.waker.replace(Some(waker.clone()));
                Poll::Pending
            }
            State::Forwarded(answer) => Poll::Ready(Turn::Elsewhere(answer)),
            State::Ended(operation) => Poll::Ready(Turn::Ended(operation)),
            State::Gone => Poll::Pending,
        }
    }

    /// Takes one off the line, and lets the first look again.
    pub fn leave(&self, parked: &Rc<Parked<O, A>>) {
        self.waiting
            .borrow_mut()
            .retain(|other| !Rc::ptr_eq(other, parked));
        self.wake_first();
    }

    /// The gate has opened, or who was first is gone: the first looks again.
    pub fn wake_first(&self) {
        let first = self.waiting.borrow().front().cloned();
        if let Some(parked) = first {
            parked.wake();
        }
    }

    /// Takes all along to another iothread, in order. `answer` makes what carries an answer back, and what waits for it.
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

    /// The edge ends: all that waits is told so.
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

impl<O, A> Opens for Line<O, A> {
    fn gate_opened(&self) {
        self.wake_first();
    }
}

impl<O, A> Parked<O, A> {
    /// Looks at the operation, if it still waits; true otherwise.
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
