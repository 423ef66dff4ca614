//! The children of an image, asked in the space that their offsets are in: the image file by host offsets, the backing file
//! by guest offsets.

use millpond_messages::io::Preallocation;
use millpond_messages::{BlockStatus, DebugEvent, IoResult, Range, RequestFlags};

use super::header::extensions::CryptoHeader;
use super::layout::space::{GuestOffset, HostOffset};
use crate::api::{Child, Transfer};
use crate::format::luks::HeaderFile;
use millpond_ring::buffer::Buffers;

/// The child that holds the image.
#[derive(Clone)]
pub(super) struct ImageFile(Child);

impl ImageFile {
    /// The image in `child`.
    pub const fn new(child: Child) -> Self {
        Self(child)
    }

    /// Reads exactly `len` bytes from `start` into a new buffer.
    pub fn read_vec(&self, start: HostOffset, len: usize) -> impl Future<Output = IoResult<Buffers>> {
        self.0.read_vec(start.get(), len)
    }

    /// Fills `buffers` from `start` on.
    pub fn read(&self, start: HostOffset, buffers: Buffers) -> impl Future<Output = Transfer> {
        self.0.read(start.get(), buffers)
    }

    /// The LUKS header that is in a part of the file.
    pub fn luks_header(&self, place: CryptoHeader) -> HeaderFile {
        HeaderFile::within(self.0.clone(), place.offset.get(), place.len)
    }

    /// Stores `buffers` at `start`.
    pub async fn write(&self, start: HostOffset, buffers: Buffers) -> IoResult<()> {
        self.0.write(start.get(), buffers, RequestFlags::empty()).await.0
    }

    /// Stores a copy of `bytes` at `start`.
    pub fn write_slice(&self, start: HostOffset, bytes: &[u8]) -> impl Future<Output = IoResult<()>> {
        self.0.write_slice(start.get(), bytes, RequestFlags::empty())
    }

    /// Makes a range read as zeroes.
    pub async fn write_zeroes(&self, start: HostOffset, len: u64, flags: RequestFlags) -> IoResult<()> {
        let range = Range::new(start.get(), len)?;
        self.0.write_zeroes(range, flags).await
    }

    /// Gives the space of a range back.
    pub async fn discard(&self, start: HostOffset, len: u64) -> IoResult<()> {
        let range = Range::new(start.get(), len)?;
        self.0.discard(range).await
    }

    /// Makes what was written durable.
    pub fn flush(&self) -> impl Future<Output = IoResult<()>> {
        self.0.flush()
    }

    /// Makes the file end at `end`, or behind it where it can only grow in steps.
    pub fn truncate(
        &self,
        end: HostOffset,
        preallocation: Preallocation,
    ) -> impl Future<Output = IoResult<()>> {
        self.0
            .truncate(end.get(), false, preallocation, RequestFlags::empty())
    }

    /// Where the file ends.
    pub async fn end(&self) -> IoResult<HostOffset> {
        self.0.length().await.map(HostOffset::new)
    }

    /// Bytes that the file takes on its host.
    pub fn allocated_size(&self) -> impl Future<Output = IoResult<u64>> {
        self.0.allocated_size()
    }

    /// Whether [`ImageFile::raise`] has an effect.
    pub fn observes(&self) -> bool {
        self.0.observes()
    }

    /// Raises a debug event at the node below that handles it, such as `blkdebug`.
    pub fn raise(&self, event: DebugEvent) -> impl Future<Output = ()> {
        self.0.raise(event)
    }

    /// The name that people know the image by.
    pub fn name(&self) -> String {
        let filename = self.0.filename();
        if filename.is_empty() {
            self.0.node_name()
        } else {
            filename
        }
    }
}

/// The child that holds the backing file, which shows through where the image has nothing.
pub(super) struct BackingFile(Child);

impl BackingFile {
    /// The backing file in `child`.
    pub const fn new(child: Child) -> Self {
        Self(child)
    }

    /// Whether the image has a backing file.
    pub fn is_connected(&self) -> bool {
        self.0.is_connected()
    }

    /// Reads exactly `len` bytes from `start` into a new buffer.
    pub fn read_vec(&self, start: GuestOffset, len: usize) -> impl Future<Output = IoResult<Buffers>> {
        self.0.read_vec(start.get(), len)
    }

    /// What the start of a range is made of, zeroes told apart, down the whole chain.
    pub async fn status(&self, start: GuestOffset, len: u64) -> IoResult<BlockStatus> {
        let range = Range::new(start.get(), len)?;
        self.0.block_status(range, true, true).await
    }
}
