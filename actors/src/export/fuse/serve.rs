//! The data half of an export, on the iothread of its node: messages are taken from the kernel while the node's gate is open.
//!
//! The device is read only when it says that there is something, and never so that the read waits: a message that was taken is
//! served. Several are taken at once while the kernel has several. Each has a task of its own, which answers it.

use std::future::{Future, poll_fn};
use std::io::IoSliceMut;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_channel::oneshot;
use futures_util::FutureExt;
use futures_util::lock::Mutex;
use millpond_drivers::api::Withdrawal;
use millpond_engine::iothread::{Local, yield_once};
use millpond_ring::buffer::Buffer;
use millpond_ring::{Fd, Pending, Polled};
use rustix::event::PollFlags;
use rustix::io::{Errno, readv};

use super::answer::Session;
use super::slots::Slots;
use super::standing::Standing;
use super::wire::{Asked, MAX_TRANSFER, MOST_HEAD, Message, WRITE_HEAD};
use crate::export::seat::Seat;
use crate::export::worker::Worker;
use crate::graph::GraphHandle;

/// The most messages that are taken in one go.
const MOST_AT_ONCE: usize = 16;

/// Data of a write that is shorter goes to memory of its size, and that which it was read into is used again.
const LARGE: usize = 64 << 10;

/// An export on its way to an iothread. While this value exists nothing of it is in flight.
pub(super) struct Served {
    /// The name of the export, for the log.
    pub(super) id: Arc<str>,
    pub(super) channel: Fd,
    pub(super) seat: Seat,
    pub(super) graph: GraphHandle,
    pub(super) standing: Arc<Standing>,
    /// The export is to end: no more messages are taken.
    pub(super) stop: oneshot::Receiver<()>,
    /// Told, or dropped, when the export is served no more.
    pub(super) ended: oneshot::Sender<()>,
}

/// Why no more messages are taken here.
enum End {
    Stopped,
    Moved,
    /// The file system is not mounted any more.
    Unmounted,
    Failed(Errno),
}

impl Worker for Served {
    fn seat(&self) -> &Seat {
        &self.seat
    }

    async fn serve(mut self, local: Rc<Local>) -> Option<Self> {
        if self.seat.here(&local).is_none() {
            // The node has moved while the export was on its way.
            return Some(self);
        }
        let slots = Slots::new(&self.standing);
        let session = Rc::new(Session {
            ring: local.ring().clone(),
            channel: self.channel.clone(),
            client: self.seat.node(),
            graph: self.graph.clone(),
            standing: Arc::clone(&self.standing),
            lengths: Mutex::default(),
            withdrawal: Withdrawal::default(),
        });
        let mut taking = Taking {
            local: &local,
            session: &session,
            slots: &slots,
            stop: &mut self.stop,
            wanted: 1,
            more: false,
        };
        let end = taking.run().await;
        let id = &self.id;
        match end {
            End::Moved => {}
            End::Stopped => session.withdrawal.withdraw(),
            End::Unmounted => {
                tracing::info!(export = %id, "a FUSE export was unmounted");
                session.withdrawal.withdraw();
            }
            End::Failed(error) => {
                tracing::warn!(export = %id, %error, "the messages of a FUSE export cannot be read");
                session.withdrawal.withdraw();
            }
        }
        slots.settled().await;
        if matches!(end, End::Moved) {
            return Some(self);
        }
        drop(session);
        let Self { channel, ended, .. } = self;
        // Closed first: who waits for the end may want to unmount.
        drop(channel);
        // The daemon may have ended, so that nobody waits.
        let _ = ended.send(());
        None
    }
}

/// The task that takes messages.
struct Taking<'a> {
    local: &'a Rc<Local>,
    session: &'a Rc<Session>,
    slots: &'a Rc<Slots>,
    stop: &'a mut oneshot::Receiver<()>,
    /// How many messages are asked for at once: as many as were there last time, and more if there are more.
    wanted: usize,
    /// There may be messages that nobody has looked for.
    more: bool,
}

impl Taking<'_> {
    async fn run(&mut self) -> End {
        loop {
            let room = match self.wait().await {
                Ok(room) => room,
                Err(end) => return end,
            };
            let asked = self.wanted.min(room);
            let mut came = 0;
            while came < asked {
                match self.session.take() {
                    Ok(message) => {
                        came += 1;
                        self.dispatch(message);
                    }
                    // Nothing is there.
                    Err(Errno::AGAIN) => break,
                    // Whoever asked has given up.
                    Err(Errno::INTR | Errno::NOENT) => {}
                    Err(Errno::NODEV | Errno::CONNABORTED) => return End::Unmounted,
                    Err(error) => return End::Failed(error),
                }
            }
            self.more = came == asked && asked > 1;
            self.wanted = match came == asked {
                true => (2 * asked).min(MOST_AT_ONCE),
                false => came.max(1),
            };
            if self.more {
                // What was taken begins first.
                yield_once().await;
            }
        }
    }

    /// Waits until messages may be taken and there are some; answers how many may be.
    async fn wait(&mut self) -> Result<usize, End> {
        let mut readable = None;
        poll_fn(|context| self.poll_wait(context, &mut readable)).await
    }

    fn poll_wait(
        &mut self,
        context: &mut Context<'_>,
        readable: &mut Option<Pending<Polled>>,
    ) -> Poll<Result<usize, End>> {
        if self.stop.poll_unpin(context).is_ready() {
            return Poll::Ready(Err(End::Stopped));
        }
        let node = &self.session.client;
        if node.has_moved() {
            return Poll::Ready(Err(End::Moved));
        }
        let is_open = node.watch_open(context.waker());
        let room = self.slots.room(context.waker());
        if !is_open || room == 0 {
            return Poll::Pending;
        }
        if self.more {
            return Poll::Ready(Ok(room));
        }
        let session = self.session;
        let readable = readable.get_or_insert_with(|| session.readable());
        let ready = std::task::ready!(Pin::new(readable).poll(context));
        Poll::Ready(match ready {
            Ok(events) if has_ended(events) => Err(End::Unmounted),
            Ok(_) => Ok(room),
            Err(error) => Err(End::Failed(Errno::from_io_error(&error).unwrap_or(Errno::IO))),
        })
    }

    /// Has a task see to a message.
    fn dispatch(&self, Taken { message, data }: Taken) {
        let slot = self.slots.take(&message.asked);
        let session = Rc::clone(self.session);
        let unique = message.unique;
        match message.asked {
            // The two that most messages are have tasks that are small.
            Asked::Read { offset, len } => self
                .local
                .spawn(async move { session.answer_read(unique, offset, len, slot).await }),
            Asked::Write { offset, .. } => self
                .local
                .spawn(async move { session.answer_write(unique, offset, data, slot).await }),
            other => self
                .local
                .spawn(async move { session.answer(unique, other, slot).await }.boxed_local()),
        }
    }
}

/// Whether these events say that the file system is not mounted any more.
fn has_ended(events: u32) -> bool {
    events & u32::from((PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL).bits()) != 0
}

/// A message that was taken from the kernel.
struct Taken {
    message: Message,
    /// What a write is to store.
    data: Buffer,
}

impl Session {
    /// Waits until the kernel has a message.
    fn readable(&self) -> Pending<Polled> {
        self.ring.poll(&self.channel, u32::from(PollFlags::IN.bits()))
    }

    /// Takes a message, if there is one. It is read by a system call of its own: through the ring, some kernels wait for a
    /// message, and one that comes while such a read is given up would be lost.
    fn take(&self) -> Result<Taken, Errno> {
        let (mut head, mut data) = ([0; MOST_HEAD], Buffer::alloc(MAX_TRANSFER as usize));
        // The data of a write comes to memory that begins where its head ends. What has a longer head goes on there.
        let (first, rest) = head.split_at_mut(WRITE_HEAD);
        let mut parts = [IoSliceMut::new(first), IoSliceMut::new(&mut data)];
        let len = readv(&self.channel, &mut parts)?;
        rest.copy_from_slice(&data[..MOST_HEAD - WRITE_HEAD]);
        let head = head.get(..len).unwrap_or(&head);
        let message = Message::parse(head, len).map_err(|malformed| {
            tracing::error!(%malformed, "a FUSE export was asked something strange");
            Errno::PROTO
        })?;
        let data = match message.asked {
            Asked::Write { len, .. } => {
                data.truncate(len as usize);
                own(data)
            }
            _ => Buffer::new(),
        };
        Ok(Taken { message, data })
    }
}

/// The data of a write, in memory that is not much larger.
fn own(data: Buffer) -> Buffer {
    match data.len() < LARGE {
        true => Buffer::from_slice(&data),
        false => data,
    }
}
