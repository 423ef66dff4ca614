//! A driver of the tests' own, as an embedder would bring one: bytes in memory, each transfer held until let go.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crossbeam_channel::Sender;
use drivers::buffer::Buffers;
use drivers::driver::{
    Abilities, Ability, Answer, At, Child, ChildKind, Driver, DriverKind, Extent, OpenRequest, Opened,
    Parcel, Placement, Purpose, ReopenRequest, Target, Ticket, Transfer,
};
use drivers::ring::Ring;
use futures_channel::oneshot;
use futures_util::future::LocalBoxFuture;
use messages::io::{OperationKind, Preallocation};
use messages::{ChildSlot, IoError, IoResult, Limits, RequestFlags, Result, Role};

/// A transfer that waits to be let go.
pub struct Held {
    pub kind: OperationKind,
    pub offset: u64,
    pub go: oneshot::Sender<()>,
}

/// What the test and the driver share.
pub struct Control {
    /// Transfers are held, and shown here.
    pub hold: AtomicBool,
    pub held: Sender<Held>,
    pub alignment: AtomicU32,
    /// The driver's background work goes on until it is told here that it has stopped.
    pub hold_work: AtomicBool,
    pub work: Sender<oneshot::Sender<()>>,
    pub quiesced: AtomicU32,
    pub resumed: AtomicU32,
}

/// Opens nodes that keep `size` bytes in memory.
pub struct MemoryKind {
    pub control: Arc<Control>,
    pub size: usize,
}

struct Memory {
    control: Arc<Control>,
    bytes: RefCell<Vec<u8>>,
    gone: Cell<bool>,
}

impl DriverKind for MemoryKind {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn children(&self) -> &'static [ChildKind] {
        &[]
    }

    fn is_protocol(&self) -> bool {
        true
    }

    fn open(&self, request: OpenRequest) -> LocalBoxFuture<'static, Result<Opened>> {
        let driver = Memory {
            control: Arc::clone(&self.control),
            bytes: RefCell::new(vec![0; self.size]),
            gone: Cell::default(),
        };
        Box::pin(async move {
            Ok(Opened {
                driver: Rc::new(driver),
                flags: request.flags,
                backing: None,
            })
        })
    }
}

impl Memory {
    fn wait(&self, kind: OperationKind, offset: u64) -> Option<oneshot::Receiver<()>> {
        assert!(!self.gone.get(), "a request reached a driver that has left");
        if !self.control.hold.load(Ordering::SeqCst) {
            return None;
        }
        let (go, wait) = oneshot::channel();
        self.control.held.send(Held { kind, offset, go }).unwrap();
        Some(wait)
    }

    fn check_alignment(&self, offset: u64, len: usize) {
        let align = u64::from(self.control.alignment.load(Ordering::SeqCst).max(1));
        assert_eq!(
            (offset % align, len as u64 % align),
            (0, 0),
            "the choke point aligns"
        );
    }
}

impl Driver for Memory {
    fn abilities(&self) -> Abilities {
        let request_alignment = self.control.alignment.load(Ordering::SeqCst).max(1);
        Abilities {
            limits: Limits {
                request_alignment,
                ..Limits::default()
            },
            fua: Ability::Emulated,
            ..Abilities::default()
        }
    }

    fn locate(&self, _purpose: Purpose, _offset: u64, len: u64) -> Answer<'_, IoResult<Extent>> {
        Answer::ready(Ok(Extent::new(len, At::Own)))
    }

    fn read(&self, offset: u64, mut buffers: Buffers, _flags: RequestFlags) -> Answer<'_, Transfer> {
        self.check_alignment(offset, buffers.len());
        let wait = self.wait(OperationKind::Read, offset);
        Answer::wait(async move {
            if let Some(wait) = wait {
                wait.await.unwrap();
            }
            let bytes = self.bytes.borrow();
            let start = offset as usize;
            let end = bytes.len().min(start + buffers.len());
            buffers.copy_from_slice(0, &bytes[start..end]);
            (Ok(()), buffers)
        })
    }

    fn place(&self, _offset: u64, len: u64, _flags: RequestFlags) -> Answer<'_, IoResult<Placement>> {
        Answer::ready(Ok(Placement {
            len,
            target: Target::Own,
            head: 0,
            tail: 0,
            ticket: None,
        }))
    }

    fn settle(&self, _ticket: Ticket, _written: IoResult<()>) -> Answer<'_, IoResult<()>> {
        unreachable!("gives no tickets")
    }

    fn write(&self, offset: u64, buffers: Buffers, flags: RequestFlags) -> Answer<'_, Transfer> {
        assert!(
            !flags.contains(RequestFlags::FUA),
            "FUA is emulated for this driver"
        );
        self.check_alignment(offset, buffers.len());
        let wait = self.wait(OperationKind::Write, offset);
        Answer::wait(async move {
            if let Some(wait) = wait {
                wait.await.unwrap();
            }
            let start = offset as usize;
            buffers.copy_to_slice(0, &mut self.bytes.borrow_mut()[start..start + buffers.len()]);
            (Ok(()), buffers)
        })
    }

    fn write_zeroes(&self, _offset: u64, _len: u64, _flags: RequestFlags) -> Answer<'_, IoResult<()>> {
        Answer::ready(Err(IoError::NotSupported))
    }

    fn discard(&self, _offset: u64, _len: u64) -> Answer<'_, IoResult<()>> {
        Answer::ready(Err(IoError::NotSupported))
    }

    fn flush(&self) -> Answer<'_, IoResult<()>> {
        let wait = self.wait(OperationKind::Flush, 0);
        Answer::wait(async move {
            if let Some(wait) = wait {
                wait.await.unwrap();
            }
            Ok(())
        })
    }

    fn truncate(&self, size: u64, _exact: bool, _: Preallocation, _: RequestFlags) -> Answer<'_, Result<()>> {
        self.bytes.borrow_mut().resize(size as usize, 0);
        Answer::ready(Ok(()))
    }

    fn length(&self) -> Answer<'_, IoResult<u64>> {
        Answer::ready(Ok(self.bytes.borrow().len() as u64))
    }

    fn allocated_size(&self) -> Answer<'_, IoResult<u64>> {
        self.length()
    }

    fn quiesce(&self) -> Answer<'_, ()> {
        self.control.quiesced.fetch_add(1, Ordering::SeqCst);
        if !self.control.hold_work.load(Ordering::SeqCst) {
            return Answer::ready(());
        }
        let (stopped, wait) = oneshot::channel();
        self.control.work.send(stopped).unwrap();
        Answer::wait(async move { wait.await.unwrap() })
    }

    fn resume(&self) {
        self.control.resumed.fetch_add(1, Ordering::SeqCst);
    }

    fn reopen_prepare(&self, _request: ReopenRequest) -> Answer<'_, Result<()>> {
        Answer::ready(Ok(()))
    }

    fn depart(&self) -> Box<dyn Parcel> {
        self.gone.set(true);
        Box::new(Packed {
            control: Arc::clone(&self.control),
            bytes: self.bytes.take(),
        })
    }

    fn close(&self) -> Answer<'_, Result<()>> {
        Answer::ready(Ok(()))
    }
}

struct Packed {
    control: Arc<Control>,
    bytes: Vec<u8>,
}

impl Parcel for Packed {
    fn arrive(self: Box<Self>, _children: Vec<Child>, _ring: Ring) -> Rc<dyn Driver> {
        Rc::new(Memory {
            control: self.control,
            bytes: RefCell::new(self.bytes),
            gone: Cell::default(),
        })
    }
}

/// A filter that passes everything on.
pub struct PassKind;

struct Pass(Child);

const PASS_CHILDREN: &[ChildKind] = &[ChildKind {
    name: "file",
    role: Role::FILTERED,
    required: true,
}];

impl DriverKind for PassKind {
    fn name(&self) -> &'static str {
        "pass"
    }

    fn children(&self) -> &'static [ChildKind] {
        PASS_CHILDREN
    }

    fn is_protocol(&self) -> bool {
        false
    }

    fn is_filter(&self) -> bool {
        true
    }

    fn open(&self, mut request: OpenRequest) -> LocalBoxFuture<'static, Result<Opened>> {
        let driver = Pass(request.children.remove(0));
        Box::pin(async move {
            Ok(Opened {
                driver: Rc::new(driver),
                flags: request.flags,
                backing: None,
            })
        })
    }
}

impl Driver for Pass {
    fn abilities(&self) -> Abilities {
        Abilities {
            write_zeroes: Ability::Native,
            discard: Ability::Native,
            fua: Ability::Native,
            transparent: true,
            ..Abilities::default()
        }
    }

    fn locate(&self, _purpose: Purpose, offset: u64, len: u64) -> Answer<'_, IoResult<Extent>> {
        Answer::ready(Ok(Extent::new(
            len,
            At::Child {
                slot: ChildSlot::FILE,
                offset,
            },
        )))
    }

    fn read(&self, _offset: u64, buffers: Buffers, _flags: RequestFlags) -> Answer<'_, Transfer> {
        Answer::ready((Err(IoError::Invalid), buffers))
    }

    fn place(&self, offset: u64, len: u64, _flags: RequestFlags) -> Answer<'_, IoResult<Placement>> {
        let target = Target::Child {
            slot: ChildSlot::FILE,
            offset,
        };
        Answer::ready(Ok(Placement {
            len,
            target,
            head: 0,
            tail: 0,
            ticket: None,
        }))
    }

    fn settle(&self, _ticket: Ticket, _written: IoResult<()>) -> Answer<'_, IoResult<()>> {
        Answer::ready(Err(IoError::Invalid))
    }

    fn write(&self, _offset: u64, buffers: Buffers, _flags: RequestFlags) -> Answer<'_, Transfer> {
        Answer::ready((Err(IoError::Invalid), buffers))
    }

    fn write_zeroes(&self, offset: u64, len: u64, flags: RequestFlags) -> Answer<'_, IoResult<()>> {
        Answer::wait(self.0.write_zeroes(offset, len, flags))
    }

    fn discard(&self, offset: u64, len: u64) -> Answer<'_, IoResult<()>> {
        Answer::wait(self.0.discard(offset, len))
    }

    fn flush(&self) -> Answer<'_, IoResult<()>> {
        Answer::ready(Ok(()))
    }

    fn truncate(
        &self,
        size: u64,
        exact: bool,
        how: Preallocation,
        flags: RequestFlags,
    ) -> Answer<'_, Result<()>> {
        Answer::wait(async move {
            let truncated = self.0.truncate(size, exact, how, flags).await;
            truncated.map_err(|error| messages::Error::io("Could not resize", error))
        })
    }

    fn length(&self) -> Answer<'_, IoResult<u64>> {
        Answer::wait(self.0.length())
    }

    fn allocated_size(&self) -> Answer<'_, IoResult<u64>> {
        Answer::ready(Err(IoError::NotSupported))
    }

    fn reopen_prepare(&self, _request: ReopenRequest) -> Answer<'_, Result<()>> {
        Answer::ready(Ok(()))
    }

    fn depart(&self) -> Box<dyn Parcel> {
        Box::new(PassPacked)
    }

    fn close(&self) -> Answer<'_, Result<()>> {
        Answer::ready(Ok(()))
    }
}

struct PassPacked;

impl Parcel for PassPacked {
    fn arrive(self: Box<Self>, mut children: Vec<Child>, _ring: Ring) -> Rc<dyn Driver> {
        Rc::new(Pass(children.remove(0)))
    }
}
