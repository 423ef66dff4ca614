//! Root edges on the node's iothread: where requests are admitted, counted, and parked while the gate is closed.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;

use futures_channel::oneshot;
use millpond_drivers::api::unless_withdrawn;
use millpond_messages::io::{CopyRequest, Operation, OperationKind, Outcome};
use millpond_messages::record::MessageEvent;
use millpond_messages::{IoError, Permissions, RequestFlags};
use millpond_ring::buffer::Buffers;
use tracing::Instrument;

use super::pending::{Begun, Pending};
use crate::iothread::{Local, is_delaying, now_ns};
use crate::node::cell::admission::Admission;
use crate::node::cell::delayed;
use crate::node::cell::node::NodeCell;
use crate::node::gate::sections::Opens;
use crate::node::gate::wait_queue::{Parked, WaitEnd, WaitQueue};
use crate::node::io::execute::execute_admitted;
use crate::node::io::fast_path::{self, Attempt};
use crate::node::io::passage::By;
use crate::node::io::request::{extent_of, is_serialised, refused};
use crate::node::order::mail::{Entry, Mail, RemoteRequest};
use crate::node::order::outcome::Event;
use crate::node::order::recorded;
use crate::node::order::root_handle::RootHandle;

/// Where an asker on another thread waits for its answer.
pub(super) type Reply = oneshot::Sender<Outcome<Buffers>>;
type Elsewhere = oneshot::Receiver<Outcome<Buffers>>;
/// What goes on to the node, or what is answered instead.
type Passed = Result<(Operation<Buffers>, Admission), Outcome<Buffers>>;

/// A root edge, on the iothread of its node.
pub struct RootCell {
    handle: RootHandle,
    node: RefCell<Rc<NodeCell>>,
    /// It is in its iothread's table: it has not ended, nor gone elsewhere.
    here: Cell<bool>,
    /// What waits at the gate.
    queue: Rc<WaitQueue<Operation<Buffers>, Elsewhere>>,
    serialising: Cell<Serialising>,
}

/// Whether requests of a root edge may be serialised against all others of its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Serialising {
    /// Nobody has asked for it yet.
    #[default]
    Unasked,
    /// The graph actor has been asked to have the node note what it has in flight: until then such requests wait.
    Asked,
    /// Such requests may go on.
    Granted,
}

/// What became of a request in the step that took it from its source.
enum Taken {
    /// It is counted, or was refused.
    Passed(Passed),
    Parked(AtGate),
}

/// A request in the queue at the gate. It leaves the queue when this is dropped.
struct AtGate {
    root: Rc<RootCell>,
    parked: Rc<Parked<Operation<Buffers>, Elsewhere>>,
}

impl RootCell {
    pub fn new(handle: RootHandle, node: Rc<NodeCell>) -> Rc<Self> {
        let root = Rc::new(Self {
            handle,
            node: RefCell::new(node),
            here: Cell::new(false),
            queue: Rc::default(),
            serialising: Cell::default(),
        });
        root.join_gate();
        root
    }

    /// Has the node's gate know of what waits here, and clients elsewhere of the node.
    fn join_gate(self: &Rc<Self>) {
        let node = self.node();
        node.gate().add_queue(&self.queue_at_gate());
        self.handle.show_name(node.name());
        self.show();
    }

    /// Tells clients elsewhere what they go by.
    fn show(&self) {
        let node = self.node.borrow();
        let any_memory = node.limits().mem_alignment <= 1;
        self.handle.show(node.gate().is_open(), any_memory);
    }

    /// The edge leaves a node: it waits at that one's gate no more.
    pub fn leave(self: &Rc<Self>, node: &NodeCell) {
        self.stop_serialising(node);
        node.gate().remove_queue(&self.queue_at_gate());
        node.gate().wake_waiting();
    }

    fn queue_at_gate(self: &Rc<Self>) -> Rc<dyn Opens> {
        Rc::clone(self) as Rc<dyn Opens>
    }

    /// Whether it is in its iothread's table, which alone says so.
    pub fn is_here(&self) -> bool {
        self.here.get()
    }

    /// Notes that the table has taken it in, or given it away.
    pub fn set_here(&self, here: bool) {
        self.here.set(here);
    }

    pub fn handle(&self) -> &RootHandle {
        &self.handle
    }

    pub fn node(&self) -> Rc<NodeCell> {
        Rc::clone(&self.node.borrow())
    }

    /// Puts another node of the same iothread behind the edge. Both are still.
    pub fn set_node(self: &Rc<Self>, node: Rc<NodeCell>) {
        let before = self.node.replace(node);
        self.leave(&before);
        self.join_gate();
        self.queue.wake_first();
    }

    /// Begins a request: it is taken in this very step. See [`Pending`] for what becomes of it when nobody waits for it.
    pub fn begin(self: &Rc<Self>, operation: Operation<Buffers>) -> Begun {
        if is_delaying() {
            return self.begin_delayed(operation);
        }
        self.begin_now(operation)
    }

    /// Begins a request of this iothread as one from another is: it is a message until it is taken.
    fn begin_delayed(&self, operation: Operation<Buffers>) -> Begun {
        let (reply, answer) = oneshot::channel();
        let request = RemoteRequest {
            entry: Entry::Root(self.handle.id()),
            operation,
            reply,
            unwanted: None,
        };
        if !self.handle.send(Mail::Request(request)) {
            return Begun::Ended(Outcome::plain(Err(IoError::NoMedium)));
        }
        Begun::Pending(Pending::alone(async move {
            answer.await.unwrap_or(Outcome::plain(Err(IoError::NoMedium)))
        }))
    }

    pub(super) fn begin_now(self: &Rc<Self>, operation: Operation<Buffers>) -> Begun {
        let operation = match self.step(operation) {
            Ok(begun) => return begun,
            Err(operation) => operation,
        };
        match self.take(operation) {
            Taken::Passed(Ok((operation, admission))) => match self.run(operation, admission) {
                Ok(pending) => Begun::Pending(pending),
                Err(outcome) => Begun::Ended(outcome),
            },
            Taken::Passed(Err(outcome)) => Begun::Ended(outcome),
            Taken::Parked(at_gate) => {
                let root = Rc::clone(self);
                Begun::Pending(Pending::alone(async move {
                    root.enter_parked(at_gate, &Cell::default()).await
                }))
            }
        }
    }

    /// Runs a request to its end and answers it. `begun` tells from when on the request is in flight, here or elsewhere,
    /// rather than parked. It is taken when this is first polled.
    pub async fn enter_noting(
        self: Rc<Self>,
        operation: Operation<Buffers>,
        begun: &Cell<bool>,
    ) -> Outcome<Buffers> {
        if is_delaying() {
            delayed::enter(self.handle.id(), &self.node(), &operation).await;
        }
        let (operation, admission) = match self.take(operation) {
            Taken::Passed(Ok(admitted)) => admitted,
            Taken::Passed(Err(outcome)) => return outcome,
            Taken::Parked(at_gate) => return self.enter_parked(at_gate, begun).await,
        };
        begun.set(true);
        match self.run(operation, admission) {
            Ok(pending) => pending.await,
            Err(outcome) => outcome,
        }
    }

    async fn enter_parked(self: Rc<Self>, at_gate: AtGate, begun: &Cell<bool>) -> Outcome<Buffers> {
        let passed = at_gate.passed(begun).await;
        begun.set(true);
        match passed.and_then(|(operation, admission)| self.run(operation, admission)) {
            Ok(pending) => pending.await,
            Err(outcome) => outcome,
        }
    }

    /// Takes a request as far as it goes without waiting: to its end, or to a driver, where it is counted in the same
    /// step. What this does not do is given back untouched.
    fn step(self: &Rc<Self>, operation: Operation<Buffers>) -> Result<Begun, Operation<Buffers>> {
        let is_plain = self.queue.is_empty()
            && self.node.borrow().gate().is_open()
            && !self.handle.writethrough()
            && self.permits(&operation).is_ok()
            && !tracing::enabled!(target: "millpond::request", tracing::Level::TRACE);
        if !is_plain {
            return Err(operation);
        }
        let (kind, range) = (operation.kind(), extent_of(&operation));
        let node = self.node();
        match fast_path::begin(&node, operation, By::USER) {
            Attempt::Later(operation) => Err(operation),
            Attempt::Ended(outcome) => {
                let (home, root) = (node.home(), self.handle.id());
                home.count_request();
                let served = recorded::request(MessageEvent::Served, node.id(), root, (kind, range), 0);
                home.local().note(served);
                Ok(Begun::Ended(outcome))
            }
            Attempt::Transfer(transfer) => {
                let admission = self.count(node, kind, range);
                admission.stands_at(transfer.stands_at());
                Ok(Begun::Pending(Pending::transfer(transfer, admission)))
            }
        }
    }

    /// Runs what was admitted, whatever it needs.
    fn run(
        self: &Rc<Self>,
        operation: Operation<Buffers>,
        admission: Admission,
    ) -> Result<Pending, Outcome<Buffers>> {
        if Local::current().is_none() {
            return Err(refused(IoError::NoMedium, operation));
        }
        let root = Rc::clone(self);
        Ok(Pending::general(async move {
            let outcome = root.execute(operation, &admission).await;
            (outcome, admission)
        }))
    }

    /// Admits a request, refuses it, or parks it.
    fn take(self: &Rc<Self>, operation: Operation<Buffers>) -> Taken {
        if let Err(error) = self.permits(&operation) {
            self.node.borrow().counters().refuse(operation.kind());
            return Taken::Passed(Err(refused(error, operation)));
        }
        if self.queue.is_empty() && self.may_pass(&operation) {
            return Taken::Passed(Ok(self.admit(operation)));
        }
        Taken::Parked(AtGate {
            root: Rc::clone(self),
            parked: self.queue.join(operation),
        })
    }

    /// Whether a request may pass: the gate is open, and a request that is to have no other beside it is to a node that
    /// notes what it has in flight.
    fn may_pass(&self, operation: &Operation<Buffers>) -> bool {
        self.node.borrow().gate().is_open() && (!is_serialised(operation) || self.may_serialise())
    }

    fn may_serialise(&self) -> bool {
        let node = self.node.borrow();
        if self.serialising.get() == Serialising::Granted || node.tracks_for_driver() {
            return true;
        }
        if node.tracks() {
            // For the sake of another edge: nothing is in flight that is not noted.
            self.grant_serialising(&node);
            return true;
        }
        if self.serialising.get() == Serialising::Unasked {
            self.serialising.set(Serialising::Asked);
            let event = Event::Serialises(node.id(), self.handle.id());
            node.home().report(node.name(), event);
        }
        false
    }

    fn grant_serialising(&self, node: &NodeCell) {
        if self.serialising.replace(Serialising::Granted) != Serialising::Granted {
            node.add_serialiser();
        }
    }

    /// Has the node note what it has in flight from now on. It is still.
    pub fn serialise(&self) {
        self.grant_serialising(&self.node.borrow());
    }

    /// The edge leaves the node.
    fn stop_serialising(&self, node: &NodeCell) {
        if self.serialising.take() == Serialising::Granted {
            node.remove_serialiser();
        }
    }

    async fn execute(&self, operation: Operation<Buffers>, admission: &Admission) -> Outcome<Buffers> {
        let node = admission.node();
        let writethrough = self.handle.writethrough();
        let span = request_span(node, &operation);
        let future = execute_admitted(node, operation, admission, writethrough);
        if span.is_disabled() {
            future.await
        } else {
            Box::pin(future.instrument(span)).await
        }
    }

    fn permits(&self, operation: &Operation<Buffers>) -> Result<(), IoError> {
        let held = self.handle.permissions();
        let allowed = match operation {
            Operation::Write { flags, .. } | Operation::WriteZeroes { flags, .. }
                if flags.contains(RequestFlags::WRITE_UNCHANGED) =>
            {
                held.intersects(Permissions::WRITE | Permissions::WRITE_UNCHANGED)
            }
            Operation::Write { .. }
            | Operation::WriteZeroes { .. }
            | Operation::Discard { .. }
            | Operation::Copy(CopyRequest::In { .. }) => held.contains(Permissions::WRITE),
            Operation::Truncate { .. } => held.contains(Permissions::RESIZE),
            // What is read is written too, and reads the same afterwards.
            Operation::Read { flags, .. } if flags.contains(RequestFlags::COPY_ON_READ) => {
                held.intersects(Permissions::WRITE | Permissions::WRITE_UNCHANGED)
            }
            Operation::Read { .. }
            | Operation::Flush
            | Operation::BlockStatus { .. }
            | Operation::Map { .. }
            | Operation::Snapshot(_)
            | Operation::Mirror(_)
            | Operation::Copy(CopyRequest::Out(_))
            | Operation::Length
            | Operation::AllocatedSize => true,
        };
        if allowed {
            Ok(())
        } else {
            Err(IoError::NotPermitted)
        }
    }

    fn admit(&self, operation: Operation<Buffers>) -> (Operation<Buffers>, Admission) {
        let admission = self.count(self.node(), operation.kind(), extent_of(&operation));
        (operation, admission)
    }

    fn count(&self, node: Rc<NodeCell>, kind: OperationKind, range: (u64, u64)) -> Admission {
        let (id, root) = (node.id(), self.handle.id());
        node.home().count_request();
        let admission = Admission::new(node, kind, range, now_ns());
        let note = recorded::request(MessageEvent::Admitted, id, root, (kind, range), admission.key());
        admission.node().home().local().note(note);
        admission
    }

    /// Takes all that is parked along to another iothread, in order. Their askers here wait for the answers from there.
    pub fn take_parked(&self) -> Vec<(Operation<Buffers>, Reply)> {
        self.queue.take(oneshot::channel)
    }

    /// The edge ends: all that is parked fails, and whoever waits for the gate to open has nothing to wait for.
    pub fn end(self: &Rc<Self>) {
        self.queue.end();
        self.leave(&self.node());
        self.handle.show_end();
    }
}

impl Opens for RootCell {
    fn gate_opened(&self) {
        self.show();
        self.queue.wake_first();
    }

    fn gate_closed(&self) {
        self.show();
    }
}

/// The span of a request, from its admission to its answer; `-T millpond::request=trace` shows it.
fn request_span(node: &NodeCell, operation: &Operation<Buffers>) -> tracing::Span {
    let (offset, len) = extent_of(operation);
    tracing::trace_span!(
        target: "millpond::request", "request", node = node.name(), operation = ?operation.kind(), offset, len
    )
}

impl AtGate {
    /// Waits until the request has passed the gate, and sets `begun` where it did so on another iothread. Until then its
    /// asker may withdraw it.
    async fn passed(self, begun: &Cell<bool>) -> Passed {
        let passed = unless_withdrawn(poll_fn(|context| {
            let open = self.parked.operation(|operation| self.root.may_pass(operation));
            let end = std::task::ready!(self.root.queue.poll(&self.parked, open, context.waker()));
            Poll::Ready(match end {
                // The request is counted in the same step that takes it off the gate.
                WaitEnd::Pass(operation) => Ok(self.root.admit(operation)),
                WaitEnd::Elsewhere(answer) => Err(Ok(answer)),
                WaitEnd::Ended(operation) => Err(Err(operation)),
            })
        }))
        .await;
        // Leaving the queue lets the next request pass.
        drop(self);
        let passed = match passed {
            Ok(passed) => passed,
            Err(withdrawn) => return Err(Outcome::plain(Err(withdrawn))),
        };
        match passed {
            Ok(admitted) => Ok(admitted),
            Err(Ok(answer)) => {
                begun.set(true);
                Err(answer.await.unwrap_or(Outcome::plain(Err(IoError::NoMedium))))
            }
            Err(Err(operation)) => Err(refused(IoError::NoMedium, operation)),
        }
    }
}

impl Drop for AtGate {
    fn drop(&mut self) {
        self.root.queue.leave(&self.parked);
    }
}
