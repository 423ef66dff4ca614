//! Copies between two nodes whose bytes lie in files of the host: the kernel copies them, or has both files share them.

use std::cell::Cell;

use futures_util::future::join;
use millpond_messages::io::{CopyFault, CopyRequest, Operation, Outcome};
use millpond_messages::{IoError, Loan, Range, RequestFlags, lending};

use millpond_ring::buffer::Buffers;

use super::copies::{Ranges, Use};
use crate::api::Child;

/// A node that can be sent requests.
pub trait Asked {
    /// Sends the node a request of any kind.
    fn ask(&self, operation: Operation<Buffers>) -> impl Future<Output = Outcome<Buffers>>;

    /// Whether a request that is sent in this step does not wait for the end of a drained section. Bytes that were lent must not:
    /// who has lent them may be part of that section.
    fn takes_now(&self) -> bool;
}

impl Asked for Child {
    fn ask(&self, operation: Operation<Buffers>) -> impl Future<Output = Outcome<Buffers>> {
        self.request(operation)
    }

    fn takes_now(&self) -> bool {
        true
    }
}

/// Whether such copies are made.
pub struct Offload {
    is_on: Cell<bool>,
    /// A place for each copy that is made: one that the kernel is busy with, and one that it goes on with. More would keep the
    /// guest's writes from the file.
    places: Ranges,
    next_place: Cell<u64>,
}

/// How many places there are.
const PLACES: u64 = 2;

impl Offload {
    /// They are made until a target refuses one, or never.
    #[must_use]
    pub fn new(is_on: bool) -> Self {
        Self {
            is_on: Cell::new(is_on),
            places: Ranges::default(),
            next_place: Cell::new(0),
        }
    }

    /// Whether they are made still.
    pub const fn is_on(&self) -> bool {
        self.is_on.get()
    }

    /// Copies a range; answers whether all of it was copied. If not, any part of it may have been, and it has to be read and
    /// written: that shows what is wrong. No part that is cut is smaller than `chunk`, which a target may have to fill.
    pub async fn copy<T: Asked>(&self, ends: [&T; 2], range: Range, chunk: u64) -> bool {
        let mut rest = range;
        while self.is_on() && !rest.is_empty() {
            let place = self.next_place.get();
            self.next_place.set((place + 1) % PLACES);
            let turn = self.places.hold(place, 1, Use::Write).await;
            // Another copy may have found out meanwhile that the target refuses them.
            if !self.is_on() {
                return false;
            }
            let copied = copy_start(ends, rest, chunk).await;
            drop(turn);
            match copied {
                Ok(len) => rest = rest.after(len),
                Err(fault) => {
                    // A source may well refuse one range, such as a compressed one, and not the next.
                    if fault == CopyFault::Target(IoError::NotSupported) {
                        self.is_on.set(false);
                    }
                    return false;
                }
            }
        }
        rest.is_empty()
    }
}

/// Copies the start of a range; answers how many bytes.
async fn copy_start<T: Asked>([source, target]: [&T; 2], range: Range, chunk: u64) -> Result<u64, CopyFault> {
    let (lender, loan) = lending(range);
    let lent = source.ask(Operation::Copy(CopyRequest::Out(lender)));
    let copied = async {
        let loan = loan.await.map_err(|_| CopyFault::Source(IoError::NotSupported))?;
        take(target, range, loan, chunk).await
    };
    let (lent, copied) = join(lent, copied).await;
    lent.into_done().map_err(CopyFault::Source)?;
    copied
}

async fn take<T: Asked>(target: &T, range: Range, loan: Loan, chunk: u64) -> Result<u64, CopyFault> {
    let len = match loan.len >= range.len() {
        true => range.len(),
        false => loan.len / chunk * chunk,
    };
    if len == 0 || !target.takes_now() {
        return Err(CopyFault::Source(IoError::NotSupported));
    }
    let request = CopyRequest::In {
        range: range.first(len),
        source: loan.source.clone(),
        flags: RequestFlags::empty(),
    };
    let taken = target.ask(Operation::Copy(request)).await.into_done();
    drop(loan);
    taken.map(|()| len).map_err(CopyFault::Target)
}
