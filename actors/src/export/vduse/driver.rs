//! The driver of a device: what it has set up so far, and what each message of the kernel does.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use futures_channel::mpsc;
use millpond_ring::os::vduse::QueueFacts;
use rustix::event::{EventfdFlags, eventfd};

use super::kernel::{Kernel, QueueInterrupt};
use super::memory::{DriverMemory, MemoryError};
use super::message::{Answer, Wanted};
use crate::export::seat::Seats;
use crate::export::virtio::config::feature;
use crate::export::virtio::device::Device;
use crate::export::virtio::in_flight::InFlight;
use crate::export::virtio::vring::{
    Call, Fault, Lookup, Lookups, Order, RingAddresses, Surroundings, Vring, VringError,
};
use crate::export::worker::place;

/// In the status of a device: the driver is ready for it.
const DRIVER_OK: u8 = 4;

/// Why a message is not obeyed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error("it is not known: {0}")]
    Unknown(u32),
    #[error("there is no queue {0}")]
    NoQueue(u32),
    #[error("the driver has chosen features 0x{0:x}")]
    Features(u64),
    #[error(transparent)]
    Vring(#[from] VringError),
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error("the kernel refused: {0}")]
    Kernel(#[from] io::Error),
}

/// What the driver side of a device is made of.
pub(super) struct Parts {
    pub(super) kernel: Arc<dyn Kernel>,
    pub(super) device: Arc<Device>,
    /// Where its queues run.
    pub(super) seats: Seats,
    /// How many descriptors a queue has at most.
    pub(super) queue_size: u16,
    pub(super) in_flight: Arc<InFlight>,
    /// What queues have to say comes here.
    pub(super) faults: mpsc::UnboundedSender<Fault>,
    pub(super) lookups: Lookups,
}

/// The driver side of a device.
pub(super) struct DriverSide {
    parts: Parts,
    memory: DriverMemory,
    vrings: Vec<Vring>,
}

impl DriverSide {
    /// A device whose driver has set up nothing yet, as far as is known here.
    pub(super) fn new(parts: Parts) -> Self {
        let vrings = (0..parts.device.queues()).map(|_| Vring::default()).collect();
        Self {
            parts,
            memory: DriverMemory::default(),
            vrings,
        }
    }

    /// Goes on with queues that another process has served, if there are any.
    ///
    /// # Errors
    /// The driver has set up what cannot be served.
    pub(super) async fn resume(&mut self) -> Result<(), Refused> {
        self.start_queues().await
    }

    /// Does what the kernel wants.
    ///
    /// # Errors
    /// It makes no sense.
    pub(super) async fn obey(&mut self, wanted: Wanted) -> Result<Answer, Refused> {
        match wanted {
            Wanted::QueueState { index } => {
                let taken = self.taken(index).await?;
                Ok(Answer::QueueState { index, taken })
            }
            Wanted::Status(status) => self.set_status(status).await.map(|()| Answer::Done),
            Wanted::Memory { first, last } => self.memory_changed(first, last).await.map(|()| Answer::Done),
            Wanted::Unknown(kind) => Err(Refused::Unknown(kind)),
        }
    }

    async fn set_status(&mut self, status: u8) -> Result<(), Refused> {
        if status & DRIVER_OK != 0 {
            return self.start_queues().await;
        }
        self.stop_queues().await;
        if status == 0 {
            // The driver begins anew, with other memory.
            self.memory.clear();
            for (index, vring) in (0..).zip(&mut self.vrings) {
                *vring = Vring::default();
                self.parts.in_flight.clear(index);
            }
        }
        Ok(())
    }

    /// Starts the queues that the driver has set up, or none of them.
    async fn start_queues(&mut self) -> Result<(), Refused> {
        let started = self.start_all();
        if started.is_err() {
            self.stop_queues().await;
        }
        started
    }

    fn start_all(&mut self) -> Result<(), Refused> {
        let mut features = None;
        for index in 0..self.parts.device.queues() {
            let facts = self.parts.kernel.queue(index)?;
            if facts.ready && !self.runs(index) {
                let features = match features {
                    Some(features) => features,
                    None => *features.insert(self.agreed()?),
                };
                self.start(index, &facts, features)?;
            }
        }
        Ok(())
    }

    /// The features that the driver has chosen.
    fn agreed(&self) -> Result<u64, Refused> {
        let features = self.parts.kernel.features()?;
        let unknown = features & !self.parts.device.facts().features();
        if unknown != 0 || features & feature::VERSION_1 == 0 {
            return Err(Refused::Features(features));
        }
        Ok(features)
    }

    fn runs(&self, index: u16) -> bool {
        let vring = self.vrings.get(usize::from(index));
        vring.is_some_and(|vring| vring.running.is_some())
    }

    fn start(&mut self, index: u16, facts: &QueueFacts, features: u64) -> Result<(), Refused> {
        let Self {
            parts,
            memory,
            vrings,
        } = self;
        let number = u32::from(index);
        let vring = vrings.get_mut(usize::from(index));
        let vring = vring.ok_or(Refused::NoQueue(number))?;
        let size = u16::try_from(facts.size).ok();
        let size = size.filter(|size| size.is_power_of_two() && *size <= parts.queue_size);
        let size = size.ok_or(VringError::Size(number, facts.size))?;
        let entries = u64::from(size);
        for (what, at, len) in [
            ("descriptor table", facts.descriptors, 16 * entries),
            ("available ring", facts.available, 6 + 2 * entries),
            ("used ring", facts.used, 6 + 8 * entries),
        ] {
            let last = at.checked_add(len - 1);
            memory.map(
                &*parts.kernel,
                at,
                last.ok_or(VringError::Place(number, what, at))?,
            )?;
        }
        let interrupt = QueueInterrupt {
            kernel: Arc::clone(&parts.kernel),
            index,
        };
        *vring = Vring {
            size: Some(size),
            addresses: Some(RingAddresses {
                descriptors: facts.descriptors,
                available: facts.available,
                used: facts.used,
            }),
            base: facts.taken,
            call: Some(Call::Interrupt(Arc::new(interrupt))),
            enabled: true,
            running: None,
        };
        let kick = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(io::Error::from)?;
        parts.kernel.set_kick(index, Some(kick.as_fd()))?;
        let around = Surroundings {
            seats: &parts.seats,
            device: &parts.device,
            memory: memory.whole(),
            in_flight: Some(&parts.in_flight),
            event_idx: features & feature::RING_EVENT_IDX != 0,
            lookups: Some(&parts.lookups),
            faults: &parts.faults,
        };
        place(vring.start(index, kick, &around)?);
        Ok(())
    }

    /// How many requests a queue has taken, modulo 65536.
    async fn taken(&mut self, index: u32) -> Result<u16, Refused> {
        let vring = usize::try_from(index)
            .ok()
            .and_then(|index| self.vrings.get_mut(index));
        let vring = vring.ok_or(Refused::NoQueue(index))?;
        if let Some(running) = &vring.running
            && let Some(taken) = running.order(Order::Enable(true)).await
        {
            vring.base = taken;
        }
        Ok(vring.base)
    }

    /// What is known of the memory from one address to another holds no more.
    async fn memory_changed(&mut self, first: u64, last: u64) -> Result<(), Refused> {
        let refreshed = self.memory.refresh(&*self.parts.kernel, first, last);
        // Where nothing could be mapped, nothing is used any more, and that is what the kernel waits for.
        if let Err(error) = refreshed {
            tracing::warn!(%error, "memory of a driver cannot be used any more");
        }
        self.share_memory().await;
        Ok(())
    }

    /// Has the queues use the memory as it is known now.
    async fn share_memory(&mut self) {
        for index in 0..self.parts.device.queues() {
            if let Err(error) = self.share_with(index).await {
                tracing::warn!(queue = index, %error, "a queue was stopped");
                self.stop(index).await;
            }
        }
    }

    async fn share_with(&self, index: u16) -> Result<(), VringError> {
        let Some(vring) = self.vrings.get(usize::from(index)) else {
            return Ok(());
        };
        if let Some(running) = &vring.running {
            let number = u32::from(index);
            let memory = self.memory.whole();
            let memory = memory.ok_or(VringError::Unset(number, "the driver's memory"))?;
            let places = vring.places(number, memory)?;
            running.order(Order::Memory(Arc::clone(memory), places)).await;
        }
        Ok(())
    }

    /// Finds memory that a queue needs.
    pub(super) async fn look_up(&mut self, lookup: Lookup) {
        let Lookup { address, found } = lookup;
        if let Err(error) = self.memory.map(&*self.parts.kernel, address, address) {
            tracing::warn!(%error, "memory of a driver cannot be used");
        }
        self.share_memory().await;
        // The queue may have been stopped meanwhile.
        let _ = found.send(self.memory.has(address));
    }

    /// A queue has ended by itself.
    pub(super) fn ended(&mut self, index: u16) {
        if let Some(vring) = self.vrings.get_mut(usize::from(index)) {
            // It may have been started again since.
            vring.running.take_if(|running| running.has_ended());
        }
    }

    /// Has the driver see the length of the device as it is now.
    pub(super) fn length_changed(&self) {
        let sectors = self.parts.device.size() / 512;
        if let Err(error) = self.parts.kernel.set_capacity(sectors) {
            tracing::warn!(%error, "a driver cannot be told of a new length");
        }
    }

    /// Stops a queue; ends when its requests have ended.
    async fn stop(&mut self, index: u16) {
        if let Some(vring) = self.vrings.get_mut(usize::from(index))
            && let Some(running) = vring.running.take()
            && let Some(taken) = running.order(Order::Stop).await
        {
            vring.base = taken;
        }
    }

    /// Stops all queues; ends when their requests have ended.
    async fn stop_queues(&mut self) {
        let stopping = self.vrings.iter_mut().map(|vring| async {
            if let Some(running) = vring.running.take()
                && let Some(taken) = running.order(Order::Stop).await
            {
                vring.base = taken;
            }
        });
        futures_util::future::join_all(stopping).await;
    }

    /// Stops all queues, and keeps nothing that is open for the device. The kernel notes kicks that come later.
    pub(super) async fn close(mut self) {
        self.stop_queues().await;
        for index in 0..self.parts.device.queues() {
            // Of a device that is gone there is nothing to take back.
            let _ = self.parts.kernel.set_kick(index, None);
        }
    }
}
