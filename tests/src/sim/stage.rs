//! The stage of a run: one thread with all iothreads on it, their clock, their disks, and what is left to chance.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fastrand::Rng;
use millpond::export::nbd::MAX_IN_FLIGHT;
use millpond::graph::{IothreadFactory, Started};
use millpond::iothread::{Budget, Core, IoThreadConfig, PollParams, Progress, Scheduler};
use millpond::node::{EventSink, Mail, serve};
use millpond_messages::graph::IothreadOptions;
use millpond_ring::{Clock, Engine, Op, Ring, Wake};
use rustix::io::Errno;

use super::backend::{Listens, Simulated};
use super::disk::{Disk, Disks};
use super::embedder::DEPTH;
use super::oracle::is_payload;
use super::section::{Cover, Sections};
use super::swarm::{Shape, Swarm};
use super::trace::Trace;

thread_local! {
    static CURRENT: RefCell<Option<Rc<Stage>>> = const { RefCell::new(None) };
}

/// Rounds in which nothing happened, after which nothing will before the clock moves: what one task does for another
/// over a socket needs a round or two to be seen.
const QUIET: u32 = 4;

/// Rounds without anything after which what waits without a reason waits for ever: more than any chain of tasks and
/// sockets takes to be gone through.
const STUCK: u32 = 64;

/// How far the clock moves when nobody waits for a time that is known here. Tasks of the control thread have timers that
/// are not, so it moves in steps that grow for as long as nothing happens.
const STEP: Duration = Duration::from_micros(100);
const LONGEST_STEP: Duration = Duration::from_millis(5);

/// The control thread's clock, which stands still unless it is moved.
struct Virtual;

impl Clock for Virtual {
    fn now(&self) -> Instant {
        now()
    }
}

/// A client that does not read for a while.
pub struct ReadsLate(Rc<Cell<usize>>);

impl Drop for ReadsLate {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// An iothread without a thread.
struct Slot {
    name: String,
    core: Core<Mail>,
    next: Rc<Cell<Option<Instant>>>,
    /// What it waits for on sockets.
    listens: Listens,
    stalled_until: Instant,
    /// It sleeps: only who wakes it, or a time that has come, has it turned again.
    parked: bool,
}

impl Slot {
    /// Whether it is awake now.
    fn wakes(&mut self, now: Instant) -> bool {
        if !self.parked {
            return true;
        }
        let wake = self.core.local().ring().wake();
        let due = self.next_due(now).is_some_and(|due| due <= now);
        if due || !wake.is_parked() || self.listens.are_ready(now) {
            wake.unpark();
            self.parked = false;
        }
        !self.parked
    }

    fn next_due(&self, now: Instant) -> Option<Instant> {
        let stalled = (self.stalled_until > now).then_some(self.stalled_until);
        let timer = self.core.local().ring().next_timer();
        [stalled, self.next.get(), timer].into_iter().flatten().min()
    }
}

/// What a request does to a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Touch {
    /// It reads.
    Read,
    /// It writes a format's tables, or what is copied with them.
    Write {
        /// Durably.
        fua: bool,
    },
    /// It writes what users gave.
    Payload {
        /// Durably.
        fua: bool,
    },
    /// It makes durable.
    Flush,
    /// It makes room, or holes.
    Allocate,
}

impl fmt::Display for Touch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write { .. } | Self::Payload { .. } => "write",
            Self::Flush => "flush",
            Self::Allocate => "fallocate",
        })
    }
}

/// A moment, by what had failed on the disks till then.
#[derive(Debug, Clone, Copy)]
pub struct Moment(u64);

/// Says what somebody waits for, if for anything.
pub type Witness = Box<dyn Fn() -> Option<String>>;

/// What all parts of a run share.
pub struct Stage {
    swarm: Swarm,
    trace: Rc<Trace>,
    random: RefCell<Rng>,
    begun: Cell<Option<Instant>>,
    disks: RefCell<Disks>,
    arriving: RefCell<Vec<Slot>>,
    faults: Cell<bool>,
    /// Clients that do not read for a while, perhaps for longer than there are faults.
    late_readers: Rc<Cell<usize>>,
    power_off: Cell<bool>,
    disks_dead: Cell<bool>,
    /// The one disk that does not answer for a while.
    dead: RefCell<Option<String>>,
    /// The one disk that takes its time.
    slow: RefCell<Option<String>>,
    closing: Cell<bool>,
    /// Requests to disks that failed.
    injected: Cell<u64>,
    /// One of those should have made something durable: no later flush of that disk's file may succeed.
    flush_failed: Cell<bool>,
    /// Sections in force, in which disks may not be used.
    pub sections: Sections,
    witnesses: RefCell<Vec<Witness>>,
    /// The image that could not be made: its file may be anything.
    unmade: RefCell<Option<String>>,
    /// Images that a job has given up in the middle of a request.
    given_up: RefCell<Vec<String>>,
    violation: RefCell<Option<String>>,
}

impl Stage {
    /// A stage, which is the thread's from now on.
    pub fn set(swarm: Swarm, trace: Rc<Trace>, random: Rng) -> Rc<Self> {
        let stage = Rc::new(Self {
            swarm,
            trace,
            random: RefCell::new(random),
            begun: Cell::new(None),
            disks: RefCell::default(),
            arriving: RefCell::default(),
            faults: Cell::new(false),
            late_readers: Rc::default(),
            power_off: Cell::new(false),
            disks_dead: Cell::new(false),
            dead: RefCell::default(),
            slow: RefCell::default(),
            closing: Cell::new(false),
            injected: Cell::new(0),
            flush_failed: Cell::new(false),
            sections: Sections::default(),
            witnesses: RefCell::default(),
            unmade: RefCell::default(),
            given_up: RefCell::default(),
            violation: RefCell::default(),
        });
        CURRENT.set(Some(Rc::clone(&stage)));
        stage
    }

    /// The run's options.
    pub fn swarm(&self) -> &Swarm {
        &self.swarm
    }

    /// Asks chance.
    pub fn random<T>(&self, ask: impl FnOnce(&mut Rng) -> T) -> T {
        ask(&mut self.random.borrow_mut())
    }

    /// The virtual time.
    pub fn now(&self) -> Instant {
        now()
    }

    /// Virtual time since the run began.
    pub fn elapsed(&self) -> Duration {
        let now = now();
        let begun = self.begun.get().unwrap_or(now);
        self.begun.set(Some(begun));
        now.saturating_duration_since(begun)
    }

    /// Adds a line to the trace.
    pub fn line(&self, who: &str, what: fmt::Arguments<'_>) {
        self.trace.line(self.elapsed(), who, what);
    }

    /// Turns faults on or off: what was injected before stays as it is.
    pub fn set_faults(&self, on: bool) {
        self.line("stage", format_args!("faults: {on}"));
        self.faults.set(on);
    }

    /// Whether faults are on.
    pub fn has_faults(&self) -> bool {
        self.faults.get()
    }

    /// Notes that a client does not read, until this is dropped.
    pub fn reads_late(&self) -> ReadsLate {
        self.late_readers.set(self.late_readers.get() + 1);
        ReadsLate(Rc::clone(&self.late_readers))
    }

    /// How a request to a disk is to fail, if it is.
    pub fn failure(&self, touch: Touch) -> Option<Errno> {
        let Swarm {
            errors, only_payload, ..
        } = self.swarm;
        let may =
            self.faults.get() && errors > 0 && (!only_payload || matches!(touch, Touch::Payload { .. }));
        if !may || self.random(|random| random.u32(0..errors)) > 0 {
            return None;
        }
        let full = touch != Touch::Read && self.random(|random| random.u32(0..4)) == 0;
        let is_flush = match touch {
            Touch::Flush => true,
            // It is told what could not be stored of earlier writes.
            Touch::Write { fua } | Touch::Payload { fua } => fua && !full,
            Touch::Read | Touch::Allocate => false,
        };
        self.injected.set(self.injected.get() + 1);
        self.flush_failed.set(self.flush_failed.get() || is_flush);
        Some(if full { Errno::NOSPC } else { Errno::IO })
    }

    /// Whether a write stores what users gave, and no tables: those that share a block with it are written along.
    pub fn is_payload(&self, bytes: &[u8]) -> bool {
        self.swarm.align <= self.swarm.cluster && is_payload(bytes)
    }

    /// This moment, to hold a failure against that is told later.
    pub fn moment(&self) -> Moment {
        Moment(self.injected.get())
    }

    /// Whether something may fail that began at `since`: because a disk failed meanwhile, or, unless it `only_reads`, because
    /// a flush failed before that.
    pub fn may_fail(&self, since: Moment, only_reads: bool) -> bool {
        let injected = self.injected.get();
        // Images that vote may have lost their majority for good.
        let lost_majority = self.swarm.shape == Shape::Quorum && injected > 0;
        let may_write = !only_reads || self.swarm.copy_on_read;
        self.is_ending() || injected > since.0 || lost_majority || (self.flush_failed.get() && may_write)
    }

    /// Whether any disk has failed.
    pub fn has_failed(&self) -> bool {
        self.injected.get() > 0
    }

    /// Has somebody asked what he waits for when nothing moves any more.
    pub fn add_witness(&self, witness: Witness) {
        self.witnesses.borrow_mut().push(witness);
    }

    /// Whether power was lost.
    pub fn power_is_off(&self) -> bool {
        self.power_off.get()
    }

    /// From now on disks do not answer.
    pub fn kill_disks(&self) {
        self.line("stage", format_args!("the disks are dead"));
        self.disks_dead.set(true);
    }

    /// Whether disks answer no more.
    pub fn disks_are_dead(&self) -> bool {
        self.disks_dead.get()
    }

    /// One disk answers no more, or all do again.
    pub fn set_dead(&self, name: Option<&str>) {
        self.line("stage", format_args!("dead: {name:?}"));
        self.dead.replace(name.map(str::to_owned));
    }

    /// Whether the disk behind a descriptor does not answer.
    pub fn is_dead(&self, fd: impl AsFd) -> bool {
        let dead = self.dead.borrow();
        let dead = dead.as_deref();
        dead.is_some_and(|dead| self.disk(fd, |disk| disk.name == dead))
    }

    /// One disk takes its time, or none does.
    pub fn set_slow(&self, name: Option<&str>) {
        self.slow.replace(name.map(str::to_owned));
    }

    /// Whether the disk behind a descriptor takes its time.
    pub fn is_slow(&self, fd: impl AsFd) -> bool {
        let slow = self.slow.borrow();
        let slow = slow.as_deref();
        slow.is_some_and(|slow| self.disk(fd, |disk| disk.name == slow))
    }

    /// The daemon is being closed: connections end.
    pub fn set_closing(&self) {
        self.line("stage", format_args!("the daemon closes"));
        self.closing.set(true);
        self.sections.close();
    }

    /// Whether clients and users may be turned away.
    pub fn is_ending(&self) -> bool {
        self.power_off.get() || self.closing.get()
    }

    /// The disk behind a descriptor.
    pub fn disk<T>(&self, fd: impl AsFd, look: impl FnOnce(&mut Disk) -> T) -> T {
        look(self.disks.borrow_mut().of(fd))
    }

    /// All disks.
    pub fn disks<T>(&self, look: impl FnOnce(&mut Disks) -> T) -> T {
        look(&mut self.disks.borrow_mut())
    }

    /// A request to a disk was begun.
    pub fn begun(&self, fd: impl AsFd, who: &str, op: &Op) {
        let swarm = &self.swarm;
        if swarm.shape == Shape::Raw && !swarm.edits && !swarm.dying_clients && !swarm.jobs {
            // Each client's request is at most one here; and there is the embedder.
            let most = swarm.clients * MAX_IN_FLIGHT + DEPTH;
            let in_flight = self.disk(&fd, |disk| disk.in_flight);
            if in_flight > most {
                self.violated(format!("{in_flight} requests are in flight, where {most} may be"));
            }
        }
        if !self.power_off.get() {
            let name = self.disk(fd, |disk| disk.name.clone());
            if self.is_given_up(&name) {
                return;
            }
            let is_payload = matches!(op, Op::Write { bufs, .. } if self.is_payload(&bufs.to_vec()));
            if let Some(user) = self.sections.forbid(&name, is_payload) {
                self.violated(format!(
                    "{who} began {op:?} on {name} in a still section of the {user}"
                ));
            }
        }
    }

    /// A section of `user` is still from now on, until [`Sections::end`].
    pub fn begin_section(&self, user: &'static str, cover: Cover) -> usize {
        let is_quiet = self.sections.is_quiet();
        let section = self.sections.begin(user, cover);
        if is_quiet && !self.power_off.get() {
            let busy: Vec<String> = self.disks(|disks| {
                let busy = disks
                    .all()
                    .filter(|disk| disk.in_flight > 0 && !self.is_given_up(&disk.name))
                    .filter(|disk| self.sections.covers(section, &disk.name));
                busy.map(|disk| format!("{} on {}", disk.in_flight, disk.name))
                    .collect()
            });
            if !busy.is_empty() {
                self.violated(format!(
                    "a section of the {user} is still with requests in flight: {}",
                    busy.join(", ")
                ));
            }
        }
        section
    }

    /// An image is about to be made; if it cannot be, there are no more jobs after it.
    pub fn set_unmade(&self, name: &str) {
        self.unmade.replace(Some(name.to_owned()));
    }

    /// The image has been made.
    pub fn set_made(&self) {
        self.unmade.take();
    }

    /// Whether an image is not made yet, or could not be.
    pub fn is_unmade(&self, name: &str) -> bool {
        self.unmade.borrow().as_deref() == Some(name)
    }

    /// A job is cancelled, which does not wait for a disk that takes its time: what it had begun there it leaves.
    pub fn give_up(&self, name: &str) {
        let is = |one: &RefCell<Option<String>>| one.borrow().as_deref() == Some(name);
        if is(&self.dead) || is(&self.slow) {
            self.given_up.borrow_mut().push(name.to_owned());
        }
    }

    /// Whether a job has given an image up: clusters of it may be allocated in vain, and what was begun there goes on by itself,
    /// whatever section is still.
    pub fn is_given_up(&self, name: &str) -> bool {
        self.given_up.borrow().iter().any(|given_up| given_up == name)
    }

    /// Something that must hold does not. The first is what the run fails with.
    pub fn violated(&self, text: String) {
        self.line("VIOLATION", format_args!("{text}"));
        self.violation.borrow_mut().get_or_insert(text);
    }

    /// What did not hold.
    pub fn violation(&self) -> Option<String> {
        self.violation.borrow().clone()
    }

    fn start_iothread(self: &Rc<Self>, name: &str, events: EventSink) -> io::Result<Started> {
        let (next, listens) = (Rc::new(Cell::new(None)), Listens::default());
        let backend = Simulated::new(
            Rc::clone(self),
            name.to_owned(),
            Rc::clone(&next),
            listens.clone(),
        );
        let wake = Arc::new(Wake::new()?);
        let ring = Ring::with_backend(Box::new(backend), wake, Rc::new(Virtual));
        let config = IoThreadConfig {
            name: name.to_owned(),
            poll: PollParams {
                max_ns: 0,
                grow: 0,
                shrink: 0,
            },
            engine: Engine::Other,
            ..IoThreadConfig::default()
        };
        let stage = Rc::clone(self);
        let pick = move |ready: usize| stage.random(|random| random.usize(0..ready));
        let scheduler = Scheduler::Choose(Box::new(pick));
        let (core, handle) = Core::new(&config, ring, scheduler, |local| serve(local, events));
        self.line("stage", format_args!("iothread {name}"));
        self.arriving.borrow_mut().push(Slot {
            name: name.to_owned(),
            core,
            next,
            listens,
            stalled_until: now(),
            parked: false,
        });
        // No thread of the system is behind it.
        Ok((handle, 0))
    }
}

/// Iothreads on the thread's stage.
pub fn iothreads() -> IothreadFactory {
    Box::new(|options: &IothreadOptions, events| {
        let stage = CURRENT.with_borrow(Clone::clone);
        let started = stage
            .ok_or_else(|| io::Error::other("there is no stage"))
            .and_then(|stage| stage.start_iothread(&options.id, events));
        Box::pin(std::future::ready(started))
    })
}

/// Turns the iothreads and moves the clock. Dropped, it drops the iothreads with all that they do.
pub struct Engineer {
    stage: Rc<Stage>,
    slots: Vec<Slot>,
}

impl Engineer {
    /// Who turns the stage's iothreads.
    pub fn new(stage: Rc<Stage>) -> Self {
        Self {
            stage,
            slots: Vec::new(),
        }
    }

    /// Works for as long as it is polled.
    pub async fn work(&mut self) {
        let mut step = STEP;
        loop {
            let mut quiet = 0;
            while quiet < QUIET {
                if self.round() {
                    (quiet, step) = (0, STEP);
                } else {
                    quiet += 1;
                }
                tokio::task::yield_now().await;
            }
            let now = now();
            let next = self.slots.iter().filter_map(|slot| slot.next_due(now)).min();
            if next.is_none() {
                self.look_for_stuck().await;
            }
            let until_next = next.map(|next| next.saturating_duration_since(now));
            let least = Duration::from_micros(1);
            tokio::time::advance(until_next.map_or(step, |next| next.clamp(least, step))).await;
            step = (step * 2).min(LONGEST_STEP);
        }
    }

    /// Nothing that iothreads wait for comes by itself: who waits for them all the same waits for ever. Timers of those who
    /// use them would only hide it.
    async fn look_for_stuck(&mut self) {
        let stage = Rc::clone(&self.stage);
        let excused = || {
            let swarm = stage.swarm();
            let slow = swarm.slow_clients && stage.has_faults();
            let reads_late = slow || stage.late_readers.get() > 0;
            stage.sections.are_held() || !swarm.hops.is_empty() || reads_late || stage.is_ending()
        };
        let waits = || -> Vec<String> {
            let witnesses = stage.witnesses.borrow();
            witnesses.iter().filter_map(|witness| witness()).collect()
        };
        if excused() || waits().is_empty() {
            return;
        }
        for _ in 0..STUCK {
            if self.round() {
                return;
            }
            tokio::task::yield_now().await;
        }
        let waits = waits();
        if !excused() && !waits.is_empty() && stage.violation().is_none() {
            stage.violated(format!("nothing moves any more, but {}", waits.join("; ")));
        }
    }

    /// Gives iothreads a turn each, in any order. True if one of them did something.
    fn round(&mut self) -> bool {
        self.slots.append(&mut self.stage.arriving.borrow_mut());
        let mut order: Vec<usize> = (0..self.slots.len()).collect();
        self.stage.random(|random| random.shuffle(&mut order));
        let (mut worked, mut ended) = (false, Vec::new());
        for index in order {
            let now = now();
            if let Some(slot) = self.slots.get_mut(index) {
                if slot.stalled_until > now || !slot.wakes(now) {
                    continue;
                }
                if self.stage.swarm.stalls && self.stage.has_faults() {
                    stall(&self.stage, slot, now);
                }
                match turn(&self.stage, slot) {
                    Progress::Worked => worked = true,
                    Progress::Idle => slot.parked = slot.core.local().ring().wake().try_park(),
                    Progress::Stopped => ended.push(index),
                }
            }
        }
        ended.sort_unstable();
        for index in ended.into_iter().rev() {
            let slot = self.slots.remove(index);
            self.stage
                .line("stage", format_args!("iothread {} ended", slot.name));
        }
        worked
    }

    /// The power goes: nothing is done any more, and what was in flight may have got to the disks.
    pub fn lose_power(&mut self) {
        self.stage.line("stage", format_args!("power is lost"));
        self.stage.power_off.set(true);
        for slot in &mut self.slots {
            slot.core.set_budget(Budget {
                messages: 0,
                polls: 0,
            });
            slot.core.turn(false);
        }
    }
}

fn turn(stage: &Stage, slot: &mut Slot) -> Progress {
    let (messages, polls) = stage.random(|random| (random.usize(1..5), random.usize(1..9)));
    slot.core.set_budget(Budget { messages, polls });
    slot.core.turn(false)
}

/// Lets an iothread stand still now and then.
fn stall(stage: &Stage, slot: &mut Slot, now: Instant) {
    if stage.random(|random| random.u32(0..2000)) == 0 {
        let micros = stage.random(|random| random.u64(100..20_000));
        slot.stalled_until = now + Duration::from_micros(micros);
        stage.line(
            "stage",
            format_args!("iothread {} stalls for {micros} us", slot.name),
        );
    }
}
