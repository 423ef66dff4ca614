//! A driver of the tests' own, as an embedder would bring one: bytes in memory, filters and overlays, each step held
//! until the test lets it go.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crossbeam_channel::{Receiver, Sender, unbounded};
use futures_channel::oneshot;
use futures_util::future::LocalBoxFuture;
use millpond_drivers::api::{
    Abilities, Ability, AllocationTicket, Answer, At, BackingLink, Child, ChildKind, Driver, DriverKind,
    Extent, Image, Lifecycle, Moved, OpenRequest, Opened, PassThrough, Placement, Purpose, ReopenRequest,
    SavesState, Target, Transfer,
};
use millpond_messages::error::errno::EIO;
use millpond_messages::io::{OperationKind, Preallocation};
use millpond_messages::{
    ChildSlot, Error, IoError, IoResult, Limits, Range, RequestFlags, Result, Role, SECTOR_SIZE,
};
use millpond_ring::buffer::Buffers;

/// What a driver does that a test can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Request(OperationKind),
    /// Drained-begin.
    Quiesce,
    Open,
    Close,
}

/// A step that waits to be let go. Dropped, it is let go as well.
pub struct Held {
    pub step: Step,
    /// Where the driver's code runs.
    pub thread: std::thread::ThreadId,
    pub offset: u64,
    pub go: oneshot::Sender<()>,
}

/// What the test and the drivers of one name share.
pub struct Control {
    /// Requests are held, and shown.
    pub hold: AtomicBool,
    /// Drained-begin is held.
    pub hold_quiesce: AtomicBool,
    /// Opens and closes are held.
    pub hold_open: AtomicBool,
    held: Sender<Held>,
    /// What fails with an I/O error: bits of [`Fails`].
    pub fails: AtomicU32,
    pub alignment: AtomicU32,
    /// The clusters on which zero writes and discards are serialised; 0 for none.
    pub clusters: AtomicU32,
    /// Calls of drained-begin and of drained-end.
    pub quiesced: AtomicU32,
    pub resumed: AtomicU32,
    /// Drained-begin has been called and drained-end has not.
    pub is_quiesced: AtomicBool,
    /// The most drained-begins that were under way at once.
    pub quiescing: AtomicU32,
    pub quiescing_most: AtomicU32,
    /// How many pieces a read is made of, one after the other; 0 lets the node find the data.
    pub pieces: AtomicU32,
    /// Still sections that the test knows to cover the node.
    pub still: AtomicU32,
    /// Transfers that began while there was one.
    pub faults: AtomicU32,
    /// Transfers that ended.
    pub transfers: AtomicU32,
    /// How often drivers were asked where something is.
    pub located: AtomicU32,
    /// Drivers of this name that were closed.
    pub closed: AtomicU32,
}

impl Control {
    pub fn new() -> (Arc<Self>, Receiver<Held>) {
        let (held, shown) = unbounded();
        let control = Self {
            hold: AtomicBool::default(),
            hold_quiesce: AtomicBool::default(),
            hold_open: AtomicBool::default(),
            held,
            fails: AtomicU32::default(),
            alignment: AtomicU32::new(1),
            clusters: AtomicU32::default(),
            quiesced: AtomicU32::default(),
            resumed: AtomicU32::default(),
            is_quiesced: AtomicBool::default(),
            quiescing: AtomicU32::default(),
            quiescing_most: AtomicU32::default(),
            pieces: AtomicU32::default(),
            still: AtomicU32::default(),
            faults: AtomicU32::default(),
            transfers: AtomicU32::default(),
            located: AtomicU32::default(),
            closed: AtomicU32::default(),
        };
        (Arc::new(control), shown)
    }

    /// Waits, if this is held, until the test lets it go.
    async fn step(&self, hold: &AtomicBool, step: Step, offset: u64) {
        if hold.load(Ordering::SeqCst) {
            let (go, wait) = oneshot::channel();
            let thread = std::thread::current().id();
            let held = Held {
                step,
                thread,
                offset,
                go,
            };
            // A test that has ended holds nothing any more.
            if self.held.send(held).is_ok() {
                wait.await.unwrap_or(());
            }
        }
    }

    async fn transfer(&self, kind: OperationKind, offset: u64) -> IoResult<()> {
        if self.still.load(Ordering::SeqCst) > 0 {
            self.faults.fetch_add(1, Ordering::SeqCst);
        }
        self.step(&self.hold, Step::Request(kind), offset).await;
        self.transfers.fetch_add(1, Ordering::SeqCst);
        self.may_fail(match kind {
            OperationKind::Read => Fails::Read,
            _ => Fails::Write,
        })
    }

    fn may_fail(&self, what: Fails) -> IoResult<()> {
        match self.fails.load(Ordering::SeqCst) & what as u32 {
            0 => Ok(()),
            _ => Err(IoError::Os(EIO)),
        }
    }
}

/// What can be made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fails {
    Read = 1,
    Write = 2,
    Flush = 4,
    /// To record another backing file.
    Link = 8,
}

/// What a driver is, besides what its test makes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Bytes in memory.
    Memory,
    /// What was written to it in memory, the rest in its backing child.
    Overlay,
    /// Passes everything on to its `file` child.
    Filter,
    /// Passes everything on to its `left` child; the `right` one is only there.
    Pair,
}

/// Opens nodes of one shape.
pub struct TestKind {
    pub shape: Shape,
    /// Bytes of those that have their own.
    pub size: usize,
    /// By node name.
    pub controls: HashMap<String, Arc<Control>>,
    /// For all other names.
    pub control: Arc<Control>,
}

const fn child(name: &'static str, role: Role, required: bool) -> ChildKind {
    let leads_elsewhere = true;
    ChildKind {
        name,
        role,
        required,
        leads_elsewhere,
    }
}

impl DriverKind for TestKind {
    fn name(&self) -> &'static str {
        match self.shape {
            Shape::Memory => "test-memory",
            Shape::Overlay => "test-overlay",
            Shape::Filter => "test-filter",
            Shape::Pair => "test-pair",
        }
    }

    fn children(&self) -> &'static [ChildKind] {
        match self.shape {
            Shape::Memory => &[],
            Shape::Overlay => &const { [child("backing", Role::COW, false)] },
            Shape::Filter => &const { [child("file", Role::FILTERED, true)] },
            Shape::Pair => {
                &const {
                    [
                        child("left", Role::DATA, false),
                        child("right", Role::DATA, false),
                    ]
                }
            }
        }
    }

    fn is_protocol(&self) -> bool {
        self.shape == Shape::Memory
    }

    fn is_filter(&self) -> bool {
        self.shape == Shape::Filter
    }

    fn open(&self, request: OpenRequest) -> LocalBoxFuture<'static, Result<Opened>> {
        let control = self.controls.get(&request.node_name).unwrap_or(&self.control);
        let driver = TestDriver {
            shape: self.shape,
            control: Arc::clone(control),
            bytes: RefCell::new(vec![0; self.size]),
            allocated: RefCell::new(vec![false; self.size.div_ceil(SECTOR)]),
            children: request.children,
            gone: Cell::default(),
        };
        Box::pin(async move {
            let control = Arc::clone(&driver.control);
            control.step(&control.hold_open, Step::Open, 0).await;
            Ok(Opened {
                driver: Rc::new(driver),
                flags: request.flags,
                backing: None,
            })
        })
    }
}

#[allow(clippy::cast_possible_truncation, reason = "512")]
const SECTOR: usize = SECTOR_SIZE as usize;

struct TestDriver {
    shape: Shape,
    control: Arc<Control>,
    bytes: RefCell<Vec<u8>>,
    /// By sector; an overlay's only.
    allocated: RefCell<Vec<bool>>,
    children: Vec<Child>,
    gone: Cell<bool>,
}

impl TestDriver {
    fn check(&self, offset: u64, len: usize) {
        assert!(!self.gone.get(), "a request reached a driver that has left");
        let align = u64::from(self.alignment());
        assert_eq!(
            (offset % align, len as u64 % align),
            (0, 0),
            "the choke point aligns"
        );
    }

    fn alignment(&self) -> u32 {
        let asked = self.control.alignment.load(Ordering::SeqCst).max(1);
        if self.shape == Shape::Overlay {
            asked.max(512)
        } else {
            asked
        }
    }

    fn passes_on(&self) -> bool {
        matches!(self.shape, Shape::Filter | Shape::Pair)
    }

    /// The child that requests go to.
    fn child(&self) -> Option<&Child> {
        self.children.first().filter(|child| child.is_connected())
    }

    /// What passes everything on, where the shape does.
    fn below(&self) -> Option<PassThrough> {
        let child = self.child().filter(|_| self.passes_on());
        child.cloned().map(PassThrough::new)
    }

    /// How many sectors from `first` on are allocated, or not, as that one is.
    fn run(&self, first: usize) -> (bool, usize) {
        let allocated = self.allocated.borrow();
        let is = allocated.get(first).copied().unwrap_or(false);
        let alike = allocated.iter().skip(first).take_while(|other| **other == is);
        (is, alike.count().max(1))
    }

    /// A read made of several pieces.
    async fn read_pieces(&self, offset: u64, mut buffers: Buffers) -> Transfer {
        for _ in 0..self.control.pieces.load(Ordering::SeqCst) {
            let result;
            match self.child() {
                Some(child) => (result, buffers) = child.read(offset, buffers).await,
                None => result = self.control.transfer(OperationKind::Read, offset).await,
            }
            if result.is_err() {
                return (result, buffers);
            }
        }
        (Ok(()), buffers)
    }
}

impl Image for TestDriver {
    fn change_backing_file(&self, _: Option<BackingLink>) -> Answer<'_, Result<()>> {
        let linked = self.control.may_fail(Fails::Link);
        Answer::ready(linked.map_err(|error| Error::io("The link cannot be written", error)))
    }
}

impl Driver for TestDriver {
    fn image(&self) -> &dyn Image {
        self
    }

    fn abilities(&self) -> Abilities {
        let passes_on = self.passes_on();
        let native = |yes: bool| if yes { Ability::Native } else { Ability::Emulated };
        Abilities {
            limits: Limits {
                request_alignment: self.alignment(),
                ..Limits::default()
            },
            write_zeroes: native(passes_on),
            discard: native(passes_on),
            fua: native(passes_on),
            transparent: passes_on,
            supports_backing: self.shape == Shape::Overlay,
            serialise_granularity: self.control.clusters.load(Ordering::SeqCst).into(),
            ..Abilities::default()
        }
    }

    fn locate(&self, _purpose: Purpose, range: Range) -> Answer<'_, IoResult<Extent>> {
        let slot = ChildSlot::FILE;
        self.control.located.fetch_add(1, Ordering::SeqCst);
        let extent = match self.shape {
            _ if self.control.pieces.load(Ordering::SeqCst) > 0 => Extent::new(range.len(), At::Special),
            Shape::Memory => Extent::new(range.len(), At::Own),
            Shape::Filter | Shape::Pair => Extent::new(
                range.len(),
                At::Child {
                    slot,
                    offset: range.offset(),
                },
            ),
            Shape::Overlay => {
                let (is, sectors) = self.run((range.offset() / SECTOR_SIZE) as usize);
                let at = if is { At::Own } else { At::Unallocated };
                let end = (range.offset() / SECTOR_SIZE + sectors as u64) * SECTOR_SIZE;
                Extent::new(range.len().min(end - range.offset()), at)
            }
        };
        Answer::ready(Ok(extent))
    }

    fn read(
        self: Rc<Self>,
        offset: u64,
        mut buffers: Buffers,
        _flags: RequestFlags,
    ) -> Answer<'static, Transfer> {
        self.check(offset, buffers.len());
        Answer::wait(async move {
            if self.control.pieces.load(Ordering::SeqCst) > 0 {
                return self.read_pieces(offset, buffers).await;
            }
            let result = self.control.transfer(OperationKind::Read, offset).await;
            let bytes = self.bytes.borrow();
            let start = offset as usize;
            let end = bytes.len().min(start + buffers.len());
            buffers.copy_from_slice(0, &bytes[start..end]);
            (result, buffers)
        })
    }

    fn place(&self, range: Range, _flags: RequestFlags) -> Answer<'_, IoResult<Placement>> {
        let slot = ChildSlot::FILE;
        let target = if self.passes_on() {
            Target::Child {
                slot,
                offset: range.offset(),
            }
        } else {
            Target::Own
        };
        Answer::ready(Ok(Placement {
            len: range.len(),
            target,
            head: 0,
            tail: 0,
            ticket: None,
        }))
    }

    fn settle(&self, _ticket: AllocationTicket, _written: IoResult<()>) -> Answer<'_, IoResult<()>> {
        unreachable!("gives no tickets")
    }

    fn write(
        self: Rc<Self>,
        offset: u64,
        buffers: Buffers,
        flags: RequestFlags,
    ) -> Answer<'static, Transfer> {
        assert!(
            !flags.contains(RequestFlags::FUA),
            "FUA is emulated for this driver"
        );
        self.check(offset, buffers.len());
        Answer::wait(async move {
            if let Err(error) = self.control.transfer(OperationKind::Write, offset).await {
                return (Err(error), buffers);
            }
            let start = offset as usize;
            let end = start + buffers.len();
            buffers.copy_to_slice(0, &mut self.bytes.borrow_mut()[start..end]);
            if self.shape == Shape::Overlay {
                self.allocated.borrow_mut()[start / SECTOR..end.div_ceil(SECTOR)].fill(true);
            }
            (Ok(()), buffers)
        })
    }

    fn write_zeroes(&self, range: Range, flags: RequestFlags) -> Answer<'_, IoResult<()>> {
        match self.below() {
            Some(below) => Answer::wait(async move { below.write_zeroes(range, flags).await }),
            None => Answer::ready(Err(IoError::NotSupported)),
        }
    }

    fn discard(&self, range: Range) -> Answer<'_, IoResult<()>> {
        match self.below() {
            Some(below) => Answer::wait(async move { below.discard(range).await }),
            None => Answer::ready(Err(IoError::NotSupported)),
        }
    }

    fn flush(&self) -> Answer<'_, IoResult<()>> {
        Answer::wait(async {
            let control = &self.control;
            control
                .step(&control.hold, Step::Request(OperationKind::Flush), 0)
                .await;
            control.may_fail(Fails::Flush)
        })
    }

    fn truncate(
        &self,
        size: u64,
        exact: bool,
        how: Preallocation,
        flags: RequestFlags,
    ) -> Answer<'_, Result<()>> {
        Answer::wait(async move {
            if let Some(below) = self.below() {
                return below.truncate(size, exact, how, flags).await;
            }
            let control = &self.control;
            control
                .step(&control.hold, Step::Request(OperationKind::Truncate), size)
                .await;
            self.bytes.borrow_mut().resize(size as usize, 0);
            let sectors = (size as usize).div_ceil(SECTOR);
            self.allocated.borrow_mut().resize(sectors, false);
            Ok(())
        })
    }

    fn length(&self) -> Answer<'_, IoResult<u64>> {
        match self.below() {
            Some(below) => Answer::wait(async move { below.length().await }),
            None => Answer::ready(Ok(self.bytes.borrow().len() as u64)),
        }
    }

    fn allocated_size(&self) -> Answer<'_, IoResult<u64>> {
        Answer::ready(Err(IoError::NotSupported))
    }
}

impl Lifecycle for TestDriver {
    fn quiesce(&self) -> Answer<'_, ()> {
        let control = &self.control;
        control.quiesced.fetch_add(1, Ordering::SeqCst);
        control.is_quiesced.store(true, Ordering::SeqCst);
        let under_way = control.quiescing.fetch_add(1, Ordering::SeqCst) + 1;
        control.quiescing_most.fetch_max(under_way, Ordering::SeqCst);
        Answer::wait(async move {
            control.step(&control.hold_quiesce, Step::Quiesce, 0).await;
            control.quiescing.fetch_sub(1, Ordering::SeqCst);
        })
    }

    fn resume(&self) {
        let control = &self.control;
        assert_eq!(
            control.quiescing.load(Ordering::SeqCst),
            0,
            "resumed while it is being quiesced"
        );
        control.resumed.fetch_add(1, Ordering::SeqCst);
        control.is_quiesced.store(false, Ordering::SeqCst);
    }

    fn reopen_prepare(&self, _request: ReopenRequest) -> Answer<'_, Result<()>> {
        Answer::ready(Ok(()))
    }

    fn exchange_prepare(&self, _slots: &[ChildSlot]) -> Answer<'_, Result<()>> {
        Answer::ready(Ok(()))
    }

    fn saved_state(&self) -> Option<&dyn SavesState> {
        None
    }

    fn depart(&self) -> Moved {
        self.gone.set(true);
        let own = (self.bytes.take(), self.allocated.take());
        let state = (self.shape, Arc::clone(&self.control), own);
        Moved::new(state, |(shape, control, (bytes, allocated)), children, _| {
            Rc::new(TestDriver {
                shape,
                control,
                bytes: RefCell::new(bytes),
                allocated: RefCell::new(allocated),
                children,
                gone: Cell::default(),
            })
        })
    }

    fn close(&self) -> Answer<'_, Result<()>> {
        Answer::wait(async {
            let control = &self.control;
            control.step(&control.hold_open, Step::Close, 0).await;
            control.closed.fetch_add(1, Ordering::SeqCst);
            Ok(())
        })
    }
}
