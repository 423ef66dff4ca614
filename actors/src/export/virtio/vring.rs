//! A queue as it is set up by messages, and what it is told while it runs on an iothread.

use std::fmt::Debug;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use futures_channel::{mpsc, oneshot};
use millpond_ring::Fd;
use millpond_ring::os::shared_memory::GuestMemory;
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;

use super::device::Device;
use super::in_flight::{InFlight, InFlightError, Ledger, Resumed};
use crate::export::seat::{Seat, Seats};

/// The most descriptors of a queue.
pub(in crate::export) const MAX_QUEUE_SIZE: u16 = 1024;

/// Why a queue cannot be used.
#[derive(Debug, thiserror::Error)]
pub(in crate::export) enum VringError {
    /// Its size is none that queues have.
    #[error("queue {0} cannot have {1} descriptors")]
    Size(u32, u32),
    /// Something was not said before it was to start.
    #[error("queue {0} is to start, but {1} was not set")]
    Unset(u32, &'static str),
    /// One of its parts is not in the guest's memory, or not aligned.
    #[error("the {1} of queue {0} is at 0x{2:x}, where it cannot be")]
    Place(u32, &'static str, u64),
    /// Its part of the in-flight area cannot be used.
    #[error(transparent)]
    InFlight(#[from] InFlightError),
}

/// Where the parts of a ring are, as the other side counts.
#[derive(Debug, Clone, Copy)]
pub(in crate::export) struct RingAddresses {
    pub(in crate::export) descriptors: u64,
    pub(in crate::export) available: u64,
    pub(in crate::export) used: u64,
}

/// Where the parts of a ring are, as the guest counts.
#[derive(Debug, Clone, Copy)]
pub(in crate::export) struct RingPlaces {
    descriptors: GuestAddress,
    available: GuestAddress,
    used: GuestAddress,
}

/// How a guest is told that there are answers.
#[derive(Debug, Clone)]
pub(in crate::export) enum Call {
    /// By a counter that it waits for.
    Counter(Fd),
    /// By a system call.
    Interrupt(Arc<dyn Interrupt>),
}

/// Tells a guest that there are answers, without waiting.
pub(in crate::export) trait Interrupt: Debug + Send + Sync {
    /// Tells it once.
    ///
    /// # Errors
    /// It cannot be told now. It may be yet, if the kind of the error is `InvalidInput`: it is about to be ready.
    fn interrupt(&self) -> io::Result<()>;
}

impl Call {
    /// Whether the same guest is told in the same way.
    pub(in crate::export) fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Counter(one), Self::Counter(other)) => Arc::ptr_eq(one, other),
            (Self::Interrupt(one), Self::Interrupt(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }
}

/// A queue has met an address that its memory has not. Memory that the guest has there after all is found, and all
/// queues are told of it, before this is answered.
#[derive(Debug)]
pub(in crate::export) struct Lookup {
    pub(in crate::export) address: u64,
    /// Whether the guest has memory there.
    pub(in crate::export) found: oneshot::Sender<bool>,
}

/// Where queues ask for memory that is not known yet.
pub(in crate::export) type Lookups = mpsc::UnboundedSender<Lookup>;

/// What a queue on its iothread is told to do. Each is answered when it was done.
#[derive(Debug)]
pub(in crate::export) enum Order {
    /// Take requests, or none.
    Enable(bool),
    /// Say by this that there are answers.
    Call(Option<Call>),
    /// The guest's memory is this now.
    Memory(Arc<GuestMemory>, RingPlaces),
    /// Take no more requests; answered when those in flight have ended.
    Stop,
}

/// An order, and how it is answered: with the number of requests that were taken from the ring, modulo 65536.
pub(in crate::export) type Ordered = (Order, oneshot::Sender<u16>);

/// What a queue says by itself: it cannot go on, because the other side breaks the rules.
pub(in crate::export) type Fault = (u16, String);

/// A queue that runs, as the control thread knows it.
#[derive(Debug)]
pub(in crate::export) struct Running {
    orders: mpsc::UnboundedSender<Ordered>,
}

impl Running {
    /// Has it do something, and waits until it is done; `None` if the queue has ended by itself.
    pub(in crate::export) async fn order(&self, order: Order) -> Option<u16> {
        let (reply, done) = oneshot::channel();
        self.orders.unbounded_send((order, reply)).ok()?;
        done.await.ok()
    }

    /// Whether the queue has ended by itself.
    pub(in crate::export) fn has_ended(&self) -> bool {
        self.orders.is_closed()
    }
}

/// A queue in the words of the front end.
#[derive(Debug, Default)]
pub(in crate::export) struct Vring {
    pub(in crate::export) size: Option<u16>,
    pub(in crate::export) addresses: Option<RingAddresses>,
    pub(in crate::export) base: u16,
    pub(in crate::export) call: Option<Call>,
    pub(in crate::export) enabled: bool,
    pub(in crate::export) running: Option<Running>,
}

/// A ring, and what its requests and answers need.
#[derive(Debug)]
pub(in crate::export) struct Ring {
    pub(in crate::export) device: Arc<Device>,
    pub(in crate::export) memory: Arc<GuestMemory>,
    pub(in crate::export) queue: Queue,
    pub(in crate::export) ledger: Option<Ledger>,
    /// The guest is told by this that there are answers.
    pub(in crate::export) call: Option<Call>,
    /// It may not have been told of the last ones, and is told at once.
    pub(in crate::export) call_first: bool,
    /// The guest may have more memory than is known: where to ask for it.
    pub(in crate::export) lookups: Option<Lookups>,
}

/// A queue that goes to an iothread. While this value exists nothing of it is in flight.
pub(in crate::export) struct Start {
    pub(in crate::export) index: u16,
    pub(in crate::export) seat: Seat,
    pub(in crate::export) ring: Ring,
    pub(in crate::export) enabled: bool,
    /// The guest writes here when there are requests.
    pub(in crate::export) kick: Fd,
    /// Requests to begin with, which an earlier back end did not answer.
    pub(in crate::export) resumed: Resumed,
    pub(in crate::export) orders: mpsc::UnboundedReceiver<Ordered>,
    pub(in crate::export) faults: mpsc::UnboundedSender<Fault>,
}

/// What a queue starts with besides its own settings.
pub(in crate::export) struct Surroundings<'a> {
    pub(in crate::export) seats: &'a Seats,
    pub(in crate::export) device: &'a Arc<Device>,
    pub(in crate::export) memory: Option<&'a Arc<GuestMemory>>,
    pub(in crate::export) in_flight: Option<&'a Arc<InFlight>>,
    pub(in crate::export) event_idx: bool,
    pub(in crate::export) lookups: Option<&'a Lookups>,
    pub(in crate::export) faults: &'a mpsc::UnboundedSender<Fault>,
}
impl RingPlaces {
    /// Where the parts of ring `index` are in a guest's memory.
    ///
    /// # Errors
    /// One is not in it, or not aligned.
    pub(in crate::export) fn find(
        index: u32,
        memory: &GuestMemory,
        addresses: &RingAddresses,
    ) -> Result<Self, VringError> {
        let find = |what, user: u64, alignment: u64| {
            let found = memory.guest_address(user);
            let aligned = found.filter(|address| address.0.is_multiple_of(alignment));
            aligned.ok_or(VringError::Place(index, what, user))
        };
        Ok(Self {
            descriptors: find("descriptor table", addresses.descriptors, 16)?,
            available: find("available ring", addresses.available, 2)?,
            used: find("used ring", addresses.used, 4)?,
        })
    }

    /// Has a queue look for its parts there. Their alignment was checked.
    pub(in crate::export) fn put(&self, queue: &mut Queue) {
        let halves = |address: GuestAddress| (Some(address.0 as u32), Some((address.0 >> 32) as u32));
        let (low, high) = halves(self.descriptors);
        queue.set_desc_table_address(low, high);
        let (low, high) = halves(self.available);
        queue.set_avail_ring_address(low, high);
        let (low, high) = halves(self.used);
        queue.set_used_ring_address(low, high);
    }
}

impl Vring {
    /// Where its parts are in a guest's memory.
    ///
    /// # Errors
    /// Nobody has said, or they cannot be there.
    pub(in crate::export) fn places(
        &self,
        index: u32,
        memory: &GuestMemory,
    ) -> Result<RingPlaces, VringError> {
        let addresses = self.addresses.as_ref();
        let addresses = addresses.ok_or(VringError::Unset(index, "where its ring is"))?;
        RingPlaces::find(index, memory, addresses)
    }

    /// The queue, ready to run with requests told of by `kick`.
    ///
    /// # Errors
    /// Something was not said, or cannot be.
    pub(in crate::export) fn start(
        &mut self,
        index: u16,
        kick: OwnedFd,
        around: &Surroundings<'_>,
    ) -> Result<Start, VringError> {
        let number = u32::from(index);
        let memory = around
            .memory
            .ok_or(VringError::Unset(number, "the guest's memory"))?;
        let size = self.size.ok_or(VringError::Unset(number, "its size"))?;
        let places = self.places(number, memory)?;
        let mut queue =
            Queue::new(MAX_QUEUE_SIZE).map_err(|_| VringError::Size(number, MAX_QUEUE_SIZE.into()))?;
        queue.set_size(size);
        places.put(&mut queue);
        queue.set_event_idx(around.event_idx);
        queue.set_ready(true);
        if !queue.is_valid(memory.space()) {
            let at = self.addresses.map_or(0, |addresses| addresses.descriptors);
            return Err(VringError::Place(number, "ring", at));
        }
        let used = queue.used_idx(memory.space(), std::sync::atomic::Ordering::Acquire);
        let used = used.map_err(|_| VringError::Place(number, "used ring", 0))?.0;
        queue.set_next_used(used);
        queue.set_next_avail(self.base);
        let (mut ledger, mut resumed) = (None, Resumed::default());
        if let Some(area) = around.in_flight {
            let opened = area.open(index, size, used)?;
            (ledger, resumed) = (Some(opened.0), opened.1);
            // Whatever the front end believes: these were taken, and those before them answered.
            queue.set_next_avail(used.wrapping_add(resumed.heads.len() as u16));
        }
        let (sender, orders) = mpsc::unbounded();
        self.running = Some(Running { orders: sender });
        Ok(Start {
            index,
            seat: around.seats.nth(index.into()),
            ring: Ring {
                device: Arc::clone(around.device),
                memory: Arc::clone(memory),
                queue,
                ledger,
                call: self.call.clone(),
                // Who gave answers before may not have told of the last ones any more.
                call_first: used != 0,
                lookups: around.lookups.cloned(),
            },
            enabled: self.enabled,
            kick: Arc::new(kick),
            resumed,
            orders,
            faults: around.faults.clone(),
        })
    }
}
