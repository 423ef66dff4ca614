//! `throttle`: a filter that holds requests back so that the nodes of a group together keep to its limits.

mod buckets;
mod group;
mod limits;
mod line;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::rc::Rc;

use futures_util::future::LocalBoxFuture;
use millpond_messages::global_state::Options;
use millpond_messages::io::{Operation, Preallocation};
use millpond_messages::{ChildSlot, Error, ErrorKind, IoError, IoResult, RequestFlags, Result, Role};

use crate::api::reopen::check_unchanged;
use crate::api::{
    Abilities, Ability, Answer, At, Child, ChildKind, Driver, DriverKind, Events, Extent, OpenRequest,
    Opened, OptionNames, Parcel, Placement, Purpose, ReopenRequest, Target, Ticket, Transfer, parse_options,
    transfer,
};
use millpond_ring::Ring;
use millpond_ring::buffer::Buffers;

pub use group::{Group, Groups};
pub use limits::{Direction, Limits};

use group::Member;
use line::Lines;

const CHILD: ChildKind = ChildKind {
    name: "file",
    role: Role::FILTERED.union(Role::PRIMARY),
    required: true,
};

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
        &[CHILD]
    }

    fn is_protocol(&self) -> bool {
        false
    }

    fn is_filter(&self) -> bool {
        true
    }

    fn open(&self, request: OpenRequest) -> LocalBoxFuture<'static, Result<Opened>> {
        let groups = self.groups.clone();
        Box::pin(async move {
            let [file]: [Child; 1] = request.children.try_into().map_err(|_| missing_file())?;
            let membership = Membership::new(&groups, request.options)?;
            let driver = Rc::new(Throttle {
                groups,
                current: RefCell::new(Some(Rc::new(membership))),
                prepared: RefCell::default(),
                lines: Lines::default(),
                file,
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

fn missing_file() -> Error {
    Error::new(ErrorKind::InvalidArgument, "Parameter 'file' is missing")
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

/// An open node.
struct Throttle {
    groups: Groups,
    /// Empty once the node is closed, so that the group may be removed as soon as the node is gone.
    current: RefCell<Option<Rc<Membership>>>,
    /// What a reopen has prepared.
    prepared: RefCell<Option<Membership>>,
    lines: Lines,
    file: Child,
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
        self.lines.pass(group, &self.ring, direction, bytes).await
    }
}

fn len_of(buffers: &Buffers) -> u64 {
    u64::try_from(buffers.len()).unwrap_or(u64::MAX)
}

impl Driver for Throttle {
    fn abilities(&self) -> Abilities {
        Abilities {
            write_zeroes: Ability::Native,
            zero_unmap: true,
            discard: Ability::Native,
            fua: Ability::Native,
            write_compressed: true,
            transparent: true,
            events: Events::Ignored,
            ..Abilities::default()
        }
    }

    fn locate(&self, purpose: Purpose, offset: u64, len: u64) -> Answer<'_, IoResult<Extent>> {
        let at = match purpose {
            Purpose::Read if self.is_limited(Direction::Read) => At::Own,
            Purpose::Read | Purpose::Status { .. } => At::Child {
                slot: ChildSlot::FILE,
                offset,
            },
        };
        Answer::ready(Ok(Extent::new(len, at)))
    }

    fn read(self: Rc<Self>, offset: u64, buffers: Buffers, flags: RequestFlags) -> Answer<'static, Transfer> {
        Answer::wait(async move {
            if let Err(withdrawn) = self.pass(Direction::Read, len_of(&buffers)).await {
                return (Err(withdrawn), buffers);
            }
            let read = Operation::Read {
                offset,
                buffers,
                flags,
            };
            transfer(self.file.request(read).await)
        })
    }

    fn place(&self, offset: u64, len: u64, _flags: RequestFlags) -> Answer<'_, IoResult<Placement>> {
        let target = if self.is_limited(Direction::Write) {
            Target::Own
        } else {
            Target::Child {
                slot: ChildSlot::FILE,
                offset,
            }
        };
        Answer::ready(Ok(Placement {
            len,
            target,
            head: 0,
            tail: 0,
            ticket: None,
        }))
    }

    fn settle(&self, _ticket: Ticket, written: IoResult<()>) -> Answer<'_, IoResult<()>> {
        Answer::ready(written)
    }

    fn write(
        self: Rc<Self>,
        offset: u64,
        buffers: Buffers,
        flags: RequestFlags,
    ) -> Answer<'static, Transfer> {
        let passed = RequestFlags::FUA | RequestFlags::WRITE_UNCHANGED | RequestFlags::WRITE_COMPRESSED;
        Answer::wait(async move {
            if let Err(withdrawn) = self.pass(Direction::Write, len_of(&buffers)).await {
                return (Err(withdrawn), buffers);
            }
            self.file.write(offset, buffers, flags & passed).await
        })
    }

    fn write_zeroes(&self, offset: u64, len: u64, flags: RequestFlags) -> Answer<'_, IoResult<()>> {
        let flags = flags.difference(RequestFlags::SERIALISING | RequestFlags::NO_WAIT);
        Answer::wait(async move {
            self.pass(Direction::Write, len).await?;
            self.file.write_zeroes(offset, len, flags).await
        })
    }

    fn discard(&self, offset: u64, len: u64) -> Answer<'_, IoResult<()>> {
        Answer::wait(async move {
            self.pass(Direction::Write, len).await?;
            self.file.discard(offset, len).await
        })
    }

    fn flush(&self) -> Answer<'_, IoResult<()>> {
        // The node flushes the child afterwards.
        Answer::ready(Ok(()))
    }

    fn truncate(
        &self,
        size: u64,
        exact: bool,
        preallocation: Preallocation,
        flags: RequestFlags,
    ) -> Answer<'_, Result<()>> {
        Answer::wait(self.file.resize(size, exact, preallocation, flags))
    }

    fn length(&self) -> Answer<'_, IoResult<u64>> {
        Answer::wait(self.file.length())
    }

    fn allocated_size(&self) -> Answer<'_, IoResult<u64>> {
        Answer::ready(Err(IoError::NotSupported))
    }

    fn quiesce(&self) -> Answer<'_, ()> {
        self.lines.set_open(true);
        Answer::ready(())
    }

    fn resume(&self) {
        self.lines.set_open(false);
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

    fn depart(&self) -> Box<dyn Parcel> {
        Box::new(Travelling {
            groups: self.groups.clone(),
            // The node is still: no request holds it.
            membership: self.current.take().and_then(Rc::into_inner),
        })
    }

    fn close(&self) -> Answer<'_, Result<()>> {
        self.current.take();
        Answer::ready(Ok(()))
    }
}

/// A node between iothreads.
struct Travelling {
    groups: Groups,
    membership: Option<Membership>,
}

impl Parcel for Travelling {
    fn arrive(self: Box<Self>, children: Vec<Child>, ring: Ring) -> Rc<dyn Driver> {
        let file = children.into_iter().next();
        // The graph carries the edges along with the driver, so the one edge there was is there again.
        let file = file.unwrap_or_else(|| unreachable!("a throttle node lost its edge while moving"));
        Rc::new(Throttle {
            groups: self.groups,
            current: RefCell::new(self.membership.map(Rc::new)),
            prepared: RefCell::default(),
            lines: Lines::default(),
            file,
            ring,
        })
    }
}
