//! Hops between clients and nodes while rules delay them.

use futures_channel::oneshot;
use millpond_messages::RootId;
use millpond_messages::io::{Operation, Outcome};
use millpond_ring::buffer::Buffers;

use super::admission::Admission;
use super::node::NodeCell;
use crate::delay::{Hop, kind};
use crate::iothread::{Local, is_delaying};
use crate::node::order::hops::{End, hop};

/// Waits until a request that can still be taken back may be taken.
pub async fn enter(root: RootId, node: &NodeCell, operation: &Operation<Buffers>) {
    let kind = kind::of_request(operation.kind());
    wait(&hop(End::Client(root), End::Nodes, kind, node.name())).await;
}

/// Waits until a request to a child on the same iothread may arrive.
pub async fn pass_down(child: &NodeCell, operation: &Operation<Buffers>) {
    let kind = kind::of_request(operation.kind());
    wait(&hop(End::Nodes, End::Node(child.id()), kind, child.name())).await;
}

async fn wait(hop: &Hop<'_>) {
    if let Some(local) = Local::current() {
        local.chaos().wait(&local, hop).await;
    }
}

/// Answers the client of a root edge. The request stays in flight until the answer has gone.
pub fn reply(
    node: &NodeCell,
    root: RootId,
    reply: oneshot::Sender<Outcome<Buffers>>,
    outcome: Outcome<Buffers>,
    counted: Option<Admission>,
) {
    let hop = hop(End::Nodes, End::Client(root), kind::REPLY, node.name());
    send(&hop, reply, outcome, counted);
}

/// Answers a node of another iothread.
pub fn reply_elsewhere(
    node: &NodeCell,
    reply: oneshot::Sender<Outcome<Buffers>>,
    outcome: Outcome<Buffers>,
    counted: Admission,
) {
    let hop = hop(End::Node(node.id()), End::Elsewhere, kind::REPLY, node.name());
    send(&hop, reply, outcome, Some(counted));
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
    match is_delaying().then(Local::current).flatten() {
        Some(local) => local.chaos().pass(&local, hop, send),
        None => send(),
    }
}
