//! A request carried out, whatever it takes: checked, handed to what serves its kind, and counted at its end.

use std::rc::Rc;

use millpond_messages::io::{Operation, OperationKind, Outcome, Value};
use millpond_messages::{IoError, IoResult, OpenFlags, RequestFlags};
use millpond_ring::buffer::Buffers;

use super::check::check;
use super::passage::{By, Passage};
use super::request::{done, extent_of, refused, with_buffers, with_fua};
use super::{copy_range, flush, length, map, read, snapshot, status, write, zeroes};
use crate::iothread::now_ns;
use crate::node::cell::admission::Admission;
use crate::node::cell::node::NodeCell;
use crate::node::gate::statistics::Asked;

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
    execute(cell, operation, By::admitted(admission)).await
}

/// Runs a request: a user's, or a piece of one that a parent is busy with.
pub async fn execute(cell: &Rc<NodeCell>, operation: Operation<Buffers>, by: By<'_>) -> Outcome<Buffers> {
    let (_, len) = extent_of(&operation);
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

async fn dispatch(cell: &Rc<NodeCell>, operation: Operation<Buffers>, by: By<'_>) -> Outcome<Buffers> {
    match operation {
        Operation::Read {
            offset,
            buffers,
            flags,
        } => with_buffers(read::read(cell, offset, buffers, Passage::new(flags, by)).await),
        Operation::Write {
            offset,
            buffers,
            flags,
        } => with_buffers(write::write(cell, offset, buffers, Passage::new(flags, by)).await),
        Operation::WriteZeroes { range, flags } => {
            done(Box::pin(zeroes::write_zeroes(cell, range, Passage::new(flags, by))).await)
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
        Operation::BlockStatus { .. } | Operation::Map { .. } => Box::pin(tell(cell, operation)).await,
        Operation::Copy(request) => done(
            Box::pin(copy_range::copy(
                cell,
                request,
                Passage::new(RequestFlags::empty(), by),
            ))
            .await,
        ),
        Operation::Snapshot(request) => Box::pin(snapshot::snapshot(cell, request)).await,
        Operation::Mirror(request) => Box::pin(snapshot::mirror(cell, request)).await,
        Operation::Length => bytes(length::length(cell, by).await),
        Operation::AllocatedSize => bytes(Box::pin(length::allocated_size(cell)).await),
    }
}

/// Tells what a range is made of.
async fn tell(cell: &Rc<NodeCell>, operation: Operation<Buffers>) -> Outcome<Buffers> {
    // Nothing can be said of an image that another process may be changing.
    if cell.flags().contains(OpenFlags::INACTIVE) {
        return Outcome::plain(Err(IoError::NotPermitted));
    }
    let told = match operation {
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
            status::block_status(cell, range, wanted).await.map(Value::Status)
        }
        Operation::Map {
            range,
            want_zero,
            whole_chain,
        } => {
            let wanted = status::Wanted {
                zero: want_zero,
                whole_chain,
                base: None,
            };
            map::map(cell, range, wanted).await.map(Value::Map)
        }
        _ => Err(IoError::Invalid),
    };
    Outcome::plain(told)
}

fn bytes(result: IoResult<u64>) -> Outcome<Buffers> {
    Outcome::plain(result.map(Value::Bytes))
}
