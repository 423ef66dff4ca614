//! A queue at work: it takes requests while its node takes them, and does what it is told meanwhile.

use std::future::poll_fn;
use std::io::{self, IoSliceMut};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_channel::{mpsc, oneshot};
use futures_core::Stream;
use millpond_engine::iothread::{Local, Watched, yield_once};
use millpond_ring::buffer::Buffer;
use millpond_ring::{Engine, Fd, Pending, Polled, Ring};
use rustix::event::PollFlags;
use rustix::io::{Errno, ReadWriteFlags, preadv2, write};

use super::chain::Broken;
use super::session::Session;
use crate::export::seat::Seat;
use crate::export::virtio::in_flight::Resumed;
use crate::export::virtio::vring::{Call, Interrupt, Lookup, Order, Ordered, Start};
use crate::export::worker::Worker;

/// So many requests are taken before other tasks of the iothread have their turn.
const BURST: usize = 64;

/// How often a guest is told of answers that is not ready to be told.
const ATTEMPTS: u32 = 10;
/// How long the first pause between two attempts is; each is twice as long as the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(1);

/// Why no more requests are taken.
enum Stop {
    /// The front end wants it, and is told when the last one has ended.
    Ordered(oneshot::Sender<u16>),
    /// Nobody is left to say anything.
    Abandoned,
    /// The other side breaks the rules.
    Broken(String),
    /// The node lives elsewhere.
    Moved,
}

/// What a queue waits for, besides orders.
#[derive(Clone, Copy, PartialEq, Eq)]
enum For {
    /// Nothing: it goes on at once.
    Nothing,
    /// The guest says that there are requests.
    Kick,
    /// An answer to one of those in flight.
    Room,
    /// The end of a drained section.
    Gate,
    /// Whether the guest has memory at an address.
    Memory,
    /// Nothing else than orders.
    Orders,
}

impl Stop {
    /// Says how a queue has ended, which has taken so many requests: `broken` is what was found out behind its end. Whoever
    /// waits for that finds the reason there already, and orders must end behind this. Whoever is not heard has gone.
    fn tell(self, broken: Option<String>, taken: u16, fault: impl FnOnce(String)) {
        match (self, broken) {
            (Stop::Broken(why), _) | (Stop::Moved, Some(why)) => fault(why),
            (Stop::Ordered(reply), Some(why)) => {
                fault(why);
                drop(reply);
            }
            (Stop::Ordered(reply), None) => drop(reply.send(taken)),
            (Stop::Abandoned | Stop::Moved, _) => {}
        }
    }
}

/// What a burst came to.
enum Taken {
    More,
    NoRoom,
    All,
    /// A request is in memory that is not known.
    Unknown,
}

/// The descriptor by which a guest says that there are requests.
struct Kick {
    descriptor: Fd,
    poll: Option<Pending<Polled>>,
}

impl Kick {
    /// Whether the guest has said so since it was asked last.
    fn poll(&mut self, ring: &Ring, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let events = u32::from(PollFlags::IN.bits());
            let poll = self
                .poll
                .get_or_insert_with(|| ring.poll(&self.descriptor, events));
            let Poll::Ready(polled) = Pin::new(poll).poll(context) else {
                return Poll::Pending;
            };
            self.poll = None;
            if let Err(error) = polled {
                return Poll::Ready(Err(error));
            }
            // The other side may have been quicker, and has the same descriptor: it must never be waited for here.
            let mut count = [0; 8];
            let mut room = [IoSliceMut::new(&mut count)];
            match preadv2(&self.descriptor, &mut room, u64::MAX, ReadWriteFlags::NOWAIT) {
                Ok(8) => return Poll::Ready(Ok(())),
                Ok(_) => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }
}

/// A queue on its iothread.
struct Queue {
    local: Rc<Local>,
    session: Rc<Session>,
    kick: Kick,
    enabled: bool,
    resumed: Resumed,
    orders: mpsc::UnboundedReceiver<Ordered>,
    /// The answer to what was asked last about the guest's memory.
    found: Option<oneshot::Receiver<bool>>,
}

impl Queue {
    async fn run(&mut self) -> Stop {
        loop {
            let session = Rc::clone(&self.session);
            session.stir();
            let reason = if !self.enabled {
                For::Orders
            } else if !session.backend.is_open() {
                For::Gate
            } else if session.backend.has_moved() {
                return Stop::Moved;
            } else if self.found.is_some() {
                // What was asked is answered once, however many orders come first.
                For::Memory
            } else {
                match self.take() {
                    Ok(Taken::More) => {
                        yield_once().await;
                        For::Nothing
                    }
                    Ok(Taken::NoRoom) => For::Room,
                    Ok(Taken::All) => For::Kick,
                    Ok(Taken::Unknown) => For::Memory,
                    Err(_) if session.is_cut() => return Stop::Broken(Broken::Cut.to_string()),
                    Err(broken) => return Stop::Broken(broken.to_string()),
                }
            };
            match self.wait(reason).await {
                Ok(Some((order, reply))) => {
                    if !self.obey(order) {
                        return Stop::Ordered(reply);
                    }
                    // Who asked has gone, if it is not heard.
                    let _ = reply.send(self.session.taken());
                }
                Ok(None) => {}
                Err(stop) => return stop,
            }
        }
    }

    /// Does what it is told; false if it is to stop.
    fn obey(&mut self, order: Order) -> bool {
        match order {
            Order::Enable(enabled) => self.enabled = enabled,
            Order::Call(call) => self.session.set_call(call),
            Order::Memory(memory, places) => self.session.set_memory(memory, &places),
            Order::Stop => return false,
        }
        true
    }

    /// Begins requests that are on the ring, while the node takes them.
    fn take(&mut self) -> Result<Taken, Broken> {
        self.session.wakes()?;
        for _ in 0..BURST {
            if !self.session.backend.is_open() {
                return Ok(Taken::More);
            }
            if !self.session.has_room() {
                return Ok(Taken::NoRoom);
            }
            let head = match self.resumed.heads.pop() {
                Some(head) => head,
                None => match self.session.next()? {
                    Some(head) => head,
                    None => {
                        self.session.doze();
                        return Ok(Taken::All);
                    }
                },
            };
            match self.session.begin(head) {
                Ok(request) => self.session.dispatch(&self.local, request),
                Err(broken) => return self.look_up(head, broken),
            }
        }
        Ok(Taken::More)
    }

    /// Asks for the memory that the request at `head` needs, which is the next one again.
    fn look_up(&mut self, head: u16, broken: Broken) -> Result<Taken, Broken> {
        let (lookups, address) = self.session.unknown(broken).ok_or(broken)?;
        let (found, answer) = oneshot::channel();
        lookups
            .unbounded_send(Lookup { address, found })
            .map_err(|_| broken)?;
        self.resumed.heads.push(head);
        self.found = Some(answer);
        Ok(Taken::Unknown)
    }

    /// Whether it is known if the guest has the memory that was asked for.
    ///
    /// # Errors
    /// It has none there.
    fn poll_found(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Stop>> {
        let Some(found) = &mut self.found else {
            return Poll::Ready(Ok(()));
        };
        let Poll::Ready(answer) = Pin::new(found).poll(context) else {
            return Poll::Pending;
        };
        self.found = None;
        Poll::Ready(match answer {
            Ok(true) => Ok(()),
            Ok(false) => Err(Stop::Broken("a request is not in the guest's memory".to_owned())),
            // Whoever was asked has gone.
            Err(_) => Err(Stop::Abandoned),
        })
    }

    /// Waits for an order, or for something else; nothing if that has come.
    async fn wait(&mut self, reason: For) -> Result<Option<Ordered>, Stop> {
        poll_fn(|context| self.poll_wait(reason, context)).await
    }

    fn poll_wait(&mut self, reason: For, context: &mut Context<'_>) -> Poll<Result<Option<Ordered>, Stop>> {
        match Pin::new(&mut self.orders).poll_next(context) {
            Poll::Ready(Some(ordered)) => return Poll::Ready(Ok(Some(ordered))),
            Poll::Ready(None) => return Poll::Ready(Err(Stop::Abandoned)),
            Poll::Pending => {}
        }
        let session = &self.session;
        session.watch(context.waker());
        if let Some(broken) = session.broken() {
            return Poll::Ready(Err(Stop::Broken(broken.to_string())));
        }
        let ready = match reason {
            For::Nothing => true,
            For::Orders => false,
            For::Room => session.has_room(),
            For::Gate => session.backend.watch_open(context.waker()),
            For::Memory => match self.poll_found(context) {
                Poll::Ready(Ok(())) => true,
                Poll::Ready(Err(stop)) => return Poll::Ready(Err(stop)),
                Poll::Pending => false,
            },
            For::Kick if session.is_roused() => true,
            For::Kick => match self.kick.poll(self.local.ring(), context) {
                Poll::Ready(Ok(())) => true,
                Poll::Ready(Err(error)) => {
                    return Poll::Ready(Err(Stop::Broken(format!("the kick descriptor failed: {error}"))));
                }
                Poll::Pending => false,
            },
        };
        if ready {
            Poll::Ready(Ok(None))
        } else {
            Poll::Pending
        }
    }
}

/// Tells a guest of answers, and does it again for a while where it is not ready: between the start of the queues and what
/// its kernel notes of that, no time is agreed on.
async fn interrupt_until_told(session: &Session, local: &Local, interrupt: &dyn Interrupt) {
    for attempt in 0..ATTEMPTS {
        match interrupt.interrupt() {
            Ok(()) => return,
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
            Err(error) => return tracing::warn!(%error, "a guest cannot be told of answers"),
        }
        if session.is_closed() {
            return;
        }
        local.ring().sleep(FIRST_PAUSE * (1 << attempt)).await;
    }
    tracing::warn!("a guest is not ready to be told of answers");
}

/// Tells the guest of answers until no more come.
async fn tell(session: Rc<Session>, local: Rc<Local>) {
    let ring = local.ring();
    let one = 1_u64.to_ne_bytes();
    let mut kept = None;
    while let Some(call) = session.call_is_due().await {
        let counter = match &call {
            Call::Counter(counter) => counter,
            Call::Interrupt(interrupt) => {
                interrupt_until_told(&session, &local, &**interrupt).await;
                continue;
            }
        };
        if ring.engine() == Engine::Uring {
            let one = kept.take().unwrap_or_else(|| Buffer::from_slice(&one).into());
            let mut written = ring.write_at(counter, one, 0, false);
            // The other side may have filled the counter up: then it is waited for only as long as nothing else is.
            kept = poll_fn(|context| match Pin::new(&mut written).poll(context) {
                Poll::Ready((_, one)) => Poll::Ready(Some(one)),
                Poll::Pending if session.is_call_over(&call, context.waker()) => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            })
            .await;
        }
        if kept.is_none() {
            // It does not wait. A counter that is full tells as much.
            let _ = write(counter, &one);
        }
    }
}

impl Worker for Start {
    fn seat(&self) -> &Seat {
        &self.seat
    }

    async fn serve(self, local: Rc<Local>) -> Option<Self> {
        if self.seat.here(&local).is_none() {
            // The node has moved while the queue was on its way.
            return Some(self);
        }
        let Self {
            index,
            seat,
            ring,
            enabled,
            kick,
            resumed,
            orders,
            faults,
        } = self;
        let session = Rc::new(Session::new(seat.node(), ring));
        let watching = local.look_at(Rc::clone(&session) as Rc<dyn Watched>);
        let told = local.spawn_task(tell(Rc::clone(&session), Rc::clone(&local)));
        let mut queue = Queue {
            local,
            session: Rc::clone(&session),
            kick: Kick {
                descriptor: Fd::clone(&kick),
                poll: None,
            },
            enabled,
            resumed,
            orders,
            found: None,
        };
        let stop = queue.run().await;
        session.settled().await;
        session.close();
        told.await;
        // A request that was on its way may have broken the ring meanwhile, and is not answered then.
        let broken = session.broken().map(|broken| broken.to_string());
        if let (Stop::Moved, None) = (&stop, &broken) {
            return Some(Self {
                index,
                seat,
                ring: session.take_apart(),
                enabled: queue.enabled,
                kick,
                resumed: queue.resumed,
                orders: queue.orders,
                faults,
            });
        }
        let taken = session.taken();
        // Who hears that it has stopped can count on it that nothing of the guest's is held here any more.
        drop((watching, queue.session, queue.kick, session));
        stop.tell(broken, taken, |why| drop(faults.unbounded_send((index, why))));
        drop(queue.orders);
        None
    }
}
