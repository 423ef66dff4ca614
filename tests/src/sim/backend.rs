//! The ring's backend in a run: disks take their time by the virtual clock, fail and answer out of order, and sockets move
//! what they please.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use millpond_ring::buffer::Buffers;
use millpond_ring::{Backend, Completion, Engine, Op, RingStats, SleepFor, SlotId, Slots};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use super::stage::{Stage, Touch};
use super::swarm::Speed;

/// An operation in flight.
struct InFlight {
    id: SlotId,
    due: Instant,
    /// For a flush: what it makes durable.
    mark: u64,
    cancelled: bool,
    /// It asks the disk in some way, be it on a thread of the pool.
    needs_disk: bool,
}

/// How often it is looked whether a disk answers again.
const DEAD_FOR: Duration = Duration::from_millis(5);

/// How many times longer a slow disk takes.
const SLOW: u32 = 30;

/// A backend of one iothread.
pub struct Simulated {
    stage: Rc<Stage>,
    who: String,
    ops: Vec<InFlight>,
    /// When the first of them is due, for whoever moves the clock.
    next: Rc<Cell<Option<Instant>>>,
    /// What is waited for on sockets.
    listens: Listens,
}

/// What an iothread waits for on sockets, for whoever has to see that it is there.
#[derive(Clone, Default)]
pub struct Listens(Rc<RefCell<Vec<Listen>>>);

struct Listen {
    fd: Weak<OwnedFd>,
    events: PollFlags,
    /// Not before.
    due: Instant,
}

impl Listens {
    /// Whether one of the sockets is ready at `now`, as the kernel would tell it.
    pub fn are_ready(&self, now: Instant) -> bool {
        let listens = self.0.borrow();
        let due = listens.iter().filter(|listen| listen.due <= now);
        let open: Vec<_> = due
            .filter_map(|listen| Some((listen.fd.upgrade()?, listen.events)))
            .collect();
        let mut polled: Vec<PollFd<'_>> = open.iter().map(|(fd, events)| PollFd::new(fd, *events)).collect();
        // A poll that fails is tried again as one that found nothing.
        !polled.is_empty()
            && rustix::event::poll(&mut polled, Some(&Timespec::default())).is_ok_and(|n| n > 0)
    }
}

/// What became of an attempt.
enum Tried {
    Ended(i32),
    /// Nothing to be had yet.
    Later,
}

fn result(moved: Result<usize, Errno>) -> Tried {
    match moved {
        Ok(count) => Tried::Ended(i32::try_from(count).unwrap_or(i32::MAX)),
        Err(Errno::AGAIN) => Tried::Later,
        Err(error) => Tried::Ended(-error.raw_os_error()),
    }
}

impl Simulated {
    /// The backend of the iothread `who`.
    pub fn new(stage: Rc<Stage>, who: String, next: Rc<Cell<Option<Instant>>>, listens: Listens) -> Self {
        Self {
            stage,
            who,
            ops: Vec::new(),
            next,
            listens,
        }
    }

    /// How long an operation takes.
    fn delay(&self, op: &Op) -> Duration {
        let swarm = self.stage.swarm();
        let micros = |most: u64| Duration::from_micros(self.stage.random(|random| random.u64(1..most)));
        match op {
            Op::Recv { .. } | Op::Send { .. } if !swarm.fragments => Duration::ZERO,
            Op::Recv { .. } | Op::Send { .. } => micros(300),
            Op::Read { .. } | Op::Write { .. } | Op::Sync { .. } | Op::Fallocate { .. } | Op::Blocking(_) => {
                match swarm.speed {
                    Speed::Steady => Duration::from_micros(80),
                    Speed::Mixed => micros(3000),
                    Speed::Tail if self.stage.random(|random| random.u32(0..50)) == 0 => micros(100_000),
                    Speed::Tail => micros(200),
                }
            }
            _ => Duration::ZERO,
        }
    }

    fn perform(&self, mark: u64, op: &mut Op) -> Tried {
        match op {
            Op::Read { fd, bufs, offset, .. } => self.read(&**fd, bufs, *offset),
            Op::Write {
                fd,
                bufs,
                offset,
                fua,
                ..
            } => self.write(&**fd, bufs, *offset, *fua),
            Op::Sync { fd, .. } => self.sync(&**fd, mark),
            Op::Fallocate {
                fd,
                mode,
                offset,
                len,
                ..
            } => self.allocate(&**fd, *mode, *offset, *len),
            Op::Recv {
                fd, buf, received, ..
            } => {
                let room = buf.get_mut(*received..).unwrap_or_default();
                let most = self.piece(room.len());
                result(
                    rustix::net::recv(&**fd, &mut room[..most], RecvFlags::DONTWAIT).map(|(_, count)| count),
                )
            }
            Op::Send { fd, bufs, sent } => self.send(&**fd, bufs, *sent),
            Op::Poll { fd, events } => poll(&**fd, *events),
            Op::Blocking(job) => {
                self.stage.disks(|disks| disks.mark_times());
                if let Some(job) = job.take() {
                    job();
                }
                for name in self.stage.disks(|disks| disks.note_changes()) {
                    self.stage.line(&self.who, format_args!("{name}: copied to"));
                }
                Tried::Ended(0)
            }
            Op::Accept { .. } | Op::Connect { .. } => Tried::Ended(-libc::ENOSYS),
        }
    }

    /// How many bytes of so many a socket moves at once.
    fn piece(&self, len: usize) -> usize {
        if len > 1 && self.stage.swarm().fragments {
            self.stage.random(|random| random.usize(1..=len))
        } else {
            len
        }
    }

    fn send(&self, fd: impl AsFd, bufs: &Buffers, sent: usize) -> Tried {
        let mut skip = sent;
        for buffer in bufs {
            if skip < buffer.len() {
                let rest = &buffer[skip..];
                let most = self.piece(rest.len());
                let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
                return result(rustix::net::send(fd, &rest[..most], flags));
            }
            skip -= buffer.len();
        }
        Tried::Ended(0)
    }

    /// Something is done to a disk, unless it fails instead.
    fn disk(
        &self,
        what: Touch,
        fd: impl AsFd,
        range: std::fmt::Arguments<'_>,
        work: impl FnOnce() -> Result<usize, Errno>,
    ) -> Tried {
        let name = self.stage.disk(&fd, |disk| disk.name.clone());
        let done = match self.stage.failure(what) {
            Some(error) => Err(error),
            None => work(),
        };
        self.stage
            .line(&self.who, format_args!("{name}: {what} {range} -> {done:?}"));
        result(done)
    }

    fn read(&self, fd: impl AsFd, bufs: &mut Buffers, offset: u64) -> Tried {
        let (len, rotten) = (bufs.len(), self.stage.disk(&fd, |disk| disk.rotten));
        self.disk(Touch::Read, &fd, format_args!("{len} at {offset}"), || {
            let mut places: Vec<_> = bufs
                .iter_mut()
                .map(|buffer| io::IoSliceMut::new(buffer))
                .collect();
            let count = rustix::io::preadv(&fd, &mut places, offset)?;
            if rotten && count > 0 && self.stage.random(|random| random.u32(0..4)) == 0 {
                let at = self.stage.random(|random| random.usize(0..count));
                bufs.copy_from_slice(at, &[0xa5]);
            }
            Ok(count)
        })
    }

    fn write(&self, fd: impl AsFd, bufs: &Buffers, offset: u64, fua: bool) -> Tried {
        let mut bytes = bufs.to_vec();
        let len = bytes.len();
        let mut whole = false;
        let touch = if self.stage.is_payload(&bytes) {
            Touch::Payload { fua }
        } else {
            Touch::Write { fua }
        };
        let tried = self.disk(touch, &fd, format_args!("{len} at {offset} fua {fua}"), || {
            whole = true;
            Ok(len)
        });
        if !whole {
            // What fails may be there in part all the same.
            bytes.truncate(self.stage.random(|random| random.usize(0..=len / 512)) * 512);
            if fua && matches!(tried, Tried::Ended(error) if error == -libc::EIO) {
                // It has told of what could not be stored of earlier writes too.
                self.lose(&fd, u64::MAX);
            }
        }
        if let Err(error) = rustix::io::pwrite(&fd, &bytes, offset) {
            return Tried::Ended(-error.raw_os_error());
        }
        self.stage
            .disk(&fd, |disk| disk.wrote(offset, bytes, fua && whole));
        tried
    }

    fn sync(&self, fd: impl AsFd, mark: u64) -> Tried {
        let tried = self.disk(Touch::Flush, &fd, format_args!(""), || {
            self.stage.disk(&fd, |disk| disk.flushed(mark));
            Ok(0)
        });
        if matches!(tried, Tried::Ended(error) if error < 0) {
            self.lose(&fd, mark);
        }
        tried
    }

    /// What could not be stored is given up.
    fn lose(&self, fd: impl AsFd, mark: u64) {
        let mut random = self.stage.random(fastrand::Rng::fork);
        self.stage.disk(fd, |disk| disk.flush_failed(mark, &mut random));
    }

    fn allocate(&self, fd: impl AsFd, mode: i32, offset: u64, len: u64) -> Tried {
        let range = format_args!("{len} at {offset} mode {mode}");
        self.disk(Touch::Allocate, &fd, range, || {
            // Bits that there are not are the kernel's to refuse.
            let flags = FallocateFlags::from_bits_retain(mode.unsigned_abs());
            rustix::fs::fallocate(&fd, flags, offset, len)?;
            self.stage.disk(&fd, |disk| disk.allocated(mode, offset, len));
            Ok(0)
        })
    }

    /// What is in flight when the power goes may have got to the disk.
    fn power_lost(&mut self, slots: &mut Slots) {
        for InFlight { id, .. } in self.ops.drain(..) {
            if let Some(Op::Write { fd, bufs, offset, .. }) = slots.get_mut(id) {
                let bytes = bufs.to_vec();
                self.stage.disk(&**fd, |disk| disk.wrote(*offset, bytes, false));
            }
        }
    }
}

fn flags(events: u32) -> PollFlags {
    PollFlags::from_bits_truncate(u16::try_from(events).unwrap_or(u16::MAX))
}

fn poll(fd: impl AsFd, events: u32) -> Tried {
    let mut polled = [PollFd::from_borrowed_fd(fd.as_fd(), flags(events))];
    match rustix::event::poll(&mut polled, Some(&Timespec::default())) {
        Ok(0) => Tried::Later,
        Ok(_) => Tried::Ended(i32::from(polled[0].revents().bits())),
        Err(error) => Tried::Ended(-error.raw_os_error()),
    }
}

fn file_of(op: &Op) -> Option<&millpond_ring::Fd> {
    match op {
        Op::Read { fd, .. } | Op::Write { fd, .. } | Op::Sync { fd, .. } | Op::Fallocate { fd, .. } => {
            Some(fd)
        }
        _ => None,
    }
}

impl Backend for Simulated {
    fn engine(&self) -> Engine {
        Engine::Other
    }

    fn submit(&mut self, id: SlotId, op: &mut Op) {
        let mut delay = self.delay(op);
        let mut mark = 0;
        let file = file_of(op);
        if let Some(fd) = file {
            if self.stage.is_slow(&**fd) {
                delay *= SLOW;
            }
            mark = self.stage.disk(&**fd, |disk| {
                disk.in_flight += 1;
                disk.mark()
            });
            self.stage.begun(&**fd, &self.who, op);
        }
        let due = self.stage.now() + delay;
        self.ops.push(InFlight {
            id,
            due,
            mark,
            cancelled: false,
            needs_disk: file.is_some() || matches!(op, Op::Blocking(_)),
        });
        // An operation begun outside of a turn is one that the next turn has to look at.
        self.next
            .set(Some(self.next.get().map_or(due, |next| next.min(due))));
    }

    fn cancel(&mut self, id: SlotId, _: &mut Op) {
        for op in &mut self.ops {
            // A disk ends what it has begun, and a job of the thread pool cannot be called back.
            if op.id == id && !op.needs_disk {
                op.cancelled = true;
                self.next.set(Some(self.stage.now()));
            }
        }
    }

    fn has_work(&mut self) -> bool {
        false
    }

    fn turn(&mut self, slots: &mut Slots, sleep_for: SleepFor, done: &mut Vec<Completion>) {
        if self.stage.power_is_off() || sleep_for != SleepFor::NoTime {
            // The ring is going, or everything is.
            self.power_lost_or_torn_down(slots, done);
            return;
        }
        let now = self.stage.now();
        let mut left = Vec::with_capacity(self.ops.len());
        let mut due: Vec<InFlight> = Vec::new();
        for mut op in self.ops.drain(..) {
            let dead = op.needs_disk && self.stage.disks_are_dead();
            let fd = slots.get_mut(op.id).and_then(|running| file_of(running));
            if op.due <= now && fd.is_some_and(|fd| self.stage.is_dead(&**fd)) {
                op.due = now + DEAD_FOR;
            }
            if op.cancelled || (op.due <= now && !dead) {
                due.push(op);
            } else {
                left.push(op);
            }
        }
        due.sort_by_key(|op| op.due);
        for op in due {
            let Some(running) = slots.get_mut(op.id) else {
                continue;
            };
            let tried = if op.cancelled {
                Tried::Ended(-libc::ECANCELED)
            } else {
                self.perform(op.mark, running)
            };
            match tried {
                Tried::Ended(result) => {
                    if let Some(fd) = file_of(running) {
                        self.stage.disk(&**fd, |disk| disk.in_flight -= 1);
                    }
                    done.push(Completion { id: op.id, result });
                }
                Tried::Later => left.push(op),
            }
        }
        self.ops = left;
        let next = self.ops.iter().map(|op| op.due).filter(|due| *due > now).min();
        self.next.set(next);
        self.listen(slots);
    }

    fn stats(&self) -> RingStats {
        RingStats::default()
    }
}

impl Simulated {
    /// Says which sockets are waited for.
    fn listen(&self, slots: &mut Slots) {
        let mut listens = self.listens.0.borrow_mut();
        listens.clear();
        for op in self.ops.iter().filter(|op| !op.needs_disk) {
            let (fd, events) = match slots.get_mut(op.id) {
                Some(Op::Recv { fd, .. }) => (fd, PollFlags::IN),
                Some(Op::Send { fd, .. }) => (fd, PollFlags::OUT),
                Some(Op::Poll { fd, events }) => (fd, flags(*events)),
                _ => continue,
            };
            listens.push(Listen {
                fd: Arc::downgrade(fd),
                events,
                due: op.due,
            });
        }
    }

    fn power_lost_or_torn_down(&mut self, slots: &mut Slots, done: &mut Vec<Completion>) {
        let ids: Vec<SlotId> = self.ops.iter().map(|op| op.id).collect();
        if self.stage.power_is_off() {
            self.power_lost(slots);
        }
        self.ops.clear();
        done.extend(ids.into_iter().map(|id| Completion {
            id,
            result: -libc::ECANCELED,
        }));
    }
}
