//! What a connection needs of the node behind its export.

use std::future::Future;

use drivers::buffer::Buffers;
use drivers::driver::Transfer;
use messages::io::Operation;
use messages::{BlockStatus, IoError, IoResult, RequestFlags};

use crate::iothread::Local;
use crate::node::HomeClient;

/// The node behind an export, as one connection on one thread uses it.
///
/// A type parameter rather than an object: a request costs no indirection, and tests bring a disk of their own.
pub trait Backend: 'static {
    /// Fills `buffers` from `offset`.
    fn read(&self, offset: u64, buffers: Buffers, flags: RequestFlags) -> impl Future<Output = Transfer>;
    /// Stores `buffers` at `offset`.
    fn write(&self, offset: u64, buffers: Buffers, flags: RequestFlags) -> impl Future<Output = Transfer>;
    /// Makes a range read as zeroes.
    fn write_zeroes(&self, offset: u64, len: u64, flags: RequestFlags) -> impl Future<Output = IoResult<()>>;
    /// Forgets a range.
    fn discard(&self, offset: u64, len: u64) -> impl Future<Output = IoResult<()>>;
    /// Makes what was acknowledged durable.
    fn flush(&self) -> impl Future<Output = IoResult<()>>;
    /// What the start of a range is made of, down the whole chain; `want_zero` asks storage for zeroes too.
    fn block_status(
        &self,
        offset: u64,
        len: u64,
        want_zero: bool,
    ) -> impl Future<Output = IoResult<BlockStatus>>;
    /// Whether a request sent now would be served now rather than wait for a drained section to end.
    fn is_open(&self) -> bool;
    /// Waits until it would.
    fn wait_open(&self) -> impl Future<Output = ()>;
    /// Whether the node lives on another iothread than this one by now.
    fn has_moved(&self) -> bool;
}

impl Backend for HomeClient {
    async fn read(&self, offset: u64, buffers: Buffers, flags: RequestFlags) -> Transfer {
        let outcome = self
            .request(Operation::Read {
                offset,
                buffers,
                flags,
            })
            .await;
        let (result, buffers) = outcome.into_parts();
        match buffers {
            Some(buffers) => (result, buffers),
            None => (result.and(Err(IoError::Cancelled)), Buffers::new()),
        }
    }

    fn write(&self, offset: u64, buffers: Buffers, flags: RequestFlags) -> impl Future<Output = Transfer> {
        HomeClient::write(self, offset, buffers, flags)
    }

    fn write_zeroes(&self, offset: u64, len: u64, flags: RequestFlags) -> impl Future<Output = IoResult<()>> {
        HomeClient::write_zeroes(self, offset, len, flags)
    }

    fn discard(&self, offset: u64, len: u64) -> impl Future<Output = IoResult<()>> {
        HomeClient::discard(self, offset, len)
    }

    fn flush(&self) -> impl Future<Output = IoResult<()>> {
        HomeClient::flush(self)
    }

    fn block_status(
        &self,
        offset: u64,
        len: u64,
        want_zero: bool,
    ) -> impl Future<Output = IoResult<BlockStatus>> {
        HomeClient::block_status(self, offset, len, want_zero, true)
    }

    fn is_open(&self) -> bool {
        HomeClient::is_open(self)
    }

    fn wait_open(&self) -> impl Future<Output = ()> {
        HomeClient::wait_open(self)
    }

    fn has_moved(&self) -> bool {
        Local::current_id() != Some(self.client().iothread())
    }
}
