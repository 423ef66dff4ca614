//! A driver's children: handles on edges, by which it sends requests to the nodes below.

use std::rc::Rc;

use futures_util::future::LocalBoxFuture;
use millpond_messages::io::{Operation, Outcome, Preallocation};
use millpond_messages::{
    BlockStatus, DebugEvent, DriverInfo, Error, ErrorKind, IoError, IoResult, Limits, Range, RequestFlags,
    Result,
};

use super::answer::Answer;
use millpond_ring::buffer::{Buffer, Buffers};

/// The result of a read or write, and the buffers it took.
pub type Transfer = (IoResult<()>, Buffers);

/// The edge behind a [`Child`]. Whoever runs nodes implements this; drivers only use it.
pub trait ChildPort {
    /// Sends a request to the node behind the edge. The request serves one of the parent's or its background work, so it
    /// never waits at a gate.
    fn request(&self, operation: Operation<Buffers>) -> Answer<'static, Outcome<Buffers>>;

    /// What the node behind the edge asks of requests.
    fn limits(&self) -> Limits;

    /// Whether there is a node behind the edge.
    fn is_connected(&self) -> bool;

    /// The name of the node behind the edge, empty if there is none.
    fn node_name(&self) -> String;

    /// The filename of the node behind the edge, empty if there is none.
    fn filename(&self) -> String;

    /// Whether the node behind the edge takes writes with WRITE_COMPRESSED.
    fn takes_compressed(&self) -> bool {
        false
    }

    /// The name of the driver of the node behind the edge; none where there is no node, or one of another iothread.
    fn driver_name(&self) -> Option<&'static str> {
        None
    }

    /// What the image behind the edge is made of; none where there is no node, or one of another iothread.
    fn info(&self) -> Option<DriverInfo> {
        None
    }

    /// How many nodes down the chain behind the edge the one of this name is, 1 for the first; none where the chain has no
    /// such node, or goes on in another iothread before it.
    fn chain_index(&self, _name: &str) -> Option<u32> {
        None
    }

    /// Whether a node behind the edge handles debug events.
    fn observes(&self) -> bool {
        false
    }

    /// Passes a debug event on to the nodes behind the edge. What it belongs to waits for the future, where there is one.
    fn debug_event(&self, _event: DebugEvent) -> Option<LocalBoxFuture<'static, ()>> {
        None
    }
}

/// A handle on a child node. It stays valid when the graph puts another node behind the edge.
#[derive(Clone)]
pub struct Child(Rc<dyn ChildPort>);

impl Child {
    /// The handle on `port`.
    #[must_use]
    pub fn new(port: Rc<dyn ChildPort>) -> Self {
        Self(port)
    }

    /// Sends the node below a request of any kind.
    pub fn request(&self, operation: Operation<Buffers>) -> Answer<'static, Outcome<Buffers>> {
        self.0.request(operation)
    }

    /// Fills `buffers` from `offset`.
    pub async fn read(&self, offset: u64, buffers: Buffers) -> Transfer {
        transfer(
            self.request(Operation::Read {
                offset,
                buffers,
                flags: RequestFlags::empty(),
            })
            .await,
        )
    }

    /// Stores `buffers` at `offset`.
    pub async fn write(&self, offset: u64, buffers: Buffers, flags: RequestFlags) -> Transfer {
        transfer(
            self.request(Operation::Write {
                offset,
                buffers,
                flags,
            })
            .await,
        )
    }

    /// Reads exactly `len` bytes into a new buffer.
    ///
    /// # Errors
    /// The read's.
    pub async fn read_vec(&self, offset: u64, len: usize) -> IoResult<Buffers> {
        let (result, buffers) = self.read(offset, Buffers::zeroed(len)).await;
        result.map(|()| buffers)
    }

    /// Stores a copy of `bytes` at `offset`.
    ///
    /// # Errors
    /// The write's.
    pub async fn write_slice(&self, offset: u64, bytes: &[u8], flags: RequestFlags) -> IoResult<()> {
        self.write(offset, Buffers::from(Buffer::from_slice(bytes)), flags)
            .await
            .0
    }

    /// Makes a range read as zeroes.
    ///
    /// # Errors
    /// The request's.
    pub async fn write_zeroes(&self, range: Range, flags: RequestFlags) -> IoResult<()> {
        self.done(Operation::WriteZeroes { range, flags }).await
    }

    /// Forgets a range.
    ///
    /// # Errors
    /// The request's.
    pub async fn discard(&self, range: Range) -> IoResult<()> {
        self.done(Operation::Discard { range }).await
    }

    /// Makes what was acknowledged durable.
    ///
    /// # Errors
    /// The request's.
    pub async fn flush(&self) -> IoResult<()> {
        self.done(Operation::Flush).await
    }

    /// Changes the length.
    ///
    /// # Errors
    /// The request's.
    pub async fn truncate(
        &self,
        size: u64,
        exact: bool,
        preallocation: Preallocation,
        flags: RequestFlags,
    ) -> IoResult<()> {
        self.done(Operation::Truncate {
            size,
            exact,
            preallocation,
            flags,
        })
        .await
    }

    /// What a driver answers to a change of length that it passes on to this child.
    ///
    /// # Errors
    /// The request's.
    pub async fn resize(
        &self,
        size: u64,
        exact: bool,
        preallocation: Preallocation,
        flags: RequestFlags,
    ) -> Result<()> {
        let done = self.truncate(size, exact, preallocation, flags).await;
        done.map_err(|error| match (error, preallocation) {
            (IoError::NotSupported, Preallocation::Metadata) => {
                Error::new(ErrorKind::Unsupported, "Unsupported preallocation mode: metadata")
            }
            _ => Error::io("Could not resize file", error),
        })
    }

    /// The length in bytes.
    ///
    /// # Errors
    /// The request's.
    pub async fn length(&self) -> IoResult<u64> {
        self.request(Operation::Length).await.into_bytes()
    }

    /// Bytes taken on the host.
    ///
    /// # Errors
    /// The request's; NotSupported where no one can tell.
    pub async fn allocated_size(&self) -> IoResult<u64> {
        self.request(Operation::AllocatedSize).await.into_bytes()
    }

    /// What the start of a range is made of.
    ///
    /// # Errors
    /// The request's.
    pub async fn block_status(
        &self,
        range: Range,
        want_zero: bool,
        whole_chain: bool,
    ) -> IoResult<BlockStatus> {
        self.request(Operation::BlockStatus {
            range,
            want_zero,
            whole_chain,
            base: None,
        })
        .await
        .into_status()
    }

    /// What the child asks of requests.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.0.limits()
    }

    /// Whether there is a node behind the edge.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.0.is_connected()
    }

    /// The name of the node behind the edge.
    #[must_use]
    pub fn node_name(&self) -> String {
        self.0.node_name()
    }

    /// The filename of the node behind the edge.
    #[must_use]
    pub fn filename(&self) -> String {
        self.0.filename()
    }

    /// Whether the node behind the edge takes writes with WRITE_COMPRESSED.
    #[must_use]
    pub fn takes_compressed(&self) -> bool {
        self.0.takes_compressed()
    }

    /// The name of the driver of the node behind the edge; none where there is no node, or one of another iothread.
    #[must_use]
    pub fn driver_name(&self) -> Option<&'static str> {
        self.0.driver_name()
    }

    /// What the image behind the edge is made of; none where there is no node, or one of another iothread.
    #[must_use]
    pub fn info(&self) -> Option<DriverInfo> {
        self.0.info()
    }

    /// How many nodes down the chain of filtered and backing nodes the one of this name is, 1 for the child itself.
    #[must_use]
    pub fn chain_index(&self, name: &str) -> Option<u32> {
        self.0.chain_index(name)
    }

    /// Whether [`Child::raise`] has an effect. Where it has none, a driver need not do what only serves raising events.
    #[must_use]
    pub fn observes(&self) -> bool {
        self.0.observes()
    }

    /// Raises a debug event: a node behind the edge that handles it, such as `blkdebug`, may hold up what raised it.
    pub async fn raise(&self, event: DebugEvent) {
        if let Some(held) = self.0.debug_event(event) {
            held.await;
        }
    }

    async fn done(&self, operation: Operation<Buffers>) -> IoResult<()> {
        self.request(operation).await.into_done()
    }
}

/// A read's or write's outcome as its two parts. Where the buffers were lost on the way, the result is an error.
pub fn transfer(outcome: Outcome<Buffers>) -> Transfer {
    match outcome.into_parts() {
        (result, Some(buffers)) => (result, buffers),
        (result, None) => (result.and(Err(IoError::Cancelled)), Buffers::default()),
    }
}

/// The length of a gather list as an offset's type.
pub(crate) fn bytes_in(buffers: &Buffers) -> u64 {
    u64::try_from(buffers.len()).unwrap_or(u64::MAX)
}
