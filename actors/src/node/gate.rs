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
    /// The driver has been told to stop its background work and has not answered.
    stopping: Cell<bool>,
    /// Whoever waits for the gate to open.
    waiting: RefCell<Vec<Waker>>,
}

/// A request's place in the count of the node where it entered the graph; it is over when this is dropped.
pub struct Admission {
    owner: Rc<super::cell::NodeCell>,
    key: usize,
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

    /// Background work is being stopped, or has been.
    pub fn set_stopping(&self, stopping: bool) {
        self.stopping.set(stopping);
    }

    /// The sections to answer now: all that wait, if nothing is in flight any more.
    pub fn take_answerable(&self) -> Vec<Token> {
        if self.stopping.get() || self.count() > 0 {
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

impl Admission {
    /// Counts a request in.
    pub fn new(
        owner: Rc<super::cell::NodeCell>,
        kind: OperationKind,
        offset: u64,
        len: u64,
        now: Instant,
    ) -> Self {
        let stands_at = Cell::new(owner.id());
        let key = owner.gate().in_flight.borrow_mut().insert(InFlight {
            kind,
            offset,
            len,
            since: now,
            stands_at,
        });
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
        let gate = self.owner.gate();
        let left = {
            let mut in_flight = gate.in_flight.borrow_mut();
            in_flight.try_remove(self.key);
            in_flight.len()
        };
        if left == 0 && !gate.is_open() {
            self.owner.answer_quiesce();
        }
    }
}
