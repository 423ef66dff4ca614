//! A node's gate: closed by drained sections, it parks what comes over root edges and counts what is in flight.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::Waker;

use millpond_messages::handshake::PendingRequest;
use millpond_messages::io::OperationKind;
use millpond_messages::{NodeId, Token};
use slab::Slab;

use crate::node::order::recorded;
use crate::node::table::NodeTable;

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

/// A request's place in the count of the node where it entered the graph; it is over when this is dropped.
pub struct Admission {
    owner: Rc<crate::node::cell::node::NodeCell>,
    key: usize,
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

    /// What is in flight, oldest first.
    pub fn pending(&self, now_ns: u64, table: &NodeTable) -> Vec<PendingRequest> {
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
                stands_at: table.node(request.stands_at.get()).map_or_else(
                    || format!("#{}", request.stands_at.get()),
                    |node| node.name().to_owned(),
                ),
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

impl Admission {
    /// Counts a request in.
    pub fn new(
        owner: Rc<crate::node::cell::node::NodeCell>,
        kind: OperationKind,
        offset: u64,
        len: u64,
        since_ns: u64,
    ) -> Self {
        let request = InFlight::new(owner.id(), kind, offset, len, since_ns);
        let key = owner.gate().enter(request);
        Self { owner, key }
    }

    /// Its place in the count.
    pub fn key(&self) -> usize {
        self.key
    }

    /// The node that counts it.
    pub fn node(&self) -> &Rc<crate::node::cell::node::NodeCell> {
        &self.owner
    }

    /// The request has been handed to `node`.
    pub fn stands_at(&self, node: NodeId) {
        if let Some(request) = self.owner.gate().in_flight.borrow().get(self.key) {
            request.stands_at.set(node);
        }
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        if let Some(table) = self.owner.table() {
            table.local().note(recorded::answered(self.owner.id(), self.key));
        }
        if self.owner.gate().leave(self.key) {
            self.owner.answer_quiesce();
        }
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
