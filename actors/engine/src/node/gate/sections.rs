//! A node's gate: closed by drained sections, it parks what comes over root edges and counts what is in flight.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::{Rc, Weak};
use std::task::{Poll, Waker};

use millpond_messages::handshake::PendingRequest;
use millpond_messages::io::OperationKind;
use millpond_messages::{NodeId, Token};
use slab::Slab;

/// How many requests the query about a slow drain names, oldest first.
const PENDING_SHOWN: usize = 16;

/// A request in flight, as the gate counts it.
pub struct InFlight {
    kind: OperationKind,
    offset: u64,
    len: u64,
    /// When it was admitted, in nanoseconds since the process began.
    since_ns: u64,
    /// The node that is at work on it.
    stands_at: Cell<NodeId>,
}

/// The gate of a node, and the count of its requests in flight.
#[derive(Default)]
pub struct Gate {
    /// Sections in force. The gate is closed while there are any.
    holds: RefCell<Vec<Token>>,
    /// Sections that wait for an answer.
    unanswered: RefCell<Vec<Token>>,
    in_flight: RefCell<Slab<InFlight>>,
    background: Cell<BackgroundState>,
    /// The wakers of tasks that wait for the gate to open.
    waiting: RefCell<Vec<Waker>>,
    /// The queues of parked requests, one for each root edge.
    queues: RefCell<Vec<Weak<dyn Opens>>>,
}

/// Whoever has a queue that waits at a gate.
pub trait Opens {
    /// Lets the first in the queue look again, because the gate has opened.
    fn gate_opened(&self);

    /// The gate is closed from now on.
    fn gate_closed(&self);
}

/// The state of the background work of a node's driver. The work is stopped and resumed one after the other, never both at
/// once: a section that ends while the driver is stopping has it resumed only when it has stopped, and a section that
/// begins meanwhile makes use of that stop.
///
/// ```text
///   Running --(first section)--> Stopping --(driver answers, gate closed)--> Stopped --(last section ends)--> Running
///                                    +------(driver answers, gate open)------------------------------------> Running
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum BackgroundState {
    /// The driver works in the background as it likes.
    #[default]
    Running,
    /// The driver was told to stop, and has not answered.
    Stopping,
    /// No background work is left.
    Stopped,
}

/// What is to be done with the background work of a node's driver. The gate has noted it as done.
#[must_use = "the gate counts on its being done"]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Background {
    /// Tell the driver to stop. [`Gate::background_stopped`] must follow when it has.
    Stop,
    /// Tell the driver to resume.
    Resume,
    /// Leave the driver as it is.
    Leave,
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
            BackgroundState::Running
        } else {
            BackgroundState::Stopped
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

    /// Closes the gate for one more section.
    pub fn close(&self, token: Token) -> Background {
        self.holds.borrow_mut().push(token);
        self.unanswered.borrow_mut().push(token);
        if self.background.get() != BackgroundState::Running {
            return Background::Leave;
        }
        self.background.set(BackgroundState::Stopping);
        Background::Stop
    }

    /// Ends a section. True if the gate is open now and was not before.
    pub fn release(&self, token: Token) -> bool {
        self.unanswered.borrow_mut().retain(|other| *other != token);
        let mut holds = self.holds.borrow_mut();
        let before = holds.len();
        holds.retain(|other| *other != token);
        before > 0 && holds.is_empty()
    }

    /// Notes that the driver has stopped its background work. It resumes at once if the gate has opened meanwhile.
    pub fn background_stopped(&self) -> Background {
        self.background.set(BackgroundState::Stopped);
        self.resume_background()
    }

    /// Has the driver resume its background work if the gate is open. A driver that is still stopping resumes only once it
    /// has stopped.
    pub fn resume_background(&self) -> Background {
        if !self.is_open() || self.background.get() != BackgroundState::Stopped {
            return Background::Leave;
        }
        self.background.set(BackgroundState::Running);
        Background::Resume
    }

    /// Whether a section waits for an answer.
    pub fn owes(&self, token: Token) -> bool {
        self.unanswered.borrow().contains(&token)
    }

    /// Counts a request in; the answer is its key for [`Gate::leave`].
    pub fn enter(&self, request: InFlight) -> usize {
        self.in_flight.borrow_mut().insert(request)
    }

    /// Counts a request out. True if it was the last and a section may wait for that.
    pub fn leave(&self, key: usize) -> bool {
        let mut in_flight = self.in_flight.borrow_mut();
        in_flight.try_remove(key);
        in_flight.is_empty() && !self.is_open()
    }

    /// Notes that a request has been handed to `node`.
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

    /// Forgets a queue, because it waits at another gate now, or has ended.
    pub fn remove_queue(&self, queue: &Rc<dyn Opens>) {
        self.queues
            .borrow_mut()
            .retain(|other| !std::ptr::addr_eq(other.as_ptr(), Rc::as_ptr(queue)));
    }

    /// Lets the first in each queue look again, and wakes the tasks that wait for a change of the gate.
    pub fn wake_queues(&self) {
        for queue in self.queues() {
            queue.gate_opened();
        }
        self.wake_waiting();
    }

    /// Has whoever goes by the gate know that it is closed.
    pub fn tell_closed(&self) {
        for queue in self.queues() {
            queue.gate_closed();
        }
        self.wake_waiting();
    }

    fn queues(&self) -> Vec<Rc<dyn Opens>> {
        self.queues.borrow().iter().filter_map(Weak::upgrade).collect()
    }

    /// Whether no request is in flight any more and the driver's background work has stopped.
    pub fn is_quiet(&self) -> bool {
        self.background.get() == BackgroundState::Stopped && self.count() == 0
    }

    /// Waits until a gate that is closed is quiet, or has opened.
    pub async fn quiet(&self) {
        poll_fn(|context| {
            if self.is_open() || self.is_quiet() {
                return Poll::Ready(());
            }
            self.wait(context.waker());
            Poll::Pending
        })
        .await;
    }

    /// The sections to answer now: all that wait, if the gate is quiet.
    pub fn take_answerable(&self) -> Vec<Token> {
        match self.is_quiet() {
            true => self.unanswered.take(),
            false => Vec::new(),
        }
    }

    /// Wakes the tasks that wait for a change of the gate.
    pub fn wake_waiting(&self) {
        for waker in self.waiting.take() {
            waker.wake();
        }
    }

    /// Has `waker` called at the next change of the gate.
    pub fn wait(&self, waker: &Waker) {
        let mut waiting = self.waiting.borrow_mut();
        if !waiting.iter().any(|other| other.will_wake(waker)) {
            waiting.push(waker.clone());
        }
    }

    /// The requests in flight, oldest first. `name_of` gives the names of the nodes that are at work on them.
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
    pub fn parts(&self) -> (Vec<Token>, Vec<Token>, usize, BackgroundState) {
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
        assert_eq!(gate.close(one), Background::Stop);
        assert_eq!(gate.close(two), Background::Leave, "it is stopping already");
        assert!(!gate.release(one) && !gate.is_open());
        assert!(!gate.release(one) && !gate.is_open());
        assert!(gate.release(two) && gate.is_open());
        assert!(!gate.release(two));
    }

    #[test]
    fn a_driver_that_still_stops_goes_on_once_when_it_has_stopped() {
        let gate = Gate::default();
        assert_eq!(gate.close(Token(1)), Background::Stop);
        assert!(gate.release(Token(1)));
        assert_eq!(
            gate.resume_background(),
            Background::Leave,
            "it is still stopping"
        );
        assert_eq!(gate.background_stopped(), Background::Resume);
        assert_eq!(gate.resume_background(), Background::Leave, "it runs");
    }
}
