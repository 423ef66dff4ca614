//! `snapshot-access`: a read-only view of the moment that a node below keeps, such as one of `copy-before-write`.
//!
//! The node below goes on being written to by others; this one takes no permission there, and asks for nothing but the moment.

use std::rc::Rc;

use futures_util::future::LocalBoxFuture;
use millpond_messages::io::{Operation, Preallocation, SnapshotRequest};
use millpond_messages::{
    ChildSlot, IoError, IoResult, Permissions, Range, RequestFlags, Result, Role, StatusFlags,
};
use millpond_ring::buffer::Buffers;

use crate::api::reopen::not_supported;
use crate::api::{
    Abilities, Ability, AllocationTicket, Answer, At, Child, ChildKind, Driver, DriverKind, EdgeUse, Extent,
    LengthSource, Lifecycle, Moved, OpenRequest, Opened, Placement, Purpose, ReopenRequest, SavesState,
    Transfer, arrived, declared, transfer,
};

const KEEPER: ChildKind = ChildKind::file(Role::DATA.union(Role::PRIMARY));

/// The driver `snapshot-access`, which shows a moment.
#[derive(Debug, Clone, Copy, Default)]
pub struct SnapshotAccessKind;

impl DriverKind for SnapshotAccessKind {
    fn name(&self) -> &'static str {
        "snapshot-access"
    }

    fn children(&self) -> &'static [ChildKind] {
        &[KEEPER]
    }

    fn is_protocol(&self) -> bool {
        false
    }

    fn prepares_permissions(&self) -> bool {
        false
    }

    fn reopens(&self) -> bool {
        false
    }

    fn child_permissions(&self, _edge: EdgeUse<'_>) -> (Permissions, Permissions) {
        (Permissions::empty(), Permissions::all())
    }

    fn borrows_filename(&self) -> bool {
        true
    }

    fn open(&self, request: OpenRequest) -> LocalBoxFuture<'static, Result<Opened>> {
        Box::pin(async move {
            let [keeper] = declared(request.children)?;
            let node_name = request.node_name;
            Ok(Opened {
                driver: Rc::new(View { node_name, keeper }),
                flags: request.flags,
                backing: None,
            })
        })
    }
}

/// A node of the driver that is open.
struct View {
    node_name: String,
    keeper: Child,
}

impl View {
    async fn ask(&self, request: SnapshotRequest<Buffers>) -> millpond_messages::io::Outcome<Buffers> {
        self.keeper.request(Operation::Snapshot(request)).await
    }

    /// The start of a range, with what it was made of.
    async fn status(&self, range: Range) -> IoResult<Extent> {
        let status = self.ask(SnapshotRequest::Status { range }).await.into_status()?;
        let at = match status.flags.contains(StatusFlags::ZERO) {
            true => At::Zero { reserved: None },
            false => At::Own,
        };
        Ok(Extent::new(status.len.min(range.len()), at))
    }
}

impl Driver for View {
    fn abilities(&self) -> Abilities {
        Abilities {
            discard: Ability::Native,
            length: LengthSource::Children,
            ..Abilities::default()
        }
    }

    fn locate(&self, purpose: Purpose, range: Range) -> Answer<'_, IoResult<Extent>> {
        match purpose {
            Purpose::Read => Answer::ready(Ok(Extent::new(range.len(), At::Own))),
            Purpose::Status { .. } => Answer::wait(self.status(range)),
        }
    }

    fn read(
        self: Rc<Self>,
        offset: u64,
        buffers: Buffers,
        _flags: RequestFlags,
    ) -> Answer<'static, Transfer> {
        Answer::wait(async move { transfer(self.ask(SnapshotRequest::Read { offset, buffers }).await) })
    }

    fn place(&self, range: Range, _flags: RequestFlags) -> Answer<'_, IoResult<Placement>> {
        Answer::ready(Ok(Placement::own(range.len())))
    }

    fn settle(&self, _ticket: AllocationTicket, written: IoResult<()>) -> Answer<'_, IoResult<()>> {
        Answer::ready(written)
    }

    fn write(
        self: Rc<Self>,
        _offset: u64,
        buffers: Buffers,
        _flags: RequestFlags,
    ) -> Answer<'static, Transfer> {
        Answer::ready((Err(IoError::NotSupported), buffers))
    }

    fn write_zeroes(&self, _range: Range, _flags: RequestFlags) -> Answer<'_, IoResult<()>> {
        Answer::ready(Err(IoError::NotSupported))
    }

    fn discard(&self, range: Range) -> Answer<'_, IoResult<()>> {
        Answer::wait(async move { self.ask(SnapshotRequest::Discard { range }).await.into_done() })
    }

    fn flush(&self) -> Answer<'_, IoResult<()>> {
        Answer::ready(Ok(()))
    }

    fn truncate(&self, _: u64, _: bool, _: Preallocation, _: RequestFlags) -> Answer<'_, Result<()>> {
        Answer::ready(Err(not_supported("snapshot-access", &self.node_name)))
    }

    fn length(&self) -> Answer<'_, IoResult<u64>> {
        Answer::wait(self.keeper.length())
    }

    fn allocated_size(&self) -> Answer<'_, IoResult<u64>> {
        Answer::ready(Err(IoError::NotSupported))
    }
}

impl Lifecycle for View {
    fn reopen_prepare(&self, _request: ReopenRequest) -> Answer<'_, Result<()>> {
        Answer::ready(Err(not_supported("snapshot-access", &self.node_name)))
    }

    fn exchange_prepare(&self, _slots: &[ChildSlot]) -> Answer<'_, Result<()>> {
        // Nothing of what the child shows is kept here.
        Answer::ready(Ok(()))
    }

    fn saved_state(&self) -> Option<&dyn SavesState> {
        None
    }

    fn depart(&self) -> Moved {
        Moved::new(self.node_name.clone(), |node_name, children, _| {
            let [keeper] = arrived(children);
            Rc::new(View { node_name, keeper })
        })
    }

    fn close(&self) -> Answer<'_, Result<()>> {
        Answer::ready(Ok(()))
    }
}
