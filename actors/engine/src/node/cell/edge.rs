//! Edges between nodes: what is behind one of a node's children, on this iothread or another.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use futures_channel::oneshot;
use futures_util::future::LocalBoxFuture;
use millpond_drivers::api::{Answer, Child, ChildPort};
use millpond_messages::io::{Operation, Outcome};
use millpond_messages::{DebugEvent, DriverInfo, IoError, Limits};
use millpond_ring::buffer::Buffers;

use crate::delay;
use crate::iothread::Local;
use crate::node::cell::node::NodeCell;
use crate::node::gate::stack_depth::{is_deep, nested};
use crate::node::io::{self, By, Step, Transferring};
use crate::node::order::late;
use crate::node::order::mail::{Entry, Mail, NodeAddress, RemoteRequest};
use crate::node::table::NodeTable;

/// The node behind an edge.
#[derive(Clone, Default)]
pub enum Behind {
    /// There is no node behind it.
    #[default]
    None,
    /// A node of the same iothread.
    Here(Rc<NodeCell>),
    /// A node of another iothread.
    There(NodeAddress),
}

/// One of a node's children.
#[derive(Default)]
pub struct EdgeCell {
    behind: RefCell<Behind>,
}

impl EdgeCell {
    /// An edge to `target`.
    pub fn connected(target: Option<NodeAddress>, table: &NodeTable) -> Rc<Self> {
        let edge = Rc::new(Self::default());
        edge.connect(target, table);
        edge
    }

    /// Puts another node behind the edge. Whoever holds the parent still sees to it that nothing is under way.
    pub fn connect(&self, target: Option<NodeAddress>, table: &NodeTable) {
        let behind = match target {
            None => Behind::None,
            Some(address) if address.iothread.id() == table.local().id() => {
                table.node(address.node).map_or(Behind::None, Behind::Here)
            }
            Some(address) => Behind::There(address),
        };
        self.behind.replace(behind);
    }

    pub fn behind(&self) -> Behind {
        self.behind.borrow().clone()
    }

    pub fn is_connected(&self) -> bool {
        !matches!(*self.behind.borrow(), Behind::None)
    }

    /// The child's limits, where they are known without asking another iothread.
    pub fn limits(&self) -> Option<Limits> {
        match &*self.behind.borrow() {
            Behind::Here(cell) => Some(cell.limits()),
            Behind::None | Behind::There(_) => None,
        }
    }

    /// Whether the child takes compressed writes, where that is known without asking another iothread.
    pub fn takes_compressed(&self) -> bool {
        match &*self.behind.borrow() {
            Behind::Here(cell) => cell.takes_compressed(),
            Behind::None | Behind::There(_) => false,
        }
    }

    /// Whether the child listens to events.
    pub fn hears(&self) -> bool {
        match &*self.behind.borrow() {
            Behind::Here(cell) => cell.hears(),
            Behind::None | Behind::There(_) => false,
        }
    }

    /// Tells the child of an event.
    pub fn debug_event(&self, event: DebugEvent) -> Option<LocalBoxFuture<'static, ()>> {
        match self.behind() {
            Behind::Here(cell) => cell.debug_event(event),
            Behind::None | Behind::There(_) => None,
        }
    }

    /// Sends a request that belongs to one that the parent is busy with. Whatever becomes of the parent, it runs to its end.
    pub fn pass_down(&self, operation: Operation<Buffers>) -> Answer<'static, Outcome<Buffers>> {
        match self.behind() {
            Behind::None => Answer::ready(Outcome::plain(Err(IoError::NoMedium))),
            Behind::Here(cell) => pass_to(cell, operation),
            Behind::There(address) => Answer::wait(async move { send_there(&address, operation).await }),
        }
    }
}

fn pass_to(cell: Rc<NodeCell>, operation: Operation<Buffers>) -> Answer<'static, Outcome<Buffers>> {
    if delay::is_on() {
        let passed = nested(async move {
            late::pass_down(&cell, &operation).await;
            io::execute(&cell, operation, None).await
        });
        return Answer::lasting(passed, go_on_alone);
    }
    let step = if is_deep() {
        Step::Later(operation)
    } else {
        io::begin(&cell, operation, By::PARENT)
    };
    match step {
        Step::Ended(outcome) => Answer::ready(outcome),
        Step::Transfer(transfer) => Answer::Wait(nested(Passed(Some(transfer)))),
        Step::Later(operation) => {
            let passed = nested(async move { io::execute(&cell, operation, None).await });
            Answer::lasting(passed, go_on_alone)
        }
    }
}

/// A read or write that a parent has with its child's driver. Dropped before its end it goes on by itself: a driver below a
/// broken one, or one that gave up waiting, is not left half-way.
struct Passed(Option<Transferring>);

impl Future for Passed {
    type Output = Outcome<Buffers>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Outcome<Buffers>> {
        let Some(transfer) = &mut self.0 else {
            return Poll::Pending;
        };
        let outcome = ready!(transfer.poll(context));
        self.0 = None;
        Poll::Ready(outcome)
    }
}

impl Drop for Passed {
    fn drop(&mut self) {
        if let Some(mut transfer) = self.0.take() {
            go_on_alone(Box::pin(poll_fn(move |context| transfer.poll(context))));
        }
    }
}

/// Runs what nobody waits for any more to its end.
fn go_on_alone(future: LocalBoxFuture<'static, Outcome<Buffers>>) {
    if let Some(local) = Local::current() {
        local.spawn(async move { drop(future.await) });
    }
}

/// Sends a request to a node of another iothread, and waits for its answer.
pub async fn send_there(address: &NodeAddress, operation: Operation<Buffers>) -> Outcome<Buffers> {
    let (reply, answer) = oneshot::channel();
    let request = RemoteRequest {
        entry: Entry::Node(address.node),
        operation,
        reply,
    };
    if address.iothread.send(Mail::Request(request)).is_err() {
        return Outcome::plain(Err(IoError::NoMedium));
    }
    answer.await.unwrap_or(Outcome::plain(Err(IoError::NoMedium)))
}

/// What a driver sees of an edge.
struct Port(Rc<EdgeCell>);

/// A driver's handle on an edge.
pub fn child(edge: Rc<EdgeCell>) -> Child {
    Child::new(Rc::new(Port(edge)))
}

impl ChildPort for Port {
    fn request(&self, operation: Operation<Buffers>) -> Answer<'static, Outcome<Buffers>> {
        self.0.pass_down(operation)
    }

    fn limits(&self) -> Limits {
        self.0.limits().unwrap_or_default()
    }

    fn is_connected(&self) -> bool {
        self.0.is_connected()
    }

    fn node_name(&self) -> String {
        match self.0.behind() {
            Behind::Here(cell) => cell.name().to_owned(),
            Behind::None | Behind::There(_) => String::new(),
        }
    }

    fn filename(&self) -> String {
        let mut behind = self.0.behind();
        while let Behind::Here(cell) = behind {
            if let Some(name) = cell.driver().ok().and_then(|driver| driver.image().filename()) {
                return name;
            }
            // What has no data of its own is known by the name of what it shows.
            let shown = cell.edges().first().filter(|_| cell.abilities().transparent);
            behind = shown.map(|edge| edge.behind()).unwrap_or_default();
        }
        String::new()
    }

    fn takes_compressed(&self) -> bool {
        self.0.takes_compressed()
    }

    fn driver_name(&self) -> Option<&'static str> {
        match self.0.behind() {
            Behind::Here(cell) => Some(cell.kind().name()),
            Behind::None | Behind::There(_) => None,
        }
    }

    fn info(&self) -> Option<DriverInfo> {
        let mut behind = self.0.behind();
        loop {
            let Behind::Here(cell) = behind else { return None };
            if !cell.kind().is_filter() {
                return Some(cell.driver().ok()?.image().info());
            }
            behind = cell.edges().first()?.behind();
        }
    }

    fn chain_index(&self, name: &str) -> Option<u32> {
        let mut behind = self.0.behind();
        let mut index = 1;
        loop {
            let Behind::Here(cell) = behind else { return None };
            if cell.name() == name {
                return Some(index);
            }
            let next = if cell.kind().is_filter() {
                cell.edges().first()
            } else {
                cell.backing_edge()
            };
            behind = next?.behind();
            index += 1;
        }
    }

    fn hears(&self) -> bool {
        self.0.hears()
    }

    fn debug_event(&self, event: DebugEvent) -> Option<LocalBoxFuture<'static, ()>> {
        self.0.debug_event(event)
    }
}
