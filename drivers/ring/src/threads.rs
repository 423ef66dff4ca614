//! The backend on epoll and threads: sockets are tried and then watched, files go to the pool.

use std::collections::{HashMap, VecDeque};
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendFlags, SocketFlags, accept_with, connect, recv,
    sendmsg, sockopt,
};

use super::backend::{Backend, Completion, SleepFor};
use super::config::{Engine, RingConfig, RingStats};
use super::op::{Fd, Op, SlotId};
use super::pool::Pool;
use super::slots::Slots;
use super::sys;
use super::wake::Wake;
use crate::buffer::Buffers;

/// The bell's name among events: no descriptor has it.
const BELL: u64 = u64::MAX;

/// Somebody who waits for a descriptor.
struct Waiter {
    id: SlotId,
    events: EventFlags,
}

pub(super) struct Threads {
    epoll: OwnedFd,
    pool: Pool,
    /// Its eventfd is in `epoll`.
    _wake: Arc<Wake>,
    /// Socket operations to be tried in the next turn.
    ready: VecDeque<SlotId>,
    /// What ended without being tried.
    ended: Vec<Completion>,
    /// Who waits for which descriptor. A descriptor here is open: its waiters' slots hold it.
    waiting: HashMap<RawFd, Vec<Waiter>>,
    events: Vec<epoll::Event>,
    enters: u64,
}

/// What trying an operation came to.
enum Tried {
    Done(i32),
    /// It must wait for these events.
    Wait(EventFlags),
    /// Only a thread can do it.
    Pool,
}

impl Threads {
    /// # Errors
    /// Those of `epoll_create1(2)` and `epoll_ctl(2)`.
    pub(super) fn new(config: &RingConfig) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        // By edges: the eventfd is never read, and each wake is an edge.
        epoll::add(
            &epoll,
            config.wake.bell(),
            EventData::new_u64(BELL),
            EventFlags::IN | EventFlags::ET,
        )?;
        Ok(Self {
            epoll,
            pool: Pool::new(config.threads, config.wake.clone()),
            _wake: config.wake.clone(),
            ready: VecDeque::new(),
            ended: Vec::new(),
            waiting: HashMap::new(),
            events: Vec::with_capacity(256),
            enters: 0,
        })
    }

    /// Tries the operations that were submitted or whose descriptor became ready; each once.
    fn try_ready(&mut self, slots: &mut Slots, done: &mut Vec<Completion>) {
        done.append(&mut self.ended);
        while let Some(id) = self.ready.pop_front() {
            let Some(op) = slots.get_mut(id) else { continue };
            self.enters += 1;
            match attempt(op) {
                Tried::Done(result) => done.push(Completion { id, result }),
                Tried::Pool => self.pool.submit(id, op),
                Tried::Wait(events) => {
                    let Some(fd) = socket(op) else { continue };
                    if let Err(error) = self.watch(fd, Waiter { id, events }) {
                        done.push(Completion {
                            id,
                            result: -error.raw_os_error(),
                        });
                    }
                }
            }
        }
    }

    fn watch(&mut self, fd: &Fd, waiter: Waiter) -> Result<(), Errno> {
        let waiters = self.waiting.entry(fd.as_raw_fd()).or_default();
        waiters.push(waiter);
        let armed = arm(&self.epoll, fd.as_raw_fd(), fd, waiters);
        if armed.is_err() {
            waiters.pop();
        }
        armed
    }

    /// Waits for descriptors, and makes the operations ready that wait for those.
    fn poll(&mut self, slots: &mut Slots, timeout: Option<Duration>) {
        // Too long a time is as good as for ever.
        let timeout = timeout.and_then(|time| Timespec::try_from(time).ok());
        self.enters += 1;
        self.events.clear();
        match epoll::wait(
            &self.epoll,
            rustix::buffer::spare_capacity(&mut self.events),
            timeout.as_ref(),
        ) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => tracing::error!("epoll_wait failed: {error}"),
        }
        for event in std::mem::take(&mut self.events) {
            let (data, flags) = (event.data.u64(), event.flags);
            if let Ok(fd) = RawFd::try_from(data) {
                self.rouse(slots, fd, flags);
            }
        }
        self.events.reserve(256);
    }

    /// Some of `flags` are true of `fd`: whoever waits for one is ready, the rest goes on waiting.
    fn rouse(&mut self, slots: &mut Slots, fd: RawFd, flags: EventFlags) {
        let Some(waiters) = self.waiting.get_mut(&fd) else {
            return;
        };
        let always = EventFlags::ERR | EventFlags::HUP;
        for waiter in waiters.extract_if(.., |waiter| flags.intersects(waiter.events | always)) {
            match slots.get_mut(waiter.id) {
                Some(Op::Poll { .. }) => {
                    let result = (flags & (waiter.events | always)).bits() as i32;
                    self.ended.push(Completion {
                        id: waiter.id,
                        result,
                    });
                }
                _ => self.ready.push_back(waiter.id),
            }
        }
        let rest = waiters
            .first()
            .and_then(|first| slots.get_mut(first.id))
            .and_then(|op| socket(op));
        match rest {
            None => drop(self.waiting.remove(&fd)),
            Some(rest) => {
                if let Err(error) = arm(&self.epoll, fd, rest, waiters) {
                    tracing::error!("cannot watch a descriptor again: {error}");
                }
            }
        }
    }
}

impl Backend for Threads {
    fn engine(&self) -> Engine {
        Engine::Threads
    }

    fn submit(&mut self, id: SlotId, op: &mut Op) {
        if op.wants_pool() || op.is_disk() {
            self.pool.submit(id, op);
        } else {
            self.ready.push_back(id);
        }
    }

    fn cancel(&mut self, id: SlotId, op: &mut Op) {
        let Some(fd) = socket(op) else { return };
        let before = self.ready.len();
        self.ready.retain(|&ready| ready != id);
        let mut found = self.ready.len() < before;
        if let Some(waiters) = self.waiting.get_mut(&fd.as_raw_fd()) {
            let before = waiters.len();
            waiters.retain(|waiter| waiter.id != id);
            found |= waiters.len() < before;
            if waiters.is_empty() {
                // The kernel's own entry fires once at the most, and finds nobody.
                self.waiting.remove(&fd.as_raw_fd());
            }
        }
        if found {
            self.ended.push(Completion {
                id,
                result: -libc::ECANCELED,
            });
        }
    }

    fn has_work(&mut self) -> bool {
        !self.ready.is_empty() || !self.ended.is_empty() || self.pool.has_done()
    }

    fn turn(&mut self, slots: &mut Slots, sleep_for: SleepFor, done: &mut Vec<Completion>) {
        self.pool.collect(done);
        self.try_ready(slots, done);
        match sleep_for {
            SleepFor::AtMost(timeout) if done.is_empty() => self.poll(slots, timeout),
            _ if !self.waiting.is_empty() => self.poll(slots, Some(Duration::ZERO)),
            _ => return,
        }
        self.try_ready(slots, done);
        self.pool.collect(done);
    }

    fn stats(&self) -> RingStats {
        RingStats {
            enters: self.enters,
            ..RingStats::default()
        }
    }
}

/// Watches `fd`, once, for all that its waiters want.
fn arm(epoll: &OwnedFd, name: RawFd, fd: &Fd, waiters: &[Waiter]) -> Result<(), Errno> {
    let wanted = waiters
        .iter()
        .fold(EventFlags::ONESHOT, |all, waiter| all | waiter.events);
    // Descriptors are not negative.
    let data = EventData::new_u64(name as u64);
    match epoll::add(epoll, fd, data, wanted) {
        // Left from an earlier wait, spent.
        Err(Errno::EXIST) => epoll::modify(epoll, fd, data, wanted),
        result => result,
    }
}

/// The descriptor that an operation waits for, unless it is the pool's.
fn socket(op: &Op) -> Option<&Fd> {
    match op {
        Op::Recv { fd, .. } | Op::Send { fd, .. } | Op::Accept { fd } => Some(fd),
        Op::Connect { fd, .. } | Op::Poll { fd, .. } => Some(fd),
        Op::Read { .. } | Op::Write { .. } | Op::Sync { .. } | Op::Fallocate { .. } | Op::Blocking(_) => None,
    }
}

/// Tries an operation without blocking.
fn attempt(op: &mut Op) -> Tried {
    match op {
        Op::Recv {
            fd, buf, received, ..
        } => {
            let rest = buf.get_mut(*received..).unwrap_or_default();
            let count = recv(&*fd, rest, RecvFlags::DONTWAIT).map(|(count, _)| count);
            tried(count, EventFlags::IN)
        }
        Op::Send { fd, bufs, sent } => tried(send(fd, bufs, *sent), EventFlags::OUT),
        Op::Accept { fd } => {
            let accepted = nonblocking(fd).and_then(|()| accept_with(&*fd, SocketFlags::CLOEXEC));
            match accepted {
                Ok(connection) => Tried::Done(connection.into_raw_fd()),
                Err(error) => tried(Err(error), EventFlags::IN),
            }
        }
        // A full backlog of a unix socket cannot be waited for but in the call itself.
        Op::Connect { addr, .. } if addr.address_family() == AddressFamily::UNIX => Tried::Pool,
        Op::Connect {
            fd,
            addr,
            begun: false,
        } => match nonblocking(fd).and_then(|()| connect(&*fd, &**addr)) {
            Err(Errno::INPROGRESS) => {
                begin(op);
                Tried::Wait(EventFlags::OUT)
            }
            result => Tried::Done(sys::unit(result)),
        },
        Op::Connect { fd, begun: true, .. } => {
            Tried::Done(sys::unit(sockopt::socket_error(&*fd).and_then(|result| result)))
        }
        Op::Poll { events, .. } => Tried::Wait(EventFlags::from_bits_retain(*events)),
        Op::Read { .. } | Op::Write { .. } | Op::Sync { .. } | Op::Fallocate { .. } | Op::Blocking(_) => {
            Tried::Pool
        }
    }
}

fn begin(op: &mut Op) {
    if let Op::Connect { begun, .. } = op {
        *begun = true;
    }
}

fn tried(result: Result<usize, Errno>, events: EventFlags) -> Tried {
    match result {
        Err(Errno::AGAIN) => Tried::Wait(events),
        result => Tried::Done(sys::count(result)),
    }
}

fn send(fd: &Fd, bufs: &Buffers, mut skip: usize) -> Result<usize, Errno> {
    let parts: smallvec::SmallVec<[IoSlice<'_>; 4]> = bufs
        .iter()
        .filter_map(|buffer| {
            let from = skip.min(buffer.len());
            skip -= from;
            (from < buffer.len()).then(|| IoSlice::new(&buffer[from..]))
        })
        .take(sys::MOST_PARTS)
        .collect();
    sendmsg(
        fd,
        &parts,
        &mut SendAncillaryBuffer::default(),
        SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
    )
}

/// Makes calls without a flag of their own return at once.
fn nonblocking(fd: &Fd) -> Result<(), Errno> {
    let flags = fcntl_getfl(fd)?;
    if flags.contains(OFlags::NONBLOCK) {
        return Ok(());
    }
    fcntl_setfl(fd, flags | OFlags::NONBLOCK)
}
