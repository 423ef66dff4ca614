//! What a seed makes of a run: each option is drawn from it, so that seeds differ in kind and not only in timing.

use std::fmt;
use std::time::Duration;

use fastrand::Rng;
use millpond::delay::{Delay, KINDS, Rule, Window};

/// What is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// A raw image.
    Raw,
    /// A qcow2 image, with overlays as the run goes on.
    Qcow2,
    /// Three raw images that vote.
    Quorum,
}

/// How fast the disks are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speed {
    /// Always as fast.
    Steady,
    /// Anything up to some milliseconds, so that requests overtake each other.
    Mixed,
    /// Mostly fast, and now and then very slow.
    Tail,
}

/// How a run without loss of power ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Everybody has done what they wanted.
    Calm,
    /// Everybody is in the middle of something.
    Busy,
    /// The same, and the disks do not answer any more.
    Dead,
}

/// The options of a run.
#[derive(Debug, Clone)]
pub struct Swarm {
    /// Iothreads besides the main one.
    pub iothreads: usize,
    /// NBD clients.
    pub clients: usize,
    /// Requests that a client has in flight at most.
    pub depth: usize,
    /// Requests that a client makes in all.
    pub requests: usize,
    /// What is served.
    pub shape: Shape,
    /// The disk's length in bytes.
    pub size: u64,
    /// qcow2's cluster size in bytes.
    pub cluster: u64,
    /// The version of qcow2 that has no zero clusters.
    pub old_format: bool,
    /// qcow2's refcounts are written late.
    pub lazy: bool,
    /// Requests below the image are aligned to this many bytes.
    pub align: u64,
    /// Reads copy up what they find in the backing image.
    pub copy_on_read: bool,
    /// How fast the disks are.
    pub speed: Speed,
    /// One in so many requests to a disk fails; 0 for none.
    pub errors: u32,
    /// Only what users gave fails to be written, so that nothing of a format may be lost by it.
    pub only_payload: bool,
    /// Requests begin and end within sectors too.
    pub unaligned: bool,
    /// Two disks share a throttle group.
    pub throttle: bool,
    /// A disk beside the served one, used by its embedder alone: resized, and its requests withdrawn.
    pub side: bool,
    /// A second monitor edits the graph as well.
    pub second_editor: bool,
    /// Sockets move few bytes at a time, and late.
    pub fragments: bool,
    /// The graph is edited during the run.
    pub edits: bool,
    /// Sections are drained during the run.
    pub drains: bool,
    /// A program uses the same node by messages from another thread.
    pub embedder: bool,
    /// Iothreads stand still now and then.
    pub stalls: bool,
    /// Clients that read late.
    pub slow_clients: bool,
    /// Clients that vanish in the middle, and come again.
    pub dying_clients: bool,
    /// One of the images that vote returns wrong bytes now and then.
    pub rot: bool,
    /// Power is lost at some moment.
    pub crash: bool,
    /// What holds messages between actors back.
    pub hops: Vec<Rule>,
    /// Jobs copy beside all else.
    pub jobs: bool,
    /// How it ends.
    pub end: End,
}

impl Swarm {
    /// The options of a seed's run.
    #[must_use]
    pub fn draw(random: &mut Rng) -> Self {
        let edits = random.u32(0..3) > 0;
        let shape = match random.u32(0..10) {
            0..2 => Shape::Raw,
            2..4 => Shape::Quorum,
            _ => Shape::Qcow2,
        };
        let one_in = |random: &mut Rng, n: u32| random.u32(0..n) == 0;
        let mut swarm = Self {
            iothreads: random.usize(0..4),
            clients: random.usize(1..5),
            depth: 1 << random.u32(0..5),
            requests: random.usize(20..200),
            shape,
            size: random.u64(1..33) << 16,
            // The name of a backing image has to fit into the first cluster.
            cluster: 512 << random.u32(u32::from(edits)..8),
            old_format: one_in(random, 8),
            lazy: one_in(random, 6),
            align: [0, 0, 0, 1024, 4096][random.usize(0..5)],
            copy_on_read: one_in(random, 6),
            speed: [Speed::Steady, Speed::Mixed, Speed::Tail][random.usize(0..3)],
            errors: [0, 0, 0, 30, 200][random.usize(0..5)],
            only_payload: random.bool(),
            unaligned: random.bool(),
            throttle: one_in(random, 3),
            side: one_in(random, 2),
            second_editor: edits && random.bool(),
            fragments: one_in(random, 3),
            edits,
            drains: !one_in(random, 3),
            embedder: one_in(random, 3),
            stalls: one_in(random, 4),
            slow_clients: one_in(random, 4),
            dying_clients: one_in(random, 4),
            rot: shape == Shape::Quorum && one_in(random, 2),
            // Images that vote differ in what was not flushed, and have no majority there.
            crash: shape != Shape::Quorum && one_in(random, 3),
            hops: (0..random.usize(0..4)).map(|_| draw_rule(random)).collect(),
            jobs: false,
            end: [End::Calm, End::Calm, End::Busy, End::Dead][random.usize(0..4)],
        };
        swarm.only_payload &= swarm.align <= swarm.cluster;
        if one_in(random, 10) {
            // More than a server lets one client have in flight; on a raw image they can be counted.
            (swarm.depth, swarm.requests) = (300, 600);
            (swarm.shape, swarm.speed) = (Shape::Raw, Speed::Mixed);
            (swarm.edits, swarm.second_editor, swarm.rot) = (false, false, false);
        }
        swarm
    }
}

/// A rule that holds some messages between actors back.
fn draw_rule(random: &mut Rng) -> Rule {
    let micros = Duration::from_micros;
    let mut rule = Rule::default();
    if random.bool() {
        rule.kind = random.choice(KINDS).map(|kind| kind.group);
    }
    match random.u32(0..4) {
        0 => rule.delay = Delay::Fixed(micros(random.u64(1..500))),
        1 => rule.delay = Delay::Uniform(Duration::ZERO, micros(random.u64(1..5000))),
        2 => rule.delay = Delay::Exponential(micros(random.u64(1..500))),
        _ => {
            let window = Window {
                length: micros(random.u64(100..20_000)),
                every: micros(random.u64(5_000..100_000)),
            };
            if random.bool() {
                rule.burst = Some(window);
            } else {
                rule.stall = Some(window);
            }
        }
    }
    rule
}

impl fmt::Display for Swarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            iothreads,
            clients,
            depth,
            requests,
            shape,
            size,
            cluster,
            ..
        } = self;
        write!(
            f,
            "{shape:?} of {} KiB, {clients} clients x {requests} requests, {depth} in flight, {iothreads} iothreads, \
             {:?} disks",
            size >> 10,
            self.speed
        )?;
        if *shape == Shape::Qcow2 {
            write!(f, ", clusters of {cluster}")?;
        }
        if self.align > 0 {
            write!(f, ", aligned to {}", self.align)?;
        }
        if self.errors > 0 {
            let what = if self.only_payload {
                "data writes"
            } else {
                "disk requests"
            };
            write!(f, ", one in {} {what} fails", self.errors)?;
        }
        let flags = [
            (self.old_format, "version 2"),
            (self.lazy, "lazy refcounts"),
            (self.copy_on_read, "copy-on-read"),
            (self.unaligned, "unaligned"),
            (self.throttle, "throttle"),
            (self.side, "side disk"),
            (self.second_editor, "second editor"),
            (self.fragments, "fragments"),
            (self.edits, "edits"),
            (self.jobs, "jobs"),
            (self.drains, "drains"),
            (self.embedder, "embedder"),
            (self.stalls, "stalls"),
            (self.slow_clients, "slow clients"),
            (self.dying_clients, "dying clients"),
            (self.rot, "rot"),
            (self.crash, "crash"),
        ];
        if !self.crash && self.end != End::Calm {
            write!(f, ", {:?} end", self.end)?;
        }
        if !self.hops.is_empty() {
            write!(f, ", {} rules that hold messages", self.hops.len())?;
        }
        for (on, name) in flags {
            if on {
                write!(f, ", {name}")?;
            }
        }
        Ok(())
    }
}
