//! Pending requests: futures of requests that have begun, which go on by themselves when nobody waits for them.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use millpond_messages::io::Outcome;
use millpond_ring::buffer::Buffers;

use crate::iothread::Local;
use crate::node::cell::admission::Admission;
use crate::node::io::fast_path::Transferring;

/// What came of beginning a request.
pub enum Begun<F = Pending> {
    /// The request has ended already.
    Ended(Outcome<Buffers>),
    /// The request has not ended: this future does when it has.
    Pending(F),
}

impl<F: Future<Output = Outcome<Buffers>>> Begun<F> {
    /// Waits for the end, if it has not come.
    pub async fn end(self) -> Outcome<Buffers> {
        match self {
            Self::Ended(outcome) => outcome,
            Self::Pending(pending) => pending.await,
        }
    }
}

/// A request that was taken and has not ended. Dropped before its end it goes on as a task of its own, so that no driver is
/// left half-way; one that is still parked at a gate is forgotten.
#[must_use = "a request that nobody waits for takes a task of its own"]
pub struct Pending(Option<PendingKind>);

enum PendingKind {
    /// A driver is at work on the request.
    Transfer {
        transfer: Transferring,
        counted: Admission,
    },
    /// The request takes more than a step.
    General(LocalBoxFuture<'static, (Outcome<Buffers>, Admission)>),
    /// The request is parked, or on another iothread: once it has begun it goes on without this future.
    Alone(LocalBoxFuture<'static, Outcome<Buffers>>),
}

impl Pending {
    pub(crate) fn transfer(transfer: Transferring, admission: Admission) -> Self {
        Self(Some(PendingKind::Transfer {
            transfer,
            counted: admission,
        }))
    }

    pub(crate) fn general(future: impl Future<Output = (Outcome<Buffers>, Admission)> + 'static) -> Self {
        Self(Some(PendingKind::General(Box::pin(future))))
    }

    /// Waits for the end, and gives what counts the request too: it is in flight until that is dropped.
    pub(crate) async fn end_counted(mut self) -> (Outcome<Buffers>, Option<Admission>) {
        let (outcome, counted) = poll_fn(|context| match &mut self.0 {
            Some(PendingKind::General(future)) => future
                .as_mut()
                .poll(context)
                .map(|(outcome, counted)| (outcome, Some(counted))),
            Some(kind) => kind.poll(context).map(|outcome| (outcome, None)),
            None => Poll::Pending,
        })
        .await;
        match self.0.take() {
            Some(PendingKind::Transfer { counted, .. }) => (outcome, Some(counted)),
            _ => (outcome, counted),
        }
    }

    pub(crate) fn alone(future: impl Future<Output = Outcome<Buffers>> + 'static) -> Self {
        Self(Some(PendingKind::Alone(Box::pin(future))))
    }
}

impl PendingKind {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Outcome<Buffers>> {
        match self {
            Self::Transfer { transfer, .. } => transfer.poll_unpin(context),
            Self::Alone(future) => future.as_mut().poll(context),
            Self::General(future) => future
                .as_mut()
                .poll(context)
                .map(|(outcome, _counted_until_here)| outcome),
        }
    }
}

impl Future for Pending {
    type Output = Outcome<Buffers>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Outcome<Buffers>> {
        let Some(kind) = &mut self.0 else {
            return Poll::Pending;
        };
        let outcome = ready!(kind.poll(context));
        // This counts a request out that was with a driver.
        self.0 = None;
        Poll::Ready(outcome)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        // Nearly all requests have ended by now, and their large state must not be moved to see that.
        if !matches!(
            self.0,
            Some(PendingKind::Transfer { .. } | PendingKind::General(_))
        ) {
            return;
        }
        let Some(mut kind) = self.0.take() else { return };
        if let Some(local) = Local::current() {
            local.spawn(async move {
                drop(poll_fn(|context| kind.poll(context)).await);
            });
        }
    }
}
