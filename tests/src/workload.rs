//! Random requests on a disk, one at a time or many in flight, with every byte that comes back checked.

use std::collections::HashMap;
use std::io;
use std::ops::Range;

use crate::model::Model;
use crate::nbd::wire::*;
use crate::nbd::{Request, Session};

/// A generator that says its seed, so that a failure can be repeated with `MILLPOND_SEED`.
pub fn seeded(what: &str) -> fastrand::Rng {
    let given = std::env::var("MILLPOND_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or_else(|| fastrand::u64(..));
    eprintln!("{what}: MILLPOND_SEED={seed}");
    fastrand::Rng::with_seed(seed)
}

/// `length` random bytes.
pub fn random_bytes(rng: &mut fastrand::Rng, length: u64) -> Vec<u8> {
    let mut bytes = vec![0; length as usize];
    rng.fill(&mut bytes);
    bytes
}

/// How often each kind of request is made, in parts of their sum.
#[derive(Debug, Clone, Copy)]
pub struct Mix {
    /// Reads.
    pub read: u32,
    /// Writes.
    pub write: u32,
    /// Writes of zeroes, some of which must keep the space.
    pub zero: u32,
    /// Discards.
    pub trim: u32,
    /// Flushes.
    pub flush: u32,
}

impl Mix {
    /// Everything.
    pub const ALL: Mix = Mix {
        read: 30,
        write: 40,
        zero: 12,
        trim: 12,
        flush: 6,
    };
    /// Nothing whose outcome is open.
    pub const NO_TRIM: Mix = Mix { trim: 0, ..Mix::ALL };

    fn pick(&self, rng: &mut fastrand::Rng) -> u16 {
        let weights = [
            (self.read, CMD_READ),
            (self.write, CMD_WRITE),
            (self.zero, CMD_WRITE_ZEROES),
            (self.trim, CMD_TRIM),
            (self.flush, CMD_FLUSH),
        ];
        let mut left = rng.u32(0..weights.iter().map(|(weight, _)| weight).sum());
        for (weight, command) in weights {
            if left < weight {
                return command;
            }
            left -= weight;
        }
        CMD_READ
    }
}

/// A request of a kind that `mix` picks, on this range.
fn request(rng: &mut fastrand::Rng, mix: Mix, offset: u64, length: u64) -> Request {
    match mix.pick(rng) {
        CMD_WRITE => Request::write(offset, random_bytes(rng, length)).flags(maybe(rng, CMD_FLAG_FUA)),
        CMD_WRITE_ZEROES => Request::zero(offset, length).flags(maybe(rng, CMD_FLAG_NO_HOLE)),
        CMD_TRIM => Request::trim(offset, length),
        CMD_FLUSH => Request::flush(),
        _ => Request::read(offset, length),
    }
}

/// A flag, one time in four.
fn maybe(rng: &mut fastrand::Rng, flag: u16) -> u16 {
    if rng.u8(0..4) == 0 { flag } else { 0 }
}

/// Makes `count` random requests one after the other, each at any byte and of up to `longest` bytes, and checks all
/// that is read against `model`.
#[track_caller]
pub fn one_by_one(
    session: &mut Session,
    model: &mut Model,
    rng: &mut fastrand::Rng,
    mix: Mix,
    count: u32,
    longest: u64,
) {
    for _ in 0..count {
        let offset = rng.u64(0..model.size());
        let length = rng.u64(1..=longest.min(model.size() - offset));
        // Half of the requests keep to sectors, as a guest's do.
        let aligned = rng.bool() && offset % 512 + length >= 1024;
        let (offset, length) = if aligned {
            (offset.next_multiple_of(512), length & !511)
        } else {
            (offset, length)
        };
        let length = length.min(model.size().saturating_sub(offset)).max(1);
        if offset >= model.size() {
            continue;
        }
        let request = request(rng, mix, offset, length);
        let answer = session.ok(&request);
        model.apply(&request);
        match request.command {
            CMD_READ => model.check(offset, &answer.data),
            CMD_TRIM => {
                let now = session.read(offset, length);
                model.settle(offset, &now);
            }
            _ => {}
        }
    }
}

/// Random requests on one part of a disk, `depth` of them in flight, none overlapping another.
#[derive(Debug)]
pub struct Load {
    session: Session,
    model: Model,
    part: Range<u64>,
    rng: fastrand::Rng,
    mix: Mix,
    depth: usize,
    busy: Vec<bool>,
    in_flight: HashMap<u64, Request>,
    completed: u64,
}

/// The unit in which a [`Load`] works.
pub const LOAD_BLOCK: u64 = 4096;

impl Load {
    /// A load on `part` of the disk, whose content `model` has (of the whole disk, of which only the part is used).
    pub fn new(
        session: Session,
        model: Model,
        part: Range<u64>,
        rng: fastrand::Rng,
        mix: Mix,
        depth: usize,
    ) -> Load {
        assert!(
            part.start.is_multiple_of(LOAD_BLOCK) && part.end.is_multiple_of(LOAD_BLOCK),
            "a load works in blocks"
        );
        assert!(mix.trim == 0, "a load's requests must have one outcome");
        let blocks = (part.end - part.start) / LOAD_BLOCK;
        Load {
            session: session.pipelined(),
            model,
            busy: vec![false; blocks as usize],
            part,
            rng,
            mix,
            depth,
            in_flight: HashMap::new(),
            completed: 0,
        }
    }

    /// How many requests have been answered.
    pub fn completed(&self) -> u64 {
        self.completed
    }

    /// The model and the session, with nothing in flight.
    pub fn finish(mut self) -> io::Result<(Model, Session)> {
        while !self.in_flight.is_empty() {
            self.take_answer()?;
        }
        Ok((self.model, self.session))
    }

    /// Tops up to the full depth, then takes one answer and checks it.
    pub fn step(&mut self) -> io::Result<()> {
        while self.in_flight.len() < self.depth {
            let Some(request) = self.next_request() else { break };
            self.mark(&request, true);
            let cookie = self.session.submit(&request)?;
            self.in_flight.insert(cookie, request);
        }
        self.take_answer()
    }

    /// A request on free blocks; none if the disk is too full of requests to find any.
    fn next_request(&mut self) -> Option<Request> {
        for _ in 0..16 {
            let first = self.rng.usize(0..self.busy.len());
            let most = if self.rng.u8(0..8) == 0 { 16 } else { 1 };
            let free = self.busy[first..]
                .iter()
                .take(most)
                .take_while(|busy| !**busy)
                .count() as u64;
            if free > 0 {
                let offset = self.part.start + first as u64 * LOAD_BLOCK;
                return Some(request(&mut self.rng, self.mix, offset, free * LOAD_BLOCK));
            }
        }
        None
    }

    fn mark(&mut self, request: &Request, busy: bool) {
        if request.length > 0 {
            let first = ((request.offset - self.part.start) / LOAD_BLOCK) as usize;
            self.busy[first..first + (request.length / LOAD_BLOCK) as usize].fill(busy);
        }
    }

    fn take_answer(&mut self) -> io::Result<()> {
        let answer = self.session.complete()?;
        let request = self
            .in_flight
            .remove(&answer.cookie)
            .expect("the session matched it to a request");
        assert_eq!(
            answer.error, 0,
            "command {} at {}: {}",
            request.command, request.offset, answer.message
        );
        self.mark(&request, false);
        self.model.apply(&request);
        if request.command == CMD_READ {
            self.model.check(request.offset, &answer.data);
        }
        self.completed += 1;
        Ok(())
    }
}
