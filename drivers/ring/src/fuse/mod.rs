//! Requests of the kernel to a FUSE file system, by an io_uring of their own rather than by reads of the device.
//!
//! The kernel has a queue for each processor. An *entry* of a queue is memory for one request and its answer; it is given to
//! the kernel, comes back with a request, and goes there again with the answer to that, in one submission for all that
//! were answered meanwhile. What the kernel has no entry for waits there.
//!
//! The ring is not that of an iothread:
//! - An entry that the kernel has can be taken back in one way only, by closing its ring: and an export must end also while its
//!   file is open.
//! - It has submissions of 128 bytes, which every other operation would pay for.
//! - It goes with its user from thread to thread, with all that is in it. Nothing is lost thereby: who waits for it polls it.
//!
//! The price is one more system call for all requests of a turn, since what is answered is not handed over by the call that
//! waits for more.
//!
//! A thread that has given entries to the kernel carries them out when their requests come. It must not end before the ring is
//! closed, or those requests are lost; a thread that sleeps is enough.
//!
//! # Contract
//! - The kernel may write to an entry's memory until it hands the entry back, or the ring is gone: memory is let go of only
//!   then, or leaked, loudly.
//! - A payload has one user: an entry is not given back while there is a buffer on its payload.

mod memory;

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use io_uring::{EnterFlags, IoUring, cqueue, opcode, squeue, types};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::ioctl;
use rustix::pipe::{PipeFlags, pipe_with};

use self::memory::Place;
use crate::buffer::{Buffer, Buffers};
use crate::op::Fd;

/// The most bytes that an operation says of itself, besides its data.
const OPERATION: usize = 128;
/// Bytes of a request's head: what all begin with, and what its operation says.
pub const HEAD: usize = 40 + OPERATION;
/// Bytes of an answer's head.
pub const ANSWER_HEAD: usize = 16;

/// Makes an entry known to the kernel, which keeps it (`FUSE_IO_URING_CMD_REGISTER`).
const REGISTER: u32 = 1;
/// Answers an entry's request, and gives the entry back (`FUSE_IO_URING_CMD_COMMIT_AND_FETCH`).
const COMMIT_AND_FETCH: u32 = 2;

/// Who has an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The kernel does not know it yet.
    New,
    /// The kernel has it for the first time.
    Registered,
    /// The kernel has it.
    Given,
    /// Its request, of this name, is being served.
    Served(u64),
    /// Nobody will use it any more.
    Lost,
}

#[derive(Debug)]
struct Entry {
    queue: u16,
    state: State,
    place: Place,
}

/// The name of an entry whose request is being served.
#[derive(Debug, PartialEq, Eq)]
pub struct FuseEntry(usize);

/// A request that came.
#[derive(Debug)]
pub struct FuseRequest {
    /// What its answer goes by.
    pub entry: FuseEntry,
    /// What the kernel says, as it would be read from the device. How much of it means something is said in it.
    pub head: [u8; HEAD],
    /// The memory of its data, and of that of its answer: what is read into its beginning is not copied.
    pub payload: Buffer,
    /// How many bytes of data came.
    pub data_len: usize,
}

/// Why no more requests come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FuseEnd {
    /// The file system is not mounted any more, or was given up.
    Unmounted,
    /// The kernel lost an entry, and with it maybe a request.
    Failed(Errno),
}

/// A ring by which a FUSE file system is served.
pub struct FuseRing {
    ring: IoUring<squeue::Entry128, cqueue::Entry>,
    /// Readable while there are requests.
    bell: Fd,
    /// The device that the entries are given by.
    channel: Fd,
    /// Behind the ring, which is dropped first.
    memory: FuseRemains,
}

impl FuseRing {
    /// A ring with entries for these queues of the kernel, `depth` for each, and payloads of `payload_len` bytes. The kernel
    /// knows of none yet.
    ///
    /// # Errors
    /// Those of `io_uring_setup(2)`, `mmap(2)` and `pipe2(2)`.
    pub fn new(channel: &Fd, queues: &[u16], depth: usize, payload_len: usize) -> io::Result<Self> {
        let count = queues.len().saturating_mul(depth);
        let ring = IoUring::builder()
            // Completions do not interrupt the thread: it looks for them, or is woken.
            .setup_coop_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .dontfork()
            .build(u32::try_from(count.max(1)).map_err(io::Error::other)?)?;
        let (gone, held) = pipe_with(PipeFlags::CLOEXEC)?;
        // The kernel closes it with the ring, once nothing is in flight there.
        ring.submitter().register_files(&[held.as_raw_fd()])?;
        // SAFETY: the ring is open, and longer than this is borrowed.
        let itself = unsafe { BorrowedFd::borrow_raw(ring.as_raw_fd()) };
        let bell = fcntl_dupfd_cloexec(itself, 0)?;
        let queues = queues.iter().flat_map(|queue| std::iter::repeat_n(*queue, depth));
        let places = memory::places(count, payload_len)?;
        let entries = queues.zip(places).map(|(queue, place)| Entry {
            queue,
            state: State::New,
            place,
        });
        let memory = FuseRemains {
            gone: Arc::new(gone),
            entries: entries.collect(),
            given: 0,
        };
        Ok(Self {
            ring,
            bell: Arc::new(bell),
            channel: Arc::clone(channel),
            memory,
        })
    }

    /// What is readable when requests have come.
    pub fn bell(&self) -> &Fd {
        &self.bell
    }

    /// Whether requests have come. Costs no system call.
    pub fn has_requests(&mut self) -> bool {
        !self.ring.completion().is_empty()
    }

    /// Whether there are requests which this thread has yet to take, by [`FuseRing::submit`], or another that gave the
    /// kernel entries. Costs no system call.
    pub fn has_work(&mut self) -> bool {
        let queue = self.ring.submission();
        queue.taskrun() || queue.cq_overflow()
    }

    /// Makes the entries known to the kernel. Once each of its queues has one, requests come here. The kernel must have been
    /// told that they are to, and have been answered that.
    ///
    /// # Errors
    /// Those of `io_uring_enter(2)`.
    pub fn register(&mut self) -> io::Result<()> {
        for index in 0..self.memory.entries.len() {
            if self.memory.entries[index].state == State::New {
                self.push(index, REGISTER, 0);
                self.memory.entries[index].state = State::Registered;
            }
        }
        self.submit()
    }

    /// Takes a request that came.
    ///
    /// # Errors
    /// No more come. What the kernel has taken back without a request is no error as long as it was never of use: requests are
    /// read from the device then.
    pub fn take(&mut self) -> Result<Option<FuseRequest>, FuseEnd> {
        while let Some(completion) = self.ring.completion().next() {
            let index = completion.user_data() as usize;
            let FuseRemains { entries, given, .. } = &mut self.memory;
            let Some(entry) = entries.get_mut(index) else {
                continue;
            };
            let before = std::mem::replace(&mut entry.state, State::Lost);
            *given -= 1;
            if completion.result() < 0 {
                ended(before, completion.result())?;
                continue;
            }
            let (head, commit, data_len) = entry.place.request();
            let Some(payload) = entry.place.payload() else {
                // The entry was not given to the kernel with a buffer on its payload.
                return Err(FuseEnd::Failed(Errno::BUSY));
            };
            entry.state = State::Served(commit);
            return Ok(Some(FuseRequest {
                entry: FuseEntry(index),
                head,
                payload,
                data_len,
            }));
        }
        Ok(None)
    }

    /// Answers a request with what would be written to the device; it goes out with the next [`FuseRing::submit`]. False if
    /// it cannot be: somebody holds the request's payload, or it is longer than that.
    #[must_use]
    pub fn answer(&mut self, entry: FuseEntry, mut answer: Buffers) -> bool {
        let FuseEntry(index) = entry;
        let Some(entry) = self.memory.entries.get_mut(index) else {
            return false;
        };
        let State::Served(commit) = entry.state else {
            return false;
        };
        if answer.len() < ANSWER_HEAD {
            return false;
        }
        let body = answer.split_off(ANSWER_HEAD);
        let mut head = [0; ANSWER_HEAD];
        answer.copy_to_slice(0, &mut head);
        if !entry.place.answer(&head, body) {
            return false;
        }
        entry.state = State::Given;
        self.push(index, COMMIT_AND_FETCH, commit);
        true
    }

    /// Hands answers over, and takes what has come: one system call.
    ///
    /// # Errors
    /// Those of `io_uring_enter(2)`.
    pub fn submit(&mut self) -> io::Result<()> {
        loop {
            let count = self.ring.submission().len() as u32;
            let flags = EnterFlags::GETEVENTS.bits();
            // SAFETY: no argument is passed.
            let entered = unsafe {
                self.ring
                    .submitter()
                    .enter::<libc::sigset_t>(count, 0, flags, None)
            };
            match entered {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
                Ok(_) if self.ring.submission().is_empty() => return Ok(()),
                Ok(_) => {}
            }
        }
    }

    /// Closes the ring, and the kernel's hold on the device with it.
    pub fn close(self) -> FuseRemains {
        self.memory
    }

    /// Queues what is to become of an entry.
    fn push(&mut self, index: usize, operation: u32, commit: u64) {
        let entry = &self.memory.entries[index];
        let mut command = [0; 80];
        command[8..16].copy_from_slice(&commit.to_ne_bytes());
        command[16..18].copy_from_slice(&entry.queue.to_ne_bytes());
        let channel = types::Fd(self.channel.as_raw_fd());
        let command = opcode::UringCmd80::new(channel, operation).cmd(command);
        let mut submission = match operation {
            REGISTER => with_parts(command, entry.place.parts()),
            _ => command.build(),
        };
        submission.set_user_data(index as u64);
        // SAFETY: the entry's memory stays until the kernel has handed it back, or the ring is gone: see `FuseRemains`.
        let pushed = unsafe { self.ring.submission().push(&submission) };
        // The queue has room for one submission of each entry, and an entry has one at the most.
        debug_assert!(pushed.is_ok());
        self.memory.given += 1;
    }
}

/// Opens the device once more for the file system of `channel`: requests are read and answered there too, by another thread
/// for instance.
///
/// # Errors
/// Those of `open(2)`; the device belongs to no file system.
pub fn clone_device(channel: &OwnedFd) -> io::Result<OwnedFd> {
    /// The number of the ioctl `FUSE_DEV_IOC_CLONE`.
    const CLONE: ioctl::Opcode = ioctl::opcode::read::<u32>(229, 0);
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let device = open("/dev/fuse", flags, Mode::empty())?;
    let original = channel.as_raw_fd().cast_unsigned();
    // SAFETY: the request takes the address of a descriptor's number, and reads that only.
    let clone = unsafe { ioctl::Setter::<CLONE, u32>::new(original) };
    // SAFETY: the request is what the line above says, and a file without it fails with ENOTTY.
    unsafe { ioctl::ioctl(&device, clone) }?;
    Ok(device)
}

/// A command with the address and the number of an entry's parts.
fn with_parts(command: opcode::UringCmd80, (address, count): (u64, u32)) -> squeue::Entry128 {
    /// Where a submission has the number of its parts.
    const COUNT: usize = 24;
    let mut submission = command.addr(Some(address)).build();
    let bytes = (&raw mut submission).cast::<u8>().wrapping_add(COUNT);
    // SAFETY: a submission is 128 bytes as the kernel lays them out, which has a number of 32 bits there.
    unsafe { bytes.cast::<u32>().write(count) };
    submission
}

/// What it means that the kernel has handed an entry back without a request.
fn ended(before: State, result: i32) -> Result<(), FuseEnd> {
    let error = Errno::from_raw_os_error(result.wrapping_neg());
    match error {
        Errno::NOTCONN | Errno::CONNABORTED => Err(FuseEnd::Unmounted),
        // A thread has ended that had given it: a request may have been lost with it.
        Errno::CANCELED => Err(FuseEnd::Failed(error)),
        _ if before == State::Registered => {
            tracing::warn!(%error, "the kernel takes no ring for a FUSE file system, which is served by its device");
            Ok(())
        }
        error => Err(FuseEnd::Failed(error)),
    }
}

/// What outlives a ring that is closed: memory that the kernel may still be writing to.
#[must_use = "its memory is leaked unless the ring's end was waited for"]
#[derive(Debug)]
pub struct FuseRemains {
    gone: Fd,
    entries: Vec<Entry>,
    /// How many entries the kernel had.
    given: usize,
}

impl FuseRemains {
    /// What hangs up when the ring is gone; nothing if the kernel has no entry any more.
    pub fn to_wait_for(&self) -> Option<&Fd> {
        (self.given > 0).then_some(&self.gone)
    }

    /// Lets go of the memory, if the ring is gone.
    pub fn free(mut self) {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let mut looked = [PollFd::new(&self.gone, PollFlags::IN)];
        let found = poll(&mut looked, Some(&Timespec::default()));
        if found.is_ok() && looked[0].revents().contains(PollFlags::HUP) {
            self.given = 0;
        }
    }
}

impl Drop for FuseRemains {
    fn drop(&mut self) {
        if self.given > 0 {
            let entries = self.given;
            tracing::error!(
                entries,
                "the kernel may still have entries of a FUSE file system: their memory is leaked"
            );
            let _leaked = ManuallyDrop::new(std::mem::take(&mut self.entries));
        }
    }
}

impl std::fmt::Debug for FuseRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FuseRing")
            .field("entries", &self.memory.entries.len())
            .field("given", &self.memory.given)
            .finish_non_exhaustive()
    }
}
