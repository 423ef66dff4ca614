//! `throttle`: a filter that holds requests back so that the nodes of a group together keep to its limits.

mod buckets;
mod group;
mod limits;
mod saved;
#[cfg(test)]
mod tests;
mod wait_queue;

use std::cell::RefCell;
use std::rc::Rc;

use futures_util::future::LocalBoxFuture;
use millpond_messages::graph::Options;
use millpond_messages::{ChildSlot, IoResult, Range, RequestFlags, Result};
use millpond_ring::Ring;
use millpond_ring::buffer::Buffers;

use crate::api::bytes_in;
use crate::api::reopen::check_unchanged;
use crate::api::{
    Abilities, Answer, ChildKind, Driver, DriverKind, Extent, Lifecycle, Moved, OpenRequest, Opened,
    OptionNames, PassThrough, Placement, Purpose, ReopenRequest, SavesState, Transfer, parse_options,
};
use crate::delegate;

pub use group::{Group, Groups};
pub use limits::{Direction, Limits};

use group::Member;
use wait_queue::WaitQueues;

/// The option that names the group.
const GROUP: &str = "throttle-group";

/// The driver `throttle`, whose nodes find their groups among some.
#[derive(Debug, Clone)]
pub struct ThrottleKind {
    groups: Groups,
}

impl ThrottleKind {
    /// The driver for nodes of these groups.
    #[must_use]
    pub const fn new(groups: Groups) -> Self {
        Self { groups }
    }
}

/// The options as QAPI's `BlockdevOptionsThrottle` has them.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct ThrottleOptions {
    throttle_group: String,
}

impl DriverKind for ThrottleKind {
    fn name(&self) -> &'static str {
        "throttle"
    }

    fn option_names(&self) -> OptionNames {
        OptionNames::Checked
    }

    fn children(&self) -> &'static [ChildKind] {
        &[ChildKind::FILTERED]
    }

    fn is_protocol(&self) -> bool {
        false
    }

    fn prepares_permissions(&self) -> bool {
        false
    }

    fn is_filter(&self) -> bool {
        true
    }

    fn open(&self, request: OpenRequest) -> LocalBoxFuture<'static, Result<Opened>> {
        let groups = self.groups.clone();
        Box::pin(async move {
            let below = PassThrough::to_only(request.children)?;
            let membership = Membership::new(&groups, request.options)?;
            let driver = Rc::new(Throttle {
                groups,
                current: RefCell::new(Some(Rc::new(membership))),
                prepared: RefCell::default(),
                queues: WaitQueues::default(),
                below,
                ring: request.ring,
            });
            Ok(Opened {
                driver,
                flags: request.flags,
                backing: None,
            })
        })
    }
}

/// A node's options, and the place in the group that they name.
#[derive(Debug)]
struct Membership {
    options: Options,
    member: Member,
}

impl Membership {
    fn new(groups: &Groups, options: Options) -> Result<Self> {
        let ThrottleOptions { throttle_group } = parse_options(options.clone())?;
        let member = groups.join(&throttle_group)?;
        Ok(Self { options, member })
    }
}

/// A node of the driver that is open.
struct Throttle {
    groups: Groups,
    /// Empty once the node is closed, so that the group may be removed as soon as the node is gone.
    current: RefCell<Option<Rc<Membership>>>,
    /// What a reopen has prepared.
    prepared: RefCell<Option<Membership>>,
    queues: WaitQueues,
    below: PassThrough,
    ring: Ring,
}

impl Throttle {
    /// Whether requests have to come to the driver: without limits they go straight to the child.
    fn is_limited(&self, direction: Direction) -> bool {
        let membership = self.current.borrow();
        membership
            .as_ref()
            .is_some_and(|membership| membership.member.group().is_limited(direction))
    }

    /// Waits until a request may go.
    ///
    /// # Errors
    /// It was withdrawn while it waited.
    async fn pass(&self, direction: Direction, bytes: u64) -> IoResult<()> {
        let membership = self.current.borrow().clone();
        let Some(membership) = membership else {
            return Ok(());
        };
        let group = membership.member.group();
        self.queues.pass(group, &self.ring, direction, bytes).await
    }
}

impl Driver for Throttle {
    delegate!(below: settle, flush, truncate, length, allocated_size);

    fn abilities(&self) -> Abilities {
        Abilities {
            write_compressed: true,
            ..self.below.abilities()
        }
    }

    fn locate(&self, purpose: Purpose, range: Range) -> Answer<'_, IoResult<Extent>> {
        if self.is_limited(Direction::Read) {
            self.below.locate_here(purpose, range)
        } else {
            self.below.locate(purpose, range)
        }
    }

    fn read(self: Rc<Self>, offset: u64, buffers: Buffers, flags: RequestFlags) -> Answer<'static, Transfer> {
        Answer::wait(async move {
            if let Err(withdrawn) = self.pass(Direction::Read, bytes_in(&buffers)).await {
                return (Err(withdrawn), buffers);
            }
            self.below.read(offset, buffers, flags).await
        })
    }

    fn place(&self, range: Range, flags: RequestFlags) -> Answer<'_, IoResult<Placement>> {
        if self.is_limited(Direction::Write) {
            self.below.place_here(range, flags)
        } else {
            self.below.place(range, flags)
        }
    }

    fn write(
        self: Rc<Self>,
        offset: u64,
        buffers: Buffers,
        flags: RequestFlags,
    ) -> Answer<'static, Transfer> {
        Answer::wait(async move {
            if let Err(withdrawn) = self.pass(Direction::Write, bytes_in(&buffers)).await {
                return (Err(withdrawn), buffers);
            }
            self.below.write(offset, buffers, flags).await
        })
    }

    fn write_zeroes(&self, range: Range, flags: RequestFlags) -> Answer<'_, IoResult<()>> {
        Answer::wait(async move {
            self.pass(Direction::Write, range.len()).await?;
            self.below.write_zeroes(range, flags).await
        })
    }

    fn discard(&self, range: Range) -> Answer<'_, IoResult<()>> {
        Answer::wait(async move {
            self.pass(Direction::Write, range.len()).await?;
            self.below.discard(range).await
        })
    }
}

impl Lifecycle for Throttle {
    fn quiesce(&self) -> Answer<'_, ()> {
        self.queues.set_open(true);
        Answer::ready(())
    }

    fn resume(&self) {
        self.queues.set_open(false);
    }

    fn reopen_prepare(&self, request: ReopenRequest) -> Answer<'_, Result<()>> {
        let prepare = || {
            if let Some(current) = &*self.current.borrow() {
                check_unchanged(&current.options, &request.options, &[GROUP])?;
            }
            let membership = Membership::new(&self.groups, request.options)?;
            self.prepared.replace(Some(membership));
            Ok(())
        };
        Answer::ready(prepare())
    }

    fn reopen_commit(&self) {
        let prepared = self.prepared.take();
        self.current.replace(prepared.map(Rc::new));
    }

    fn reopen_abort(&self) {
        self.prepared.take();
    }

    fn exchange_prepare(&self, _slots: &[ChildSlot]) -> Answer<'_, Result<()>> {
        // Nothing of what the children hold is kept here.
        Answer::ready(Ok(()))
    }

    fn saved_state(&self) -> Option<&dyn SavesState> {
        None
    }

    fn depart(&self) -> Moved {
        // The node is still: no request holds its membership.
        let membership = self.current.take().and_then(Rc::into_inner);
        let state = (self.groups.clone(), membership);
        Moved::new(state, |(groups, membership), children, ring| {
            Rc::new(Throttle {
                groups,
                current: RefCell::new(membership.map(Rc::new)),
                prepared: RefCell::default(),
                queues: WaitQueues::default(),
                below: PassThrough::moved(children),
                ring,
            })
        })
    }

    fn close(&self) -> Answer<'_, Result<()>> {
        self.current.take();
        Answer::ready(Ok(()))
    }
}
