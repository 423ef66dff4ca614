//! An NBD client of a run: it reads, writes, zeroes, discards and flushes at random, and holds every byte against the oracle.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use fastrand::Rng;
use tokio::sync::Notify;
use tokio::time::sleep;

use super::oracle::{Barrier, CELL, Change, Ended, Look, Oracle, SECTOR};
use super::session::{Header, Incoming, Outgoing, Reply, connect};
use super::stage::{Moment, Stage};
use super::swarm::Shape;
use crate::nbd::wire::*;

/// Cells of a sector.
const CELLS: u64 = SECTOR / CELL;

/// The most cells that one request is about.
const LONGEST: u64 = 96 * CELLS;

/// How often a client that cannot connect tries again.
const ATTEMPTS: u32 = 50;

/// What a request in flight is, and what its end means.
enum Meaning {
    Read(Look, Vec<u8>),
    Status(Look, Vec<(u64, u64)>),
    Change(Change, bool),
    Flush(Barrier),
    Nothing,
}

struct Pending {
    meaning: Meaning,
    header: Header,
    error: u32,
    /// Bytes of a read that have come.
    come: usize,
    /// When it was made.
    since: Moment,
}

/// What the sending and the receiving side of a client share.
struct Shared {
    stage: Rc<Stage>,
    oracle: Rc<RefCell<Oracle>>,
    who: String,
    pending: RefCell<BTreeMap<u64, Pending>>,
    changed: Notify,
    closed: Cell<bool>,
    /// It may ask what ranges are made of.
    structured: Cell<bool>,
}

/// A client.
pub struct Client {
    shared: Rc<Shared>,
    server: PathBuf,
    random: Rng,
    requests: usize,
    next_cookie: u64,
}

impl Client {
    /// A client of `stage` called `who`, of the server at `server`.
    pub fn new(
        stage: Rc<Stage>,
        oracle: Rc<RefCell<Oracle>>,
        who: String,
        server: PathBuf,
        random: Rng,
    ) -> Self {
        let requests = stage.swarm().requests;
        Self {
            shared: Rc::new(Shared {
                stage,
                oracle,
                who,
                pending: RefCell::default(),
                changed: Notify::new(),
                closed: Cell::new(false),
                structured: Cell::new(false),
            }),
            server,
            random,
            requests,
            next_cookie: 1,
        }
    }

    /// What is in flight, for people.
    pub fn pending(&self) -> Waiting {
        Waiting(Rc::clone(&self.shared))
    }

    /// Makes requests until there have been enough.
    pub async fn run(mut self) {
        while self.requests > 0 && self.shared.stage.violation().is_none() {
            let structured = self.random.bool();
            let Some((outgoing, incoming)) = self.connect(structured).await else {
                return;
            };
            self.shared.closed.set(false);
            self.shared.structured.set(structured);
            let receiver = tokio::task::spawn_local(receive(Rc::clone(&self.shared), incoming));
            if let Err(error) = self.send(outgoing).await
                && !self.shared.stage.is_ending()
            {
                let who = &self.shared.who;
                self.shared.stage.violated(format!("{who} cannot send: {error}"));
            }
            self.shared.closed.set(true);
            receiver.abort();
            // An error says that it was aborted, which it was.
            let _ = receiver.await;
            self.shared.give_up();
        }
    }

    async fn connect(&self, structured: bool) -> Option<(Outgoing, Incoming)> {
        let mut attempts = 0;
        loop {
            match connect(&self.server, "disk", structured).await {
                Ok(session) => return Some(session),
                Err(_) if self.shared.stage.is_ending() => return None,
                Err(_) if attempts < ATTEMPTS => {
                    attempts += 1;
                    sleep(Duration::from_millis(20)).await;
                }
                Err(error) => {
                    let who = &self.shared.who;
                    self.shared
                        .stage
                        .violated(format!("{who} cannot connect: {error}"));
                    return None;
                }
            }
        }
    }

    /// Sends requests until there have been enough, or the client vanishes.
    async fn send(&mut self, mut outgoing: Outgoing) -> io::Result<()> {
        let stage = Rc::clone(&self.shared.stage);
        let depth = stage.swarm().depth;
        while self.requests > 0 && stage.violation().is_none() && !self.shared.closed.get() {
            if stage.swarm().dying_clients && stage.has_faults() && self.random.u32(0..60) == 0 {
                return self.vanish(outgoing).await;
            }
            while self.shared.pending.borrow().len() >= depth && !self.shared.closed.get() {
                self.shared.changed.notified().await;
            }
            self.requests -= 1;
            self.request(&mut outgoing).await?;
            if self.random.u32(0..4) == 0 {
                sleep(Duration::from_micros(self.random.u64(1..5000))).await;
            }
        }
        while !self.shared.pending.borrow().is_empty() && !self.shared.closed.get() {
            self.shared.changed.notified().await;
        }
        let header = self.header(CMD_DISC, 0, 0, 0);
        outgoing.send(header, &[]).await
    }

    /// Leaves in the middle: between requests, or in the middle of one.
    async fn vanish(&mut self, mut outgoing: Outgoing) -> io::Result<()> {
        self.shared.line(format_args!("vanishes"));
        if self.random.bool() {
            // It would be a write, but its bytes never come.
            let header = self.header(CMD_WRITE, 0, 0, 4096);
            outgoing.send(header, &[1; 100]).await?;
        }
        Ok(())
    }

    fn header(&mut self, command: u16, flags: u16, first: u64, count: u64) -> Header {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        Header {
            command,
            flags,
            cookie,
            offset: first * CELL,
            // Far fewer cells than would not fit.
            len: (count * CELL) as u32,
        }
    }

    /// What to do with some cells; None if they must not be changed now.
    fn choose(&mut self, first: u64, count: u64) -> Option<(u16, u16, Meaning, Vec<u8>)> {
        let fua = if self.random.u32(0..10) == 0 {
            CMD_FLAG_FUA
        } else {
            0
        };
        let durable = fua != 0;
        let shared = Rc::clone(&self.shared);
        let mut oracle = shared.oracle.borrow_mut();
        // Images that vote have no majority where each did writes in an order of its own.
        let overlaps = shared.stage.swarm().shape == Shape::Quorum && oracle.is_busy(first, count);
        let mut payload = Vec::new();
        let choice = match self.random.u32(0..20) {
            0..13 if overlaps => return None,
            0..9 => {
                let (change, bytes) = oracle.write(first, count);
                payload = bytes;
                (CMD_WRITE, fua, Meaning::Change(change, durable))
            }
            9..11 => {
                let change = oracle.zero(first, count);
                let keep = if self.random.bool() { CMD_FLAG_NO_HOLE } else { 0 };
                (CMD_WRITE_ZEROES, fua | keep, Meaning::Change(change, durable))
            }
            11..13 => (
                CMD_TRIM,
                fua,
                Meaning::Change(oracle.discard(first, count), durable),
            ),
            13 => (CMD_FLUSH, 0, Meaning::Flush(oracle.barrier())),
            14 => (CMD_CACHE, 0, Meaning::Nothing),
            15 if shared.structured.get() => (
                CMD_BLOCK_STATUS,
                0,
                Meaning::Status(oracle.look(first, count), Vec::new()),
            ),
            _ => {
                let look = oracle.look(first, count);
                let bytes = vec![0xee; (count * CELL) as usize];
                (CMD_READ, 0, Meaning::Read(look, bytes))
            }
        };
        let (command, flags, meaning) = choice;
        Some((command, flags, meaning, payload))
    }

    /// Which cells a request is about: the first, and how many.
    fn range(&mut self) -> (u64, u64) {
        let cells = self.shared.oracle.borrow().cells();
        let count = match self.random.u32(0..3) {
            0 => CELLS,
            1 => 8 * CELLS,
            _ => self.random.u64(1..=LONGEST),
        };
        let count = count.min(cells);
        let first = self.random.u64(0..=cells - count);
        if self.shared.stage.swarm().unaligned && self.random.bool() {
            return (first, count);
        }
        let unit = if self.random.bool() { CELLS } else { 8 * CELLS };
        let first = first / unit * unit;
        let count = count.next_multiple_of(CELLS).min(cells - first);
        (first, count)
    }

    async fn request(&mut self, outgoing: &mut Outgoing) -> io::Result<()> {
        let (first, count) = self.range();
        let Some((command, flags, meaning, payload)) = self.choose(first, count) else {
            return Ok(());
        };
        let (first, count) = if command == CMD_FLUSH {
            (0, 0)
        } else {
            (first, count)
        };
        let header = self.header(command, flags, first, count);
        self.shared.line(format_args!(
            "{} {} at {}",
            name(command),
            header.len,
            header.offset
        ));
        self.shared.pending.borrow_mut().insert(
            header.cookie,
            Pending {
                meaning,
                header,
                error: 0,
                come: 0,
                since: self.shared.stage.moment(),
            },
        );
        outgoing.send(header, &payload).await
    }
}

fn name(command: u16) -> &'static str {
    match command {
        CMD_READ => "read",
        CMD_WRITE => "write",
        CMD_TRIM => "trim",
        CMD_WRITE_ZEROES => "zero",
        CMD_FLUSH => "flush",
        CMD_CACHE => "cache",
        CMD_BLOCK_STATUS => "status",
        _ => "?",
    }
}

/// Holds what is said to be zeroes against what is known. Extents may end within cells.
fn zeroes_seen(oracle: &mut Oracle, look: &Look, extents: &[(u64, u64)]) -> Result<(), String> {
    let mut at = 0_u64;
    for &(len, state) in extents {
        let (first, end) = (at.div_ceil(CELL), (at + len) / CELL);
        at += len;
        if state & STATE_ZERO != 0 && first < end {
            let zeroes = vec![0; ((end - first) * CELL) as usize];
            oracle.seen(&look.part(first, end - first), &zeroes)?;
        }
    }
    if extents.is_empty() {
        return Err("nothing is said".to_owned());
    }
    Ok(())
}

/// Receives until the connection ends, or the task is aborted.
async fn receive(shared: Rc<Shared>, mut incoming: Incoming) {
    loop {
        if shared.stage.swarm().slow_clients && shared.stage.has_faults() {
            let micros = shared.stage.random(|random| {
                if random.u32(0..8) == 0 {
                    random.u64(1..30_000)
                } else {
                    0
                }
            });
            if micros > 0 {
                let _late = shared.stage.reads_late();
                sleep(Duration::from_micros(micros)).await;
            }
        }
        let expected = |cookie: u64| match shared.pending.borrow().get(&cookie) {
            Some(Pending {
                meaning: Meaning::Read(_, bytes),
                ..
            }) => bytes.len(),
            _ => 0,
        };
        match incoming.receive(expected).await {
            Ok(reply) => shared.reply(reply),
            Err(error) => {
                shared.closed.set(true);
                shared.changed.notify_one();
                if !shared.stage.is_ending() {
                    let who = &shared.who;
                    shared
                        .stage
                        .violated(format!("{who} lost its connection: {error}"));
                }
                return;
            }
        }
    }
}

impl Shared {
    fn line(&self, what: std::fmt::Arguments<'_>) {
        self.stage.line(&self.who, what);
    }

    fn violated(&self, text: impl std::fmt::Display) {
        self.stage.violated(format!("{}: {text}", self.who));
    }

    fn reply(&self, reply: Reply) {
        let mut all = self.pending.borrow_mut();
        let Some(pending) = all.get_mut(&reply.cookie) else {
            return self.violated(format_args!("an answer to no request of mine: {}", reply.cookie));
        };
        if let Some((offset, data)) = reply.data
            && let Err(text) = pending.take(offset, &data)
        {
            self.violated(text);
        }
        if reply.error != 0 {
            pending.error = reply.error;
        }
        if let Meaning::Status(_, extents) = &mut pending.meaning {
            extents.extend(reply.extents);
        } else if !reply.extents.is_empty() {
            self.violated("extents for a request that asked for none");
        }
        if reply.is_last
            && let Some(pending) = all.remove(&reply.cookie)
        {
            drop(all);
            self.ended(pending);
            self.changed.notify_one();
        }
    }

    fn ended(&self, pending: Pending) {
        let Pending {
            meaning,
            header,
            error,
            come,
            since,
        } = pending;
        let well = error == 0;
        self.line(format_args!(
            "{} {} at {} -> {error}",
            name(header.command),
            header.len,
            header.offset
        ));
        // What is to be cached may be copied from the image below.
        let only_reads = matches!(meaning, Meaning::Read(..) | Meaning::Status(..));
        let is_disk_error = matches!(error, EIO | ENOSPC) && self.stage.may_fail(since, only_reads);
        if !well && !self.stage.is_ending() && !is_disk_error {
            let Header {
                command, offset, len, ..
            } = header;
            self.violated(format_args!(
                "{} of {len} at {offset} failed with error {error}",
                name(command)
            ));
        }
        let mut oracle = self.oracle.borrow_mut();
        match meaning {
            Meaning::Read(look, bytes) if well => {
                if come != bytes.len() {
                    self.violated(format_args!("{come} bytes for a read of {}", bytes.len()));
                }
                if let Err(text) = oracle.seen(&look, &bytes) {
                    self.violated(text);
                }
            }
            Meaning::Status(look, extents) if well => {
                if let Err(text) = zeroes_seen(&mut oracle, &look, &extents) {
                    self.violated(format_args!("block status says zero, but {text}"));
                }
            }
            Meaning::Change(change, durable) => {
                let how = if well {
                    Ended::Well { durable }
                } else {
                    Ended::Unsure
                };
                oracle.ended(&change, how);
            }
            Meaning::Flush(barrier) if well => oracle.flushed(&barrier),
            Meaning::Read(..) | Meaning::Status(..) | Meaning::Flush(_) | Meaning::Nothing => {}
        }
    }

    /// Nobody will answer what is in flight: it may have happened or not.
    fn give_up(&self) {
        for (_, pending) in std::mem::take(&mut *self.pending.borrow_mut()) {
            if let Meaning::Change(change, _) = pending.meaning {
                self.oracle.borrow_mut().ended(&change, Ended::Unknown);
            }
        }
    }
}

impl Pending {
    fn take(&mut self, offset: Option<u64>, data: &[u8]) -> Result<(), String> {
        let Meaning::Read(_, bytes) = &mut self.meaning else {
            return Err("data for a request that asked for none".to_owned());
        };
        let start = offset.map_or(Some(0), |offset| offset.checked_sub(self.header.offset));
        let place = start.and_then(|start| {
            let start = usize::try_from(start).ok()?;
            bytes.get_mut(start..start.checked_add(data.len())?)
        });
        let Some(place) = place else {
            return Err(format!("data that was not asked for, at {offset:?}"));
        };
        place.copy_from_slice(data);
        self.come += data.len();
        Ok(())
    }
}

/// What a client waits for.
pub struct Waiting(Rc<Shared>);

impl Waiting {
    /// In words; None if it waits for nothing.
    pub fn told(&self) -> Option<String> {
        let pending = self.0.pending.borrow();
        let requests: Vec<String> = pending
            .values()
            .map(|Pending { header, .. }| {
                format!("{} {} at {}", name(header.command), header.len, header.offset)
            })
            .collect();
        (!requests.is_empty()).then(|| format!("{} waits for {}", self.0.who, requests.join(", ")))
    }

    /// What is in flight may have happened or not.
    pub fn give_up(&self) {
        self.0.give_up();
    }
}
