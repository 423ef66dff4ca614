//! Requests in one step: most reads and writes find their place without waiting for anything, and are then with a driver
//! that either has ended them too or will.
//!
//! The fast path must come to the same as [`execute`](super::execute), which takes whatever it does not. It has no waits,
//! and so is spared the state that a request keeps across them.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use millpond_drivers::api::{AllocationTicket, Answer, Driver, Transfer};
use millpond_messages::io::{Operation, OperationKind, Outcome};
use millpond_messages::{NodeId, OpenFlags, Range, RequestFlags};
use millpond_ring::buffer::Buffers;
use smallvec::SmallVec;

use super::check::{check_within, check_write};
use super::passage::{By, Passage};
use super::passed::{Passed, ended_below, pass, pass_writing};
use super::place::{Destination, Path, Placed, Unusable, place_now};
use super::read::{Found, Way, resolve_now};
use super::request::{bytes_in, in_memory, with_buffers};
use super::write::go_on;
use super::{aligned, probed};
use crate::iothread::now_ns;
use crate::node::cell::node::NodeCell;
use crate::node::gate::overlap::Tracking;
use crate::node::gate::statistics::Asked;
use crate::node::order::outcome::DetectZeroes;

/// What came of attempting a request in one step.
pub enum Attempt {
    /// The request has ended with this.
    Ended(Outcome<Buffers>),
    /// A driver is at work on it.
    Transfer(Transferring),
    /// The request takes more than a step. Nothing has happened yet.
    Later(Operation<Buffers>),
}

/// A read or write that is with a driver.
pub struct Transferring {
    answer: Answer<'static, Transfer>,
    ending: Ending,
    stands_at: NodeId,
}

/// What is to be done when a transfer ends.
struct Ending {
    asked: Asked,
    /// The nodes that it passes: each counts it, and those that it writes to are told of that.
    passed: Passed,
    /// The trackings that keep the range where it was found.
    held: SmallVec<[Tracking; 1]>,
}

impl Transferring {
    /// The node whose driver is at work on it.
    pub fn stands_at(&self) -> NodeId {
        self.stands_at
    }
}

impl Future for Transferring {
    type Output = Outcome<Buffers>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Outcome<Buffers>> {
        let transfer = ready!(Pin::new(&mut self.answer).poll(context));
        Poll::Ready(self.ending.reach(transfer, now_ns()))
    }
}

impl Ending {
    fn reach(&mut self, transfer: Transfer, now_ns: u64) -> Outcome<Buffers> {
        let failed = transfer.0.is_err();
        for passed in self.passed.drain(..) {
            passed.write_done(self.asked.len(), transfer.0);
            passed.node.counters().count(self.asked, now_ns, failed);
        }
        self.held.clear();
        with_buffers(transfer)
    }

    fn after(mut self, answer: Answer<'static, Transfer>, stands_at: NodeId) -> Attempt {
        match answer {
            Answer::Ready(Some(transfer)) => Attempt::Ended(self.reach(transfer, self.asked.since_ns())),
            Answer::Ready(None) => unreachable!("nobody has taken a driver's answer before this"),
            answer => Attempt::Transfer(Transferring {
                answer,
                ending: self,
                stands_at,
            }),
        }
    }
}

#[cfg(test)]
thread_local! {
    static OFF: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Has this iothread take the slow path only, to hold the two against each other.
#[cfg(test)]
pub fn set_off(off: bool) {
    OFF.set(off);
}

/// Takes a request as far as it goes without waiting.
pub fn begin(cell: &Rc<NodeCell>, operation: Operation<Buffers>, by: By<'_>) -> Attempt {
    #[cfg(test)]
    if OFF.get() {
        return Attempt::Later(operation);
    }
    if cell.flags().contains(OpenFlags::NO_IO) {
        return Attempt::Later(operation);
    }
    match operation {
        Operation::Read {
            offset,
            buffers,
            flags,
        } if flags.is_empty() => read(cell, offset, buffers, by),
        Operation::Write {
            offset,
            buffers,
            flags,
        } if flags.is_empty() => write(cell, offset, buffers, by),
        other => Attempt::Later(other),
    }
}

fn read(cell: &Rc<NodeCell>, offset: u64, mut buffers: Buffers, by: By<'_>) -> Attempt {
    let len = bytes_in(&buffers);
    let mut way = Way::default();
    let found = match Range::new(offset, len) {
        Ok(range) if len > 0 && check_within(cell, range, true, by).is_ok() => {
            resolve_now(cell, range, &mut way)
        }
        _ => None,
    };
    let ending = Ending {
        asked: Asked::now(OperationKind::Read, len),
        passed: way.passed,
        held: way.held,
    };
    let buffers = match found {
        Some((within, Found::Zero)) if within >= len => {
            buffers.fill_zero(0..in_memory(len));
            return ending.after(Answer::ready((Ok(()), buffers)), cell.id());
        }
        Some((within, Found::Here { node, offset })) if within >= len => {
            match aligned::read_now(&node, offset, buffers) {
                Ok(answer) => return ending.after(answer, node.id()),
                Err(buffers) => buffers,
            }
        }
        _ => buffers,
    };
    Attempt::Later(Operation::Read {
        offset,
        buffers,
        flags: RequestFlags::empty(),
    })
}

fn write(cell: &Rc<NodeCell>, offset: u64, buffers: Buffers, by: By<'_>) -> Attempt {
    let len = bytes_in(&buffers);
    let mut path = Path::default();
    let placed = match Range::new(offset, len) {
        Ok(range) if is_plain_write(cell, range, by) => place_now(cell, range, &mut path),
        _ => None,
    };
    let mut ending = Ending {
        asked: Asked::now(OperationKind::Write, len),
        passed: Passed::new(),
        held: SmallVec::new(),
    };
    let placed = match placed {
        Some(Ok(placed)) => placed,
        Some(Err(unusable)) => return refuse(ending, cell, (unusable, path), buffers),
        None => {
            return Attempt::Later(Operation::Write {
                offset,
                buffers,
                flags: RequestFlags::empty(),
            });
        }
    };
    let ready = match &placed.destination {
        Destination::Own { node, offset } if placed.len >= len => {
            aligned::ready_to_write(node, *offset, &buffers)
        }
        _ => None,
    };
    match (ready, placed.destination) {
        (Some(tracking), Destination::Own { node, offset: at }) => {
            ending.passed = path.passed;
            ending.held = path.held;
            ending.held.extend(tracking);
            own_write(ending, node, at, placed.ticket, buffers)
        }
        (_, destination) => {
            let placed = Placed {
                destination,
                ..placed
            };
            write_on(ending, cell, (placed, path), offset, buffers)
        }
    }
}

/// Whether nothing but the drivers on the way has a say in where a write goes.
fn is_plain_write(cell: &NodeCell, range: Range, by: By<'_>) -> bool {
    !range.is_empty()
        && check_write(cell, range, true, by).is_ok()
        && cell.settings().detect_zeroes == DetectZeroes::Off
        && !probed::concerns(cell, range.offset())
}

/// A write whose placement cannot be used.
fn refuse(
    mut ending: Ending,
    cell: &Rc<NodeCell>,
    (unusable, path): (Unusable, Path),
    buffers: Buffers,
) -> Attempt {
    pass(&mut ending.passed, Rc::clone(cell));
    let nodes = path.nodes().chain([&unusable.node]);
    ended_below(ending.asked, cell, nodes, true);
    let refused = async move { (Err(unusable.settle().await), buffers) };
    ending.after(Answer::wait(refused), cell.id())
}

/// A write of which the first part has its place, and which takes more than that.
fn write_on(
    mut ending: Ending,
    cell: &Rc<NodeCell>,
    first: (Placed, Path),
    offset: u64,
    buffers: Buffers,
) -> Attempt {
    let stands_at = first.0.destination.node().id();
    // Where it goes on, the nodes below count the pieces that come to them.
    pass(&mut ending.passed, Rc::clone(cell));
    let cell = Rc::clone(cell);
    let passage = Passage::new(RequestFlags::empty(), By::USER);
    let rest = async move { go_on(&cell, Some(first), offset, buffers, passage).await };
    ending.after(Answer::wait(rest), stands_at)
}

/// A write by a node's own driver, and what is settled with the one that placed it there.
fn own_write(
    mut ending: Ending,
    node: Rc<NodeCell>,
    offset: u64,
    ticket: Option<(Rc<dyn Driver>, AllocationTicket)>,
    buffers: Buffers,
) -> Attempt {
    let stands_at = node.id();
    let len = bytes_in(&buffers);
    let answer = match node.driver() {
        Ok(driver) => driver.write(offset, buffers, RequestFlags::empty()),
        Err(error) => Answer::ready((Err(error), buffers)),
    };
    let answer = match ticket {
        None => {
            pass_writing(&mut ending.passed, node, offset);
            answer
        }
        Some((placed_by, ticket)) => {
            pass(&mut ending.passed, Rc::clone(&node));
            Answer::wait(async move {
                let (mut result, buffers) = answer.await;
                if let Ok(range) = Range::new(offset, len) {
                    node.write_done(range, result);
                }
                let settled = placed_by.settle(ticket, result).await;
                result = result.and(settled);
                (result, buffers)
            })
        }
    };
    ending.after(answer, stands_at)
}
