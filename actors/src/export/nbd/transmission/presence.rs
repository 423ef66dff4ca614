//! Whether a client is still there, also while nothing of it is received.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::Poll;

use crate::export::nbd::transport::Transport;

/// The client has gone.
#[derive(Debug)]
pub(super) struct Gone;

/// Looks after one client's connection.
pub(super) struct Presence<T: Transport> {
    transport: T,
    /// Begun when it is first needed, so that a client for which nothing ever has to wait costs nothing.
    hang_up: Option<T::HangUp>,
}

impl<T: Transport> Presence<T> {
    pub(super) fn new(transport: T) -> Self {
        Self {
            transport,
            hang_up: None,
        }
    }

    /// Shuts the connection down.
    pub(super) fn shut_down(&self) {
        self.transport.shut_down();
    }

    /// Waits for something, as long as the client is there.
    ///
    /// # Errors
    /// It has gone. It must not be waited for again.
    pub(super) async fn while_there<D>(&mut self, wait: impl Future<Output = D>) -> Result<D, Gone> {
        let mut wait = pin!(wait);
        poll_fn(|context| {
            if let Poll::Ready(done) = wait.as_mut().poll(context) {
                return Poll::Ready(Ok(done));
            }
            let hang_up = self.hang_up.get_or_insert_with(|| self.transport.hang_up());
            // A connection that cannot be watched is as good as closed.
            Pin::new(hang_up).poll(context).map(|_| Err(Gone))
        })
        .await
    }
}
