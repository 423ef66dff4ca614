//! Requests in one step: most reads and writes find their place without waiting for anything, and are then with a driver
//! that either has ended them too or will.
//!
//! What is here must come to the same as [`execute`](super::execute), which takes whatever this does not. It spares the
//! states that a request keeps across waits, which it has none of.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use millpond_drivers::api::{Answer, Driver, Ticket, Transfer};
use millpond_messages::io::{Operation, OperationKind, Outcome};
use millpond_messages::{NodeId, OpenFlags, Range, RequestFlags};
use millpond_ring::buffer::Buffers;
use smallvec::SmallVec;

use super::read::{Found, Way, resolve_at_once};
use super::write::{Destination, Path, Placed, go_on, place_at_once};
use super::{
    By, Passed, aligned, bytes_in, check_within, check_write, in_memory, pass, probed, with_buffers,
};
use crate::iothread::now_ns;
use crate::node::cell::node::NodeCell;
use crate::node::gate::overlap::Tracking;
use crate::node::gate::statistics::Asked;
use crate::node::order::mail::DetectZeroes;

/// What came of a request in one step.
pub enum Step {
    /// The request has ended with this.
    Ended(Outcome<Buffers>),
    /// A driver is at work on it.
    Transfer(Transferring),
    /// It takes more than a step. Nothing has happened yet.
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
    /// Nodes that it passes, and is counted at; with the end of the write in those that it wrote to.
    passed: Passed,
    /// What keeps the range where it was found.
    held: SmallVec<[Tracking; 1]>,
}

impl Transferring {
    /// The node whose driver has it.
    pub fn stands_at(&self) -> NodeId {
        self.stands_at
    }

    /// The end, once it has come.
    pub fn poll(&mut self, context: &mut Context<'_>) -> Poll<Outcome<Buffers>> {
        Pin::new(&mut self.answer)
            .poll(context)
            .map(|transfer| self.ending.reach(transfer, now_ns()))
    }
}

impl Ending {
    fn reach(&mut self, transfer: Transfer, now_ns: u64) -> Outcome<Buffers> {
        let failed = transfer.0.is_err();
        for (node, end) in self.passed.drain(..) {
            if end > 0 {
                node.ended_write(end, transfer.0);
            }
            node.counters().count(self.asked, now_ns, failed);
        }
        self.held.clear();
        with_buffers(transfer)
    }

    fn after(mut self, answer: Answer<'static, Transfer>, stands_at: NodeId) -> Step {
        match answer {
            Answer::Ready(Some(transfer)) => Step::Ended(self.reach(transfer, self.asked.since_ns())),
            Answer::Ready(None) => unreachable!("nobody has taken a driver's answer before this"),
            answer => Step::Transfer(Transferring {
                answer,
                ending: self,
                stands_at,
            }),
        }
    }
}

/// Takes a request as far as it goes without waiting.
pub fn begin(cell: &Rc<NodeCell>, operation: Operation<Buffers>, by: By<'_>) -> Step {
    if cell.flags().contains(OpenFlags::NO_IO) {
        return Step::Later(operation);
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
        other => Step::Later(other),
    }
}

fn read(cell: &Rc<NodeCell>, offset: u64, mut buffers: Buffers, by: By<'_>) -> Step {
    let len = bytes_in(&buffers);
    let mut way = Way::default();
    let found = match Range::new(offset, len) {
        Ok(range) if len > 0 && check_within(cell, range, true, by).is_ok() => {
            resolve_at_once(cell, range, &mut way)
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
            match aligned::read_at_once(&node, offset, buffers) {
                Ok(answer) => return ending.after(answer, node.id()),
                Err(buffers) => buffers,
            }
        }
        _ => buffers,
    };
    Step::Later(Operation::Read {
        offset,
        buffers,
        flags: RequestFlags::empty(),
    })
}

fn write(cell: &Rc<NodeCell>, offset: u64, buffers: Buffers, by: By<'_>) -> Step {
    let len = bytes_in(&buffers);
    let is_plain = |range| {
        len > 0
            && check_write(cell, range, true, by).is_ok()
            && cell.settings().detect_zeroes == DetectZeroes::Off
            && !probed::concerns(cell, offset)
    };
    let mut path = Path::default();
    let placed = match Range::new(offset, len) {
        Ok(range) if is_plain(range) => place_at_once(cell, range, &mut path),
        _ => None,
    };
    let mut ending = Ending {
        asked: Asked::now(OperationKind::Write, len),
        passed: Passed::new(),
        held: SmallVec::new(),
    };
    let placed = match placed {
        Some(Ok(placed)) => placed,
        Some(Err(unusable)) => {
            pass(&mut ending.passed, Rc::clone(cell), 0);
            let nodes = path.nodes().chain([&unusable.node]);
            ending.asked.ended_below(cell, nodes, true);
            let refused = async move { (Err(unusable.settle().await), buffers) };
            return ending.after(Answer::wait(refused), cell.id());
        }
        None => {
            return Step::Later(Operation::Write {
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
            let stands_at = destination.node().id();
            let placed = Placed {
                destination,
                ..placed
            };
            // Where it goes on, the nodes below count the pieces that come to them.
            pass(&mut ending.passed, Rc::clone(cell), 0);
            let cell = Rc::clone(cell);
            let flags = RequestFlags::empty();
            let rest = async move {
                let first = Some((placed, path));
                go_on(&cell, first, offset, buffers, flags, By::USER, true).await
            };
            ending.after(Answer::wait(rest), stands_at)
        }
    }
}

/// A write by a node's own driver, and what is settled with the one that placed it there.
fn own_write(
    mut ending: Ending,
    node: Rc<NodeCell>,
    offset: u64,
    ticket: Option<(Rc<dyn Driver>, Ticket)>,
    buffers: Buffers,
) -> Step {
    let stands_at = node.id();
    let end = offset.saturating_add(bytes_in(&buffers));
    let answer = match node.driver() {
        Ok(driver) => driver.write(offset, buffers, RequestFlags::empty()),
        Err(error) => Answer::ready((Err(error), buffers)),
    };
    let answer = match ticket {
        None => {
            pass(&mut ending.passed, node, end);
            answer
        }
        Some((placed_by, ticket)) => {
            pass(&mut ending.passed, Rc::clone(&node), 0);
            Answer::wait(async move {
                let (mut result, buffers) = answer.await;
                node.ended_write(end, result);
                let settled = placed_by.settle(ticket, result).await;
                result = result.and(settled);
                (result, buffers)
            })
        }
    };
    ending.after(answer, stands_at)
}
