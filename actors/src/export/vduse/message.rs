//! The messages of the kernel about a device, and their answers.

use std::io;
use std::sync::Arc;

use millpond_ring::Fd;
use millpond_ring::os::process::watched;
use rustix::io::{read, retry_on_intr, write};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The numbers of the messages.
mod kind {
    pub const GET_VQ_STATE: u32 = 0;
    pub const SET_STATUS: u32 = 1;
    pub const UPDATE_IOTLB: u32 = 2;
}

/// What an answer begins with, after its number.
mod result {
    pub const OK: u32 = 0;
    pub const FAILED: u32 = 1;
}

/// The kernel's `struct vduse_dev_request`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct RawRequest {
    pub(super) kind: u32,
    pub(super) id: u32,
    pub(super) reserved: [u32; 4],
    pub(super) body: [u8; 128],
}

/// The kernel's `struct vduse_dev_response`, as far as queues with split rings need it.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct RawResponse {
    pub(super) id: u32,
    pub(super) result: u32,
    reserved: [u32; 4],
    pub(super) index: u32,
    pub(super) taken: u16,
    padding: [u8; 122],
}

/// What the kernel wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// How many requests a queue has taken.
    QueueState { index: u32 },
    /// The driver sets the status of the device.
    Status(u8),
    /// What is known of the memory at these addresses holds no more.
    Memory { first: u64, last: u64 },
    /// Something that came after this program.
    Unknown(u32),
}

/// How a message was obeyed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Done,
    /// Queue `index` has taken so many requests, modulo 65536.
    QueueState {
        index: u32,
        taken: u16,
    },
    Failed,
}

/// A message that waits for its answer.
#[derive(Debug)]
pub(super) struct Message {
    id: u32,
    pub(super) wanted: Wanted,
}

/// Where messages come from, on the control thread.
#[derive(Debug)]
pub(super) struct Channel(AsyncFd<Fd>);

impl RawRequest {
    fn wanted(&self) -> Wanted {
        let [b0, b1, b2, b3, b4, b5, b6, b7, c0, c1, c2, c3, c4, c5, c6, c7, ..] = self.body;
        match self.kind {
            kind::GET_VQ_STATE => Wanted::QueueState {
                index: u32::from_ne_bytes([b0, b1, b2, b3]),
            },
            kind::SET_STATUS => Wanted::Status(b0),
            kind::UPDATE_IOTLB => Wanted::Memory {
                first: u64::from_ne_bytes([b0, b1, b2, b3, b4, b5, b6, b7]),
                last: u64::from_ne_bytes([c0, c1, c2, c3, c4, c5, c6, c7]),
            },
            kind => Wanted::Unknown(kind),
        }
    }
}

impl Channel {
    /// The messages that are read from a descriptor that does not wait.
    ///
    /// # Errors
    /// The control thread's reactor cannot wait for it.
    pub(super) fn new(descriptor: &Fd) -> io::Result<Self> {
        watched(Arc::clone(descriptor)).map(Self)
    }

    /// The next message. Nothing is lost when it is dropped.
    ///
    /// # Errors
    /// None comes any more.
    pub(super) async fn receive(&self) -> io::Result<Message> {
        let mut bytes = [0; size_of::<RawRequest>()];
        let receive = |channel: &Fd| Ok(retry_on_intr(|| read(channel, &mut bytes))?);
        let received = self.0.async_io(Interest::READABLE, receive).await?;
        if received != bytes.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let request = RawRequest::read_from_bytes(&bytes);
        let request = request.map_err(|_| io::ErrorKind::UnexpectedEof)?;
        Ok(Message {
            id: request.id,
            wanted: request.wanted(),
        })
    }

    /// Answers a message.
    ///
    /// # Errors
    /// The kernel waits for it no more.
    pub(super) fn answer(&self, message: &Message, answer: Answer) -> io::Result<()> {
        let (result, index, taken) = match answer {
            Answer::Done => (result::OK, 0, 0),
            Answer::QueueState { index, taken } => (result::OK, index, taken),
            Answer::Failed => (result::FAILED, 0, 0),
        };
        let response = RawResponse {
            id: message.id,
            result,
            reserved: [0; 4],
            index,
            taken,
            padding: [0; 122],
        };
        retry_on_intr(|| write(self.0.get_ref(), response.as_bytes()))?;
        Ok(())
    }
}

const _: () = assert!(size_of::<RawRequest>() == 152);
const _: () = assert!(size_of::<RawResponse>() == 152);
