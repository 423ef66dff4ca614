//! The ring's backend in a run: disks take their time by the virtual clock, fail and answer out of order, and sockets move
//! what they please.

use std::cell::Cell;
use std::io;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use drivers::buffer::Buffers;
use drivers::ring::{Backend, Completion, Engine, Nap, Op, RingStats, SlotId, Slots};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use super::stage::Stage;
use super::swarm::Speed;

/// An operation in flight.
struct InFlight {
    id: SlotId,
    due: Instant,
    /// For a flush: what it makes durable.
    mark: u64,
    cancelled: bool,
    is_disk: bool,
    /// It asks the disk in some way, be it on a thread of the pool.
    needs_disk: bool,
}

/// A backend of one iothread.
pub struct Simulated {
    stage: Rc<Stage>,
    who: String,
    ops: Vec<InFlight>,
    /// When the first of them is due, for whoever moves the clock.
    next: Rc<Cell<Option<Instant>>>,
    /// Whether sockets are waited for, which nothing here tells of.
    listens: Rc<Cell<bool>>,
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
    pub fn new(
        stage: Rc<Stage>,
        who: String,
        next: Rc<Cell<Option<Instant>>>,
        listens: Rc<Cell<bool>>,
    ) -> Self {
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
            Op::Sync { fd, .. } => self.disk("flush", &**fd, format_args!(""), || {
                self.stage.disk(&**fd, |disk| disk.flushed(mark));
                Ok(0)
            }),
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
                if let Some(job) = job.take() {
                    job();
                }
                self.stage.disks(|disks| disks.note_lengths());
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
        what: &str,
        fd: impl AsFd,
        range: std::fmt::Arguments<'_>,
        work: impl FnOnce() -> Result<usize, Errno>,
    ) -> Tried {
        let name = self.stage.disk(&fd, |disk| disk.name.clone());
        let done = if self.stage.fails() {
            let full = what != "read" && self.stage.random(|random| random.u32(0..4)) == 0;
            Err(if full { Errno::NOSPC } else { Errno::IO })
        } else {
            work()
        };
        self.stage
            .line(&self.who, format_args!("{name}: {what} {range} -> {done:?}"));
        result(done)
    }

    fn read(&self, fd: impl AsFd, bufs: &mut Buffers, offset: u64) -> Tried {
        let (len, rotten) = (bufs.len(), self.stage.disk(&fd, |disk| disk.rotten));
        self.disk("read", &fd, format_args!("{len} at {offset}"), || {
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
        let tried = self.disk("write", &fd, format_args!("{len} at {offset} fua {fua}"), || {
            whole = true;
            Ok(len)
        });
        if !whole {
            // What fails may be there in part all the same.
            bytes.truncate(self.stage.random(|random| random.usize(0..=len / 512)) * 512);
        }
        if let Err(error) = rustix::io::pwrite(&fd, &bytes, offset) {
            return Tried::Ended(-error.raw_os_error());
        }
        self.stage
            .disk(&fd, |disk| disk.wrote(offset, bytes, fua && whole));
        tried
    }

    fn allocate(&self, fd: impl AsFd, mode: i32, offset: u64, len: u64) -> Tried {
        let range = format_args!("{len} at {offset} mode {mode}");
        self.disk("fallocate", &fd, range, || {
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

fn poll(fd: impl AsFd, events: u32) -> Tried {
    let fd = fd.as_fd();
    let flags = rustix::event::PollFlags::from_bits_truncate(u16::try_from(events).unwrap_or(u16::MAX));
    let mut polled = [rustix::event::PollFd::from_borrowed_fd(fd, flags)];
    match rustix::event::poll(&mut polled, Some(&rustix::event::Timespec::default())) {
        Ok(0) => Tried::Later,
        Ok(_) => Tried::Ended(i32::from(polled[0].revents().bits())),
        Err(error) => Tried::Ended(-error.raw_os_error()),
    }
}

fn file_of(op: &Op) -> Option<&drivers::ring::Fd> {
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
        let due = self.stage.now() + self.delay(op);
        let mut mark = 0;
        let file = file_of(op);
        if let Some(fd) = file {
            mark = self.stage.disk(&**fd, |disk| {
                disk.in_flight += 1;
                disk.mark()
            });
            self.stage.begun(&**fd, &self.who, op);
        }
        self.ops.push(InFlight {
            id,
            due,
            mark,
            cancelled: false,
            is_disk: file.is_some(),
            needs_disk: file.is_some() || matches!(op, Op::Blocking(_)),
        });
        // An operation begun outside of a turn is one that the next turn has to look at.
        self.next
            .set(Some(self.next.get().map_or(due, |next| next.min(due))));
    }

    fn cancel(&mut self, id: SlotId, _: &mut Op) {
        for op in &mut self.ops {
            // A disk ends what it has begun.
            if op.id == id && !op.is_disk {
                op.cancelled = true;
            }
        }
    }

    fn has_work(&mut self) -> bool {
        false
    }

    fn turn(&mut self, slots: &mut Slots, nap: Nap, done: &mut Vec<Completion>) {
        if self.stage.power_is_off() || nap != Nap::No {
            // The ring is going, or everything is.
            self.power_lost_or_torn_down(slots, done);
            return;
        }
        let now = self.stage.now();
        let mut left = Vec::with_capacity(self.ops.len());
        let mut due: Vec<InFlight> = Vec::new();
        for op in self.ops.drain(..) {
            let dead = op.needs_disk && self.stage.disks_are_dead();
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
        self.listens.set(self.ops.iter().any(|op| !op.needs_disk));
    }

    fn stats(&self) -> RingStats {
        RingStats::default()
    }
}

impl Simulated {
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
