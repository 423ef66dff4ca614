//! A node's gate: closed by drained sections, it parks what comes over root edges and counts what is in flight.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::task::Waker;

use millpond_messages::handshake::PendingRequest;
use millpond_messages::io::OperationKind;
use millpond_messages::{NodeId, Token};
use slab::Slab;

/// How many requests the query about a slow drain names, oldest first.
const PENDING_SHOWN: usize = 16;

/// One request that is counted, until this is dropped.
pub struct InFlight {
    kind: OperationKind,
    offset: u64,
    len: u64,
    /// When it was admitted, in nanoseconds since the process began.
    since_ns: u64,
    stands_at: Cell<NodeId>,
}

/// The gate and the count.
#[derive(Default)]
pub struct Gate {
    /// Sections in force. The gate is closed while there are any.
    holds: RefCell<Vec<Token>>,
    /// Sections that wait for an answer.
    unanswered: RefCell<Vec<Token>>,
    in_flight: RefCell<Slab<InFlight>>,
    background: Cell<Background>,
    /// Whoever waits for the gate to open.
    waiting: RefCell<Vec<Waker>>,
    /// What is parked at it, a queue for each root edge.
    queues: RefCell<Vec<Weak<dyn Opens>>>,
}

/// What waits at a gate.
pub trait Opens {
    /// The gate has opened: what is first may look again.
    fn gate_opened(&self);
}

/// The background work of a node's driver. It is stopped and started one after the other, never both at once: a section
/// that ends while the driver is stopping lets it start only when it has stopped, and one that begins then makes use of
/// that stop.
///
/// ```text
///   Running --(first section)--> Stopping --(driver answers, gate closed)--> Stopped --(last section ends)--> Running
///                                    +------(driver answers, gate open)------------------------------------> Running
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Background {
    /// The driver does as it likes.
    #[default]
    Running,
    /// It was told to stop, and has not answered.
    Stopping,
    /// No background work is left.
    Stopped,
}

impl InFlight {
    /// A request that enters the graph at `node`.
    pub fn new(node: NodeId, kind: OperationKind, offset: u64, len: u64, since_ns: u64) -> Self {
        Self {
            kind,
            offset,
            len,
            since_ns,
            stands_at: Cell::new(node),
        }
    }
}

impl Gate {
    /// A gate that sections hold already.
    pub fn held(holds: Vec<Token>) -> Self {
        let background = if holds.is_empty() {
            Background::Running
        } else {
            Background::Stopped
        };
        Self {
            holds: RefCell::new(holds),
            background: Cell::new(background),
            ..Self::default()
        }
    }

    /// Whether a request may pass.
    pub fn is_open(&self) -> bool {
        self.holds.borrow().is_empty()
    }

    /// The sections in force.
    pub fn holds(&self) -> Vec<Token> {
        self.holds.borrow().clone()
    }

    /// How many requests are in flight.
    pub fn count(&self) -> usize {
        self.in_flight.borrow().len()
    }

    /// Closes the gate for one more section. True if the driver is to stop its background work now: [`Gate::stopped`] must
    /// follow.
    pub fn close(&self, token: Token) -> bool {
        self.holds.borrow_mut().push(token);
        self.unanswered.borrow_mut().push(token);
        let stops = self.background.get() == Background::Running;
        if stops {
            self.background.set(Background::Stopping);
        }
        stops
    }

    /// Ends a section. True if the gate is open now and was not before.
    pub fn release(&self, token: Token) -> bool {
        self.unanswered.borrow_mut().retain(|other| *other != token);
        let mut holds = self.holds.borrow_mut();
        let before = holds.len();
        holds.retain(|other| *other != token);
        before > 0 && holds.is_empty()
    }

    /// The driver has stopped its background work. True if no section is in force any more, so that it is to go on.
    pub fn stopped(&self) -> bool {
        self.background.set(Background::Stopped);
        self.is_open() && self.starts()
    }

    /// The gate has opened. True if the driver is to go on with its background work now, rather than once it has stopped.
    pub fn starts(&self) -> bool {
        let starts = self.background.get() == Background::Stopped;
        if starts {
            self.background.set(Background::Running);
        }
        starts
    }

    /// Counts a request in; the answer names it for [`Gate::leave`].
    pub fn enter(&self, request: InFlight) -> usize {
        self.in_flight.borrow_mut().insert(request)
    }

    /// Counts a request out. True if sections may wait for that.
    pub fn leave(&self, key: usize) -> bool {
        let mut in_flight = self.in_flight.borrow_mut();
        in_flight.try_remove(key);
        in_flight.is_empty() && !self.is_open()
    }

    /// A request has been handed to `node`.
    pub fn stands_at(&self, key: usize, node: NodeId) {
        if let Some(request) = self.in_flight.borrow().get(key) {
            request.stands_at.set(node);
        }
    }

    /// Has `queue` woken whenever the gate opens, as long as it lives.
    pub fn add_queue(&self, queue: &Rc<dyn Opens>) {
        let mut queues = self.queues.borrow_mut();
        queues.retain(|other| other.strong_count() > 0);
        queues.push(Rc::downgrade(queue));
    }

    /// The queue waits at another gate now, or has ended.
    pub fn remove_queue(&self, queue: &Rc<dyn Opens>) {
        self.queues
            .borrow_mut()
            .retain(|other| !std::ptr::addr_eq(other.as_ptr(), Rc::as_ptr(queue)));
    }

    /// Lets the first in each queue look again, and wakes whoever waits for a change of the gate.
    pub fn wake_queues(&self) {
        let queues: Vec<_> = self.queues.borrow().iter().filter_map(Weak::upgrade).collect();
        for queue in queues {
            queue.gate_opened();
        }
        self.wake_waiting();
    }

    /// The sections to answer now: all that wait, if nothing is in flight any more, nor in the background.
    pub fn take_answerable(&self) -> Vec<Token> {
        if self.background.get() != Background::Stopped || self.count() > 0 {
            Vec::new()
        } else {
            self.unanswered.take()
        }
    }

    /// Wakes whoever waits for a change of the gate.
    pub fn wake_waiting(&self) {
        for waker in self.waiting.take() {
            waker.wake();
        }
    }

    /// Has `waker` called at the next change.
    pub fn wait(&self, waker: &Waker) {
        let mut waiting = self.waiting.borrow_mut();
        if !waiting.iter().any(|other| other.will_wake(waker)) {
            waiting.push(waker.clone());
        }
    }

    /// What is in flight, oldest first. `name_of` gives the names of the nodes where it stands.
    pub fn pending(&self, now_ns: u64, name_of: impl Fn(NodeId) -> String) -> Vec<PendingRequest> {
        let in_flight = self.in_flight.borrow();
        let mut all: Vec<&InFlight> = in_flight.iter().map(|(_, request)| request).collect();
        all.sort_by_key(|request| request.since_ns);
        all.truncate(PENDING_SHOWN);
        all.into_iter()
            .map(|request| PendingRequest {
                operation: request.kind,
                offset: request.offset,
                len: request.len,
                age_ns: now_ns.saturating_sub(request.since_ns),
                stands_at: name_of(request.stands_at.get()),
            })
            .collect()
    }
}

impl Gate {
    /// The sections in force, those to be answered, how many requests are in flight, and the background work.
    pub fn parts(&self) -> (Vec<Token>, Vec<Token>, usize, Background) {
        let unanswered = self.unanswered.borrow().clone();
        (self.holds(), unanswered, self.count(), self.background.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_section_in_force_opens_the_gate() {
        let gate = Gate::default();
        let (one, two) = (Token(1), Token(2));
        assert!(!gate.release(one), "a gate that is open does not open");
        gate.close(one);
        gate.close(two);
        assert!(!gate.release(one) && !gate.is_open());
        assert!(!gate.release(one) && !gate.is_open());
        assert!(gate.release(two) && gate.is_open());
        assert!(!gate.release(two));
    }

    #[test]
    fn a_driver_that_still_stops_goes_on_once_when_it_has_stopped() {
        let gate = Gate::default();
        assert!(gate.close(Token(1)), "it is told to stop");
        assert!(gate.release(Token(1)));
        assert!(!gate.starts(), "it is still stopping");
        assert!(gate.stopped(), "now it goes on");
        assert!(!gate.starts(), "it runs");
    }
}
