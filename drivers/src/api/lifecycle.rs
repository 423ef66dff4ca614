//! How a driver lives in its node: stillness, permissions, new options, other data below it, other iothreads, the end.

use std::rc::Rc;

use millpond_messages::graph::Options;
use millpond_messages::{ChildSlot, Error, ErrorKind, OpenFlags, Permissions, Result};

use super::answer::Answer;
use super::child::Child;
use super::exchange::Exchanged;
use super::moved::Moved;
use super::saved::SavesState;

/// What the graph asks of a [`Driver`](super::Driver) between its open and its end. Where there is a default, it is right
/// for a driver that keeps nothing of the kind.
pub trait Lifecycle: 'static {
    /// Ends early, with [`IoError::Cancelled`](millpond_messages::IoError::Cancelled) or what fits better, those requests in flight
    /// that wait for something that may never come, such as an answer over a broken connection. Each still ends once.
    fn cancel_in_flight(&self) {}

    /// Stops background work (write-back, timers); answers when none is left. Called once for the first of nested
    /// drained sections.
    fn quiesce(&self) -> Answer<'_, ()> {
        Answer::ready(())
    }

    /// Resumes background work, because the last drained section has ended.
    fn resume(&self) {}

    /// The cumulative permissions of the node's parents are about to become these; image locks are taken, none given
    /// up. Followed by exactly one of commit and abort.
    fn permissions_prepare(&self, _taken: Permissions, _shared: Permissions) -> Answer<'_, Result<()>> {
        Answer::ready(Ok(()))
    }

    /// Puts the prepared permissions into effect. Locks that they do not need are given up.
    fn permissions_commit(&self) {}

    /// Forgets the prepared permissions.
    fn permissions_abort(&self) {}

    /// Checks new options of the driver's own, and readies what they need. `options` is complete: what is not in it
    /// has its default. Followed by exactly one of commit and abort.
    fn reopen_prepare(&self, request: ReopenRequest) -> Answer<'_, Result<()>>;

    /// Puts the prepared options into effect. The node is still: no request is in flight.
    fn reopen_commit(&self) {}

    /// Forgets the prepared options.
    fn reopen_abort(&self) {}

    /// Drops what is cached of the image, after writing back what the image lacks, and reads it again: another process may
    /// have changed it. The node is still.
    fn invalidate(&self) -> Answer<'_, Result<()>> {
        Answer::ready(Ok(()))
    }

    /// A node was put behind one of the edges, or taken away; or a numbered child came or went. `children` are the
    /// handles as [`OpenRequest::children`](super::OpenRequest::children) has them: those that the driver has already stay valid. The node is still.
    fn children_changed(&self, _children: &[Child]) {}

    /// The data behind the edges in `slots` is about to be other data: another node will be there, or the node there is
    /// about to show other data itself. Filters that come and go are no such change, nor are numbered children; nor is
    /// what is behind a backing edge, of which a driver keeps nothing. Writes back what belongs to the old data, as
    /// [`Lifecycle::close`] does, and goes on with that for now. The node is still; it is flushed afterwards.
    ///
    /// Refused unless a driver says otherwise: one that goes on with what it read from the old data would read and write
    /// in wrong places. A driver that keeps nothing answers Ok.
    fn exchange_prepare(&self, _slots: &[ChildSlot]) -> Answer<'_, Result<()>> {
        Answer::ready(Err(Error::new(
            ErrorKind::Unsupported,
            "The driver does not support that the data below it is exchanged",
        )))
    }

    /// The other data is there. Puts aside all that was read from the old data, and reads it anew; on failure the driver
    /// goes on as it was. Options that a reopen has prepared hold for what is read. The node is still, and asks for length
    /// and abilities afterwards.
    fn exchange(self: Rc<Self>, _slots: &[ChildSlot]) -> Answer<'static, Result<Exchanged>> {
        Answer::ready(Ok(Exchanged::nothing()))
    }

    /// The state that a later daemon needs to go on with the node, besides its options and its files. A driver that finds all
    /// of it there says so by `None`.
    fn saved_state(&self) -> Option<&dyn SavesState>;

    /// Gives up all state, to go on in another iothread. The node is still, its background work stopped. The driver left
    /// behind is dropped without [`Lifecycle::close`].
    fn depart(&self) -> Moved;

    /// Writes everything back and lets go: the last call. The children are still there.
    fn close(&self) -> Answer<'_, Result<()>>;
}

/// New options for an open driver.
#[derive(Debug, Clone)]
pub struct ReopenRequest {
    /// The driver's own options, complete.
    pub options: Options,
    /// The flags it would be opened with.
    pub flags: OpenFlags,
}
