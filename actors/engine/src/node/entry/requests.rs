//! The requests of clients by name, for both kinds of client.

use millpond_drivers::api::{Transfer, transfer};
use millpond_messages::error::errno::{EIO, ENOMEM};
use millpond_messages::io::Operation;
use millpond_messages::{
    BlockStatus, IoError, IoResult, NodeId, Range, RequestFlags, SECTOR_SIZE, StatusFlags,
};
use millpond_ring::buffer::{Buffer, Buffers};

use super::client::{Client, HomeClient};

/// The most bytes that one request of a whole node's zeroing covers, so that others get their turn in between.
const ZEROED_AT_ONCE: u64 = 1 << 30;

/// The requests by name, for both kinds of client.
macro_rules! requests {
    ($client:ident) => {
        impl $client {
            /// Fills `buffers` from `offset`. A request that was lost gives back no buffers.
            pub async fn read(&self, offset: u64, buffers: Buffers) -> Transfer {
                let flags = RequestFlags::empty();
                transfer(
                    self.request(Operation::Read {
                        offset,
                        buffers,
                        flags,
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

            /// Fills `bytes` from `offset` on.
            ///
            /// # Errors
            /// The request's; then `bytes` are as they were.
            pub async fn read_at(&self, bytes: &mut [u8], offset: u64) -> IoResult<()> {
                let buffers = Buffer::try_alloc(bytes.len()).ok_or(IoError::from_errno(ENOMEM))?;
                let (result, buffers) = self.read(offset, Buffers::from(buffers)).await;
                result?;
                buffers.copy_to_slice(0, bytes);
                Ok(())
            }

            /// Stores `bytes` from `offset` on. They are on the disk for good only after a [`flush`](Self::flush).
            ///
            /// # Errors
            /// The request's; then what the range holds is not known.
            pub async fn write_at(&self, bytes: &[u8], offset: u64) -> IoResult<()> {
                let mut buffers =
                    Buffers::from(Buffer::try_alloc(bytes.len()).ok_or(IoError::from_errno(ENOMEM))?);
                buffers.copy_from_slice(0, bytes);
                self.write(offset, buffers, RequestFlags::empty()).await.0
            }

            /// Makes a range read as zeroes.
            ///
            /// # Errors
            /// The request's.
            pub async fn write_zeroes(&self, offset: u64, len: u64, flags: RequestFlags) -> IoResult<()> {
                let range = Range::new(offset, len)?;
                self.request(Operation::WriteZeroes { range, flags })
                    .await
                    .into_done()
            }

            /// Forgets a range.
            ///
            /// # Errors
            /// The request's.
            pub async fn discard(&self, offset: u64, len: u64) -> IoResult<()> {
                let range = Range::new(offset, len)?;
                self.request(Operation::Discard { range }).await.into_done()
            }

            /// Makes what was acknowledged durable.
            ///
            /// # Errors
            /// The request's.
            pub async fn flush(&self) -> IoResult<()> {
                self.request(Operation::Flush).await.into_done()
            }

            /// The length in bytes.
            ///
            /// # Errors
            /// The request's.
            pub async fn length(&self) -> IoResult<u64> {
                self.request(Operation::Length).await.into_bytes()
            }

            /// What the start of a range is made of.
            ///
            /// # Errors
            /// The request's.
            pub async fn block_status(
                &self,
                offset: u64,
                len: u64,
                want_zero: bool,
                whole_chain: bool,
            ) -> IoResult<BlockStatus> {
                let operation = Operation::BlockStatus {
                    range: Range::new(offset, len)?,
                    want_zero,
                    whole_chain,
                    base: None,
                };
                self.request(operation).await.into_status()
            }

            /// Whether a range is known to read as zeroes without a look at data: false where that would cost a read, or a
            /// system call.
            ///
            /// # Errors
            /// The request's.
            pub async fn is_zero_fast(&self, offset: u64, len: u64) -> IoResult<bool> {
                let mut rest = Range::new(offset, len)?;
                while !rest.is_empty() {
                    let status = self
                        .block_status(rest.offset(), rest.len(), false, true)
                        .await?;
                    if !status.flags.contains(StatusFlags::ZERO) || status.len == 0 {
                        return Ok(false);
                    }
                    rest = rest.after(status.len);
                }
                Ok(true)
            }

            /// Makes the whole node read as zeroes. What does already is left alone. `flags` are those of
            /// [`write_zeroes`](Self::write_zeroes).
            ///
            /// # Errors
            /// The first request's that failed; what comes before it reads as zeroes then.
            pub async fn make_zero(&self, flags: RequestFlags) -> IoResult<()> {
                let mut rest = Range::new(0, self.length().await?)?;
                while !rest.is_empty() {
                    let next = rest.first(ZEROED_AT_ONCE);
                    let status = self
                        .block_status(next.offset(), next.len(), true, false)
                        .await?;
                    if status.len == 0 {
                        return Err(IoError::from_errno(EIO));
                    }
                    if !status.flags.contains(StatusFlags::ZERO) {
                        self.write_zeroes(rest.offset(), status.len, flags).await?;
                    }
                    rest = rest.after(status.len);
                }
                Ok(())
            }

            /// The length in sectors of 512 bytes, the last one whole.
            ///
            /// # Errors
            /// The request's.
            pub async fn sectors(&self) -> IoResult<u64> {
                Ok(self.length().await?.div_ceil(SECTOR_SIZE))
            }

            /// Bytes that the image takes on its host.
            ///
            /// # Errors
            /// The request's.
            pub async fn allocated_size(&self) -> IoResult<u64> {
                self.request(Operation::AllocatedSize).await.into_bytes()
            }

            /// What the start of a range is made of in the layers of the chain above the node `base`: what none of them has
            /// is unallocated, whatever is below. Where `base` is not in the chain, all of it counts.
            ///
            /// # Errors
            /// The request's.
            pub async fn block_status_above(
                &self,
                offset: u64,
                len: u64,
                want_zero: bool,
                base: NodeId,
            ) -> IoResult<BlockStatus> {
                let operation = Operation::BlockStatus {
                    range: Range::new(offset, len)?,
                    want_zero,
                    whole_chain: true,
                    base: Some(base),
                };
                self.request(operation).await.into_status()
            }
        }
    };
}

requests!(Client);
requests!(HomeClient);
