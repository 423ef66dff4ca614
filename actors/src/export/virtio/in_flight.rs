//! Requests in flight, noted in memory that outlives this process (vhost-user, "Inflight I/O tracking"): who takes over
//! after it has died answers each of them once. Others than vhost-user note them in the same form.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use millpond_ring::os::shared_memory::SharedMapping;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use vm_memory::{Bytes, VolatileMemory, VolatileSlice};

/// Bytes of a queue's part before its descriptors.
const HEAD: usize = 16;
/// Bytes of a descriptor's place.
const PLACE: usize = 16;
/// The parts of queues begin at multiples of this, in bytes.
const ALIGNMENT: usize = 64;
/// The version of the layout.
const VERSION: u16 = 1;

/// Where things are in a queue's part.
mod at {
    pub const VERSION: usize = 8;
    pub const COUNT: usize = 10;
    pub const LAST: usize = 12;
    pub const USED: usize = 14;
    /// In a descriptor's place: whether it is in flight.
    pub const IS_IN_FLIGHT: usize = 0;
    /// In a descriptor's place: since when, counted in requests.
    pub const SINCE: usize = 8;
}

/// The part of a queue with so many descriptors, in bytes.
const fn part(queue_size: u16) -> usize {
    (HEAD + PLACE * queue_size as usize).next_multiple_of(ALIGNMENT)
}

/// Why an area cannot be used.
#[derive(Debug, thiserror::Error)]
pub(in crate::export) enum InFlightError {
    /// It is for more queues, or larger ones, than there are.
    #[error("an in-flight area for {queues} queues of {queue_size} descriptors")]
    Impossible { queues: u16, queue_size: u16 },
    /// It is too short for what it says that it holds.
    #[error("an in-flight area of {0} bytes is too short")]
    Short(u64),
    /// A queue's part was written by something else than a back end.
    #[error("the in-flight area of queue {0} is damaged")]
    Damaged(u16),
    /// The system refused memory or a mapping.
    #[error("the in-flight area cannot be had: {0}")]
    System(#[from] io::Error),
}

/// Where an area is, and what it is for.
#[derive(Debug, Clone, Copy)]
pub(in crate::export) struct Area {
    /// Its first byte in its file.
    pub(in crate::export) offset: u64,
    /// Its length in bytes.
    pub(in crate::export) len: u64,
    /// For how many queues it is.
    pub(in crate::export) queues: u16,
    /// How many descriptors each of them has at most.
    pub(in crate::export) queue_size: u16,
}

/// The area of all queues of a device.
#[derive(Debug)]
pub(in crate::export) struct InFlight {
    mapping: SharedMapping,
    queues: u16,
    queue_size: u16,
    stamps: Stamps,
}

/// Whether the parts of an area say of themselves that they are in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::export) enum Stamps {
    /// They do: who has made it is not known.
    Own,
    /// They do not: zeroes say that nothing is in flight.
    None,
}

/// The part of one queue.
#[derive(Debug, Clone)]
pub(in crate::export) struct Ledger {
    area: Arc<InFlight>,
    queue: u16,
    /// The number of the next request.
    next: u64,
}

/// What a ring is to go on with.
#[derive(Debug, Default)]
pub(in crate::export) struct Resumed {
    /// The heads of requests that were begun and not answered, the oldest last.
    pub(super) heads: Vec<u16>,
}

/// How long an area for so many queues is, in bytes.
pub(in crate::export) const fn len(queues: u16, queue_size: u16) -> u64 {
    part(queue_size) as u64 * queues as u64
}

/// Makes an area for so many queues; the front end keeps its file.
///
/// # Errors
/// The system refused it.
pub(in crate::export) fn make(queues: u16, queue_size: u16) -> Result<(OwnedFd, Area), InFlightError> {
    let len = len(queues, queue_size);
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let made = || -> rustix::io::Result<OwnedFd> {
        let file = memfd_create("millpond-inflight", flags)?;
        ftruncate(&file, len)?;
        fcntl_add_seals(&file, SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
        Ok(file)
    };
    let file = made().map_err(io::Error::from)?;
    let area = Area {
        offset: 0,
        len,
        queues,
        queue_size,
    };
    Ok((file, area))
}

impl InFlight {
    /// Maps an area that a front end passed.
    ///
    /// # Errors
    /// It is not for queues as a device with at most `queues` of `queue_size` has them.
    pub(in crate::export) fn map(
        file: OwnedFd,
        area: &Area,
        queues: u16,
        queue_size: u16,
    ) -> Result<Self, InFlightError> {
        let possible = (1..=queues).contains(&area.queues) && (1..=queue_size).contains(&area.queue_size);
        if !possible {
            let (queues, queue_size) = (area.queues, area.queue_size);
            return Err(InFlightError::Impossible { queues, queue_size });
        }
        Self::new(file, area, Stamps::Own)
    }

    /// Maps an area as long as it says, whose parts are stamped or not.
    ///
    /// # Errors
    /// It is too short, or cannot be mapped.
    pub(in crate::export) fn new(file: OwnedFd, area: &Area, stamps: Stamps) -> Result<Self, InFlightError> {
        let needed = len(area.queues, area.queue_size);
        if area.len < needed {
            return Err(InFlightError::Short(area.len));
        }
        let mapping = SharedMapping::new(file, area.offset, needed)?;
        Ok(Self {
            mapping,
            queues: area.queues,
            queue_size: area.queue_size,
            stamps,
        })
    }

    /// Notes that nothing of a queue is in flight, and that it is as if it had never been.
    pub(in crate::export) fn clear(&self, queue: u16) {
        if let Some(part) = self.part(queue) {
            part.copy_from(&vec![0_u8; part.len()]);
        }
    }

    fn part(&self, queue: u16) -> Option<VolatileSlice<'_>> {
        let len = part(self.queue_size);
        let memory = self.mapping.memory();
        memory.get_slice(len * usize::from(queue), len).ok()
    }

    /// Whether its file was cut short.
    pub(super) fn is_cut(&self) -> bool {
        self.mapping.is_cut()
    }

    /// The part of a queue that begins with `queue_size` descriptors, of which `used` answers were given, and what it is to
    /// go on with.
    ///
    /// # Errors
    /// What is there is not of such a queue.
    pub(super) fn open(
        self: &Arc<Self>,
        queue: u16,
        queue_size: u16,
        used: u16,
    ) -> Result<(Ledger, Resumed), InFlightError> {
        let damaged = || InFlightError::Damaged(queue);
        if queue >= self.queues || queue_size > self.queue_size {
            return Err(damaged());
        }
        let (resumed, next) = self.resume(queue, queue_size, used).ok_or_else(damaged)?;
        let ledger = Ledger {
            area: Arc::clone(self),
            queue,
            next,
        };
        Ok((ledger, resumed))
    }

    /// What a queue is to go on with, and the number of its next request; `None` if its part is damaged.
    fn resume(&self, queue: u16, queue_size: u16, used: u16) -> Option<(Resumed, u64)> {
        let part = self.part(queue)?;
        let number = |at| part.load::<u16>(at, Ordering::Acquire).ok();
        if self.stamps == Stamps::Own && number(at::VERSION)? == 0 {
            part.store(queue_size, at::COUNT, Ordering::Relaxed).ok()?;
            part.store(used, at::USED, Ordering::Relaxed).ok()?;
            part.store(VERSION, at::VERSION, Ordering::Release).ok()?;
            return Some((Resumed::default(), 0));
        }
        let is_its_own = number(at::VERSION)? == VERSION && number(at::COUNT)? == queue_size;
        if self.stamps == Stamps::Own && !is_its_own {
            return None;
        }
        // The last answer reached the ring, and its place was not cleared any more.
        if number(at::USED)? != used {
            let last = number(at::LAST).filter(|last| *last < queue_size)?;
            part.store(0_u8, HEAD + PLACE * usize::from(last), Ordering::Relaxed)
                .ok()?;
            part.store(used, at::USED, Ordering::Release).ok()?;
        }
        let mut begun = Vec::new();
        for head in 0..queue_size {
            let place = HEAD + PLACE * usize::from(head);
            if part
                .load::<u8>(place + at::IS_IN_FLIGHT, Ordering::Relaxed)
                .ok()?
                == 1
            {
                begun.push((part.load::<u64>(place + at::SINCE, Ordering::Relaxed).ok()?, head));
            }
        }
        begun.sort_unstable_by(|one, other| other.cmp(one));
        let next = begun.first().map_or(0, |(since, _)| since.wrapping_add(1));
        let heads = begun.iter().map(|(_, head)| *head).collect();
        Some((Resumed { heads }, next))
    }
}

impl Ledger {
    /// Its bytes. It always has some: the area was mapped with room for all queues.
    fn part(&self) -> Option<VolatileSlice<'_>> {
        self.area.part(self.queue)
    }

    /// Whether the memory is gone.
    pub(super) fn is_cut(&self) -> bool {
        self.area.is_cut()
    }

    /// A request was taken from the ring.
    pub(super) fn begin(&mut self, head: u16) {
        let since = self.next;
        self.next = since.wrapping_add(1);
        let Some(part) = self.part() else { return };
        let place = HEAD + PLACE * usize::from(head);
        // A head that the ring has not is refused before it comes here.
        let _ = part.store(since, place + at::SINCE, Ordering::Relaxed);
        let _ = part.store(1_u8, place + at::IS_IN_FLIGHT, Ordering::Release);
    }

    /// A request is about to be answered.
    pub(super) fn answer(&self, head: u16) {
        if let Some(part) = self.part() {
            let _ = part.store(head, at::LAST, Ordering::Release);
        }
    }

    /// It was, and the ring has `used` answers now.
    pub(super) fn end(&self, head: u16, used: u16) {
        if let Some(part) = self.part() {
            let _ = part.store(0_u8, HEAD + PLACE * usize::from(head), Ordering::Release);
            let _ = part.store(used, at::USED, Ordering::Release);
        }
    }
}
