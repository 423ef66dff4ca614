//! Requests to nodes of other iothreads.

use futures_channel::oneshot;
use millpond_messages::IoError;
use millpond_messages::io::{Operation, Outcome};
use millpond_ring::buffer::Buffers;

use crate::node::order::mail::{Entry, Mail, NodeAddress, RemoteRequest};

/// Sends a request to a node of another iothread, and waits for its answer.
pub async fn send_there(address: &NodeAddress, operation: Operation<Buffers>) -> Outcome<Buffers> {
    let (reply, answer) = oneshot::channel();
    let request = RemoteRequest {
        entry: Entry::Node(address.node),
        operation,
        reply,
        unwanted: None,
    };
    if address.iothread.send(Mail::Request(request)).is_err() {
        return Outcome::plain(Err(IoError::NoMedium));
    }
    answer.await.unwrap_or(Outcome::plain(Err(IoError::NoMedium)))
}
