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
use super::client::{Client, RootHandle};
use super::gate::Admission;
use super::line::{Line, Parked, Turn};
use crate::iothread::Local;

type Reply = oneshot::Sender<Outcome<Buffers>>;
type Elsewhere = oneshot::Receiver<Outcome<Buffers>>;
type Answered = (Outcome<Buffers>, Option<Admission>);

/// A root edge.
pub struct RootCell {
    handle: RootHandle,
    node: RefCell<Rc<NodeCell>>,
    /// What waits at the gate.
    line: Line<Operation<Buffers>, Elsewhere>,
    place: Cell<Place>,
}

/// Where an edge is. A request may have been taken in, and not have begun, when its edge goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Here,
    /// On another iothread.
    Elsewhere,
    Ended,
}

/// A request's way through the gate.
enum Passed {
    Admitted(Operation<Buffers>, Admission),
    /// The edge moved to another iothread and took the request along; the answer comes from there.
    Elsewhere(Elsewhere),
    /// The edge ended before the request began.
    Ended(Operation<Buffers>),
}

impl RootCell {
    pub fn new(handle: RootHandle, node: Rc<NodeCell>) -> Rc<Self> {
        let root = Rc::new(Self {
            handle,
            node: RefCell::new(node),
            line: Line::default(),
            place: Cell::new(Place::Here),
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
    /// parked, it is forgotten.
    pub async fn enter(self: Rc<Self>, operation: Operation<Buffers>) -> Outcome<Buffers> {
        let (outcome, _counted_until_here) = self.run(operation).await;
        outcome
    }

    /// Takes in a request from another thread.
    pub fn enter_remote(self: Rc<Self>, local: &Rc<Local>, operation: Operation<Buffers>, reply: Reply) {
        local.spawn(async move {
            let (outcome, admission) = self.run(operation).await;
            // An asker that is gone has no use for the answer.
            drop(reply.send(outcome));
            drop(admission);
        });
    }

    async fn run(self: Rc<Self>, operation: Operation<Buffers>) -> Answered {
        if let Err(error) = self.permits(&operation) {
            return (choke::refused(error, operation), None);
        }
        match self.place.get() {
            Place::Here => {}
            Place::Elsewhere => return (Client::new(&self.handle).request(operation).await, None),
            Place::Ended => return (choke::refused(IoError::NoMedium, operation), None),
        }
        let (operation, admission) = if self.line.is_empty() && self.node().gate().is_open() {
            let admission = self.admit(&operation);
            (operation, admission)
        } else {
            match self.park(operation).await {
                Passed::Admitted(operation, admission) => (operation, admission),
                Passed::Elsewhere(answer) => {
                    return (
                        answer.await.unwrap_or(Outcome::plain(Err(IoError::NoMedium))),
                        None,
                    );
                }
                Passed::Ended(operation) => return (choke::refused(IoError::NoMedium, operation), None),
            }
        };
        let Some(local) = Local::current() else {
            return (choke::refused(IoError::NoMedium, operation), None);
        };
        let node = self.node();
        let writethrough = self.handle.writethrough();
        let span = request_span(&node, &operation);
        let future = async move {
            let outcome = choke::execute_admitted(&node, operation, &admission, writethrough).await;
            (outcome, Some(admission))
        };
        let future: LocalBoxFuture<'static, Answered> = if span.is_disabled() {
            Box::pin(future)
        } else {
            Box::pin(future.instrument(span))
        };
        ToTheEnd {
            future: Some(future),
            local,
        }
        .await
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

    fn admit(&self, operation: &Operation<Buffers>) -> Admission {
        let (offset, len) = choke::range_of(operation);
        let node = self.node();
        let now = match node.table() {
            Some(table) => {
                table.count_request();
                table.local().ring().now()
            }
            None => std::time::Instant::now(),
        };
        Admission::new(node, operation.kind(), offset, len, now)
    }

    async fn park(self: &Rc<Self>, operation: Operation<Buffers>) -> Passed {
        let parked = self.line.join(operation);
        let leave = LeaveGate {
            root: self,
            parked: &parked,
        };
        let passed = poll_fn(|context| {
            let open = self.node().gate().is_open();
            let turn = std::task::ready!(self.line.poll(&parked, open, context.waker()));
            Poll::Ready(match turn {
                // Counted in the same step that takes it off the gate.
                Turn::Go(operation) => {
                    let admission = self.admit(&operation);
                    Passed::Admitted(operation, admission)
                }
                Turn::Elsewhere(answer) => Passed::Elsewhere(answer),
                Turn::Ended(operation) => Passed::Ended(operation),
            })
        })
        .await;
        drop(leave);
        passed
    }

    /// The gate has opened, or who was first is gone: the first parked request looks again.
    pub fn wake_first(&self) {
        self.line.wake_first();
    }

    /// Takes all that is parked along to another iothread, in order. Their askers here wait for the answers from there.
    pub fn take_parked(&self) -> Vec<(Operation<Buffers>, Reply)> {
        self.place.set(Place::Elsewhere);
        self.line.take(oneshot::channel)
    }

    /// The edge ends: all that is parked fails, and whoever waits for the gate to open has nothing to wait for.
    pub fn end(self: &Rc<Self>) {
        self.place.set(Place::Ended);
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

/// Takes a request off the gate's queue when it goes on, or when its asker gives up.
struct LeaveGate<'a> {
    root: &'a Rc<RootCell>,
    parked: &'a Rc<Parked<Operation<Buffers>, Elsewhere>>,
}

impl Drop for LeaveGate<'_> {
    fn drop(&mut self) {
        self.root.line.leave(self.parked);
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
