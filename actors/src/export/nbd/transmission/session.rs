//! One client in the transmission phase, as its tasks share it: how its requests begin, and what goes out.

use std::cell::RefCell;
use std::rc::Rc;

use std::sync::Arc;

use millpond_drivers::api::Withdrawal;
use millpond_ring::buffer::Buffer;

use super::arena::Arena;
use super::budget::{Budget, Permit, Pool};
use super::connection::Closing;
use super::outbox::Outbox;
use super::plan::Plan;
use super::request::{Limits, Request};
use crate::export::backend::ExportedNode;
use crate::export::nbd::offer::{Offer, OfferedBitmap};
use millpond_engine::iothread::Local;
use millpond_engine::node::Begun;

/// A request that was admitted, with what it owns.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) request: Request,
    /// The data that came with a write.
    pub(super) payload: Buffer,
    pub(super) permit: Permit,
}

/// What the tasks of one connection share.
///
/// A request goes to the node in the step that took it from the socket. If the node answers in that step too, so is the
/// reply queued, and the request costs no task and no allocation; if not, a task of its own waits for the answer. How many
/// tasks there are is bounded by what one client may have in flight.
pub(super) struct Session<B> {
    pub(super) backend: B,
    /// The name that the client asked for.
    pub(super) export: String,
    /// The dirty bitmaps that it shows.
    pub(super) bitmaps: Vec<OfferedBitmap>,
    pub(super) limits: Limits,
    /// Why sending failed, if it has.
    pub(super) send_error: RefCell<Option<Closing>>,
    pub(super) budget: Rc<Budget>,
    pub(super) outbox: Outbox,
    pub(super) arena: Arena,
    /// Withdraws what only waits when the client has left.
    pub(super) withdrawal: Withdrawal,
}

impl<B: ExportedNode> Session<B> {
    pub(super) fn new(backend: B, offer: &Offer, limits: Limits, pool: &Arc<Pool>) -> Rc<Self> {
        let budget = Budget::new(pool);
        Rc::new(Self {
            backend,
            export: offer.name.clone(),
            bitmaps: offer.bitmaps.clone(),
            limits,
            send_error: RefCell::default(),
            outbox: Outbox::new(&budget),
            arena: Arena::default(),
            budget,
            withdrawal: Withdrawal::default(),
        })
    }

    /// What was sent has gone: memory is given back where nothing is in flight.
    pub(super) fn sent(&self) {
        if self.budget.is_unused() {
            self.arena.release();
        }
    }

    /// Sees to a request, up to its reply.
    pub(super) fn dispatch(self: &Rc<Self>, local: &Rc<Local>, job: Job) {
        let Job {
            request,
            payload,
            permit,
        } = job;
        tracing::trace!(?request);
        let (operation, room) = match self.plan(&request, payload) {
            Plan::One(operation, room) => (operation, room),
            Plan::Steps => {
                let session = Rc::clone(self);
                return local.spawn(async move {
                    let served = session.serve_in_steps(request, permit);
                    session.withdrawal.scoped(served).await;
                });
            }
            Plan::Refused(failure) => return self.fail(&request, failure, permit),
        };
        match self.backend.begin(operation) {
            Begun::Ended(outcome) => self.answer(&request, outcome, room, permit),
            Begun::Pending(pending) => {
                let session = Rc::clone(self);
                local.spawn(async move {
                    let outcome = session.withdrawal.scoped(pending).await;
                    session.answer(&request, outcome, room, permit);
                });
            }
        }
    }
}
