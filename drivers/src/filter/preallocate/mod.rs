//! `preallocate`: a filter that makes the file longer ahead of the writes that need it.
//!
//! It goes between a format and its file. Where a write is beyond the file's end, the file is grown by more than that write
//! needs, so that the file system finds the space once for many writes. The node shows the length without it, and takes
//! back what was not used when nobody may write any more. That takes the right to write and resize for itself alone, so the
//! filter does nothing for users without both.

mod ends;
mod node;
mod options;

use std::rc::Rc;

use futures_util::future::LocalBoxFuture;
use millpond_messages::global_state::Options;
use millpond_messages::io::{Operation, Preallocation};
use millpond_messages::{
    ChildSlot, Error, ErrorKind, IoError, IoResult, Permissions, RequestFlags, Result, Role,
};

use crate::api::reopen::check_kept;
use crate::api::{
    Abilities, Ability, Answer, At, Child, ChildKind, Driver, DriverKind, EdgeUse, Exchanged, Extent,
    OpenRequest, Opened, OptionNames, Parcel, Placement, Purpose, ReopenRequest, Ticket, Transfer, transfer,
};
use crate::replica::copies::bytes_in;
use ends::Ends;
use millpond_ring::Ring;
use millpond_ring::buffer::Buffers;
use node::{Pending, Preallocate};
use options::Room;

const CHILD: ChildKind = ChildKind {
    name: "file",
    role: Role::FILTERED.union(Role::PRIMARY),
    required: true,
};

/// What a user must be allowed for the file to be grown ahead.
const GROWS: Permissions = Permissions::WRITE.union(Permissions::RESIZE);

/// The driver `preallocate`.
#[derive(Debug, Clone, Copy, Default)]
pub struct PreallocateKind;

impl DriverKind for PreallocateKind {
    fn name(&self) -> &'static str {
        "preallocate"
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

    /// Nobody else may change the length while the node knows it.
    fn child_permissions(&self, edge: EdgeUse<'_>) -> (Permissions, Permissions) {
        let (mut taken, mut shared) = millpond_messages::child_permissions(
            edge.role,
            edge.taken,
            edge.shared,
            edge.writable,
            edge.force_share,
        );
        if taken.contains(GROWS) {
            taken |= Permissions::CONSISTENT_READ;
            shared -= GROWS;
        }
        (taken, shared)
    }

    fn open(&self, request: OpenRequest) -> LocalBoxFuture<'static, Result<Opened>> {
        Box::pin(async move {
            let [file]: [Child; 1] = request
                .children
                .try_into()
                .map_err(|_| Error::new(ErrorKind::InvalidArgument, "Parameter 'file' is missing"))?;
            let room = Room::parse(request.options.clone(), file.limits().request_alignment)?;
            Ok(Opened {
                driver: Rc::new(Preallocate::new(request.options, room, file, None)),
                flags: request.flags,
                backing: None,
            })
        })
    }
}

impl Driver for Preallocate {
    fn abilities(&self) -> Abilities {
        Abilities {
            write_zeroes: Ability::Native,
            zero_unmap: true,
            discard: Ability::Native,
            fua: Ability::Native,
            transparent: true,
            ..Abilities::default()
        }
    }

    fn locate(&self, _purpose: Purpose, offset: u64, len: u64) -> Answer<'_, IoResult<Extent>> {
        let slot = ChildSlot::FILE;
        Answer::ready(Ok(Extent::new(len, At::Child { slot, offset })))
    }

    fn read(
        self: Rc<Self>,
        _offset: u64,
        buffers: Buffers,
        _flags: RequestFlags,
    ) -> Answer<'static, Transfer> {
        // Nothing is said to be here.
        Answer::ready((Err(IoError::NotSupported), buffers))
    }

    fn place(&self, _offset: u64, len: u64, _flags: RequestFlags) -> Answer<'_, IoResult<Placement>> {
        Answer::ready(Ok(Placement::own(len)))
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
        let flags = flags & (RequestFlags::FUA | RequestFlags::WRITE_UNCHANGED);
        Answer::wait(async move {
            let end = offset.saturating_add(bytes_in(&buffers));
            self.make_room(offset, end, false).await;
            let _counted = self.begin_write(end);
            let write = Operation::Write {
                offset,
                buffers,
                flags,
            };
            transfer(self.file.request(write).await)
        })
    }

    fn write_zeroes(&self, offset: u64, len: u64, flags: RequestFlags) -> Answer<'_, IoResult<()>> {
        let flags = flags.difference(RequestFlags::SERIALISING | RequestFlags::NO_WAIT);
        // What asks for more than zeroes gets it.
        let is_plain = (flags - RequestFlags::ZERO_WRITE - RequestFlags::NO_FALLBACK).is_empty();
        Answer::wait(async move {
            let end = offset.saturating_add(len);
            if self.make_room(offset, end, is_plain).await {
                return Ok(());
            }
            let _counted = self.begin_write(end);
            self.file.write_zeroes(offset, len, flags).await
        })
    }

    fn discard(&self, offset: u64, len: u64) -> Answer<'_, IoResult<()>> {
        Answer::wait(self.file.discard(offset, len))
    }

    fn flush(&self) -> Answer<'_, IoResult<()>> {
        // The node flushes the child.
        Answer::ready(Ok(()))
    }

    fn truncate(
        &self,
        size: u64,
        exact: bool,
        preallocation: Preallocation,
        flags: RequestFlags,
    ) -> Answer<'_, Result<()>> {
        Answer::wait(self.resize(size, exact, preallocation, flags))
    }

    fn length(&self) -> Answer<'_, IoResult<u64>> {
        match self.ends.get() {
            Some(ends) => Answer::ready(Ok(ends.data)),
            None => Answer::wait(self.file.length()),
        }
    }

    fn allocated_size(&self) -> Answer<'_, IoResult<u64>> {
        Answer::ready(Err(IoError::NotSupported))
    }

    fn permissions_prepare(&self, taken: Permissions, _shared: Permissions) -> Answer<'_, Result<()>> {
        let grows = taken.contains(GROWS);
        if grows == self.ends.get().is_some() {
            self.pending.set(Some(Pending::Keep));
            return Answer::ready(Ok(()));
        }
        Answer::wait(async move {
            if grows {
                let length = self.file.length().await;
                let length = length.map_err(|error| Error::io("Failed to get file length", error))?;
                self.pending.set(Some(Pending::Begin(Ends::of(length))));
                return Ok(());
            }
            self.leaving.set(true);
            if let Err(error) = self.give_back().await {
                tracing::warn!(%error, "what was preallocated stays in the file");
            }
            self.pending.set(Some(Pending::Forget));
            Ok(())
        })
    }

    fn permissions_commit(&self) {
        self.leaving.set(false);
        match self.pending.take() {
            None | Some(Pending::Keep) => {}
            Some(Pending::Begin(ends)) => self.ends.set(Some(ends)),
            Some(Pending::Forget) => self.ends.set(None),
        }
    }

    fn permissions_abort(&self) {
        self.leaving.set(false);
        self.pending.set(None);
    }

    fn reopen_prepare(&self, request: ReopenRequest) -> Answer<'_, Result<()>> {
        Answer::wait(async move {
            check_kept(&self.options.borrow(), &request.options, &[])?;
            let alignment = self.file.limits().request_alignment;
            let room = Room::parse(request.options.clone(), alignment)?;
            if request.flags.is_read_only() {
                // The child may be read-only too by the time the permission to resize it goes.
                self.leaving.set(true);
                self.give_back().await?;
            }
            self.reopening.replace(Some((request.options, room)));
            Ok(())
        })
    }

    fn reopen_commit(&self) {
        self.leaving.set(false);
        if let Some((options, room)) = self.reopening.take() {
            self.options.replace(options);
            self.room.set(room);
        }
    }

    fn reopen_abort(&self) {
        self.leaving.set(false);
        self.reopening.take();
    }

    fn invalidate(&self) -> Answer<'_, Result<()>> {
        if self.ends.get().is_none() {
            return Answer::ready(Ok(()));
        }
        Answer::wait(async move {
            let length = self.file.length().await;
            let length = length.map_err(|error| Error::io("Failed to get file length", error))?;
            self.ends.set(Some(Ends::of(length)));
            Ok(())
        })
    }

    fn exchange_prepare(&self, _slots: &[ChildSlot]) -> Answer<'_, Result<()>> {
        Answer::wait(self.give_back())
    }

    fn exchange(self: Rc<Self>, _slots: &[ChildSlot]) -> Answer<'static, Result<Exchanged>> {
        Answer::wait(self.learn_other_file())
    }

    fn depart(&self) -> Box<dyn Parcel> {
        Box::new(Travelling {
            options: self.options.borrow().clone(),
            room: self.room.get(),
            ends: self.ends.get(),
        })
    }

    fn close(&self) -> Answer<'_, Result<()>> {
        Answer::wait(self.give_back())
    }
}

/// A node between iothreads. Nothing is in flight, so nothing is growing.
struct Travelling {
    options: Options,
    room: Room,
    ends: Option<Ends>,
}

impl Parcel for Travelling {
    fn arrive(self: Box<Self>, children: Vec<Child>, _ring: Ring) -> Rc<dyn Driver> {
        let file = children.into_iter().next();
        // The graph carries the edges along with the driver, so the one edge there was is there again.
        let file = file.unwrap_or_else(|| unreachable!("a preallocate node lost its edge while moving"));
        Rc::new(Preallocate::new(self.options, self.room, file, self.ends))
    }
}
