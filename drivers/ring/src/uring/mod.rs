//! The backend on io_uring: operations become submission queue entries, and one system call a turn hands them over,
//! waits and collects.

mod entry;
mod set_up;

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr;
use std::sync::Arc;
use std::time::Duration;

use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, cqueue, opcode, squeue, types};

use super::backend::{Backend, Completion, SleepFor};
use super::config::{Engine, RingConfig, RingStats};
use super::op::{Op, SlotId};
use super::pool::Pool;
use super::slots::Slots;
use super::wake::Wake;
use crate::buffer::{PLACES, Piece, Region, Regions};

use entry::Gather;

/// Marks entries that are not operations; the values below 2^63 are slots.
const INTERNAL: u64 = 1 << 63;
/// The watch on the wake word's eventfd.
const BELL: u64 = INTERNAL;
/// A cancellation, whose own result says nothing.
const CANCEL: u64 = INTERNAL | 1;
/// In a slot's mark: the operation is disk work.
const DISK: u64 = 1 << 62;
/// As long as a device has no more than this to do, each operation goes to it alone: with more than two in one system call the
/// kernel holds all of them back until the last is prepared, some 2 us each, while the device waits.
const AT_ONCE: usize = 2;
/// A device that has more than that to do gets operations in groups of so many: it is busy while they are made.
const GROUP: usize = 4;

pub(super) struct Uring {
    ring: IoUring,
    pool: Pool,
    wake: Arc<Wake>,
    /// Whether the kernel watches the eventfd.
    bell_armed: bool,
    /// Entries that found the submission queue full even after a flush.
    backlog: VecDeque<squeue::Entry>,
    /// By slot index: the memory that the kernel reads for the operation there.
    held: Vec<Option<Box<Gather>>>,
    /// Gathers that no operation needs now, kept for their memory.
    #[expect(
        clippy::vec_box,
        reason = "the box is what is reused: its address is the kernel's"
    )]
    spare: Vec<Box<Gather>>,
    /// How many queued entries make a flush due.
    batch: usize,
    /// How many disk operations the kernel has, not completed.
    disk: usize,
    /// How many operations of devices were queued since the last system call.
    unsent: usize,
    enters: u64,
    /// Whether the kernel has its table of buffers, empty or not.
    has_table: bool,
    /// The memory that is in the kernel's table.
    regions: Regions,
    /// Places still in the kernel's table, because entries that it has not taken yet may name them.
    leaving: Vec<Piece>,
    /// How many entries were made that name a place.
    fixed: u64,
}

impl Uring {
    /// Sets io_uring up for use by this thread alone.
    ///
    /// # Errors
    /// Those of `io_uring_setup(2)`; `Unsupported` for kernels before 5.13.
    pub(super) fn new(config: &RingConfig) -> io::Result<Self> {
        let ring = set_up::set_up(config.entries.clamp(8, 4096))?;
        // Waits with a timeout came with 5.11, and multishot polls with 5.13 as resource tags did.
        let params = ring.params();
        if !(params.is_feature_ext_arg()
            && params.is_feature_resource_tagging()
            && params.is_feature_nodrop())
        {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "the kernel's io_uring is too old",
            ));
        }
        let entries = params.sq_entries() as usize;
        let batch = if config.max_batch == 0 {
            entries
        } else {
            (config.max_batch as usize).min(entries)
        };
        Ok(Self {
            ring,
            pool: Pool::new(config.threads, config.wake.clone()),
            wake: config.wake.clone(),
            bell_armed: false,
            backlog: VecDeque::new(),
            held: Vec::new(),
            spare: Vec::new(),
            batch,
            disk: 0,
            unsent: 0,
            enters: 0,
            has_table: false,
            regions: Regions::default(),
            leaving: Vec::new(),
            fixed: 0,
        })
    }

    /// Queues an entry; a full queue goes to the kernel first.
    #[inline]
    fn push(&mut self, entry: squeue::Entry) {
        if !self.backlog.is_empty() || !self.try_push(&entry) {
            self.push_full(entry);
        } else if self.ring.submission().len() >= self.batch {
            self.enter(EnterFlags::empty(), 0, None);
        }
    }

    #[inline]
    fn try_push(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: what the entry points at belongs to a slot (or to `held`, by the slot's index), and stays in place
        // until the slot's completion; the eventfd lives as long as `self.wake`.
        unsafe { self.ring.submission().push(entry) }.is_ok()
    }

    #[cold]
    fn push_full(&mut self, entry: squeue::Entry) {
        self.backlog.push_back(entry);
        self.enter(EnterFlags::empty(), 0, None);
        self.push_backlog();
    }

    fn push_backlog(&mut self) {
        while let Some(entry) = self.backlog.pop_front() {
            if !self.try_push(&entry) {
                self.backlog.push_front(entry);
                return;
            }
        }
    }

    /// Makes the one system call of a turn.
    fn enter(&mut self, flags: EnterFlags, want: u32, timeout: Option<Duration>) {
        let mut flags = flags;
        let count = self.ring.submission().len() as u32;
        if want > 0 && self.disk == 0 && self.ring.params().is_feature_no_iowait() {
            flags |= EnterFlags::NO_IOWAIT;
        }
        self.enters += 1;
        self.unsent = 0;
        let submitter = self.ring.submitter();
        let result = match timeout {
            None => {
                // SAFETY: no argument is passed.
                unsafe { submitter.enter::<libc::sigset_t>(count, want, flags.bits(), None) }
            }
            Some(timeout) => {
                let time = Timespec::from(timeout);
                let args = SubmitArgs::new().timespec(&time);
                let flags = flags | EnterFlags::EXT_ARG;
                // SAFETY: `args` is what EXT_ARG announces, and it and `time` outlive the call.
                unsafe { submitter.enter(count, want, flags.bits(), Some(&args)) }
            }
        };
        match result.map_err(|error| error.raw_os_error()) {
            // Timed out; interrupted; or the kernel wants completions collected first, which the turn does next.
            Ok(_) | Err(Some(libc::ETIME | libc::EINTR | libc::EAGAIN | libc::EBUSY)) => {}
            Err(error) => tracing::error!(?error, "io_uring_enter failed"),
        }
    }

    /// Moves what the kernel completed to `done`.
    #[inline]
    fn reap(&mut self, done: &mut Vec<Completion>) {
        for entry in self.ring.completion() {
            match entry.user_data() {
                BELL => self.bell_armed &= cqueue::more(entry.flags()),
                CANCEL => {}
                mark => {
                    let id = unmark(mark);
                    self.disk -= usize::from(mark & DISK != 0);
                    if let Some(gather) = self.held.get_mut(id.index as usize).and_then(Option::take) {
                        self.spare.push(gather);
                    }
                    done.push(Completion {
                        id,
                        result: entry.result(),
                    });
                }
            }
        }
    }

    fn watch_bell(&mut self) {
        self.bell_armed = true;
        let bell = types::Fd(self.wake.bell().as_raw_fd());
        self.push(
            opcode::PollAdd::new(bell, libc::POLLIN as u32)
                .multi(true)
                .build()
                .user_data(BELL),
        );
    }

    fn fill_place(&self, piece: &Piece) -> io::Result<()> {
        let range = libc::iovec {
            iov_base: piece.address().cast_mut().cast(),
            iov_len: piece.len(),
        };
        let place = u32::from(piece.place());
        // SAFETY: the piece keeps its region, and so the memory; it stays in `regions` or `leaving` until the place is
        // empty again or the kernel refused to empty it. The kernel keeps the pages itself, and only entries touch them:
        // those name a range that a slot's buffers own.
        unsafe {
            self.ring
                .submitter()
                .register_buffers_update(place, &[range], None)
        }
    }

    /// Makes a place free. What the kernel took on before has its own hold on the pages.
    fn empty_place(&mut self, piece: Piece) {
        let nothing = libc::iovec {
            iov_base: ptr::null_mut(),
            iov_len: 0,
        };
        let place = u32::from(piece.place());
        // SAFETY: no memory is passed.
        let emptied = unsafe {
            self.ring
                .submitter()
                .register_buffers_update(place, &[nothing], None)
        };
        if let Err(error) = emptied {
            tracing::warn!(%error, "io_uring keeps memory that is not in use any more");
        }
        self.regions.release(piece);
    }

    /// Empties the places that no entry is on its way to; if the kernel does not take those entries now, a later turn
    /// does it.
    #[cold]
    fn empty_places(&mut self) {
        if !self.has_taken_all() {
            self.enter(EnterFlags::empty(), 0, None);
            self.push_backlog();
        }
        if self.has_taken_all() {
            for piece in std::mem::take(&mut self.leaving) {
                self.empty_place(piece);
            }
        }
    }

    /// Whether the kernel has every entry that was made.
    fn has_taken_all(&mut self) -> bool {
        self.backlog.is_empty() && self.ring.submission().is_empty()
    }
}

impl Backend for Uring {
    fn engine(&self) -> Engine {
        Engine::Uring
    }

    #[inline]
    fn submit(&mut self, id: SlotId, op: &mut Op) {
        if op.wants_pool() {
            return self.pool.submit(id, op);
        }
        self.disk += usize::from(op.is_disk());
        let entry = self.entry(id, op).user_data(mark(id, op));
        self.push(entry);
        if op.is_direct() {
            self.unsent += 1;
            if self.disk <= AT_ONCE || self.unsent >= GROUP {
                self.enter(EnterFlags::empty(), 0, None);
            }
        }
    }

    fn cancel(&mut self, id: SlotId, op: &mut Op) {
        // The pool's work cannot be called back: it completes in its own time.
        if !op.wants_pool() {
            self.push(opcode::AsyncCancel::new(mark(id, op)).build().user_data(CANCEL));
        }
    }

    #[inline]
    fn has_work(&mut self) -> bool {
        if !self.ring.completion().is_empty() || self.pool.has_done() || !self.backlog.is_empty() {
            return true;
        }
        let queue = self.ring.submission();
        !queue.is_empty() || queue.taskrun() || queue.cq_overflow()
    }

    fn turn(&mut self, _: &mut Slots, sleep_for: SleepFor, done: &mut Vec<Completion>) {
        self.pool.collect(done);
        self.reap(done);
        self.push_backlog();
        if !self.leaving.is_empty() {
            self.empty_places();
        }
        match sleep_for {
            SleepFor::AtMost(timeout) if done.is_empty() && self.backlog.is_empty() => {
                if !self.bell_armed {
                    self.watch_bell();
                }
                self.enter(EnterFlags::GETEVENTS, 1, timeout);
            }
            _ => {
                let queue = self.ring.submission();
                if queue.is_empty() && !queue.taskrun() && !queue.cq_overflow() {
                    return;
                }
                drop(queue);
                self.enter(EnterFlags::GETEVENTS, 0, None);
            }
        }
        self.reap(done);
        self.pool.collect(done);
    }

    fn register(&mut self, region: &Arc<Region>) -> io::Result<bool> {
        if !self.leaving.is_empty() {
            self.empty_places();
        }
        if !self.has_table {
            self.ring.submitter().register_buffers_sparse(u32::from(PLACES))?;
            self.has_table = true;
        }
        let pieces = self.regions.insert(region).map_err(io::Error::other)?;
        for (filled, piece) in pieces.iter().enumerate() {
            if let Err(error) = self.fill_place(piece) {
                // No entry names any of them yet.
                for (index, piece) in self.regions.remove(region).into_iter().enumerate() {
                    if index < filled {
                        self.empty_place(piece);
                    } else {
                        self.regions.release(piece);
                    }
                }
                return Err(error);
            }
        }
        Ok(true)
    }

    fn unregister(&mut self, region: &Arc<Region>) {
        let pieces = self.regions.remove(region);
        if !pieces.is_empty() {
            self.leaving.extend(pieces);
            self.empty_places();
        }
    }

    fn stats(&self) -> RingStats {
        RingStats {
            enters: self.enters,
            fixed: self.fixed,
            ..RingStats::default()
        }
    }
}

#[inline]
fn mark(id: SlotId, op: &Op) -> u64 {
    let disk = if op.is_disk() { DISK } else { 0 };
    u64::from(id.index) | u64::from(id.generation) << 32 | disk
}

#[inline]
fn unmark(mark: u64) -> SlotId {
    SlotId {
        index: mark as u32,
        generation: (mark >> 32) as u32 & SlotId::GENERATIONS,
    }
}
