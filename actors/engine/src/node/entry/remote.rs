//! What other threads ask of a root edge: requests, and when its node takes some.

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use futures_channel::oneshot;
use millpond_messages::io::Operation;
use millpond_ring::buffer::Buffers;

use super::pending::Begun;
use super::root::{Reply, RootCell};
use crate::iothread::{Local, is_delaying, now_ns};
use crate::node::cell::admission::Admission;
use crate::node::cell::delayed;
use crate::node::io::request::extent_of;
use crate::node::order::unwanted::Unwanted;

impl RootCell {
    /// Takes a request from another thread, and sees to its answer.
    pub fn enter_remote(
        self: Rc<Self>,
        local: &Rc<Local>,
        operation: Operation<Buffers>,
        reply: Reply,
        unwanted: Option<Arc<Unwanted>>,
    ) {
        if is_delaying() {
            return self.enter_remote_late(local, operation, reply, unwanted);
        }
        match self.begin_now(operation) {
            // An asker that is gone has no use for the answer.
            Begun::Ended(outcome) => drop(reply.send(outcome)),
            Begun::Pending(pending) => local.spawn(async move {
                drop(reply.send(heeded(unwanted, pending).await));
            }),
        }
    }

    /// The same while replies may be held, with the request counted until its own has gone.
    fn enter_remote_late(
        self: Rc<Self>,
        local: &Rc<Local>,
        operation: Operation<Buffers>,
        reply: Reply,
        unwanted: Option<Arc<Unwanted>>,
    ) {
        let (node, root) = (self.node(), self.handle().id());
        let (kind, range) = (operation.kind(), extent_of(&operation));
        match self.begin_now(operation) {
            Begun::Ended(outcome) => {
                // It is counted though it has ended: it was taken in this step, so the gate did not stop it.
                let counted = Admission::new(Rc::clone(&node), kind, range, now_ns());
                delayed::reply(&node, root, reply, outcome, Some(counted));
            }
            Begun::Pending(pending) => local.spawn(async move {
                let (outcome, counted) = heeded(unwanted, pending.end_counted()).await;
                delayed::reply(&node, root, reply, outcome, counted);
            }),
        }
    }

    /// Answers another thread when the node takes requests, or has nothing to do with the edge any more.
    pub fn tell_when_open(self: Rc<Self>, local: &Rc<Local>, mut reply: oneshot::Sender<()>) {
        local.spawn(async move {
            poll_fn(|context| {
                let node = self.node();
                let is_over = !self.is_here() || node.gate().is_open();
                if is_over || reply.poll_canceled(context).is_ready() {
                    return Poll::Ready(());
                }
                node.gate().wait(context.waker());
                Poll::Pending
            })
            .await;
            // Who asked may have gone.
            let _ = reply.send(());
        });
    }
}

/// Waits for the end of a request from another thread, or for word that it is not wanted any more.
async fn heeded<T>(unwanted: Option<Arc<Unwanted>>, request: impl Future<Output = T>) -> T {
    match unwanted {
        Some(unwanted) => unwanted.heeded(request).await,
        None => request.await,
    }
}
