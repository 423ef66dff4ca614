//! A driver that panics where its test wants it to.

use std::future::pending;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures_util::future::LocalBoxFuture;
use millpond_drivers::api::{
    Abilities, Ability, AllocationTicket, Answer, At, BackingLink, Child, ChildKind, CreateRequest,
    DebugEvents, DebugPoints, Device, Driver, DriverKind, EdgeUse, Extent, Image, Lifecycle, Moved,
    OpenRequest, Opened, OptionNames, PassThrough, Placement, Purpose, ReopenRequest, SavesState, Transfer,
};
use millpond_messages::error::errno::EIO;
use millpond_messages::graph::Options;
use millpond_messages::io::Preallocation;
use millpond_messages::qapi::ImageInfoSpecific;
use millpond_messages::{
    BlockSizes, DebugEvent, DebugOrder, DriverInfo, Geometry, IoError, IoResult, MediumOrder, Permissions,
    Range, RequestFlags, Result, ScsiAnswer, ScsiCommand,
};
use millpond_ring::buffer::Buffers;
use serde_json::Value;

/// Where the driver can panic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    Abilities,
    AllocatedSize,
    Amend,
    Arrive,
    BlockSizes,
    CancelInFlight,
    ChangeBackingFile,
    ChangeMedium,
    CheckOptions,
    ChildPermissions,
    ChildrenChanged,
    Close,
    Create,
    DebugEvent,
    DebugOrder,
    Depart,
    Discard,
    Drop,
    Filename,
    Flush,
    Geometry,
    Info,
    Invalidate,
    IsInserted,
    IsScsiGeneric,
    Length,
    Locate,
    MakeEmpty,
    Open,
    ParseFilename,
    PermissionsAbort,
    PermissionsCommit,
    PermissionsPrepare,
    Place,
    Probe,
    Quiesce,
    Read,
    ReopenAbort,
    ReopenCommit,
    ReopenPrepare,
    Resume,
    SendScsi,
    Settle,
    SpecificInfo,
    Truncate,
    Write,
    WriteZeroes,
}

/// In the call, or in the future that it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    AtOnce,
    Later,
}

/// What the test and the driver share.
#[derive(Default)]
pub struct Trap {
    /// One more than the entry; 0 if it is not set.
    set: AtomicUsize,
    later: AtomicBool,
    /// Reads that hang.
    pub hanging: AtomicUsize,
    /// Permissions that are asked for are refused.
    pub refuses: AtomicBool,
    /// The tray of the device is open.
    pub is_open: AtomicBool,
}

impl Trap {
    pub fn set(&self, entry: Entry, when: When) {
        self.later.store(when == When::Later, Ordering::SeqCst);
        self.set.store(entry as usize + 1, Ordering::SeqCst);
    }

    pub fn is_set(&self) -> bool {
        self.set.load(Ordering::SeqCst) > 0
    }

    fn spring(&self, entry: Entry, when: When) {
        let later = when == When::Later;
        if self.later.load(Ordering::SeqCst) == later
            && self
                .set
                .compare_exchange(entry as usize + 1, 0, Ordering::SeqCst, Ordering::SeqCst)
                .is_ok()
        {
            panic!("{entry:?} panics");
        }
    }

    /// In the call.
    fn call(&self, entry: Entry) {
        self.spring(entry, When::AtOnce);
    }

    /// In what it answers.
    async fn wait(&self, entry: Entry) {
        let mut polled = false;
        std::future::poll_fn(|context| {
            if std::mem::replace(&mut polled, true) {
                return std::task::Poll::Ready(());
            }
            context.waker().wake_by_ref();
            std::task::Poll::Pending
        })
        .await;
        self.spring(entry, When::Later);
    }
}

/// A read here does not end.
pub const HANGS: u64 = 1 << 19;

/// Opens nodes that pass everything on to `file`.
pub struct FragileKind(pub Arc<Trap>);

const CHILDREN: &[ChildKind] = &[ChildKind::FILTERED, ChildKind::BACKING];

impl DriverKind for FragileKind {
    fn name(&self) -> &'static str {
        "fragile"
    }

    fn children(&self) -> &'static [ChildKind] {
        CHILDREN
    }

    fn is_protocol(&self) -> bool {
        false
    }

    fn has_filenames(&self) -> bool {
        true
    }

    fn amends(&self) -> bool {
        true
    }

    fn option_names(&self) -> OptionNames {
        OptionNames::These(&["places", "listens", "stubborn"])
    }

    fn check_options(&self, _: &Options, _: usize) -> Result<()> {
        self.0.call(Entry::CheckOptions);
        Ok(())
    }

    fn child_permissions(&self, edge: EdgeUse<'_>) -> (Permissions, Permissions) {
        self.0.call(Entry::ChildPermissions);
        millpond_messages::child_permissions(
            edge.role,
            edge.taken,
            edge.shared,
            edge.writable,
            edge.force_share,
        )
    }

    fn parse_filename(&self, filename: &str) -> Result<Options> {
        self.0.call(Entry::ParseFilename);
        let mut options = Options::new();
        options.insert("file".to_owned(), filename.into());
        Ok(options)
    }

    fn probe(&self, _: &[u8]) -> u8 {
        self.0.call(Entry::Probe);
        0
    }

    fn open(&self, request: OpenRequest) -> LocalBoxFuture<'static, Result<Opened>> {
        self.0.call(Entry::Open);
        let trap = Arc::clone(&self.0);
        Box::pin(async move {
            trap.wait(Entry::Open).await;
            let is = |name: &str| {
                request
                    .options
                    .get(name)
                    .is_some_and(|value| *value == Value::Bool(true))
            };
            let driver = Fragile {
                places: is("places"),
                listens: is("listens"),
                stubborn: is("stubborn"),
                trap,
                below: below(request.children),
            };
            Ok(Opened {
                driver: Rc::new(driver),
                flags: request.flags,
                backing: None,
            })
        })
    }

    fn create(&self, _: CreateRequest) -> LocalBoxFuture<'static, Result<()>> {
        self.0.call(Entry::Create);
        let trap = Arc::clone(&self.0);
        Box::pin(async move {
            trap.wait(Entry::Create).await;
            Ok(())
        })
    }
}

struct Fragile {
    /// It says where data is, rather than transferring it itself.
    places: bool,
    /// It handles debug events.
    listens: bool,
    /// It refuses changes when the trap says so.
    stubborn: bool,
    trap: Arc<Trap>,
    below: PassThrough,
}

/// The file; nothing is ever behind the other edge.
fn below(children: Vec<Child>) -> PassThrough {
    PassThrough::new(children.into_iter().next().expect("it is required"))
}

impl Fragile {
    fn agree(&self) -> Result<()> {
        if self.stubborn && self.trap.refuses.load(Ordering::SeqCst) {
            return Err(millpond_messages::Error::io("refused", IoError::Os(EIO)));
        }
        Ok(())
    }

    /// What `future` gives, if the driver does not panic before.
    fn answer<'a, T: 'a>(&'a self, entry: Entry, future: impl Future<Output = T> + 'a) -> Answer<'a, T> {
        self.trap.call(entry);
        Answer::wait(async move {
            self.trap.wait(entry).await;
            future.await
        })
    }
}

impl Driver for Fragile {
    fn abilities(&self) -> Abilities {
        self.trap.call(Entry::Abilities);
        Abilities {
            write_zeroes: Ability::Native,
            discard: Ability::Native,
            supports_backing: true,
            events: if self.listens {
                DebugEvents::Handle
            } else {
                DebugEvents::Ignore
            },
            ..Abilities::default()
        }
    }

    fn locate(&self, _: Purpose, range: Range) -> Answer<'_, IoResult<Extent>> {
        let located = if self.places {
            self.below.locate(Purpose::Read, range)
        } else {
            Answer::ready(Ok(Extent::new(range.len(), At::Own)))
        };
        self.answer(Entry::Locate, located)
    }

    fn read(self: Rc<Self>, offset: u64, buffers: Buffers, flags: RequestFlags) -> Answer<'static, Transfer> {
        self.trap.call(Entry::Read);
        Answer::wait(async move {
            if offset >= HANGS {
                self.trap.hanging.fetch_add(1, Ordering::SeqCst);
                pending().await
            }
            self.trap.wait(Entry::Read).await;
            self.below.read(offset, buffers, flags).await
        })
    }

    fn place(&self, range: Range, flags: RequestFlags) -> Answer<'_, IoResult<Placement>> {
        let placed = async move {
            if !self.places {
                return self.below.place_here(range, flags).await;
            }
            let ticket = Some(AllocationTicket(range.offset()));
            let placement = self.below.place(range, flags).await?;
            Ok(Placement { ticket, ..placement })
        };
        self.answer(Entry::Place, placed)
    }

    fn settle(&self, ticket: AllocationTicket, written: IoResult<()>) -> Answer<'_, IoResult<()>> {
        self.answer(Entry::Settle, self.below.settle(ticket, written))
    }

    fn write(
        self: Rc<Self>,
        offset: u64,
        buffers: Buffers,
        flags: RequestFlags,
    ) -> Answer<'static, Transfer> {
        self.trap.call(Entry::Write);
        Answer::wait(async move {
            self.trap.wait(Entry::Write).await;
            self.below.write(offset, buffers, flags).await
        })
    }

    fn write_zeroes(&self, range: Range, flags: RequestFlags) -> Answer<'_, IoResult<()>> {
        self.answer(Entry::WriteZeroes, self.below.write_zeroes(range, flags))
    }

    fn discard(&self, range: Range) -> Answer<'_, IoResult<()>> {
        self.answer(Entry::Discard, self.below.discard(range))
    }

    fn flush(&self) -> Answer<'_, IoResult<()>> {
        self.answer(Entry::Flush, self.below.flush())
    }

    fn truncate(
        &self,
        size: u64,
        exact: bool,
        preallocation: Preallocation,
        flags: RequestFlags,
    ) -> Answer<'_, Result<()>> {
        self.answer(
            Entry::Truncate,
            self.below.truncate(size, exact, preallocation, flags),
        )
    }

    fn length(&self) -> Answer<'_, IoResult<u64>> {
        self.answer(Entry::Length, self.below.length())
    }

    fn allocated_size(&self) -> Answer<'_, IoResult<u64>> {
        self.answer(Entry::AllocatedSize, self.below.allocated_size())
    }

    fn image(&self) -> &dyn Image {
        self
    }

    fn debug(&self) -> &dyn DebugPoints {
        self
    }

    fn device(&self) -> &dyn Device {
        self
    }
}

impl Image for Fragile {
    fn info(&self) -> DriverInfo {
        self.trap.call(Entry::Info);
        DriverInfo::default()
    }

    fn specific_info(&self) -> Option<ImageInfoSpecific> {
        self.trap.call(Entry::SpecificInfo);
        None
    }

    fn filename(&self) -> Option<String> {
        self.trap.call(Entry::Filename);
        None
    }

    fn make_empty(&self) -> Answer<'_, Result<()>> {
        self.answer(Entry::MakeEmpty, async { Ok(()) })
    }

    fn amend(&self, _: &Options, _: bool) -> Answer<'_, Result<()>> {
        self.answer(Entry::Amend, async { Ok(()) })
    }

    fn change_backing_file(&self, _: Option<BackingLink>) -> Answer<'_, Result<()>> {
        self.answer(Entry::ChangeBackingFile, async { Ok(()) })
    }
}

impl DebugPoints for Fragile {
    fn debug_event(&self, _: DebugEvent) -> Option<LocalBoxFuture<'static, ()>> {
        self.trap.call(Entry::DebugEvent);
        let trap = Arc::clone(&self.trap);
        Some(Box::pin(async move { trap.wait(Entry::DebugEvent).await }))
    }

    fn debug_order(&self, _: &DebugOrder) -> IoResult<bool> {
        self.trap.call(Entry::DebugOrder);
        Ok(false)
    }
}

impl Device for Fragile {
    fn block_sizes(&self) -> Answer<'_, IoResult<BlockSizes>> {
        self.answer(Entry::BlockSizes, async { Err(IoError::NotSupported) })
    }

    fn geometry(&self) -> Answer<'_, IoResult<Geometry>> {
        self.answer(Entry::Geometry, async { Err(IoError::NotSupported) })
    }

    fn is_inserted(&self) -> Answer<'_, IoResult<bool>> {
        let is_open = &self.trap.is_open;
        self.answer(Entry::IsInserted, async { Ok(!is_open.load(Ordering::SeqCst)) })
    }

    fn change_medium(&self, order: MediumOrder) -> Answer<'_, IoResult<()>> {
        self.answer(Entry::ChangeMedium, async move {
            match order {
                MediumOrder::Eject => self.trap.is_open.store(true, Ordering::SeqCst),
                MediumOrder::Load => self.trap.is_open.store(false, Ordering::SeqCst),
                MediumOrder::Lock | MediumOrder::Unlock => return Err(IoError::Os(EIO)),
            }
            Ok(())
        })
    }

    fn is_scsi_generic(&self) -> bool {
        self.trap.call(Entry::IsScsiGeneric);
        true
    }

    fn send_scsi(&self, command: ScsiCommand) -> Answer<'_, IoResult<ScsiAnswer>> {
        self.answer(Entry::SendScsi, async move {
            Ok(ScsiAnswer {
                status: 2,
                host_status: 0,
                driver_status: 0,
                sense: command.block,
                data: Vec::new(),
            })
        })
    }
}

impl Lifecycle for Fragile {
    fn cancel_in_flight(&self) {
        self.trap.call(Entry::CancelInFlight);
    }

    fn quiesce(&self) -> Answer<'_, ()> {
        self.answer(Entry::Quiesce, async {})
    }

    fn resume(&self) {
        self.trap.call(Entry::Resume);
    }

    fn permissions_prepare(&self, _: Permissions, _: Permissions) -> Answer<'_, Result<()>> {
        self.answer(Entry::PermissionsPrepare, async { self.agree() })
    }

    fn permissions_commit(&self) {
        self.trap.call(Entry::PermissionsCommit);
    }

    fn permissions_abort(&self) {
        self.trap.call(Entry::PermissionsAbort);
    }

    fn reopen_prepare(&self, _: ReopenRequest) -> Answer<'_, Result<()>> {
        self.answer(Entry::ReopenPrepare, async { self.agree() })
    }

    fn reopen_commit(&self) {
        self.trap.call(Entry::ReopenCommit);
    }

    fn reopen_abort(&self) {
        self.trap.call(Entry::ReopenAbort);
    }

    fn invalidate(&self) -> Answer<'_, Result<()>> {
        self.answer(Entry::Invalidate, async { Ok(()) })
    }

    fn children_changed(&self, _: &[Child]) {
        self.trap.call(Entry::ChildrenChanged);
    }

    fn saved_state(&self) -> Option<&dyn SavesState> {
        None
    }

    fn depart(&self) -> Moved {
        self.trap.call(Entry::Depart);
        let state = (self.places, self.listens, self.stubborn, Arc::clone(&self.trap));
        Moved::new(state, |(places, listens, stubborn, trap), children, _| {
            trap.call(Entry::Arrive);
            Rc::new(Fragile {
                places,
                listens,
                stubborn,
                trap,
                below: below(children),
            })
        })
    }

    fn close(&self) -> Answer<'_, Result<()>> {
        self.answer(Entry::Close, async { Ok(()) })
    }
}

impl Drop for Fragile {
    fn drop(&mut self) {
        self.trap.call(Entry::Drop);
    }
}
