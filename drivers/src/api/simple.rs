//! Drivers of four methods, for programs that bring their own storage and want no more than that.

use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;

use futures_util::future::LocalBoxFuture;
use millpond_messages::graph::Options;
use millpond_messages::io::Preallocation;
use millpond_messages::{Error, ErrorKind, IoError, IoResult, Limits, Range, RequestFlags, Result};
use millpond_ring::Ring;
use millpond_ring::buffer::Buffers;

use super::answer::Answer;
use super::child::{Child, Transfer};
use super::kind::{ChildKind, DriverKind, OpenRequest, Opened, OptionNames};
use super::moved::Moved;
use super::reopen::check_unchanged;
use super::{
    Abilities, AllocationTicket, At, Driver, Extent, Lifecycle, Placement, Purpose, ReopenRequest, SavesState,
};

/// Storage that is read and written, and no more.
///
/// All the rest is filled in: zeroes are written as data, a write with FUA is followed by a flush, discards succeed
/// without effect, the length stays as it is. Calls may overlap as far as their futures wait for something. A request whose
/// buffers are in several pieces becomes a call for each.
///
/// ```
/// use std::cell::RefCell;
/// use std::sync::Arc;
///
/// use millpond_drivers::api::{Registry, SimpleDriver, SimpleKind};
/// use millpond_messages::{IoError, IoResult};
///
/// struct Memory(RefCell<Vec<u8>>);
///
/// impl Memory {
///     fn range(offset: u64, len: usize) -> IoResult<std::ops::Range<usize>> {
///         let start = usize::try_from(offset).map_err(|_| IoError::OutOfRange)?;
///         Ok(start..start.checked_add(len).ok_or(IoError::OutOfRange)?)
///     }
/// }
///
/// impl SimpleDriver for Memory {
///     async fn length(&self) -> IoResult<u64> {
///         Ok(self.0.borrow().len() as u64)
///     }
///
///     async fn read(&self, offset: u64, buffer: &mut [u8]) -> IoResult<()> {
///         let bytes = self.0.borrow();
///         let part = bytes.get(Self::range(offset, buffer.len())?);
///         buffer.copy_from_slice(part.ok_or(IoError::OutOfRange)?);
///         Ok(())
///     }
///
///     async fn write(&self, offset: u64, bytes: &[u8]) -> IoResult<()> {
///         let mut all = self.0.borrow_mut();
///         let part = all.get_mut(Self::range(offset, bytes.len())?);
///         part.ok_or(IoError::OutOfRange)?.copy_from_slice(bytes);
///         Ok(())
///     }
///
///     async fn flush(&self) -> IoResult<()> {
///         Ok(())
///     }
/// }
///
/// // `{"driver": "memory"}` opens a node of 1 MiB.
/// let kind = SimpleKind::new("memory", &[], |_options| async {
///     Ok(Memory(RefCell::new(vec![0; 1 << 20])))
/// });
/// let mut registry = Registry::empty();
/// registry.register(Arc::new(kind))?;
/// assert!(registry.find("memory").is_some());
/// # Ok::<(), millpond_messages::Error>(())
/// ```
pub trait SimpleDriver: Send + 'static {
    /// What offsets and lengths of reads and writes are multiples of: a power of two.
    const ALIGNMENT: u32 = 1;

    /// The length in bytes. A last part that is shorter than a sector of 512 bytes, or than [`SimpleDriver::ALIGNMENT`],
    /// is read and written as a whole one.
    fn length(&self) -> impl Future<Output = IoResult<u64>>;

    /// Fills `buffer` from `offset`.
    fn read(&self, offset: u64, buffer: &mut [u8]) -> impl Future<Output = IoResult<()>>;

    /// Stores `bytes` at `offset`.
    fn write(&self, offset: u64, bytes: &[u8]) -> impl Future<Output = IoResult<()>>;

    /// Makes durable what was written before.
    fn flush(&self) -> impl Future<Output = IoResult<()>>;
}

/// A kind of driver whose nodes are [`SimpleDriver`]s: what a [`Registry`](super::Registry) takes.
pub struct SimpleKind<O> {
    name: &'static str,
    options: &'static [&'static str],
    open: O,
}

impl<O> SimpleKind<O> {
    /// Nodes with `"driver": name` and the options of their own that are named. `open` makes the storage of each, on
    /// the node's iothread.
    pub const fn new<F, T>(name: &'static str, options: &'static [&'static str], open: O) -> Self
    where
        O: Fn(Options) -> F + Send + Sync + 'static,
        F: Future<Output = Result<T>> + 'static,
        T: SimpleDriver,
    {
        Self { name, options, open }
    }
}

impl<O, F, T> DriverKind for SimpleKind<O>
where
    O: Fn(Options) -> F + Send + Sync + 'static,
    F: Future<Output = Result<T>> + 'static,
    T: SimpleDriver,
{
    fn name(&self) -> &'static str {
        self.name
    }

    fn children(&self) -> &'static [ChildKind] {
        &[]
    }

    fn option_names(&self) -> OptionNames {
        OptionNames::These(self.options)
    }

    fn is_protocol(&self) -> bool {
        true
    }

    fn prepares_permissions(&self) -> bool {
        false
    }

    fn has_filenames(&self) -> bool {
        false
    }

    fn open(&self, request: OpenRequest) -> LocalBoxFuture<'static, Result<Opened>> {
        let storage = (self.open)(request.options.clone());
        Box::pin(async move {
            let storage = storage.await?;
            Ok(Opened {
                driver: Simple::over(request.options, Some(storage)),
                flags: request.flags,
                backing: None,
            })
        })
    }
}

/// An open node over a program's storage.
struct Simple<T> {
    options: Options,
    /// None once the node has moved away.
    storage: RefCell<Option<Rc<T>>>,
}

impl<T: SimpleDriver> Simple<T> {
    fn over(options: Options, storage: Option<T>) -> Rc<dyn Driver> {
        let storage = RefCell::new(storage.map(Rc::new));
        Rc::new(Self { options, storage })
    }

    fn storage(&self) -> IoResult<Rc<T>> {
        self.storage.borrow().clone().ok_or(IoError::NoMedium)
    }

    fn arrive((options, storage): (Options, Option<T>), _: Vec<Child>, _: Ring) -> Rc<dyn Driver> {
        Self::over(options, storage)
    }

    async fn read_pieces(&self, mut offset: u64, buffers: &mut Buffers) -> IoResult<()> {
        let storage = self.storage()?;
        for buffer in buffers.iter_mut() {
            storage.read(offset, buffer).await?;
            offset = offset.saturating_add(u64::try_from(buffer.len()).unwrap_or(u64::MAX));
        }
        Ok(())
    }

    async fn write_pieces(&self, mut offset: u64, buffers: &Buffers) -> IoResult<()> {
        let storage = self.storage()?;
        for buffer in buffers.iter() {
            storage.write(offset, buffer).await?;
            offset = offset.saturating_add(u64::try_from(buffer.len()).unwrap_or(u64::MAX));
        }
        Ok(())
    }
}

impl<T: SimpleDriver> Driver for Simple<T> {
    fn abilities(&self) -> Abilities {
        Abilities {
            limits: Limits {
                request_alignment: T::ALIGNMENT,
                ..Limits::default()
            },
            ..Abilities::default()
        }
    }

    fn locate(&self, _purpose: Purpose, range: Range) -> Answer<'_, IoResult<Extent>> {
        Answer::ready(Ok(Extent::new(range.len(), At::Own)))
    }

    fn read(
        self: Rc<Self>,
        offset: u64,
        mut buffers: Buffers,
        _flags: RequestFlags,
    ) -> Answer<'static, Transfer> {
        Answer::wait(async move { (self.read_pieces(offset, &mut buffers).await, buffers) })
    }

    fn place(&self, range: Range, _flags: RequestFlags) -> Answer<'_, IoResult<Placement>> {
        Answer::ready(Ok(Placement::own(range.len())))
    }

    fn settle(&self, _ticket: AllocationTicket, written: IoResult<()>) -> Answer<'_, IoResult<()>> {
        Answer::ready(written)
    }

    fn write(
        self: Rc<Self>,
        offset: u64,
        buffers: Buffers,
        _flags: RequestFlags,
    ) -> Answer<'static, Transfer> {
        Answer::wait(async move { (self.write_pieces(offset, &buffers).await, buffers) })
    }

    fn write_zeroes(&self, _range: Range, _flags: RequestFlags) -> Answer<'_, IoResult<()>> {
        Answer::ready(Err(IoError::NotSupported))
    }

    fn discard(&self, _range: Range) -> Answer<'_, IoResult<()>> {
        Answer::ready(Err(IoError::NotSupported))
    }

    fn flush(&self) -> Answer<'_, IoResult<()>> {
        Answer::wait(async { self.storage()?.flush().await })
    }

    fn truncate(
        &self,
        _size: u64,
        _exact: bool,
        _preallocation: Preallocation,
        _flags: RequestFlags,
    ) -> Answer<'_, Result<()>> {
        Answer::ready(Err(Error::new(
            ErrorKind::Unsupported,
            "Image format driver does not support resize",
        )))
    }

    fn length(&self) -> Answer<'_, IoResult<u64>> {
        Answer::wait(async { self.storage()?.length().await })
    }

    fn allocated_size(&self) -> Answer<'_, IoResult<u64>> {
        Answer::ready(Err(IoError::NotSupported))
    }
}

impl<T: SimpleDriver> Lifecycle for Simple<T> {
    fn reopen_prepare(&self, request: ReopenRequest) -> Answer<'_, Result<()>> {
        Answer::ready(check_unchanged(&self.options, &request.options, &[]))
    }

    fn saved_state(&self) -> Option<&dyn SavesState> {
        None
    }

    fn depart(&self) -> Moved {
        // The node is still: no request holds the storage.
        let storage = self.storage.take().and_then(Rc::into_inner);
        Moved::new((self.options.clone(), storage), Self::arrive)
    }

    /// The storage is dropped with the driver; the node has been flushed.
    fn close(&self) -> Answer<'_, Result<()>> {
        Answer::ready(Ok(()))
    }
}
