//! A queue while it runs, as its tasks share it: requests come off the ring, and answers go onto it.

use std::cell::{Cell, Ref, RefCell};
use std::future::poll_fn;
use std::num::Wrapping;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Poll, Waker};

use millpond_engine::iothread::Watched;
use millpond_engine::node::HomeClient;
use millpond_ring::os::shared_memory::GuestMemory;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::chain::{Broken, Chain, Table, first_unknown};
use super::request::Request;
use crate::export::virtio::device::Device;
use crate::export::virtio::in_flight::Ledger;
use crate::export::virtio::vring::{self, Call, Lookups, RingPlaces};

/// Bytes of memory that a queue's requests may have at once. One more is begun as long as they have less.
const MAX_BYTES: u64 = 16 << 20;
/// The most bytes of memory that one request has at once: what is longer is served in pieces.
pub(super) const MOST_AT_ONCE: u64 = 1 << 20;

/// In the flags of the available ring: the guest wants no interrupts.
const NO_INTERRUPT: u16 = 1;

/// The ring, and the account of what was taken from it.
struct Ring {
    queue: Queue,
    ledger: Option<Ledger>,
}

/// Whether the guest is to be told of answers.
#[derive(Default)]
struct Signal {
    due: bool,
    /// It is to be told whether it wants to or not: of what it was told before is not known here.
    always: bool,
    closed: bool,
    task: Option<Waker>,
}

/// Who finds out that the guest has put requests onto the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Doze {
    /// The task that takes them, which is at it; or the guest, who says so.
    #[default]
    Not,
    /// The iothread, which looks while it is awake.
    Dozing,
    /// It has found some.
    Roused,
}

/// A queue that runs.
pub(super) struct Session {
    pub(super) backend: HomeClient,
    pub(super) device: Arc<Device>,
    memory: RefCell<Arc<GuestMemory>>,
    ring: RefCell<Ring>,
    call: RefCell<Option<Call>>,
    lookups: Option<Lookups>,
    in_flight: Cell<u16>,
    bytes: Cell<u64>,
    broken: Cell<Option<Broken>>,
    doze: Cell<Doze>,
    /// Who waits for an answer to one of its requests.
    waiting: RefCell<Option<Waker>>,
    signal: RefCell<Signal>,
}

impl Session {
    pub(super) fn new(backend: HomeClient, ring: vring::Ring) -> Self {
        let vring::Ring {
            device,
            memory,
            queue,
            ledger,
            call,
            call_first,
            lookups,
        } = ring;
        let signal = Signal {
            due: call_first,
            always: call_first,
            ..Signal::default()
        };
        Self {
            backend,
            device,
            memory: RefCell::new(memory),
            ring: RefCell::new(Ring { queue, ledger }),
            call: RefCell::new(call),
            lookups,
            in_flight: Cell::new(0),
            bytes: Cell::new(0),
            broken: Cell::new(None),
            doze: Cell::default(),
            waiting: RefCell::default(),
            signal: RefCell::new(signal),
        }
    }

    /// What it is made of, to go elsewhere. Nothing is in flight, and it is not used any more.
    pub(super) fn take_apart(&self) -> vring::Ring {
        let mut ring = self.ring.borrow_mut();
        vring::Ring {
            device: Arc::clone(&self.device),
            memory: Arc::clone(&self.memory.borrow()),
            queue: std::mem::take(&mut ring.queue),
            ledger: ring.ledger.take(),
            call: self.call.take(),
            // What was due was told.
            call_first: false,
            lookups: self.lookups.clone(),
        }
    }

    /// The guest's memory as it is now.
    pub(super) fn memory(&self) -> Ref<'_, GuestMemory> {
        Ref::map(self.memory.borrow(), |memory| &**memory)
    }

    /// The guest's memory is this from now on.
    pub(super) fn set_memory(&self, memory: Arc<GuestMemory>, places: &RingPlaces) {
        places.put(&mut self.ring.borrow_mut().queue);
        self.memory.replace(memory);
    }

    /// The guest is told of answers by this.
    pub(super) fn set_call(&self, call: Option<Call>) {
        self.call.replace(call);
        // What was told over the one before may have been lost.
        self.signal.borrow_mut().always = true;
        self.say();
    }

    /// How many requests were taken from the ring, modulo 65536.
    pub(super) fn taken(&self) -> u16 {
        self.ring.borrow().queue.next_avail()
    }

    /// Whether one more request may be begun.
    pub(super) fn has_room(&self) -> bool {
        let most = self.ring.borrow().queue.size();
        self.in_flight.get() < most && self.bytes.get() < MAX_BYTES
    }

    /// Why it cannot go on, if it cannot.
    pub(super) fn broken(&self) -> Option<Broken> {
        let broken = self.broken.get();
        broken.or_else(|| self.is_cut().then_some(Broken::Cut))
    }

    /// Whether the guest does not see what is written here. Whatever was read since is zeroes then.
    pub(super) fn is_cut(&self) -> bool {
        let ring = self.ring.borrow();
        self.memory.borrow().is_cut() || ring.ledger.as_ref().is_some_and(Ledger::is_cut)
    }

    /// Has a task look again at the next answer, or when the other side has broken the rules.
    pub(super) fn watch(&self, waker: &Waker) {
        self.waiting.replace(Some(waker.clone()));
    }

    /// Waits until nothing is in flight.
    pub(super) async fn settled(&self) {
        poll_fn(|context| {
            if self.in_flight.get() == 0 {
                return Poll::Ready(());
            }
            self.watch(context.waker());
            Poll::Pending
        })
        .await;
    }

    /// The first descriptor of the next request on the ring, if there is one.
    ///
    /// # Errors
    /// The other side breaks the rules.
    pub(super) fn next(&self) -> Result<Option<u16>, Broken> {
        let mut ring = self.ring.borrow_mut();
        let memory = self.memory.borrow();
        let queue = &mut ring.queue;
        let space = memory.space();
        let lost = |_| Broken::Memory(queue.avail_ring());
        let available = queue.avail_idx(space, Ordering::Acquire).map_err(lost)?;
        let next = Wrapping(queue.next_avail());
        if available == next {
            return Ok(None);
        }
        if (available - next).0 > queue.size() {
            return Err(Broken::Available);
        }
        // A queue has at least one descriptor.
        let place = u64::from(next.0.checked_rem(queue.size()).unwrap_or_default());
        // The whole ring was found in the guest's memory before it began.
        let at = queue.avail_ring().wrapping_add(4 + 2 * place);
        let head: u16 = space
            .load(GuestAddress(at), Ordering::Relaxed)
            .map_err(|_| Broken::Memory(at))?;
        queue.set_next_avail((next + Wrapping(1)).0);
        Ok(Some(u16::from_le(head)))
    }

    /// Begins the request whose first descriptor is `head`.
    ///
    /// # Errors
    /// The other side breaks the rules.
    pub(super) fn begin(&self, head: u16) -> Result<Request, Broken> {
        let mut ring = self.ring.borrow_mut();
        let memory = self.memory.borrow();
        let table = Table {
            at: ring.queue.desc_table(),
            len: ring.queue.size(),
        };
        let chain = Chain::read(memory.space(), table, head)?;
        if self.lookups.is_some() {
            chain.check(memory.space())?;
        }
        let request = Request::parse(memory.space(), &self.device, head, chain)?;
        if let Some(ledger) = &mut ring.ledger {
            ledger.begin(head);
        }
        self.in_flight.set(self.in_flight.get() + 1);
        self.bytes.set(self.bytes.get() + request.cost(MOST_AT_ONCE));
        Ok(request)
    }

    /// Where to ask for memory that a request needs, and for what address; `None` if its address is nowhere.
    pub(super) fn unknown(&self, broken: Broken) -> Option<(&Lookups, u64)> {
        let (Broken::Memory(at), Some(lookups)) = (broken, &self.lookups) else {
            return None;
        };
        let address = first_unknown(self.memory().space(), at)?;
        Some((lookups, address))
    }

    /// Has the iothread look for requests as long as it is awake.
    pub(super) fn doze(&self) {
        self.doze.set(Doze::Dozing);
    }

    /// Whether it has found some, and looks for no more.
    pub(super) fn is_roused(&self) -> bool {
        self.doze.get() == Doze::Roused
    }

    /// Has nobody look for requests: the queue's own task does, or wants none.
    pub(super) fn stir(&self) {
        self.doze.set(Doze::Not);
    }

    fn rouse(&self) {
        self.doze.set(Doze::Roused);
        if let Some(waiting) = self.waiting.take() {
            waiting.wake();
        }
    }

    /// Whether there are requests on the ring; or nobody knows, since it is not in the guest's memory any more.
    fn has_requests(&self) -> bool {
        let ring = self.ring.borrow();
        let memory = self.memory.borrow();
        let available = ring.queue.avail_idx(memory.space(), Ordering::Relaxed);
        available.map_or(true, |available| available.0 != ring.queue.next_avail())
    }

    /// Whether the guest put requests onto the ring meanwhile; if not, it says so from now on when it does.
    ///
    /// # Errors
    /// The ring is not in the guest's memory any more.
    fn sleeps(&self) -> Result<bool, Broken> {
        let mut ring = self.ring.borrow_mut();
        let memory = self.memory.borrow();
        let more = ring.queue.enable_notification(memory.space());
        more.map(|more| !more)
            .map_err(|_| Broken::Memory(ring.queue.used_ring()))
    }

    /// The guest need not say when it has requests.
    ///
    /// # Errors
    /// As [`Session::sleeps`].
    pub(super) fn wakes(&self) -> Result<(), Broken> {
        let mut ring = self.ring.borrow_mut();
        let memory = self.memory.borrow();
        let done = ring.queue.disable_notification(memory.space());
        done.map_err(|_| Broken::Memory(ring.queue.used_ring()))
    }

    /// Puts the answer to a request onto the ring; `written` bytes were written for the guest.
    pub(super) fn answer(&self, request: &Request, written: Result<u32, Broken>) {
        let added = written.and_then(|len| self.add_used(request.head, len));
        if let Err(broken) = added {
            self.broken.set(Some(broken));
        }
        self.in_flight.set(self.in_flight.get() - 1);
        self.bytes.set(self.bytes.get() - request.cost(MOST_AT_ONCE));
        if let Some(waiting) = self.waiting.take() {
            waiting.wake();
        }
        self.say();
    }

    fn add_used(&self, head: u16, len: u32) -> Result<(), Broken> {
        let mut ring = self.ring.borrow_mut();
        let memory = self.memory.borrow();
        let Ring { queue, ledger } = &mut *ring;
        if let Some(ledger) = ledger {
            ledger.answer(head);
        }
        let added = queue.add_used(memory.space(), head, len);
        added.map_err(|_| Broken::Memory(queue.used_ring()))?;
        if let Some(ledger) = ledger {
            ledger.end(head, queue.next_used());
        }
        Ok(())
    }

    /// There are answers that the guest may have to be told of.
    fn say(&self) {
        let mut signal = self.signal.borrow_mut();
        signal.due = true;
        let task = signal.task.take();
        drop(signal);
        if let Some(task) = task {
            task.wake();
        }
    }

    /// Whether no more answers come.
    pub(super) fn is_closed(&self) -> bool {
        self.signal.borrow().closed
    }

    /// No more answers come.
    pub(super) fn close(&self) {
        self.signal.borrow_mut().closed = true;
        self.say();
    }

    /// Waits until the guest is to be told of answers, and gives what it is told by; `None` when no more come.
    ///
    /// Whoever adds the first answer makes the task ready that waits here, behind all tasks that are ready by then: the
    /// guest is told of their answers at once.
    pub(super) async fn call_is_due(&self) -> Option<Call> {
        poll_fn(|context| {
            let mut signal = self.signal.borrow_mut();
            if std::mem::take(&mut signal.due) {
                let call = self.call.borrow().clone();
                let always = call.is_some() && std::mem::take(&mut signal.always);
                let call = call.filter(|_| self.wants_interrupt() || always);
                if call.is_some() {
                    return Poll::Ready(call);
                }
            }
            if signal.closed {
                return Poll::Ready(None);
            }
            signal.task = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Whether nobody waits any more for what is told over `call`; if not, the task looks again when that may have changed.
    pub(super) fn is_call_over(&self, call: &Call, waker: &Waker) -> bool {
        let mut signal = self.signal.borrow_mut();
        let same = self.call.borrow().as_ref().is_some_and(|now| now.is(call));
        signal.task = Some(waker.clone());
        signal.closed || !same
    }

    /// Whether the guest wants to be told of the answers since it was asked last.
    fn wants_interrupt(&self) -> bool {
        let mut ring = self.ring.borrow_mut();
        let memory = self.memory.borrow();
        let queue = &mut ring.queue;
        if !queue.event_idx_enabled() {
            let flags = memory
                .space()
                .load(GuestAddress(queue.avail_ring()), Ordering::Relaxed);
            return flags.is_ok_and(|flags: u16| u16::from_le(flags) & NO_INTERRUPT == 0);
        }
        queue.needs_notification(memory.space()).unwrap_or_default()
    }
}

impl Watched for Session {
    fn look(&self) -> bool {
        let came = self.doze.get() == Doze::Dozing && self.has_requests();
        if came {
            self.rouse();
        }
        came
    }

    fn rest(&self) -> bool {
        if self.doze.get() != Doze::Dozing {
            return false;
        }
        self.doze.set(Doze::Not);
        let came = !self.sleeps().unwrap_or_default();
        if came {
            self.rouse();
        }
        came
    }
}
