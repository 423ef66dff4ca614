//! `preallocate`: a filter that makes the file longer ahead of the writes that need it.
//!
//! It goes between a format and its file. Where a write is beyond the file's end, the file is grown by more than that write
//! needs, so that the file system finds the space once for many writes. The node shows the length without it, and takes
//! back what was not used when nobody may write any more. That takes the right to write and resize for itself alone, so the
//! filter does nothing for users without both.

mod ends;
mod node;
mod options;
mod saved;

use std::rc::Rc;

use futures_util::future::LocalBoxFuture;
use millpond_messages::io::Preallocation;
use millpond_messages::{ChildSlot, Error, IoResult, Permissions, Range, RequestFlags, Result};
use millpond_ring::buffer::Buffers;

use crate::api::bytes_in;
use crate::api::reopen::check_kept;
use crate::api::{
    Abilities, Answer, ChildKind, Driver, DriverKind, EdgeUse, Exchanged, Lifecycle, Moved, OpenRequest,
    Opened, OptionNames, PassThrough, ReopenRequest, SavesState, Transfer,
};
use crate::delegate;
use ends::Ends;
use node::{Pending, Preallocate};
use options::Room;

/// What a user must be allowed for the file to be grown ahead.
const GROWS: Permissions = Permissions::WRITE.union(Permissions::RESIZE);

/// The driver `preallocate`, which grows a file ahead.
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
        &[ChildKind::FILTERED]
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
            let below = PassThrough::to_only(request.children)?;
            let alignment = below.child().limits().request_alignment;
            let room = Room::parse(request.options.clone(), alignment)?;
            Ok(Opened {
                driver: Rc::new(Preallocate::new(request.options, room, below, None)),
                flags: request.flags,
                backing: None,
            })
        })
    }
}

impl Driver for Preallocate {
    delegate!(below: locate, read, place_here, settle, discard, flush, allocated_size);

    fn abilities(&self) -> Abilities {
        self.below.abilities()
    }

    fn write(
        self: Rc<Self>,
        offset: u64,
        buffers: Buffers,
        flags: RequestFlags,
    ) -> Answer<'static, Transfer> {
        Answer::wait(async move {
            let end = offset.saturating_add(bytes_in(&buffers));
            self.make_room(offset, end, false).await;
            let _counted = self.begin_write(end);
            self.below.write(offset, buffers, flags).await
        })
    }

    fn write_zeroes(&self, range: Range, flags: RequestFlags) -> Answer<'_, IoResult<()>> {
        let plain = RequestFlags::ZERO_WRITE
            | RequestFlags::NO_FALLBACK
            | RequestFlags::SERIALISING
            | RequestFlags::NO_WAIT;
        // What asks for more than zeroes gets it.
        let is_plain = (flags - plain).is_empty();
        Answer::wait(async move {
            let end = range.end();
            if self.make_room(range.offset(), end, is_plain).await {
                return Ok(());
            }
            let _counted = self.begin_write(end);
            self.below.write_zeroes(range, flags).await
        })
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
            None => Answer::wait(self.below.length()),
        }
    }
}

impl Lifecycle for Preallocate {
    fn permissions_prepare(&self, taken: Permissions, _shared: Permissions) -> Answer<'_, Result<()>> {
        let grows = taken.contains(GROWS);
        if grows == self.ends.get().is_some() {
            self.pending.set(Some(Pending::Keep));
            return Answer::ready(Ok(()));
        }
        Answer::wait(async move {
            if grows {
                let length = self.file().length().await;
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
            let alignment = self.file().limits().request_alignment;
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
            let length = self.file().length().await;
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

    fn saved_state(&self) -> Option<&dyn SavesState> {
        Some(self)
    }

    fn depart(&self) -> Moved {
        // Nothing is in flight, so nothing is growing.
        let state = (self.options.borrow().clone(), self.room.get(), self.ends.get());
        Moved::new(state, |(options, room, ends), children, _| {
            let below = PassThrough::moved(children);
            Rc::new(Preallocate::new(options, room, below, ends))
        })
    }

    fn close(&self) -> Answer<'_, Result<()>> {
        Answer::wait(self.give_back())
    }
}
