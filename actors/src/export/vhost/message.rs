//! The messages of vhost-user: their numbers, and what is in them.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::export::virtio::in_flight::Area;
use crate::export::virtio::vring::RingAddresses;

/// The most bytes that a message has behind its header. The longest that there is (eight regions of memory, or a
/// configuration) has a few hundred.
pub(super) const MAX_PAYLOAD: usize = 4096;
/// The most descriptors that come with a message.
pub(super) const MAX_FILES: usize = 8;
/// Where the configuration ends that a front end may ask for, in bytes.
pub(super) const MAX_CONFIG: usize = 256;

/// In [`Header::flags`]: the bits of the protocol's version, which is 1.
const VERSION_MASK: u32 = 3;
const VERSION: u32 = 1;
const REPLY: u32 = 1 << 2;
const NEEDS_REPLY: u32 = 1 << 3;

/// In a number that names a ring along with a descriptor: there is none.
pub(super) const NO_FILE: u64 = 1 << 8;

/// What a message begins with.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Header {
    pub(super) request: u32,
    flags: u32,
    /// Bytes of what follows.
    pub(super) len: u32,
}

impl Header {
    /// The header of an answer with `len` bytes to the message of number `request`.
    pub(super) const fn answer(request: u32, len: u32) -> Self {
        let flags = VERSION | REPLY;
        Self { request, flags, len }
    }

    /// The header of a message of our own, which is not answered.
    pub(super) const fn notice(request: u32) -> Self {
        let (flags, len) = (VERSION, 0);
        Self { request, flags, len }
    }

    /// Whether it is of the version that we speak.
    pub(super) const fn is_understood(&self) -> bool {
        self.flags & VERSION_MASK == VERSION && self.flags & REPLY == 0
    }

    /// Whether the sender waits for an answer also to what has none.
    pub(super) const fn needs_reply(&self) -> bool {
        self.flags & NEEDS_REPLY != 0
    }
}

/// The numbers of the messages.
pub(super) mod request {
    pub const GET_FEATURES: u32 = 1;
    pub const SET_FEATURES: u32 = 2;
    pub const SET_OWNER: u32 = 3;
    pub const RESET_OWNER: u32 = 4;
    pub const SET_MEM_TABLE: u32 = 5;
    pub const SET_VRING_NUM: u32 = 8;
    pub const SET_VRING_ADDR: u32 = 9;
    pub const SET_VRING_BASE: u32 = 10;
    pub const GET_VRING_BASE: u32 = 11;
    pub const SET_VRING_KICK: u32 = 12;
    pub const SET_VRING_CALL: u32 = 13;
    pub const SET_VRING_ERR: u32 = 14;
    pub const GET_PROTOCOL_FEATURES: u32 = 15;
    pub const SET_PROTOCOL_FEATURES: u32 = 16;
    pub const GET_QUEUE_NUM: u32 = 17;
    pub const SET_VRING_ENABLE: u32 = 18;
    pub const SET_BACKEND_REQ_FD: u32 = 21;
    pub const GET_CONFIG: u32 = 24;
    pub const SET_CONFIG: u32 = 25;
    pub const GET_INFLIGHT_FD: u32 = 31;
    pub const SET_INFLIGHT_FD: u32 = 32;
    pub const RESET_DEVICE: u32 = 34;
    pub const GET_MAX_MEM_SLOTS: u32 = 36;
    pub const ADD_MEM_REG: u32 = 37;
    pub const REM_MEM_REG: u32 = 38;

    /// Of our own: the configuration has changed.
    pub const BACKEND_CONFIG_CHANGE: u32 = 2;
}

/// What the two programs can agree on beyond the messages that there always are.
pub(super) mod protocol {
    pub const MQ: u64 = 1 << 0;
    pub const REPLY_ACK: u64 = 1 << 3;
    pub const BACKEND_REQ: u64 = 1 << 5;
    pub const CONFIG: u64 = 1 << 9;
    pub const INFLIGHT_SHMFD: u64 = 1 << 12;
    pub const RESET_DEVICE: u64 = 1 << 13;
    pub const CONFIGURE_MEM_SLOTS: u64 = 1 << 15;

    /// All that we offer.
    pub const OFFERED: u64 =
        MQ | REPLY_ACK | BACKEND_REQ | CONFIG | INFLIGHT_SHMFD | RESET_DEVICE | CONFIGURE_MEM_SLOTS;
}

/// A number of a ring, or of a place in it.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct VringState {
    pub(super) index: u32,
    pub(super) number: u32,
}

/// Where a ring's three parts are, as the front end's program counts.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct VringAddresses {
    pub(super) index: u32,
    flags: u32,
    descriptors: u64,
    used: u64,
    available: u64,
    log: u64,
}

/// A region of the guest's memory.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Region {
    /// Its first byte as the guest counts.
    pub(super) guest: u64,
    pub(super) len: u64,
    /// Its first byte as the front end's program counts.
    pub(super) user: u64,
    /// Its first byte in the file that comes with it.
    pub(super) offset: u64,
}

/// What SET_MEM_TABLE has before the regions.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct RegionCount {
    pub(super) count: u32,
    padding: u32,
}

/// What ADD_MEM_REG and REM_MEM_REG have.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct OneRegion {
    padding: u64,
    pub(super) region: Region,
}

/// What messages about the configuration have before it.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct ConfigPart {
    pub(super) offset: u32,
    pub(super) len: u32,
    pub(super) flags: u32,
}

/// Memory that outlives us, where requests in flight are noted.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct InFlightArea {
    /// Its length in bytes.
    len: u64,
    /// Its first byte in the file that comes with it.
    offset: u64,
    pub(super) queues: u16,
    pub(super) queue_size: u16,
    /// Not all front ends send it.
    padding: u32,
}

impl From<Area> for InFlightArea {
    fn from(area: Area) -> Self {
        let Area {
            offset,
            len,
            queues,
            queue_size,
        } = area;
        Self {
            len,
            offset,
            queues,
            queue_size,
            padding: 0,
        }
    }
}

impl From<InFlightArea> for Area {
    fn from(area: InFlightArea) -> Self {
        let InFlightArea {
            len,
            offset,
            queues,
            queue_size,
            ..
        } = area;
        Self {
            offset,
            len,
            queues,
            queue_size,
        }
    }
}

impl From<VringAddresses> for RingAddresses {
    fn from(addresses: VringAddresses) -> Self {
        Self {
            descriptors: addresses.descriptors,
            available: addresses.available,
            used: addresses.used,
        }
    }
}

/// A message of the front end.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) header: Header,
    pub(super) payload: Vec<u8>,
    pub(super) files: Vec<std::os::fd::OwnedFd>,
}

/// A message that is not what its number says.
#[derive(Debug, thiserror::Error)]
#[error("its length does not fit: {0} bytes")]
pub(super) struct BadLength(usize);

impl BadLength {
    /// The one of this message.
    pub(super) const fn of(message: &Message) -> Self {
        Self(message.payload.len())
    }
}

impl Message {
    /// What it has, if it is that and nothing behind it.
    ///
    /// # Errors
    /// It has another length.
    pub(super) fn body<T: FromBytes>(&self) -> Result<T, BadLength> {
        T::read_from_bytes(&self.payload).map_err(|_| BadLength(self.payload.len()))
    }

    /// What it has about memory for requests in flight.
    ///
    /// # Errors
    /// It has another length.
    pub(super) fn in_flight_area(&self) -> Result<InFlightArea, BadLength> {
        let mut bytes = self.payload.clone();
        if bytes.len() + size_of::<u32>() == size_of::<InFlightArea>() {
            bytes.resize(size_of::<InFlightArea>(), 0);
        }
        InFlightArea::read_from_bytes(&bytes).map_err(|_| BadLength(self.payload.len()))
    }

    /// What it begins with, and the rest.
    ///
    /// # Errors
    /// It is shorter.
    pub(super) fn start<T: FromBytes>(&self) -> Result<(T, &[u8]), BadLength> {
        T::read_from_prefix(&self.payload).map_err(|_| BadLength(self.payload.len()))
    }
}
