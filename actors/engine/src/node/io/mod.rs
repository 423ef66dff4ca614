//! The choke point: every request to a node passes here. Range, flags and permissions are checked before any driver
//! sees it, and every emulation is here, once: FUA by flush, zeroes by writes, unaligned by read-modify-write.

mod aligned;
mod at_once;
mod copy_on_read;
mod flush;
mod length;
mod probed;
mod read;
mod status;
mod write;
mod zeroes;

use std::rc::Rc;

use millpond_messages::io::{Operation, OperationKind, Outcome, Value};
use millpond_messages::{DebugEvent, IoError, IoResult, OpenFlags, Range, RequestFlags, check_range};
use millpond_ring::buffer::Buffers;
use smallvec::SmallVec;

use crate::iothread::now_ns;
use crate::node::cell::node::NodeCell;
use crate::node::gate::sections::Admission;
use crate::node::gate::statistics::Asked;

/// What a request brings along: whether it is admitted over a root edge, or a piece of what a parent does.
#[derive(Clone, Copy)]
pub struct By<'a> {
    admission: Option<&'a Admission>,
    /// Ranges that leave the node are an error for users. A parent may read past the end (as zeroes) and grow its child.
    may_pass_end: bool,
}

impl<'a> By<'a> {
    /// A piece of a parent's work, not counted by itself.
    pub const PARENT: By<'static> = By {
        admission: None,
        may_pass_end: true,
    };
    /// A user's request that is counted once it has been begun.
    pub const USER: By<'static> = By {
        admission: None,
        may_pass_end: false,
    };

    const fn admitted(admission: &'a Admission) -> Self {
        By {
            admission: Some(admission),
            may_pass_end: false,
        }
    }

    /// Whether a write may be serialised against all others: those of root edges wait until the node tracks what it has in
    /// flight, and a parent's can only if it does already.
    fn may_serialise(self, node: &NodeCell, flags: RequestFlags) -> bool {
        !flags.contains(RequestFlags::SERIALISING) || self.admission.is_some() || node.tracks()
    }

    /// The request goes on to `node`'s driver.
    fn stands_at(self, node: &NodeCell) {
        tracing::trace!(target: "millpond::request", node = node.name(), driver = node.kind().name(), "handed to driver");
        if let Some(admission) = self.admission {
            admission.stands_at(node.id());
        }
    }
}

/// Runs a request that came over a root edge.
pub async fn execute_admitted(
    cell: &Rc<NodeCell>,
    operation: Operation<Buffers>,
    admission: &Admission,
    writethrough: bool,
) -> Outcome<Buffers> {
    let operation = if writethrough {
        with_fua(operation)
    } else {
        operation
    };
    execute(cell, operation, Some(admission)).await
}

/// Runs a request. Without an admission it is a piece of one that a parent is busy with.
pub async fn execute(
    cell: &Rc<NodeCell>,
    operation: Operation<Buffers>,
    admission: Option<&Admission>,
) -> Outcome<Buffers> {
    let by = admission.map_or(By::PARENT, By::admitted);
    let (_, len) = range_of(&operation);
    let asked = Asked::now(operation.kind(), len);
    if let Err(error) = check(cell, &operation, by) {
        cell.counters().refuse(asked.kind());
        return refused(error, operation);
    }
    let outcome = dispatch(cell, operation, by).await;
    if asked.kind() != OperationKind::Query {
        cell.counters().count(asked, now_ns(), outcome.result.is_err());
    }
    outcome
}

/// Whether a request may be asked of the node at all.
fn check(cell: &NodeCell, operation: &Operation<Buffers>, by: By<'_>) -> IoResult<()> {
    if cell.flags().contains(OpenFlags::NO_IO) && by.admission.is_some() && carries_data(operation) {
        return Err(IoError::NotPermitted);
    }
    let (offset, len) = range_of(operation);
    let range = Range::new(offset, len)?;
    match operation {
        Operation::Read { .. } => check_within(cell, range, true, by),
        Operation::Write { flags, .. } => {
            check_write(cell, range, true, by)?;
            let compressed = flags.contains(RequestFlags::WRITE_COMPRESSED);
            if compressed && !cell.abilities().write_compressed {
                return Err(IoError::NotSupported);
            }
            Ok(())
        }
        Operation::WriteZeroes { .. } | Operation::Discard { .. } => check_write(cell, range, false, by),
        Operation::BlockStatus { .. } => Ok(check_range(range, false)?),
        Operation::Flush | Operation::Truncate { .. } | Operation::Length | Operation::AllocatedSize => {
            Ok(())
        }
    }
}

async fn dispatch(cell: &Rc<NodeCell>, operation: Operation<Buffers>, by: By<'_>) -> Outcome<Buffers> {
    match operation {
        Operation::Read {
            offset,
            buffers,
            flags,
        } => with_buffers(read::read(cell, offset, buffers, flags, by).await),
        Operation::Write {
            offset,
            buffers,
            flags,
        } => with_buffers(write::write(cell, offset, buffers, flags, by).await),
        Operation::WriteZeroes { range, flags } => {
            done(Box::pin(zeroes::write_zeroes(cell, range, flags, by)).await)
        }
        Operation::Discard { range } => done(Box::pin(zeroes::discard(cell, range, by)).await),
        Operation::Flush => done(Box::pin(flush::flush(cell)).await),
        Operation::Truncate {
            size,
            exact,
            preallocation,
            flags,
        } => {
            let truncated = Box::pin(length::truncate(cell, size, exact, preallocation, flags)).await;
            done(truncated.map_err(|error| IoError::from_errno(error.errno())))
        }
        Operation::BlockStatus {
            range,
            want_zero,
            whole_chain,
            base,
        } => {
            let wanted = status::Wanted {
                zero: want_zero,
                whole_chain,
                base,
            };
            // Of an image that another process may be changing nothing can be said.
            let status = if cell.flags().contains(OpenFlags::INACTIVE) {
                Err(IoError::NotPermitted)
            } else {
                Box::pin(status::block_status(cell, range, wanted)).await
            };
            Outcome::plain(status.map(Value::Status))
        }
        Operation::Length => Outcome::plain(length::length(cell, by).await.map(Value::Bytes)),
        Operation::AllocatedSize => {
            Outcome::plain(Box::pin(length::allocated_size(cell)).await.map(Value::Bytes))
        }
    }
}

/// Whether a request is about the data that a node shows, rather than about the node.
fn carries_data(operation: &Operation<Buffers>) -> bool {
    !matches!(
        operation,
        Operation::Flush | Operation::Length | Operation::AllocatedSize
    )
}

/// The nodes that a request or a piece of one passes, its entry first, each with the end of what is written there: 0 where
/// nothing is. Few chains are deeper than this holds in place.
type Passed = SmallVec<[(Rc<NodeCell>, u64); PASSED_IN_PLACE]>;

const PASSED_IN_PLACE: usize = 4;

/// Nodes that there is room for where those in place do not do. Growing from the one to the other step by step would cost as
/// much as the nodes themselves.
const PASSED_ON_HEAP: usize = 32;

/// Notes one more node.
#[inline]
fn pass(passed: &mut Passed, node: Rc<NodeCell>, end: u64) {
    if passed.len() == PASSED_IN_PLACE {
        passed.reserve(PASSED_ON_HEAP - PASSED_IN_PLACE);
    }
    passed.push((node, end));
}

/// The nodes that were passed, without their edges.
fn nodes(passed: &Passed) -> impl Iterator<Item = &Rc<NodeCell>> {
    passed.iter().map(|(node, _)| node)
}

/// Whether a request is to have no other beside it in a range, so that the node must know of all that it has in flight.
pub fn is_serialised(operation: &Operation<Buffers>) -> bool {
    match operation {
        Operation::Write { flags, .. } | Operation::WriteZeroes { flags, .. } => {
            flags.contains(RequestFlags::SERIALISING)
        }
        Operation::Truncate { .. } => true,
        _ => false,
    }
}

pub use at_once::{Step, Transferring, begin};
pub use flush::flush;
pub use length::truncate;
pub use read::read_whole;
pub use status::{Wanted, block_status};

/// The range that a request is about; nothing for those without one.
pub fn range_of(operation: &Operation<Buffers>) -> (u64, u64) {
    match operation {
        Operation::Read { offset, buffers, .. } | Operation::Write { offset, buffers, .. } => {
            (*offset, bytes_in(buffers))
        }
        Operation::WriteZeroes { range, .. }
        | Operation::Discard { range }
        | Operation::BlockStatus { range, .. } => (range.offset(), range.len()),
        Operation::Flush | Operation::Truncate { .. } | Operation::Length | Operation::AllocatedSize => {
            (0, 0)
        }
    }
}

/// The outcome of a request that was refused before it began.
pub fn refused(error: IoError, operation: Operation<Buffers>) -> Outcome<Buffers> {
    let buffers = match operation {
        Operation::Read { buffers, .. } | Operation::Write { buffers, .. } => Some(buffers),
        _ => None,
    };
    Outcome {
        result: Err(error),
        buffers,
    }
}

fn with_buffers((result, buffers): (IoResult<()>, Buffers)) -> Outcome<Buffers> {
    Outcome {
        result: result.map(|()| Value::Done),
        buffers: Some(buffers),
    }
}

fn done(result: IoResult<()>) -> Outcome<Buffers> {
    Outcome::plain(result.map(|()| Value::Done))
}

fn with_fua(operation: Operation<Buffers>) -> Operation<Buffers> {
    match operation {
        Operation::Write {
            offset,
            buffers,
            flags,
        } => Operation::Write {
            offset,
            buffers,
            flags: flags | RequestFlags::FUA,
        },
        Operation::WriteZeroes { range, flags } => Operation::WriteZeroes {
            range,
            flags: flags | RequestFlags::FUA,
        },
        other => other,
    }
}

/// Tells of an event at a node that listens, or passes it on to one that does. Elsewhere it costs a comparison.
async fn tell(node: &NodeCell, event: DebugEvent) {
    if node.hears()
        && let Some(held) = node.debug_event(event)
    {
        held.await;
    }
}

/// The length of a gather list as an offset's type. A buffer's length fits by construction.
fn bytes_in(buffers: &Buffers) -> u64 {
    u64::try_from(buffers.len()).unwrap_or(u64::MAX)
}

/// A length that fits in memory, since it is at most that of a buffer that exists.
fn in_memory(len: u64) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}

/// Checks a request that changes the node.
fn check_write(cell: &NodeCell, range: Range, carries_data: bool, by: By<'_>) -> IoResult<()> {
    if cell.is_read_only() {
        return Err(IoError::ReadOnly);
    }
    if cell.flags().contains(OpenFlags::INACTIVE) {
        return Err(IoError::NotPermitted);
    }
    check_within(cell, range, carries_data, by)
}

fn check_within(cell: &NodeCell, range: Range, carries_data: bool, by: By<'_>) -> IoResult<()> {
    check_range(range, carries_data)?;
    if !by.may_pass_end && range.end() > cell.size() {
        return Err(IoError::OutOfRange);
    }
    Ok(())
}
