//! The length of the node behind a device, followed on the node's iothread.

use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use futures_channel::{mpsc, oneshot};
use millpond_engine::iothread::Local;

use super::device::Device;
use crate::export::seat::Seat;
use crate::export::worker::Worker;

/// Tells of each new length.
pub(in crate::export) struct LengthWatch {
    /// A seat beside the node, which alone tells its length.
    pub(in crate::export) seat: Seat,
    pub(in crate::export) device: Arc<Device>,
    /// Told when the length is another one.
    pub(in crate::export) changed: mpsc::UnboundedSender<()>,
    /// Ends when nobody is interested any more.
    pub(in crate::export) wanted: oneshot::Receiver<()>,
}

/// Why the watch of one node on one iothread ends.
enum End {
    Changed,
    Moved,
    Unwanted,
}

impl Worker for LengthWatch {
    fn seat(&self) -> &Seat {
        &self.seat
    }

    async fn serve(mut self, _local: Rc<Local>) -> Option<Self> {
        let node = self.seat.node();
        loop {
            let end = poll_fn(|context| {
                if Pin::new(&mut self.wanted).poll(context).is_ready() {
                    return Poll::Ready(End::Unwanted);
                }
                match node.watch_length(context.waker()) {
                    Some(length) if self.device.set_size(length) => Poll::Ready(End::Changed),
                    Some(_) => Poll::Pending,
                    None if node.has_moved() => Poll::Ready(End::Moved),
                    // The export has let go of it.
                    None => Poll::Ready(End::Unwanted),
                }
            });
            match end.await {
                End::Changed if self.changed.unbounded_send(()).is_ok() => {}
                End::Moved => return Some(self),
                End::Changed | End::Unwanted => return None,
            }
        }
    }
}
