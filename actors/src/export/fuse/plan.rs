//! How much memory the kernel is given to put requests into, where they come over io_uring.

use std::fs;
use std::io;

use millpond_ring::Fd;
use millpond_ring::fuse::FuseRing;

use super::wire::MAX_TRANSFER;

/// The most bytes of payloads that an export has, as long as each queue can have its least: they take memory once they are used.
const MOST_BYTES: usize = 32 << 20;
/// The most requests of a processor's queue that are served at once. What comes besides waits in the kernel.
const DEEPEST: usize = 16;
/// The fewest, on a machine with many processors: there is always one to serve while another waits for its storage.
const SHALLOWEST: usize = 4;
/// The least bytes of a payload, and so of the largest read or write: what the kernel does unless told otherwise.
const LEAST_TRANSFER: usize = 128 << 10;

/// Where the kernel says which processors there can be. It has a queue for each, also for those that are off.
const POSSIBLE: &str = "/sys/devices/system/cpu/possible";

/// What the kernel's queues have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Plan {
    queues: u16,
    /// Entries of a queue.
    depth: usize,
    /// The most bytes of a read or write.
    pub(super) max_transfer: u32,
}

impl Plan {
    /// The plan for this machine; nothing where its processors cannot be counted.
    pub(super) fn for_this_machine() -> Option<Self> {
        let listed = fs::read_to_string(POSSIBLE).ok()?;
        count(listed.trim()).map(Self::new)
    }

    fn new(queues: u16) -> Self {
        let most = MOST_BYTES / MAX_TRANSFER as usize;
        let queue_count = usize::from(queues.max(1));
        let depth = (most / queue_count).clamp(SHALLOWEST, DEEPEST);
        let share = (MOST_BYTES / (queue_count * depth)).clamp(LEAST_TRANSFER, MAX_TRANSFER as usize);
        // The power of two that is in it: a number of whole pages, and no more than MAX_TRANSFER.
        let max_transfer = 1 << share.ilog2();
        Self {
            queues,
            depth,
            max_transfer,
        }
    }

    /// Rings for so many iothreads. Each has a part of the queues, and none is without a ring unless it has no queue.
    ///
    /// # Errors
    /// One cannot be made.
    pub(super) fn rings(&self, channels: &[Fd]) -> io::Result<Vec<Option<FuseRing>>> {
        let count = channels.len();
        let rings = channels.iter().enumerate().map(|(index, channel)| {
            let queues: Vec<u16> = (0..self.queues).skip(index).step_by(count).collect();
            if queues.is_empty() {
                return Ok(None);
            }
            FuseRing::new(channel, &queues, self.depth, self.max_transfer as usize).map(Some)
        });
        rings.collect()
    }
}

/// How many numbers a list like `0-3,8` has; nothing for one that is none.
fn count(listed: &str) -> Option<u16> {
    listed.split(',').try_fold(0_u16, |sum, range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
        sum.checked_add(last.checked_sub(first)?.checked_add(1)?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_counted() {
        assert_eq!(count("0"), Some(1));
        assert_eq!(count("0-1"), Some(2));
        assert_eq!(count("0-3,8,10-11"), Some(7));
        assert_eq!(count(""), None);
        assert_eq!(count("3-1"), None);
        assert_eq!(count("0-65535"), None);
    }

    #[test]
    fn memory_is_bounded_and_every_queue_has_entries() {
        for queues in 1..=4096 {
            let plan = Plan::new(queues);
            let transfer = plan.max_transfer as usize;
            assert!((SHALLOWEST..=DEEPEST).contains(&plan.depth));
            assert!((LEAST_TRANSFER..=MAX_TRANSFER as usize).contains(&transfer));
            let bytes = usize::from(queues) * plan.depth * transfer;
            let least = usize::from(queues) * SHALLOWEST * LEAST_TRANSFER;
            assert!(bytes <= MOST_BYTES.max(least), "{queues}: {bytes}");
        }
        assert_eq!(Plan::new(2).depth, 16);
        assert_eq!(Plan::new(8).max_transfer, MAX_TRANSFER);
        assert_eq!((Plan::new(64).depth, Plan::new(64).max_transfer), (4, 128 << 10));
    }
}
