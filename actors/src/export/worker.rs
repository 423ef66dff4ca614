//! What serves an export's data: it runs on the iothread of the export's node, and follows the node when it moves; or it stays on
//! an iothread that the export was given.

use std::rc::Rc;

use futures_util::FutureExt;
use millpond_engine::iothread::Local;

use super::seat::Seat;

/// The data half of an export: a connection, a queue.
///
/// A worker follows drains by itself, at its source: it takes a request from there only while its node
/// [is open](super::backend::ExportedNode::is_open), so that in a still section bytes, kicks and descriptors wait where they
/// are. What it has taken by then ends as soon as the node lets it. A node can move only while it is still; so a worker
/// that finds it [moved](super::backend::ExportedNode::has_moved) stops taking requests, waits for the last answer of those
/// it has, and gives itself back, to be sent to where the node lives now.
///
/// A worker with a seat on an iothread of its own never finds its node moved. From there, a section is seen as soon as the node's
/// iothread has told: what was taken in that moment is parked at the node, and answered once, as all that is parked is.
pub(crate) trait Worker: Sized + Send + 'static {
    /// Where it serves, and its hold on the node.
    fn seat(&self) -> &Seat;

    /// Serves, on the iothread of its seat. Ends with `None` when it has nobody to serve any more, or else with itself, with
    /// nothing in flight, because the node has moved.
    fn serve(self, local: Rc<Local>) -> impl Future<Output = Option<Self>>;
}

/// Has `worker` serve where its seat is now. If that iothread has ended, the worker is dropped.
pub(crate) fn place<W: Worker>(worker: W) {
    let seat = worker.seat().clone();
    seat.run(move || {
        let Some(local) = Local::current() else { return };
        let here = Rc::clone(&local);
        let served = async move {
            if let Some(moved) = worker.serve(here).await {
                place(moved);
            }
        };
        // One allocation for the future and its task, rather than a move of it through every wrapper's frame.
        local.spawn(served.boxed_local());
    });
}
