//! A request's answer, once it is there; and what is done with one that nobody waits for any more.

use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_channel::oneshot;
use millpond_engine::node::Client;
use millpond_graph::RequestId;
use millpond_messages::graph::{
    DetachRoot, DrainEnd, DropFilter, EditForJob, GraphReply, GraphRequest, JobEdit, OpUnblock, Request,
    Transacted, UnfreezeChain,
};
use millpond_messages::{Error, ErrorKind, OpBlocker, Result, Token};

use super::handle::GraphHandle;
use super::inbox::{Incoming, closed};

/// A request's answer, once it is there.
#[must_use = "the request is on its way, but whether it fails is told here"]
pub struct Asked<R> {
    id: RequestId,
    reply: Option<oneshot::Receiver<Result<GraphReply<Client>>>>,
    handle: GraphHandle,
    /// The answer is the request's; the request itself is with the graph actor.
    request: PhantomData<fn() -> R>,
}

impl<R: Request> Asked<R> {
    pub(super) const fn new(
        id: RequestId,
        reply: Option<oneshot::Receiver<Result<GraphReply<Client>>>>,
        handle: GraphHandle,
    ) -> Self {
        Self {
            id,
            reply,
            handle,
            request: PhantomData,
        }
    }
}

impl<R: Request> Future for Asked<R> {
    type Output = Result<R::Answer<Client>>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(reply) = &mut self.reply else {
            return Poll::Ready(Err(closed()));
        };
        let Poll::Ready(result) = Pin::new(reply).poll(context) else {
            return Poll::Pending;
        };
        self.reply = None;
        let reply = result.unwrap_or_else(|_| Err(closed()));
        Poll::Ready(reply.and_then(|reply| R::answer(reply).ok_or_else(misdirected)))
    }
}

/// The policy replies to each request as its row says, which the policy's tests hold it to.
fn misdirected() -> Error {
    let text = "The graph gave a reply to another question";
    Error::new(ErrorKind::InvalidArgument, text)
}

impl<R> Drop for Asked<R> {
    fn drop(&mut self) {
        if let Some(mut reply) = self.reply.take() {
            // Closed before the actor hears of it, so that it either sees the reply refused or was told in time.
            reply.close();
            self.handle.post(Incoming::Abandoned(self.id));
            // A reply that had come already is given back here.
            if let Ok(Some(Ok(reply))) = reply.try_recv() {
                give_back(&self.handle, &reply);
            }
        }
    }
}

/// Gives up what a reply gives to whoever asked, who has gone: it would be held for ever.
pub(super) fn give_back(handle: &GraphHandle, reply: &GraphReply<Client>) {
    if let GraphReply::Transacted(transacted) = reply {
        return give_back_started(handle, transacted);
    }
    let request: GraphRequest = match reply {
        GraphReply::Still(token) => DrainEnd(*token).into(),
        GraphReply::Root(client) => DetachRoot(client.root()).into(),
        GraphReply::Blocked(token) => unblock_all(*token).into(),
        GraphReply::Frozen(token) => UnfreezeChain(*token).into(),
        _ => return,
    };
    handle.send(request);
}

/// Takes away the filters of backups whose jobs will never be.
fn give_back_started(handle: &GraphHandle, transacted: &Transacted) {
    if transacted.failure.is_some() {
        return;
    }
    for started in &transacted.backups {
        handle.send(unblock_all(started.blocker));
        if let Some(bitmap) = &started.bitmap {
            handle.send(EditForJob(JobEdit::JoinBitmap(bitmap.joined())));
        }
        handle.send(DropFilter {
            node_name: started.filter.clone(),
        });
    }
}

/// Ends an op blocker.
pub(crate) fn unblock_all(token: Token) -> OpUnblock {
    OpUnblock {
        token,
        node_name: None,
        operations: OpBlocker::ALL.to_vec(),
    }
}
