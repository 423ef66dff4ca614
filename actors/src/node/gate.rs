//! A node's gate: closed by drained sections, it parks what comes over root edges and counts what is in flight.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::Waker;
use std::time::Instant;

use messages::handshake::PendingRequest;
use messages::io::OperationKind;
use messages::{NodeId, Token};
use slab::Slab;

use super::table::NodeTable;

/// How many requests the query about a slow drain names, oldest first.
const PENDING_SHOWN: usize = 16;

/// One admitted request.
pub struct InFlight {
    kind: OperationKind,
    offset: u64,
    len: u64,
    since: Instant,
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
    /// How often the driver has been told to stop its background work and has not answered. A section may end, and
    /// another begin, before it has.
    stopping: Cell<u32>,
    /// Whoever waits for the gate to open.
    waiting: RefCell<Vec<Waker>>,
}

/// A request's place in the count of the node where it entered the graph; it is over when this is dropped.
pub struct Admission {
    owner: Rc<super::cell::NodeCell>,
    key: usize,
}

impl InFlight {
    /// A request that enters the graph at `node`.
    pub fn new(node: NodeId, kind: OperationKind, offset: u64, len: u64, now: Instant) -> Self {
        Self {
            kind,
            offset,
            len,
            since: now,
            stands_at: Cell::new(node),
        }
    }
}

impl Gate {
    /// A gate that sections hold already.
    pub fn held(holds: Vec<Token>) -> Self {
        Self {
            holds: RefCell::new(holds),
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

    /// Closes the gate for one more section. True if it was open.
    pub fn close(&self, token: Token) -> bool {
        let mut holds = self.holds.borrow_mut();
        holds.push(token);
        self.unanswered.borrow_mut().push(token);
        holds.len() == 1
    }

    /// Ends a section. True if the gate is open now and was not before.
    pub fn release(&self, token: Token) -> bool {
        self.unanswered.borrow_mut().retain(|other| *other != token);
        let mut holds = self.holds.borrow_mut();
        let before = holds.len();
        holds.retain(|other| *other != token);
        before > 0 && holds.is_empty()
    }

    /// The driver is told to stop its background work. [`Gate::stopped`] must follow.
    pub fn stopping(&self) {
        self.stopping.set(self.stopping.get().saturating_add(1));
    }

    /// It has.
    pub fn stopped(&self) {
        self.stopping.set(self.stopping.get().saturating_sub(1));
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

    /// The sections to answer now: all that wait, if nothing is in flight any more.
    pub fn take_answerable(&self) -> Vec<Token> {
        if self.stopping.get() > 0 || self.count() > 0 {
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
    pub fn pending(&self, now: Instant, table: &NodeTable) -> Vec<PendingRequest> {
        let in_flight = self.in_flight.borrow();
        let mut all: Vec<&InFlight> = in_flight.iter().map(|(_, request)| request).collect();
        all.sort_by_key(|request| request.since);
        all.truncate(PENDING_SHOWN);
        all.into_iter()
            .map(|request| PendingRequest {
                operation: request.kind,
                offset: request.offset,
                len: request.len,
                age_ns: u64::try_from(now.saturating_duration_since(request.since).as_nanos())
                    .unwrap_or(u64::MAX),
                stands_at: table.node(request.stands_at.get()).map_or_else(
                    || format!("#{}", request.stands_at.get()),
                    |node| node.name().to_owned(),
                ),
            })
            .collect()
    }
}

#[cfg(test)]
impl Gate {
    /// The sections in force, those to be answered, how many requests are in flight, and stops of the driver.
    pub fn parts(&self) -> (Vec<Token>, Vec<Token>, usize, u32) {
        let unanswered = self.unanswered.borrow().clone();
        (self.holds(), unanswered, self.count(), self.stopping.get())
    }
}

impl Admission {
    /// Counts a request in.
    pub fn new(
        owner: Rc<super::cell::NodeCell>,
        kind: OperationKind,
        offset: u64,
        len: u64,
        now: Instant,
    ) -> Self {
        let request = InFlight::new(owner.id(), kind, offset, len, now);
        let key = owner.gate().enter(request);
        Self { owner, key }
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
        if self.owner.gate().leave(self.key) {
            self.owner.answer_quiesce();
        }
    }
}
