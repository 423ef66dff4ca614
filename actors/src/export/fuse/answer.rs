//! What each message does with the node, and what is answered.

use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use millpond_drivers::api::Withdrawal;
use millpond_engine::node::HomeClient;
use millpond_messages::{IoError, RequestFlags};
use millpond_ring::buffer::{Buffer, Buffers};
use millpond_ring::{Fd, Ring};
use rustix::io::Errno;

use super::lengths::Change;
use super::queue::Queue;
use super::reply::{Answer, Attributes, told};
use super::slots::Slot;
use super::standing::Standing;
use super::wire::{Asked, Changed, SetAttributes};

/// The unit in which the kernel is told how much space a file has.
const BLOCK: u64 = 512;

/// How much programs are told to read and write at once. QEMU tells the alignment that the node needs, often 1: with that, C's
/// standard library reads and writes byte by byte.
const BLOCK_SIZE: u32 = 4096;

/// An export on the iothread that serves it.
pub(super) struct Session {
    pub(super) ring: Ring,
    pub(super) channel: Fd,
    /// What requests come over, if not over the device alone.
    pub(super) queue: Option<Rc<Queue>>,
    pub(super) client: HomeClient,
    pub(super) standing: Arc<Standing>,
    /// Withdraws what only waits when the export ends.
    pub(super) withdrawal: Withdrawal,
}

impl Session {
    /// Serves a read, and answers it. What is read goes to `room`, or to memory of its own if there is none.
    pub(super) async fn answer_read(&self, unique: u64, offset: u64, len: u32, room: Buffer, slot: Slot) {
        let read = self.withdrawal.scoped(self.read(offset, len, room));
        match read.await {
            Ok(data) => {
                let mut answer = Buffers::from(Answer::read(unique, data.len()));
                answer.append(data);
                self.send(answer, slot).await;
            }
            Err(error) => self.send(Answer::failed(unique, error).into(), slot).await,
        }
    }

    /// Serves a write, and answers it.
    pub(super) async fn answer_write(&self, unique: u64, offset: u64, data: Buffer, slot: Slot) {
        let written = self.withdrawal.scoped(self.write(offset, data.into()));
        let answer = match written.await {
            Ok(len) => Answer::written(unique, len),
            Err(error) => Answer::failed(unique, error),
        };
        self.send(answer.into(), slot).await;
    }

    /// Serves any other message, and answers it.
    pub(super) async fn answer(&self, unique: u64, asked: Asked, slot: Slot) {
        let answer = match self.withdrawal.scoped(self.serve(unique, asked)).await {
            Ok(Some(answer)) => answer,
            Ok(None) => return,
            Err(error) => Answer::failed(unique, error),
        };
        self.send(answer.into(), slot).await;
    }

    async fn send(&self, answer: Buffers, mut slot: Slot) {
        slot.answering();
        if let (Some(entry), Some(queue)) = (slot.entry(), &self.queue) {
            return queue.answer(entry, answer);
        }
        let (result, _) = self.ring.write_at(&self.channel, answer, 0, false).await;
        if let Err(error) = result {
            // Whoever asked has given up, or the file system is gone.
            tracing::debug!(%error, "an answer of a FUSE export is not wanted");
        }
    }

    async fn serve(&self, unique: u64, asked: Asked) -> Result<Option<Buffer>, Errno> {
        let answer = match asked {
            Asked::GetAttributes => Answer::attributes(unique, &self.attributes().await?),
            Asked::SetAttributes(set) => {
                self.set_attributes(&set).await?;
                Answer::attributes(unique, &self.attributes().await?)
            }
            Asked::Open => Answer::opened(unique, self.standing.is_direct()),
            Asked::Fallocate(change) => {
                self.fallocate(change).await?;
                Answer::done(unique)
            }
            Asked::Seek { offset, whence } => Answer::found(unique, self.seek(offset, whence).await?),
            Asked::Flush => {
                self.client.flush().await.map_err(told)?;
                Answer::done(unique)
            }
            Asked::Statistics => Answer::statistics(unique),
            Asked::End => Answer::done(unique),
            Asked::LookUp => return Err(Errno::NOENT),
            Asked::Note => return Ok(None),
            // The first has been answered before anybody came here, and the others are not served here.
            Asked::Init(_) | Asked::Read { .. } | Asked::Write { .. } => return Err(Errno::NOSYS),
            Asked::Unknown(_) => return Err(Errno::NOSYS),
        };
        Ok(Some(answer))
    }

    /// The length of the node in bytes.
    pub(super) async fn length(&self) -> Result<u64, Errno> {
        self.client.length().await.map_err(told)
    }

    async fn attributes(&self) -> Result<Attributes, Errno> {
        let size = self.length().await?;
        // Where it is not known, all of it counts.
        let allocated = self.client.allocated_size().await.unwrap_or(0);
        let allocated = if allocated == 0 { size } else { allocated };
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = now.unwrap_or_default();
        let of = self.standing.ownership();
        Ok(Attributes {
            size,
            blocks: allocated.div_ceil(BLOCK),
            block_size: BLOCK_SIZE,
            time: (now.as_secs(), now.subsec_nanos()),
            mode: of.mode,
            uid: of.uid,
            gid: of.gid,
        })
    }

    async fn set_attributes(&self, set: &SetAttributes) -> Result<(), Errno> {
        let after = self.standing.ownership().after(set, self.standing.rules())?;
        if set.changed.contains(Changed::SIZE) {
            self.standing.lengths.change(Change::Set(set.size)).await?;
        }
        self.standing.set_ownership(after);
        Ok(())
    }

    /// Reads up to the end of the node.
    async fn read(&self, offset: u64, len: u32, room: Buffer) -> Result<Buffers, Errno> {
        let len = len.min(self.standing.max_transfer());
        let buffer = match room.len() == len as usize {
            true => room,
            false => Buffer::try_alloc(len as usize).ok_or(Errno::NOMEM)?,
        };
        let (result, mut buffers) = self.client.read(offset, buffer.into()).await;
        match result {
            Ok(()) => return Ok(buffers),
            Err(IoError::OutOfRange) => {}
            Err(error) => return Err(told(error)),
        }
        let rest = self.length().await?.saturating_sub(offset);
        if rest == 0 {
            return Ok(Buffers::new());
        }
        // No more than was asked for, which a `usize` holds.
        buffers.truncate(rest.min(u64::from(len)) as usize);
        let (result, buffers) = self.client.read(offset, buffers).await;
        result.map_err(told)?;
        Ok(buffers)
    }

    /// Writes, and answers how many bytes.
    async fn write(&self, offset: u64, data: Buffers) -> Result<u32, Errno> {
        if !self.standing.rules().writable {
            return Err(Errno::ACCESS);
        }
        // A write is no longer than was agreed on.
        let len = data.len() as u32;
        let (result, data) = self.client.write(offset, data, RequestFlags::empty()).await;
        match result {
            Ok(()) => Ok(len),
            Err(IoError::OutOfRange) => self.write_past_end(offset, data).await,
            Err(error) => Err(told(error)),
        }
    }

    /// Writes what passes the end: the export grows, or as much is written as there is room for.
    async fn write_past_end(&self, offset: u64, mut data: Buffers) -> Result<u32, Errno> {
        let end = offset.checked_add(data.len() as u64).ok_or(Errno::FBIG)?;
        if self.standing.rules().growable {
            self.standing.lengths.change(Change::Reach(end)).await?;
        } else {
            let length = self.length().await?;
            let rest = length.saturating_sub(offset);
            if rest == 0 {
                return Err(Errno::NOSPC);
            }
            // No more than there is, which a `usize` holds.
            data.truncate(rest.min(data.len() as u64) as usize);
        }
        let len = data.len() as u32;
        let (result, _) = self.client.write(offset, data, RequestFlags::empty()).await;
        result.map_err(told)?;
        Ok(len)
    }
}
