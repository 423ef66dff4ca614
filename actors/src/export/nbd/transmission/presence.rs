//! Whether a client is still there, also while nothing of it is received.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::Poll;

use millpond_ring::{Fd, Pending, Polled, Ring};
use rustix::event::PollFlags;

/// The client has gone.
#[derive(Debug)]
pub(super) struct Gone;

/// Looks after one client's socket.
#[derive(Debug)]
pub(super) struct Presence {
    ring: Ring,
    fd: Fd,
    /// Ends when the client has gone, or the socket was shut down. Begun when it is first needed, so that a client for which
    /// nothing ever has to wait costs nothing.
    hangup: Option<Pending<Polled>>,
}

impl Presence {
    pub(super) fn new(ring: Ring, fd: Fd) -> Self {
        Self {
            ring,
            fd,
            hangup: None,
        }
    }

    /// Waits for something, as long as the client is there.
    ///
    /// # Errors
    /// It has gone. It must not be waited for again.
    pub(super) async fn while_there<T>(&mut self, wait: impl Future<Output = T>) -> Result<T, Gone> {
        let mut wait = pin!(wait);
        poll_fn(|context| {
            if let Poll::Ready(done) = wait.as_mut().poll(context) {
                return Poll::Ready(Ok(done));
            }
            let gone = u32::from(PollFlags::RDHUP.bits());
            let hangup = self.hangup.get_or_insert_with(|| self.ring.poll(&self.fd, gone));
            // A socket that cannot be watched is as good as closed.
            Pin::new(hangup).poll(context).map(|_| Err(Gone))
        })
        .await
    }
}
