//! The hops of an iothread while a message policy is in force: each as the policy's rules see it.

use std::rc::Rc;

use futures_channel::oneshot;
use millpond_drivers::api::Posted;
use millpond_messages::io::{Operation, Outcome};
use millpond_messages::{IoError, NodeId, RootId};
use millpond_ring::buffer::Buffers;

use crate::delay::{self, End, Hop, Kind, Pair, kind};
use crate::iothread::Local;
use crate::node::cell::node::NodeCell;
use crate::node::entry::pending::{Begun, UnderWay};
use crate::node::entry::root::RootCell;
use crate::node::gate::sections::Admission;
use crate::node::order::mail::{Entry, Event, Mail, RemoteRequest};
use crate::node::order::orders::{NodeOrder, NodeTask, Order, Wiring};
use crate::node::table::{EventSink, NodeTable};

/// Takes a message from the mailbox, and handles it when it may arrive.
pub fn receive(table: &Rc<NodeTable>, mail: Mail) {
    let (pair, kind, node) = match &mail {
        // Luggage comes before what is sent behind it; the order to leave and the answer from here are held.
        Mail::Chaos(..) | Mail::Flight(_) | Mail::Arrive(_) | Mail::ArriveRoot(_) => {
            return table.handle(mail);
        }
        Mail::Run(_) => (pair(End::User, End::Nodes), kind::JOB, None),
        Mail::Request(request) => {
            let (pair, node) = ends(table, request.entry);
            (pair, kind::of_request(request.operation.kind()), node)
        }
        Mail::Control { order, .. } => {
            let (kind, node) = facts(order);
            let node = node.and_then(|node| table.node(node));
            (pair(End::Graph, End::Nodes), kind, node)
        }
    };
    let hop = hop(pair, kind, node.as_deref());
    let receiver = Rc::clone(table);
    table
        .local()
        .chaos()
        .pass(table.local(), &hop, move || receiver.handle(mail));
}

/// Tells the graph actor of an event.
pub fn tell(table: &NodeTable, events: &EventSink, event: Event) {
    let (kind, node) = match &event {
        Event::Ended(..) => (kind::ENDED, None),
        Event::Quiesced(node, _) => (kind::QUIESCED, Some(*node)),
        Event::Noticed(node, _) | Event::Serialises(node, _) => (kind::NOTICED, Some(*node)),
    };
    let node = node.and_then(|node| table.node(node));
    let hop = hop(pair(End::Nodes, End::Graph), kind, node.as_deref());
    let events = EventSink::clone(events);
    table
        .local()
        .chaos()
        .pass(table.local(), &hop, move || events(event));
}

/// Tells the graph actor what a driver tells, from the iothread where the node is now.
pub fn notice(events: &EventSink, node: NodeId, posted: Posted) {
    let event = Event::Noticed(node, posted);
    match delay::is_on().then(NodeTable::current).flatten() {
        Some(table) => tell(&table, events, event),
        None => events(event),
    }
}

/// Begins a request of this iothread as one from another is: it is a message until it is taken.
pub fn begin(root: &Rc<RootCell>, operation: Operation<Buffers>) -> Begun {
    let Some(table) = root.node().table() else {
        return Begun::Ended(Outcome::plain(Err(IoError::NoMedium)));
    };
    let (reply, answer) = oneshot::channel();
    let entry = Entry::Root(root.handle().id());
    receive(
        &table,
        Mail::Request(RemoteRequest {
            entry,
            operation,
            reply,
        }),
    );
    Begun::UnderWay(UnderWay::alone(async move {
        answer.await.unwrap_or(Outcome::plain(Err(IoError::NoMedium)))
    }))
}

/// Waits until a request that can still be taken back may be taken.
pub async fn enter(root: &Rc<RootCell>, operation: &Operation<Buffers>) {
    let node = root.node();
    let pair = pair(End::Client(root.handle().id()), End::Nodes);
    wait(&hop(pair, kind::of_request(operation.kind()), Some(&node))).await;
}

/// Waits until a request to a child on the same iothread may arrive.
pub async fn pass_down(child: &NodeCell, operation: &Operation<Buffers>) {
    let pair = pair(End::Nodes, End::Node(child.id()));
    wait(&hop(pair, kind::of_request(operation.kind()), Some(child))).await;
}

async fn wait(hop: &Hop<'_>) {
    if let Some(local) = Local::current() {
        local.chaos().wait(&local, hop).await;
    }
}

/// Answers whoever asked over a root edge. The request is in flight until that has gone.
pub fn reply(
    node: &NodeCell,
    root: RootId,
    reply: oneshot::Sender<Outcome<Buffers>>,
    outcome: Outcome<Buffers>,
    counted: Option<Admission>,
) {
    let pair = pair(End::Nodes, End::Client(root));
    send(&hop(pair, kind::REPLY, Some(node)), reply, outcome, counted);
}

/// Answers a node of another iothread.
pub fn reply_elsewhere(node: &NodeCell, reply: oneshot::Sender<Outcome<Buffers>>, outcome: Outcome<Buffers>) {
    let pair = pair(End::Node(node.id()), End::Elsewhere);
    send(&hop(pair, kind::REPLY, Some(node)), reply, outcome, None);
}

fn send(
    hop: &Hop<'_>,
    reply: oneshot::Sender<Outcome<Buffers>>,
    outcome: Outcome<Buffers>,
    counted: Option<Admission>,
) {
    let send = move || {
        // An asker that is gone has no use for the answer.
        drop(reply.send(outcome));
        drop(counted);
    };
    match delay::is_on().then(Local::current).flatten() {
        Some(local) => local.chaos().pass(&local, hop, send),
        None => send(),
    }
}

fn pair(from: End, to: End) -> Pair {
    Pair { from, to }
}

fn hop<'a>(pair: Pair, kind: &'static Kind, node: Option<&'a NodeCell>) -> Hop<'a> {
    let node = node.map_or("", NodeCell::name);
    Hop { pair, kind, node }
}

/// Between whom a request passes, and the node that it is for.
fn ends(table: &NodeTable, entry: Entry) -> (Pair, Option<Rc<NodeCell>>) {
    match entry {
        Entry::Root(root) => {
            let node = table.root(root).map(|root| root.node());
            (pair(End::Client(root), End::Nodes), node)
        }
        Entry::Node(node) => (pair(End::Elsewhere, End::Node(node)), table.node(node)),
    }
}

/// What kind of message an order is, and the node that it concerns.
pub fn facts(order: &Order) -> (&'static Kind, Option<NodeId>) {
    let other = kind::OTHER_ORDER;
    match order {
        Order::Node(node, order) => {
            let kind = match order {
                NodeOrder::Quiesce(_) => kind::QUIESCE,
                NodeOrder::Resume(_) => kind::RESUME,
                _ => other,
            };
            (kind, Some(*node))
        }
        Order::Task(node, task) => {
            let kind = match task {
                NodeTask::Close => kind::CLOSE,
                _ => other,
            };
            (kind, Some(*node))
        }
        Order::Iothread(_) => (other, None),
        Order::Wiring(wiring) => match wiring {
            Wiring::Open(open) => (kind::OPEN, Some(open.node)),
            Wiring::Connect { parent, .. } => (kind::CONNECT, Some(*parent)),
            Wiring::AttachRoot { node, .. } => (kind::ATTACH_ROOT, Some(*node)),
            Wiring::MoveRoot { target, .. } => (kind::MOVE_ROOT, Some(target.node)),
            Wiring::DetachRoot(_) => (kind::DETACH_ROOT, None),
            Wiring::Depart { node, .. } => (kind::DEPART, Some(*node)),
            Wiring::Create { .. } => (other, None),
        },
    }
}
