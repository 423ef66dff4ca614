//! One front end: what it has set up so far, and what each of its messages does.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use futures_channel::mpsc;
use millpond_ring::os::shared_memory::{GuestMemory, GuestRegion, RegionSource};
use rustix::io::ioctl_fionbio;
use zerocopy::IntoBytes;

use super::message::{
    BadLength, ConfigPart, Header, InFlightArea, MAX_CONFIG, Message, NO_FILE, OneRegion, Region,
    RegionCount, VringAddresses, VringState, protocol, request,
};
use super::socket::{Socket, SocketEnded, send_now};
use crate::export::seat::Seats;
use crate::export::virtio::config::{WCE_AT, feature};
use crate::export::virtio::device::Device;
use crate::export::virtio::in_flight::{self, InFlight, InFlightError};
use crate::export::virtio::vring::{Call, Fault, MAX_QUEUE_SIZE, Order, Surroundings, Vring, VringError};
use crate::export::worker::place;

/// How many regions a guest's memory may have.
const MAX_REGIONS: usize = 509;
/// How many regions come with one message.
const REGIONS_AT_ONCE: usize = 8;

/// Why a connection ends.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    #[error(transparent)]
    Socket(#[from] SocketEnded),
    #[error("message {0}: {1}")]
    Message(u32, Refused),
    #[error("queue {0}: {1}")]
    Queue(u16, String),
    #[error("an answer could not be sent: {0}")]
    Answer(io::Error),
}

/// Why a message is not obeyed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error(transparent)]
    Length(#[from] BadLength),
    #[error("it is not known")]
    Unknown,
    #[error("there is no queue {0}")]
    NoQueue(u64),
    #[error("it needs {0} descriptors, and has {1}")]
    Files(usize, usize),
    #[error("features 0x{0:x} were not offered")]
    Features(u64),
    #[error("{0} regions of memory are too many")]
    TooManyRegions(usize),
    #[error("a region of {len} bytes at 0x{guest:x} cannot be mapped: {error}")]
    Region { guest: u64, len: u64, error: io::Error },
    #[error("the regions cannot be mapped beside each other: {0}")]
    Regions(io::Error),
    #[error("there is no such region")]
    NoRegion,
    #[error("this part of the configuration cannot be changed")]
    Config,
    #[error("the queue runs")]
    Runs,
    #[error(transparent)]
    Vring(#[from] VringError),
    #[error(transparent)]
    InFlight(#[from] InFlightError),
    #[error("a descriptor cannot be used: {0}")]
    Descriptor(io::Error),
}

/// What a message is answered with.
enum Answer {
    /// Nothing, or that it was obeyed if its sender waits for that.
    Done,
    /// These bytes and no descriptor.
    Bytes(Vec<u8>),
    /// These bytes, and a descriptor.
    File(Vec<u8>, OwnedFd),
}

/// A front end that is connected.
pub(super) struct FrontEnd {
    socket: Socket,
    device: Arc<Device>,
    /// Where its queues run.
    seats: Seats,
    features: u64,
    protocol: u64,
    regions: Vec<Arc<GuestRegion>>,
    memory: Option<Arc<GuestMemory>>,
    in_flight: Option<Arc<InFlight>>,
    vrings: Vec<Vring>,
    /// Where messages of our own go.
    notices: Option<OwnedFd>,
    faults: mpsc::UnboundedSender<Fault>,
}

fn number(value: u64) -> Answer {
    Answer::Bytes(value.as_bytes().to_vec())
}

/// The one descriptor of a message.
fn one_file(mut files: Vec<OwnedFd>) -> Result<OwnedFd, Refused> {
    let count = files.len();
    let file = files.pop().filter(|_| count == 1);
    file.ok_or(Refused::Files(1, count))
}

impl FrontEnd {
    /// One that has just connected. What its queues have to say comes by `faults`.
    pub(super) fn new(
        socket: Socket,
        device: Arc<Device>,
        seats: Seats,
        faults: mpsc::UnboundedSender<Fault>,
    ) -> Self {
        let vrings = (0..device.queues()).map(|_| Vring::default()).collect();
        Self {
            socket,
            device,
            seats,
            features: 0,
            protocol: 0,
            regions: Vec::new(),
            memory: None,
            in_flight: None,
            vrings,
            notices: None,
            faults,
        }
    }

    /// Waits for the next message.
    ///
    /// # Errors
    /// None comes.
    pub(super) async fn next(&self) -> Result<Message, SocketEnded> {
        self.socket.receive().await
    }

    /// Does what a message wants, and answers it.
    ///
    /// # Errors
    /// It breaks the rules, or cannot be answered.
    pub(super) async fn obey(&mut self, message: Message) -> Result<(), Ended> {
        let Header { request, .. } = message.header;
        let needs_reply = message.header.needs_reply() && self.protocol & protocol::REPLY_ACK != 0;
        let done = self.carry_out(message).await;
        let (bytes, file, refused) = match done {
            Ok(Answer::Bytes(bytes)) => (bytes, None, None),
            Ok(Answer::File(bytes, file)) => (bytes, Some(file), None),
            Ok(Answer::Done) if needs_reply => (0_u64.as_bytes().to_vec(), None, None),
            Ok(Answer::Done) => return Ok(()),
            Err(refused) if needs_reply => (1_u64.as_bytes().to_vec(), None, Some(refused)),
            Err(refused) => return Err(Ended::Message(request, refused)),
        };
        // No answer is longer than the longest message.
        let header = Header::answer(request, bytes.len() as u32);
        let file = file.as_ref().map(AsFd::as_fd);
        let sent = self.socket.send(&header, &bytes, file).await;
        sent.map_err(Ended::Answer)?;
        refused.map_or(Ok(()), |refused| Err(Ended::Message(request, refused)))
    }

    async fn carry_out(&mut self, message: Message) -> Result<Answer, Refused> {
        match message.header.request {
            request::GET_FEATURES => return Ok(number(self.device.facts().features())),
            request::SET_FEATURES => self.set_features(message.body()?).await?,
            request::GET_PROTOCOL_FEATURES => return Ok(number(protocol::OFFERED)),
            request::SET_PROTOCOL_FEATURES => {
                let chosen: u64 = message.body()?;
                if chosen & !protocol::OFFERED != 0 {
                    return Err(Refused::Features(chosen & !protocol::OFFERED));
                }
                self.protocol = chosen;
            }
            request::GET_QUEUE_NUM => return Ok(number(self.device.queues().into())),
            request::GET_MAX_MEM_SLOTS => return Ok(number(MAX_REGIONS as u64)),
            request::SET_OWNER => {}
            request::RESET_OWNER | request::RESET_DEVICE => self.stop_queues().await,
            request::SET_MEM_TABLE => self.set_memory(message).await?,
            request::ADD_MEM_REG => self.add_region(message).await?,
            request::REM_MEM_REG => self.remove_region(&message).await?,
            request::GET_CONFIG => return self.config(&message),
            request::SET_CONFIG => self.set_config(&message)?,
            request::GET_INFLIGHT_FD => {
                let wanted = message.in_flight_area()?;
                let queues = wanted.queues.min(self.device.queues());
                let (file, area) = in_flight::make(queues, wanted.queue_size.min(MAX_QUEUE_SIZE))?;
                let mut bytes = InFlightArea::from(area).as_bytes().to_vec();
                bytes.truncate(message.payload.len());
                return Ok(Answer::File(bytes, file));
            }
            request::SET_INFLIGHT_FD => {
                let area = message.in_flight_area()?;
                let file = one_file(message.files)?;
                let area = InFlight::map(file, &area.into(), self.device.queues(), MAX_QUEUE_SIZE)?;
                self.in_flight = Some(Arc::new(area));
            }
            request::SET_BACKEND_REQ_FD => {
                let notices = one_file(message.files)?;
                ioctl_fionbio(&notices, true).map_err(|errno| Refused::Descriptor(errno.into()))?;
                self.notices = Some(notices);
            }
            _ => return self.carry_out_for_queue(message).await,
        }
        Ok(Answer::Done)
    }

    /// The messages that name a queue.
    async fn carry_out_for_queue(&mut self, message: Message) -> Result<Answer, Refused> {
        match message.header.request {
            request::SET_VRING_NUM => {
                let VringState { index, number } = message.body()?;
                let size = u16::try_from(number).ok();
                let size = size.filter(|size| size.is_power_of_two() && *size <= MAX_QUEUE_SIZE);
                let size = size.ok_or(VringError::Size(index, number))?;
                self.stopped_vring(index)?.size = Some(size);
            }
            request::SET_VRING_ADDR => {
                let addresses: VringAddresses = message.body()?;
                self.stopped_vring(addresses.index)?.addresses = Some(addresses.into());
            }
            request::SET_VRING_BASE => {
                let VringState { index, number } = message.body()?;
                // The field is wider than the counter.
                self.stopped_vring(index)?.base = number as u16;
            }
            request::GET_VRING_BASE => {
                let VringState { index, .. } = message.body()?;
                let number = self.stop(index).await?.into();
                let state = VringState { index, number };
                return Ok(Answer::Bytes(state.as_bytes().to_vec()));
            }
            request::SET_VRING_ENABLE => {
                let VringState { index, number } = message.body()?;
                let enabled = number != 0;
                let vring = self.vring(index)?;
                vring.enabled = enabled;
                if let Some(running) = &vring.running {
                    running.order(Order::Enable(enabled)).await;
                }
            }
            request::SET_VRING_KICK => {
                let index: u64 = message.body()?;
                // The number is checked before it is made narrower.
                let index = (index & 0xff) as u16;
                let file = one_file(message.files)?;
                self.start(index, file)?;
            }
            request::SET_VRING_CALL => {
                let index: u64 = message.body()?;
                let call = match index & NO_FILE {
                    0 => Some(one_file(message.files)?),
                    _ => None,
                };
                self.set_call((index & 0xff) as u32, call).await?;
            }
            // Nothing is told over it: what breaks a ring ends the connection.
            request::SET_VRING_ERR => {
                let index: u64 = message.body()?;
                self.vring((index & 0xff) as u32)?;
            }
            _ => return Err(Refused::Unknown),
        }
        Ok(Answer::Done)
    }

    async fn set_features(&mut self, chosen: u64) -> Result<(), Refused> {
        let unknown = chosen & !self.device.facts().features();
        if unknown != 0 {
            return Err(Refused::Features(unknown));
        }
        self.features = chosen;
        if chosen & feature::PROTOCOL_FEATURES == 0 {
            // Such a front end has no message to enable queues by.
            for vring in &mut self.vrings {
                vring.enabled = true;
                if let Some(running) = &vring.running {
                    running.order(Order::Enable(true)).await;
                }
            }
        }
        Ok(())
    }

    fn vring(&mut self, index: u32) -> Result<&mut Vring, Refused> {
        let found = usize::try_from(index)
            .ok()
            .and_then(|index| self.vrings.get_mut(index));
        found.ok_or(Refused::NoQueue(index.into()))
    }

    /// A queue whose ring may be changed.
    fn stopped_vring(&mut self, index: u32) -> Result<&mut Vring, Refused> {
        let vring = self.vring(index)?;
        match vring.running {
            Some(_) => Err(Refused::Runs),
            None => Ok(vring),
        }
    }

    fn start(&mut self, index: u16, kick: OwnedFd) -> Result<(), Refused> {
        let around = Surroundings {
            seats: &self.seats,
            device: &self.device,
            memory: self.memory.as_ref(),
            in_flight: self.in_flight.as_ref(),
            event_idx: self.features & feature::RING_EVENT_IDX != 0,
            lookups: None,
            faults: &self.faults,
        };
        let vring = self.vrings.get_mut(usize::from(index));
        let vring = vring.ok_or(Refused::NoQueue(index.into()))?;
        if vring.running.is_some() {
            return Err(Refused::Runs);
        }
        let start = vring.start(index, kick, &around)?;
        place(start);
        Ok(())
    }

    /// Stops a queue; how many requests it has taken, modulo 65536.
    async fn stop(&mut self, index: u32) -> Result<u16, Refused> {
        let vring = self.vring(index)?;
        if let Some(running) = vring.running.take()
            && let Some(taken) = running.order(Order::Stop).await
        {
            vring.base = taken;
        }
        Ok(vring.base)
    }

    async fn set_call(&mut self, index: u32, call: Option<OwnedFd>) -> Result<(), Refused> {
        let call = match call {
            Some(call) => {
                // Nobody here may ever wait for the guest to read it.
                ioctl_fionbio(&call, true).map_err(|errno| Refused::Descriptor(errno.into()))?;
                Some(Call::Counter(Arc::new(call)))
            }
            None => None,
        };
        let vring = self.vring(index)?;
        vring.call.clone_from(&call);
        if let Some(running) = &vring.running {
            running.order(Order::Call(call)).await;
        }
        Ok(())
    }

    async fn set_memory(&mut self, message: Message) -> Result<(), Refused> {
        let (RegionCount { count, .. }, rest) = message.start()?;
        let size = size_of::<Region>();
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        if count > REGIONS_AT_ONCE {
            return Err(Refused::TooManyRegions(count));
        }
        if rest.len() < count * size {
            return Err(BadLength::of(&message).into());
        }
        if message.files.len() != count {
            return Err(Refused::Files(count, message.files.len()));
        }
        let described = rest.chunks_exact(size).map(zerocopy::FromBytes::read_from_bytes);
        let described: Vec<Region> = described.filter_map(Result::ok).take(count).collect();
        let mapped = described.into_iter().zip(message.files);
        let mapped: Result<Vec<_>, _> = mapped.map(|(region, file)| map(region, file)).collect();
        self.use_regions(mapped?).await
    }

    async fn add_region(&mut self, message: Message) -> Result<(), Refused> {
        let OneRegion { region, .. } = message.body()?;
        let file = one_file(message.files)?;
        if self.regions.len() >= MAX_REGIONS {
            return Err(Refused::TooManyRegions(self.regions.len() + 1));
        }
        let mut regions = self.regions.clone();
        regions.push(map(region, file)?);
        self.use_regions(regions).await
    }

    async fn remove_region(&mut self, message: &Message) -> Result<(), Refused> {
        let OneRegion { region, .. } = message.body()?;
        let mut regions = self.regions.clone();
        let is_it = |known: &Arc<GuestRegion>| known.is(region.guest, region.user, region.len);
        let at = regions.iter().position(is_it).ok_or(Refused::NoRegion)?;
        regions.remove(at);
        self.use_regions(regions).await
    }

    /// The guest's memory is these regions, for queues that run too.
    async fn use_regions(&mut self, regions: Vec<Arc<GuestRegion>>) -> Result<(), Refused> {
        if regions.is_empty() {
            self.stop_queues().await;
            (self.regions, self.memory) = (regions, None);
            return Ok(());
        }
        let memory = GuestMemory::new(regions.clone());
        let memory = Arc::new(memory.map_err(Refused::Regions)?);
        for (index, vring) in (0..).zip(&self.vrings) {
            if let Some(running) = &vring.running {
                let places = vring.places(index, &memory)?;
                running.order(Order::Memory(Arc::clone(&memory), places)).await;
            }
        }
        (self.regions, self.memory) = (regions, Some(memory));
        Ok(())
    }

    fn config(&self, message: &Message) -> Result<Answer, Refused> {
        let (part, rest): (ConfigPart, _) = message.start()?;
        let (at, len) = (part.offset as usize, part.len as usize);
        if rest.len() != len || at.saturating_add(len) > MAX_CONFIG {
            return Err(BadLength::of(message).into());
        }
        let mut whole = [0; MAX_CONFIG];
        let config = self.device.facts().config();
        for (byte, told) in whole.iter_mut().zip(config.as_bytes()) {
            *byte = *told;
        }
        let told = whole.get(at..at + len).unwrap_or_default();
        Ok(Answer::Bytes([part.as_bytes(), told].concat()))
    }

    fn set_config(&self, message: &Message) -> Result<(), Refused> {
        let (part, rest): (ConfigPart, _) = message.start()?;
        match (part.offset, rest) {
            (WCE_AT, [on @ (0 | 1)]) if part.len == 1 => {
                self.device.set_write_cache(*on == 1);
                Ok(())
            }
            _ => Err(Refused::Config),
        }
    }

    /// Tells the front end that the configuration has changed, if it wants to know. One that does not read what it is told
    /// looks by itself when it does.
    pub(super) fn configuration_changed(&self) {
        let header = Header::notice(request::BACKEND_CONFIG_CHANGE);
        if let Some(notices) = self
            .notices
            .as_ref()
            .filter(|_| self.protocol & protocol::CONFIG != 0)
            && let Err(error) = send_now(notices.as_fd(), header.as_bytes(), None)
        {
            tracing::warn!(%error, "a front end cannot be told of a new length");
        }
    }

    /// Stops all queues; ends when their requests have ended.
    pub(super) async fn stop_queues(&mut self) {
        let running: Vec<_> = self.vrings.iter_mut().map(|vring| vring.running.take()).collect();
        let stopping = running.iter().flatten().map(|running| running.order(Order::Stop));
        futures_util::future::join_all(stopping).await;
    }
}

fn map(region: Region, file: OwnedFd) -> Result<Arc<GuestRegion>, Refused> {
    let Region {
        guest,
        len,
        user,
        offset,
    } = region;
    let source = RegionSource {
        file,
        offset,
        len,
        guest,
        user,
        is_writable: true,
    };
    let mapped = GuestRegion::map(source);
    mapped
        .map(Arc::new)
        .map_err(|error| Refused::Region { guest, len, error })
}
