//! Root edges on the node's iothread: where requests are admitted, counted, and parked while the gate is closed.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use drivers::buffer::Buffers;
use futures_channel::oneshot;
use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use messages::io::{Operation, Outcome};
use messages::{IoError, Permissions, RequestFlags};
use tracing::Instrument;

use super::cell::NodeCell;
use super::choke;
use super::client::RootHandle;
use super::gate::Admission;
use super::line::{Line, Parked, Turn};
use crate::iothread::Local;

type Reply = oneshot::Sender<Outcome<Buffers>>;
type Elsewhere = oneshot::Receiver<Outcome<Buffers>>;
type Answered = (Outcome<Buffers>, Admission);
/// What goes on to the node, or what is answered instead.
type Passed = Result<(Operation<Buffers>, Admission), Outcome<Buffers>>;

/// A root edge.
pub struct RootCell {
    handle: RootHandle,
    node: RefCell<Rc<NodeCell>>,
    /// What waits at the gate.
    line: Line<Operation<Buffers>, Elsewhere>,
}

/// What became of a request in the step that took it from its source.
enum Taken {
    /// It is counted, or was refused.
    Passed(Passed),
    Parked(AtGate),
}

/// A request in the line at the gate. It leaves the line when this is dropped.
struct AtGate {
    root: Rc<RootCell>,
    parked: Rc<Parked<Operation<Buffers>, Elsewhere>>,
}

impl RootCell {
    pub fn new(handle: RootHandle, node: Rc<NodeCell>) -> Rc<Self> {
        let root = Rc::new(Self {
            handle,
            node: RefCell::new(node),
            line: Line::default(),
        });
        root.node().add_root(&root);
        root
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
        before.remove_root(self);
        before.gate().wake_waiting();
        self.node().add_root(self);
        self.wake_first();
    }

    /// Runs a request to its end and answers it. Dropped on the way, the request runs on by itself; dropped while it is
    /// parked, it is forgotten. It is taken when this is first polled.
    pub async fn enter(self: Rc<Self>, operation: Operation<Buffers>) -> Outcome<Buffers> {
        self.enter_noting(operation, &Cell::default()).await
    }

    /// The same; `begun` tells from when on the request is in flight, here or elsewhere, rather than parked.
    pub async fn enter_noting(
        self: Rc<Self>,
        operation: Operation<Buffers>,
        begun: &Cell<bool>,
    ) -> Outcome<Buffers> {
        let passed = match self.take(operation) {
            Taken::Passed(passed) => passed,
            Taken::Parked(at_gate) => at_gate.passed(begun).await,
        };
        begun.set(true);
        let (operation, admission) = match passed {
            Ok(admitted) => admitted,
            Err(outcome) => return outcome,
        };
        let Some(local) = Local::current() else {
            return choke::refused(IoError::NoMedium, operation);
        };
        let future = Box::pin(async move {
            let outcome = self.execute(operation, &admission).await;
            (outcome, admission)
        });
        let (outcome, _counted_until_here) = ToTheEnd {
            future: Some(future),
            local,
        }
        .await;
        outcome
    }

    /// Takes a request from another thread, and sees to its answer.
    pub fn enter_remote(self: Rc<Self>, local: &Rc<Local>, operation: Operation<Buffers>, reply: Reply) {
        // An asker that is gone has no use for the answer.
        match self.take(operation) {
            Taken::Passed(Ok((operation, admission))) => local.spawn(async move {
                drop(reply.send(self.execute(operation, &admission).await));
                drop(admission);
            }),
            Taken::Passed(Err(outcome)) => drop(reply.send(outcome)),
            Taken::Parked(at_gate) => local.spawn(async move {
                match at_gate.passed(&Cell::default()).await {
                    Ok((operation, admission)) => {
                        drop(reply.send(self.execute(operation, &admission).await));
                        drop(admission);
                    }
                    Err(outcome) => drop(reply.send(outcome)),
                }
            }),
        }
    }

    /// Admits a request, refuses it, or parks it.
    fn take(self: &Rc<Self>, operation: Operation<Buffers>) -> Taken {
        if let Err(error) = self.permits(&operation) {
            return Taken::Passed(Err(choke::refused(error, operation)));
        }
        if self.line.is_empty() && self.node.borrow().gate().is_open() {
            return Taken::Passed(Ok(self.admit(operation)));
        }
        Taken::Parked(AtGate {
            root: Rc::clone(self),
            parked: self.line.join(operation),
        })
    }

    async fn execute(&self, operation: Operation<Buffers>, admission: &Admission) -> Outcome<Buffers> {
        let node = admission.node();
        let writethrough = self.handle.writethrough();
        let span = request_span(node, &operation);
        let future = choke::execute_admitted(node, operation, admission, writethrough);
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
            Operation::Write { .. } | Operation::WriteZeroes { .. } | Operation::Discard { .. } => {
                held.contains(Permissions::WRITE)
            }
            Operation::Truncate { .. } => held.contains(Permissions::RESIZE),
            // What is read is written too, and reads the same afterwards.
            Operation::Read { flags, .. } if flags.contains(RequestFlags::COPY_ON_READ) => {
                held.intersects(Permissions::WRITE | Permissions::WRITE_UNCHANGED)
            }
            Operation::Read { .. }
            | Operation::Flush
            | Operation::BlockStatus { .. }
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
        let (offset, len) = choke::range_of(&operation);
        let node = self.node();
        let now = match node.table() {
            Some(table) => {
                table.count_request();
                table.local().ring().now()
            }
            None => std::time::Instant::now(),
        };
        let admission = Admission::new(node, operation.kind(), offset, len, now);
        (operation, admission)
    }

    /// The gate has opened, or who was first is gone: the first parked request looks again.
    pub fn wake_first(&self) {
        self.line.wake_first();
    }

    /// Takes all that is parked along to another iothread, in order. Their askers here wait for the answers from there.
    pub fn take_parked(&self) -> Vec<(Operation<Buffers>, Reply)> {
        self.line.take(oneshot::channel)
    }

    /// The edge ends: all that is parked fails, and whoever waits for the gate to open has nothing to wait for.
    pub fn end(self: &Rc<Self>) {
        self.line.end();
        self.node().remove_root(self);
        self.node().gate().wake_waiting();
    }
}

/// The span of a request, from its admission to its answer; `-T millpond::request=trace` shows it.
fn request_span(node: &NodeCell, operation: &Operation<Buffers>) -> tracing::Span {
    let (offset, len) = choke::range_of(operation);
    tracing::trace_span!(
        target: "millpond::request", "request", node = node.name(), operation = ?operation.kind(), offset, len
    )
}

impl AtGate {
    /// Waits for its turn. `begun` tells if that is elsewhere.
    async fn passed(self, begun: &Cell<bool>) -> Passed {
        let turn = poll_fn(|context| {
            let open = self.root.node.borrow().gate().is_open();
            let turn = std::task::ready!(self.root.line.poll(&self.parked, open, context.waker()));
            Poll::Ready(match turn {
                // Counted in the same step that takes it off the gate.
                Turn::Go(operation) => Ok(self.root.admit(operation)),
                Turn::Elsewhere(answer) => Err(Ok(answer)),
                Turn::Ended(operation) => Err(Err(operation)),
            })
        })
        .await;
        // The next one's turn.
        drop(self);
        match turn {
            Ok(admitted) => Ok(admitted),
            Err(Ok(answer)) => {
                begun.set(true);
                Err(answer.await.unwrap_or(Outcome::plain(Err(IoError::NoMedium))))
            }
            Err(Err(operation)) => Err(choke::refused(IoError::NoMedium, operation)),
        }
    }
}

impl Drop for AtGate {
    fn drop(&mut self) {
        self.root.line.leave(&self.parked);
    }
}

/// A request under way. Dropped before its end, it goes on as a task of its own, so that no driver is left half-way.
struct ToTheEnd {
    future: Option<LocalBoxFuture<'static, Answered>>,
    local: Rc<Local>,
}

impl Future for ToTheEnd {
    type Output = Answered;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Answered> {
        let Some(future) = &mut self.future else {
            return Poll::Pending;
        };
        let answered = std::task::ready!(future.poll_unpin(context));
        self.future = None;
        Poll::Ready(answered)
    }
}

impl Drop for ToTheEnd {
    fn drop(&mut self) {
        if let Some(future) = self.future.take() {
            self.local.spawn(async move {
                drop(future.await);
            });
        }
    }
}
