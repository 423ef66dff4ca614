//! Copies from file to file of the host, in which no byte passes a buffer: which file a node's bytes are in, and a write
//! whose bytes are in one.
//!
//! Both follow the ways of reads and writes to the driver that has the file. Whatever is in the way of that (a form that must
//! be unpacked, zeroes that nobody stores, old bytes to be copied along, blocks of direct storage) is `NotSupported`: then
//! the bytes have to be read and written.

use std::rc::Rc;

use millpond_drivers::api::Driver;
use millpond_messages::io::{CopyRequest, Operation, OperationKind};
use millpond_messages::{CopySource, IoError, IoResult, Lender, Range, RequestFlags};

use super::elsewhere::send_there;
use super::passage::{By, Passage};
use super::passed::{ended_below, nodes};
use super::place::{Destination, Gathered, Placed};
use super::read::{Found, Way, resolve};
use super::{flush, probed, write};
use crate::node::cell::node::NodeCell;
use crate::node::gate::statistics::Asked;
use crate::node::order::outcome::DetectZeroes;

/// Carries out a request that was checked.
pub async fn copy(cell: &Rc<NodeCell>, request: CopyRequest, passage: Passage<'_>) -> IoResult<()> {
    match request {
        CopyRequest::Out(lender) => lend(cell, lender, passage).await,
        CopyRequest::In { range, source, flags } => {
            let durable = flags.contains(RequestFlags::FUA);
            take_in(cell, range, source, passage.with(flags - RequestFlags::FUA)).await?;
            match durable {
                true => flush::flush(cell).await,
                false => Ok(()),
            }
        }
    }
}

/// Lends the start of a range, which keeps what a read of it would hold until it is given back.
async fn lend(cell: &Rc<NodeCell>, lender: Lender, passage: Passage<'_>) -> IoResult<()> {
    let range = lender.range();
    let mut way = Way::default();
    let asked = Asked::now(OperationKind::Read, range.len());
    let wanted = (range.offset(), range.len());
    let lent = match resolve(cell, wanted, passage, &mut way).await {
        Ok((len, found)) => lend_found(found, len, lender, passage.by).await,
        Err(error) => Err(error),
    };
    lent.map(|len| ended_below(asked.cut(len), cell, nodes(&way.passed), false))
}

/// Answers how many bytes were lent.
async fn lend_found(found: Found, len: u64, lender: Lender, by: By<'_>) -> IoResult<u64> {
    match found {
        Found::Here { node, offset } => {
            let source = node.driver()?.device().copy_source(Range::new(offset, len)?);
            let source = source.ok_or(IoError::NotSupported)?;
            by.stands_at(&node);
            lender.lend(source, len).await;
            Ok(len)
        }
        Found::There { address, offset } => {
            let lender = lender.moved_to(Range::new(offset, len)?);
            let lent = send_there(&address, Operation::Copy(CopyRequest::Out(lender))).await;
            lent.into_done().map(|()| len)
        }
        Found::Zero | Found::Copied { .. } => Err(IoError::NotSupported),
    }
}

/// Writes what lies in a file of the host to a range, part by part.
async fn take_in(
    cell: &Rc<NodeCell>,
    range: Range,
    mut source: CopySource,
    passage: Passage<'_>,
) -> IoResult<()> {
    let mut rest = range;
    while !rest.is_empty() {
        if !takes_as_it_is(cell, rest.offset()) {
            return Err(IoError::NotSupported);
        }
        let asked = Asked::now(OperationKind::Write, rest.len());
        let (placed, path) = write::place_next(cell, (rest.offset(), rest.len()), passage, asked).await?;
        let len = placed.len;
        let own = placed.destination.own().cloned();
        let result = store(placed, source.clone(), passage.by).await;
        ended_below(asked.cut(len), cell, path.nodes().chain(&own), result.is_err());
        for passed in &path.passed {
            passed.write_done(len, result);
        }
        result?;
        source.offset = source.offset.checked_add(len).ok_or(IoError::OutOfRange)?;
        rest = rest.after(len);
    }
    Ok(())
}

/// Whether nobody wants to see the bytes that are written to the node.
fn takes_as_it_is(node: &NodeCell, offset: u64) -> bool {
    !node.observes() && node.settings().detect_zeroes == DetectZeroes::Off && !probed::concerns(node, offset)
}

async fn store(placed: Placed, source: CopySource, by: By<'_>) -> IoResult<()> {
    let mut result = match placed.destination {
        Destination::Own { node, offset } => {
            by.stands_at(&node);
            store_here(&node, offset, placed.len, source).await
        }
        Destination::Child(gathered) => {
            by.stands_at(&gathered.node);
            pass_on(&gathered, placed.len, source, placed.flags).await
        }
    };
    if let Some((driver, ticket)) = placed.ticket {
        let settled = driver.settle(ticket, result).await;
        result = result.and(settled);
    }
    result
}

/// Has a node's own driver copy. A node that writes whole blocks would have to keep others from them meanwhile.
async fn store_here(node: &Rc<NodeCell>, offset: u64, len: u64, source: CopySource) -> IoResult<()> {
    let range = Range::new(offset, len)?;
    if node.tracks_blocks() || !takes_as_it_is(node, offset) {
        return Err(IoError::NotSupported);
    }
    let driver = node.driver()?;
    let result = copy_all(&*driver, range, source).await;
    node.write_done(range, result);
    result
}

async fn copy_all(driver: &dyn Driver, range: Range, mut source: CopySource) -> IoResult<()> {
    let mut rest = range;
    while !rest.is_empty() {
        let copied = rest.first(driver.device().copy_from(source.clone(), rest).await?);
        if copied.is_empty() {
            return Err(IoError::NotSupported);
        }
        source.offset = source
            .offset
            .checked_add(copied.len())
            .ok_or(IoError::OutOfRange)?;
        rest = rest.after(copied.len());
    }
    Ok(())
}

/// Sends the write over an edge, unless old bytes would have to be copied along.
async fn pass_on(gathered: &Gathered, len: u64, source: CopySource, flags: RequestFlags) -> IoResult<()> {
    if gathered.head > 0 || gathered.tail > 0 {
        return Err(IoError::NotSupported);
    }
    let range = Range::new(gathered.offset, len)?;
    let edge = gathered.node.edge(gathered.slot).ok_or(IoError::NoMedium)?;
    let request = CopyRequest::In { range, source, flags };
    edge.pass_down(Operation::Copy(request)).await.into_done()
}
