//! The data half of an export, on the iothread of its node or on one of its own: messages are taken from the kernel while the
//! node's gate is open.
//!
//! The device is read only when it says that there is something, and never so that the read waits: a message that was taken is
//! served. Several are taken at once while the kernel has several. Each has a task of its own, which answers it. What comes over
//! a ring is in memory already: it is looked at in the same way, and waits there in a still section. The device is read also
//! then, for what the kernel tells by it alone.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use futures_channel::oneshot;
use futures_util::FutureExt;
use millpond_drivers::api::Withdrawal;
use millpond_engine::iothread::{IoThreadId, Local, Watched, yield_once};
use millpond_ring::fuse::{FuseEnd, FuseRing};
use millpond_ring::{Pending, Polled};
use rustix::event::PollFlags;
use rustix::io::Errno;

use super::answer::Session;
use super::device::{Line, Taken, take, taken};
use super::queue::Queue;
use super::slots::Slots;
use super::standing::Standing;
use super::wire::Asked;
use crate::export::seat::Seat;
use crate::export::worker::Worker;

/// The most messages that are taken in one go.
const MOST_AT_ONCE: usize = 16;

/// An export, or what one of several iothreads serves of it, on its way there. While this value exists nothing of it is in flight.
pub(super) struct Served {
    /// The name of the export, for the log.
    pub(super) id: Arc<str>,
    pub(super) line: Line,
    pub(super) seat: Seat,
    pub(super) standing: Arc<Standing>,
    /// The iothreads that the kernel may still need for what the ring has given it, and what keeps them there.
    pub(super) stays: Vec<(IoThreadId, oneshot::Sender<Infallible>)>,
    /// The export is to end: no more messages are taken.
    pub(super) stop: oneshot::Receiver<()>,
    /// Told, or dropped, when the export is served no more.
    pub(super) ended: oneshot::Sender<()>,
}

/// Where there are messages to be taken.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Device,
    Queue,
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
        let queue = self.line.ring.take().map(|ring| {
            self.stay(&local);
            Rc::new(Queue::new(ring, local.ring()))
        });
        let session = Rc::new(Session {
            ring: local.ring().clone(),
            channel: self.line.channel.clone(),
            queue,
            client: self.seat.node(),
            standing: Arc::clone(&self.standing),
            withdrawal: Withdrawal::default(),
        });
        let end = self.take_messages(&local, &session, &slots).await;
        self.log(&end);
        if !matches!(end, End::Moved) {
            session.withdrawal.withdraw();
        }
        slots
            .settled(|| {
                // Where that fails nobody is there to be answered.
                let _failed = session.flush();
            })
            .await;
        let ring = session.queue.as_ref().and_then(|queue| queue.leave());
        if matches!(end, End::Moved) {
            self.line.ring = ring;
            return Some(self);
        }
        drop(session);
        if let Some(ring) = ring {
            close(ring, &local).await;
        }
        let Self {
            line, seat, ended, ..
        } = self;
        // Closed first: who waits for the end may want to unmount, and finds the seat free.
        drop((line, seat));
        // The daemon may have ended, so that nobody waits.
        let _ = ended.send(());
        None
    }
}

/// Closes a ring, and waits until the kernel has let go of its memory, and of the device.
async fn close(ring: FuseRing, local: &Local) {
    let remains = ring.close();
    if let Some(gone) = remains.to_wait_for() {
        let hung_up = local.ring().poll(gone, u32::from(PollFlags::IN.bits()));
        if let Err(error) = hung_up.await {
            tracing::debug!(%error, "the end of a FUSE export's ring cannot be waited for");
        }
    }
    remains.free();
}

impl Served {
    /// Takes messages until no more are to be taken here.
    async fn take_messages(&mut self, local: &Rc<Local>, session: &Rc<Session>, slots: &Rc<Slots>) -> End {
        let queue = session.queue.as_ref();
        let _watching = queue.map(|queue| local.look_at(Rc::clone(queue) as Rc<dyn Watched>));
        if let Some(Err(error)) = queue.map(|queue| queue.open()) {
            return End::Failed(error);
        }
        let mut taking = Taking {
            local,
            session,
            slots,
            stop: &mut self.stop,
            wanted: 1,
            more: false,
        };
        taking.run().await
    }

    /// Keeps an iothread from ending before the ring is closed: whichever has given the kernel an entry carries it out when its
    /// request comes, for as long as it is not given anew elsewhere.
    fn stay(&mut self, local: &Rc<Local>) {
        if self.stays.iter().any(|(iothread, _)| *iothread == local.id()) {
            return;
        }
        let (end, ended) = oneshot::channel::<Infallible>();
        self.stays.push((local.id(), end));
        local.spawn(async move {
            // Dropped with the export, which has closed its ring then.
            let _ended = ended.await;
        });
    }

    fn log(&self, end: &End) {
        let id = &self.id;
        match end {
            End::Moved | End::Stopped => {}
            End::Unmounted => tracing::info!(export = %id, "a FUSE export was unmounted"),
            End::Failed(error) => {
                tracing::warn!(export = %id, %error, "the messages of a FUSE export cannot be read");
            }
        }
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
            let taken = match self.wait().await {
                Ok((Source::Device, room)) => self.take_from_device(room),
                Ok((Source::Queue, room)) => self.take_from_queue(room),
                Err(end) => return end,
            };
            if let Err(end) = taken {
                return end;
            }
            if self.more {
                // What was taken begins first.
                yield_once().await;
            }
        }
    }

    /// Takes what is on the device, as far as there is room.
    fn take_from_device(&mut self, room: usize) -> Result<(), End> {
        let asked = self.wanted.min(room);
        let mut came = 0;
        while came < asked {
            match take(&self.session.channel) {
                Ok(taken) => {
                    came += 1;
                    self.dispatch(taken);
                }
                // Nothing is there.
                Err(Errno::AGAIN) => break,
                // Whoever asked has given up.
                Err(Errno::INTR | Errno::NOENT) => {}
                Err(Errno::NODEV | Errno::CONNABORTED) => return Err(End::Unmounted),
                Err(error) => return Err(End::Failed(error)),
            }
        }
        self.more = came == asked && asked > 1;
        self.wanted = match came == asked {
            true => (2 * asked).min(MOST_AT_ONCE),
            false => came.max(1),
        };
        Ok(())
    }

    /// Takes what has come over the ring, as far as there is room.
    fn take_from_queue(&self, room: usize) -> Result<(), End> {
        let Some(queue) = &self.session.queue else {
            return Ok(());
        };
        for _ in 0..room.min(MOST_AT_ONCE) {
            match queue.take() {
                Ok(Some(request)) => self.dispatch(taken(request).map_err(End::Failed)?),
                Ok(None) => break,
                Err(FuseEnd::Unmounted) => return Err(End::Unmounted),
                Err(FuseEnd::Failed(error)) => return Err(End::Failed(error)),
            }
        }
        Ok(())
    }

    /// Waits until messages may be taken and there are some; answers where, and how many may be.
    async fn wait(&mut self) -> Result<(Source, usize), End> {
        let mut readable = None;
        poll_fn(|context| self.poll_wait(context, &mut readable)).await
    }

    fn poll_wait(
        &mut self,
        context: &mut Context<'_>,
        readable: &mut Option<Pending<Polled>>,
    ) -> Poll<Result<(Source, usize), End>> {
        if self.stop.poll_unpin(context).is_ready() {
            return Poll::Ready(Err(End::Stopped));
        }
        self.session.attend(context.waker());
        if let Err(error) = self.session.flush() {
            return Poll::Ready(Err(End::Failed(error)));
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
            return Poll::Ready(Ok((Source::Device, room)));
        }
        match self.session.has_requests(context) {
            Ok(true) => return Poll::Ready(Ok((Source::Queue, room))),
            Ok(false) => {}
            Err(error) => return Poll::Ready(Err(End::Failed(error))),
        }
        let session = self.session;
        let readable = readable.get_or_insert_with(|| session.readable());
        let ready = std::task::ready!(Pin::new(readable).poll(context));
        Poll::Ready(match ready {
            Ok(events) if has_ended(events) => Err(End::Unmounted),
            Ok(_) => Ok((Source::Device, room)),
            Err(error) => Err(End::Failed(Errno::from_io_error(&error).unwrap_or(Errno::IO))),
        })
    }

    /// Has a task see to a message.
    fn dispatch(&self, taken: Taken) {
        let Taken { message, data, entry } = taken;
        let slot = self.slots.take(&message.asked, entry);
        let session = Rc::clone(self.session);
        let unique = message.unique;
        match message.asked {
            // The two that most messages are have tasks that are small.
            Asked::Read { offset, len } => self
                .local
                .spawn(async move { session.answer_read(unique, offset, len, data, slot).await }),
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

impl Session {
    /// Waits until the device has a message.
    fn readable(&self) -> Pending<Polled> {
        self.ring.poll(&self.channel, u32::from(PollFlags::IN.bits()))
    }

    /// Has a task see to answers that the kernel does not have, if they go over a ring.
    fn attend(&self, waker: &Waker) {
        if let Some(queue) = &self.queue {
            queue.attend(waker);
        }
    }

    /// Hands over answers that go over a ring.
    fn flush(&self) -> Result<(), Errno> {
        self.queue.as_ref().map_or(Ok(()), |queue| queue.flush())
    }

    /// Whether requests have come over a ring.
    fn has_requests(&self, context: &mut Context<'_>) -> Result<bool, Errno> {
        self.queue
            .as_ref()
            .map_or(Ok(false), |queue| queue.has_requests(context))
    }
}
