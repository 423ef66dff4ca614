//! The handler of an iothread's mailbox: mail is delayed where a rule says so, and handed to the node or root edge that it is
//! for.

use std::rc::Rc;

use futures_channel::oneshot;
use millpond_messages::io::Outcome;
use millpond_messages::record::MessageEvent;
use millpond_messages::{IoError, NodeId, RootId};

use super::cell::admission::Admission;
use super::cell::delayed;
use super::cell::home::EventSink;
use super::io::execute::execute;
use super::io::passage::By;
use super::io::request::extent_of;
use super::order::hops::{self, End};
use super::order::mail::{Entry, Mail, RemoteRequest};
use super::order::{answer, carry_out, moving, recorded};
use super::table::NodeTable;
use crate::delay::kind;
use crate::iothread::{Local, guarded, is_delaying, now_ns};

/// Makes the handler of an iothread's mailbox: pass it to [`IoThread::start`](crate::iothread::IoThread::start).
pub fn serve(local: Rc<Local>, events: EventSink) -> Box<dyn Fn(Mail)> {
    let table = NodeTable::new(local, events);
    Box::new(move |mail| {
        if is_delaying() {
            receive_delayed(&table, mail);
        } else {
            handle(&table, mail);
        }
    })
}

/// Handles mail when it may arrive.
fn receive_delayed(table: &Rc<NodeTable>, mail: Mail) {
    let (from, to, kind, node) = match &mail {
        // A moving node is never delayed: later messages rely on its arriving first. The order to leave and the answer from
        // here are held.
        Mail::Chaos(..) | Mail::Flight(_) | Mail::Arrive(_) | Mail::ArriveRoot(_) => {
            return handle(table, mail);
        }
        Mail::Run(_) => (End::User, End::Nodes, kind::JOB, None),
        Mail::WhenOpen(root, _) => {
            let node = table.root(*root).map(|root| root.node());
            (End::Client(*root), End::Nodes, kind::JOB, node)
        }
        Mail::Request(request) => {
            let kind = kind::of_request(request.operation.kind());
            match request.entry {
                Entry::Root(root) => {
                    let node = table.root(root).map(|root| root.node());
                    (End::Client(root), End::Nodes, kind, node)
                }
                Entry::Node(node) => (End::Elsewhere, End::Node(node), kind, table.node(node)),
            }
        }
        Mail::Control { order, .. } => {
            let (kind, node) = hops::facts(order);
            let node = node.and_then(|node| table.node(node));
            (End::Graph, End::Nodes, kind, node)
        }
    };
    let hop = hops::hop(from, to, kind, node.as_ref().map_or("", |node| node.name()));
    let (receiver, local) = (Rc::clone(table), table.local());
    local.chaos().pass(local, &hop, move || handle(&receiver, mail));
}

/// Handles mail that has arrived.
fn handle(table: &Rc<NodeTable>, mail: Mail) {
    let local = table.local();
    match mail {
        Mail::Run(job) => job(),
        Mail::Request(request) => match request.entry {
            Entry::Root(id) => request_over_root(table, id, request),
            Entry::Node(id) => request_to_node(table, id, request),
        },
        Mail::WhenOpen(id, reply) => when_open(table, id, reply),
        Mail::Control { order_id, order } => {
            local.note(recorded::order(MessageEvent::Ordered, order_id, &order));
            // The graph actor gets an answer even if carrying the order out panics.
            if !guarded("an order", || carry_out::carry_out(table, order_id, order)) {
                answer::lost(table, order_id);
            }
        }
        Mail::Arrive(moved) => moving::arrive(table, *moved),
        Mail::ArriveRoot(moved) => moving::arrive_root(table, *moved),
        Mail::Chaos(rules, done) => {
            local.chaos().set(local, rules);
            drop(done);
        }
        // The answer is dropped where the asker has given up waiting.
        Mail::Flight(reply) => drop(reply.send(table.open())),
    }
}

fn request_over_root(table: &Rc<NodeTable>, id: RootId, request: RemoteRequest) {
    if let Some(root) = table.root(id) {
        let RemoteRequest {
            operation,
            reply,
            unwanted,
            ..
        } = request;
        root.enter_remote(table.local(), operation, reply, unwanted);
        return;
    }
    // Where the edge has ended, dropping the request tells the client.
    if !table.send_after(id, Mail::Request(request)) {
        tracing::debug!(
            root = id.0,
            "a request came for a root edge whose iothread has stopped"
        );
    }
}

fn when_open(table: &Rc<NodeTable>, id: RootId, reply: oneshot::Sender<()>) {
    match table.root(id) {
        Some(root) => root.tell_when_open(table.local(), reply),
        // Where the edge has ended, dropping the question answers it.
        None => drop(table.send_after(id, Mail::WhenOpen(id, reply))),
    }
}

fn request_to_node(table: &Rc<NodeTable>, id: NodeId, request: RemoteRequest) {
    let Some(cell) = table.node(id) else {
        drop(request.reply.send(Outcome::plain(Err(IoError::NoMedium))));
        return;
    };
    table.count_from_elsewhere();
    // The parent counts it as well, but not to its end, if it gives up waiting.
    let (kind, extent) = (request.operation.kind(), extent_of(&request.operation));
    let counted = Admission::new(Rc::clone(&cell), kind, extent, now_ns());
    table.local().spawn(async move {
        let outcome = execute(&cell, request.operation, By::PARENT).await;
        delayed::reply_elsewhere(&cell, request.reply, outcome, counted);
    });
}
