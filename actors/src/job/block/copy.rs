//! The data halves of copies: on the iothread of the source, wherever that goes.

use std::cell::RefCell;
use std::task::Waker;

use millpond_messages::qapi::schema::{BlockErrorAction, BlockdevOnError};
use millpond_messages::{ChunkSet, Error, ErrorKind, Range, Result};
use millpond_ring::buffer::Buffers;

use super::data::{Errors, NodeGates, at_home, cancelled, failed};
use crate::iothread::Local;
use crate::job::copy::{Copier, Copying, Ends, Fault, FaultVerdict, Left, Need, Stopped};
use crate::job::pace::{Cancelled, Gates, Pace};
use crate::node::{Client, HomeClient};

/// How much of a disk is copied by one request at most, in bytes.
pub(super) const PIECE: u64 = 1 << 20;
/// How many pieces are under way.
pub(super) const PIECES: usize = 8;

/// The same of jobs that go through a disk from its start to its end, one piece at a time: their users see that by how far
/// they are, and by what is copied where one of them fails.
pub(super) const IN_ORDER: (u64, usize) = (512 << 10, 1);

/// All of a disk of `size` bytes, in chunks of `chunk`.
///
/// # Errors
/// The disk is larger than any that can be copied.
pub(super) fn all(size: u64, chunk: u64, piece: u64) -> Result<Left> {
    let chunks = ChunkSet::new(size, chunk);
    let mut chunks = chunks.map_err(|error| Error::new(ErrorKind::InvalidArgument, error.to_string()))?;
    chunks.insert(Range::between(0, size));
    Ok(Left::new(chunks, piece))
}

/// What is dirty by a bitmap, in chunks of `chunk`, of a disk of `size` bytes.
///
/// # Errors
/// The disk is larger than any that can be copied.
pub(super) fn some(size: u64, chunk: u64, piece: u64, dirty: &ChunkSet) -> Result<Left> {
    let chunks = ChunkSet::new(size, chunk);
    let mut chunks = chunks.map_err(|error| Error::new(ErrorKind::InvalidArgument, error.to_string()))?;
    chunks.merge(dirty);
    Ok(Left::new(chunks, piece))
}

/// Copies what is left, with `most` pieces under way, where the node of `home` lives. `make` makes the job's part of it, once
/// for each iothread that the node lives on meanwhile.
///
/// # Errors
/// A request's, or the job was cancelled.
pub(super) async fn copy_left<W, M>(
    home: &Client,
    pace: &Pace,
    most: usize,
    mut left: Left,
    make: impl Fn() -> M,
) -> Result<()>
where
    W: Copying + 'static,
    M: FnOnce() -> W + Send + 'static,
{
    loop {
        let (make, pace) = (make(), pace.clone());
        let (ended, rest) = at_home(home.clone(), move || async move {
            let (work, left) = (make(), RefCell::new(left));
            let copier = Copier {
                work: &work,
                left: &left,
                pace: &pace,
                most,
            };
            let ended = copier.run().await;
            (ended, left.into_inner())
        })
        .await?;
        match ended {
            Ok(()) => return Ok(()),
            Err(Stopped::Moved) => left = rest,
            Err(Stopped::Cancelled) => return Err(cancelled(Cancelled)),
            Err(Stopped::Failed(fault)) => return Err(failed(fault.error)),
        }
    }
}

/// Whether the node of a client lives on another iothread than this one by now.
pub(super) fn has_moved(client: &HomeClient) -> bool {
    Local::current_id() != Some(client.client().iothread())
}

/// What is done about a fault of a copy that can try again.
pub(super) fn verdict(pace: &Pace, policy: BlockdevOnError, fault: Fault) -> FaultVerdict {
    match pace.failed(policy, fault.operation, fault.error) {
        BlockErrorAction::Report => FaultVerdict::End,
        BlockErrorAction::Ignore | BlockErrorAction::Stop => {
            pace.tries_again();
            FaultVerdict::Again
        }
    }
}

/// A copy from one node to another by reads and writes.
pub(super) struct NodeCopy {
    pub ends: Ends,
    pub gates: NodeGates,
    pub errors: Errors,
}

impl Gates for NodeCopy {
    fn watch(&self, waker: &Waker) -> bool {
        self.gates.watch(waker)
    }
}

impl Copying for NodeCopy {
    async fn look(&self, range: Range) -> Result<(u64, Need), Fault> {
        self.ends.look(range).await
    }

    async fn copy(&self, piece: Range, need: Need, room: Buffers) -> (Result<(), Fault>, Buffers) {
        self.ends.copy(piece, need, room).await
    }

    fn begins(&self, piece: Range, _: Need) {
        self.errors.pace.moved(piece.len());
    }

    fn failed(&self, fault: Fault) -> FaultVerdict {
        verdict(&self.errors.pace, self.errors.policy, fault)
    }

    fn passed(&self, bytes: u64) {
        self.errors.pace.advance(bytes);
    }

    fn has_moved(&self) -> bool {
        has_moved(&self.ends.source)
    }
}
