//! One NBD connection under load.
//!
//! All requests that are due go out in one call, and all answers that have come are taken by one, so that the client
//! costs the server's machine as little as it can. While nothing is left to be sent the client waits in the receive
//! itself; only while the server does not take what is sent does it ask for both directions.

use std::time::Duration;

use rustix::thread::set_current_timer_slack;

use super::super::record::Control;
use super::super::spec::{Kind, Spec};
use super::super::target::Endpoint;
use super::super::workload::{Next, Part, Request, Workload};
use super::negotiate::negotiate;
use super::output::Output;
use super::replies::{Replies, Requests};
use super::stream::Stream;
use crate::Outcome;

/// Bytes asked for in one receive. The part that is used stays in the processor's cache: a socket holds less.
const RECEIVE: usize = 1 << 20;

/// Bytes of room for sending on a unix socket. With the usual 208 KiB, 32 writes of 4 KiB do not fit, and a quarter fewer of
/// them are answered. TCP finds its own measure.
const SEND_ROOM: usize = 1 << 20;

/// How long the server may leave all requests unanswered.
const PATIENCE: Duration = Duration::from_secs(30);

/// The longest wait for the time of a request: the load may be ended meanwhile.
const LONGEST_NAP: u64 = 50_000_000;

/// Zeroes for a hole to be compared with.
static ZEROES: [u8; 4096] = [0; 4096];

/// A place for a request in flight. A cookie is its slot's number, with the number of its request above.
#[derive(Debug)]
struct Slot {
    request: Option<Request>,
    cookie: u64,
    /// Bytes of a read that have come.
    received: u64,
    /// The data of a write that is verified.
    data: Vec<u8>,
}

/// A connection in transmission.
#[derive(Debug)]
pub(in crate::load) struct Connection {
    stream: Stream,
    slots: Slots,
    output: Output,
    replies: Replies,
    /// The data of all writes that are not verified.
    payload: Vec<u8>,
    last_answer: u64,
}

/// The requests in flight.
#[derive(Debug)]
struct Slots {
    workload: Workload,
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// Slots whose requests have been answered.
    done: Vec<usize>,
    sent: u64,
}

/// What to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wait {
    Answer,
    Until(u64),
    Nothing,
}

/// Connects to an export and negotiates; the socket and the export's length in bytes.
pub(in crate::load) fn open(endpoint: &Endpoint, export: &str, spec: &Spec) -> Outcome<(Stream, u64)> {
    let mut stream = Stream::connect(endpoint)?;
    stream.set_patience(PATIENCE)?;
    if matches!(stream, Stream::Unix(_)) {
        stream.set_send_room(SEND_ROOM)?;
    }
    let offered = negotiate(&mut stream, export, spec.structured)?;
    offered.check(spec)?;
    Ok((stream, offered.size))
}

impl Connection {
    /// A connection that does this work.
    pub fn new(stream: Stream, spec: &Spec, workload: Workload) -> Connection {
        let verified = workload.verifies();
        let writes = spec.mix.items().any(|kind| kind == Kind::Write);
        let length = |wanted: bool| if wanted { spec.largest() as usize } else { 0 };
        let slot = |_| Slot {
            request: None,
            cookie: 0,
            received: 0,
            data: vec![0; length(writes && verified)],
        };
        Connection {
            stream,
            slots: Slots {
                workload,
                slots: (0..spec.depth).map(slot).collect(),
                free: (0..spec.depth as usize).rev().collect(),
                done: Vec::new(),
                sent: 0,
            },
            output: Output::default(),
            replies: Replies::new(),
            payload: payload(length(writes && !verified)),
            last_answer: 0,
        }
    }

    /// Works until the load is over.
    ///
    /// # Errors
    /// The server failed a request or went away, or did not give back what was written.
    pub fn run(mut self) -> Outcome<Part> {
        // Requests of an open loop are to be sent at their time, not up to 50 us later.
        set_current_timer_slack(std::num::NonZeroU64::new(1))?;
        let mut input = vec![0; RECEIVE];
        self.last_answer = self.control().now();
        loop {
            let now = self.control().now();
            self.slots.answered(now)?;
            let wait = self.slots.issue(now, &mut self.output);
            self.send()?;
            match wait {
                Wait::Nothing => break,
                Wait::Until(time) if self.slots.in_flight() == 0 => {
                    std::thread::sleep(Duration::from_nanos(sleep_for(time, now)));
                }
                _ => {
                    let count = self.receive(&mut input, wait, now)?;
                    self.replies.take(&input[..count], &mut self.slots)?;
                }
            }
        }
        self.output.disconnect();
        self.send()?;
        self.slots.workload.finish()
    }

    fn control(&self) -> &Control {
        self.slots.workload.control()
    }

    #[inline]
    fn send(&mut self) -> Outcome<()> {
        let (slots, payload) = (&self.slots.slots, &self.payload);
        let verifies = self.slots.workload.verifies();
        let data = |slot: usize| {
            if verifies {
                &slots[slot].data[..]
            } else {
                &payload[..]
            }
        };
        Ok(self.output.send(&self.stream, data).map_err(lost)?)
    }

    /// Receives answers; zero bytes if something else is to be done first.
    #[inline]
    fn receive(&mut self, input: &mut [u8], wait: Wait, now: u64) -> Outcome<usize> {
        let received = match wait {
            _ if !self.output.is_empty() => {
                let received = self.stream.receive_now(input).map_err(lost)?;
                if received.is_none() {
                    self.stream.wait(true, Duration::from_nanos(LONGEST_NAP))?;
                }
                received
            }
            Wait::Until(time) => {
                let received = self.stream.receive_now(input).map_err(lost)?;
                if received.is_none() {
                    self.stream
                        .wait(false, Duration::from_nanos(sleep_for(time, now)))?;
                }
                received
            }
            _ => self.stream.receive(input).map_err(lost)?,
        };
        match received {
            Some(0) => Err("the server closed the connection".into()),
            Some(count) => {
                self.last_answer = now;
                Ok(count)
            }
            None if now.saturating_sub(self.last_answer) > PATIENCE.as_nanos() as u64 => {
                Err(self.slots.unanswered().into())
            }
            None => Ok(0),
        }
    }
}

/// How long to wait for a time, in nanoseconds.
fn sleep_for(time: u64, now: u64) -> u64 {
    time.saturating_sub(now).min(LONGEST_NAP)
}

fn lost(error: std::io::Error) -> String {
    format!("the connection was lost: {error}")
}

impl Slots {
    fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Notes what has been answered.
    #[inline]
    fn answered(&mut self, now: u64) -> Outcome<()> {
        for index in self.done.drain(..) {
            if let Some(request) = self.slots[index].request.take() {
                self.workload.answered(&request, now)?;
                self.free.push(index);
            }
        }
        Ok(())
    }

    /// Makes requests as long as there are any to be sent and places for them.
    #[inline]
    fn issue(&mut self, now: u64, output: &mut Output) -> Wait {
        while let Some(index) = self.free.last().copied() {
            let request = match self.workload.next(now) {
                Next::Request(request) => request,
                Next::At(time) => return Wait::Until(time),
                Next::Blocked => return Wait::Answer,
                Next::Ended => return Wait::Nothing,
            };
            self.free.pop();
            self.sent += 1;
            let slot = &mut self.slots[index];
            slot.cookie = self.sent << 16 | index as u64;
            slot.received = 0;
            slot.request = Some(request);
            if request.ask.kind == Kind::Write {
                let data = slot.data.get_mut(..request.ask.len as usize).unwrap_or_default();
                self.workload.fill(&request, data);
            }
            output.add(&request.ask, slot.cookie, index);
        }
        Wait::Answer
    }

    fn slot(&self, cookie: u64) -> Outcome<(usize, &Request)> {
        // A cookie's lower 16 bits are its slot.
        let index = (cookie & 0xffff) as usize;
        let slot = self.slots.get(index).filter(|slot| slot.cookie == cookie);
        match slot.and_then(|slot| slot.request.as_ref()) {
            Some(request) => Ok((index, request)),
            None => Err(format!("a reply with cookie {cookie:#x}, which no request in flight has").into()),
        }
    }

    /// What to say of a server that does not answer.
    fn unanswered(&self) -> String {
        let first = self
            .slots
            .iter()
            .filter(|slot| slot.request.is_some())
            .min_by_key(|slot| slot.cookie >> 16);
        let oldest = first
            .and_then(|slot| slot.request.as_ref())
            .map_or_else(String::new, |request| format!(", a {}", describe(request)));
        format!(
            "no answer for {} s to {} requests{oldest}",
            PATIENCE.as_secs(),
            self.in_flight()
        )
    }
}

/// A request in words.
fn describe(request: &Request) -> String {
    let ask = &request.ask;
    match ask.kind {
        Kind::Flush => "flush".to_owned(),
        kind => format!("{kind} of {} bytes at {}", ask.len, ask.offset),
    }
}

impl Requests for Slots {
    #[inline]
    fn range(&self, cookie: u64) -> Outcome<(u64, u32)> {
        let ask = &self.slot(cookie)?.1.ask;
        Ok(if ask.kind == Kind::Read {
            (ask.offset, ask.len)
        } else {
            (0, 0)
        })
    }

    #[inline]
    fn data(&mut self, cookie: u64, offset: u64, bytes: &[u8]) -> Outcome<()> {
        let (index, _) = self.slot(cookie)?;
        self.slots[index].received += bytes.len() as u64;
        self.workload.received(offset, bytes)
    }

    fn hole(&mut self, cookie: u64, mut offset: u64, len: u32) -> Outcome<()> {
        let mut left = len as usize;
        while left > 0 {
            let piece = &ZEROES[..left.min(ZEROES.len())];
            self.data(cookie, offset, piece)?;
            offset += piece.len() as u64;
            left -= piece.len();
        }
        Ok(())
    }

    #[inline]
    fn done(&mut self, cookie: u64, error: Option<(u32, &str)>) -> Outcome<()> {
        let (index, request) = self.slot(cookie)?;
        if let Some((errno, text)) = error {
            let text = if text.is_empty() { "no reason given" } else { text };
            return Err(format!("a {} failed with error {errno}: {text}", describe(request)).into());
        }
        let wanted = if request.ask.kind == Kind::Read {
            u64::from(request.ask.len)
        } else {
            0
        };
        let slot = &mut self.slots[index];
        if slot.received != wanted {
            return Err(format!("a read of {wanted} bytes was answered with {}", slot.received).into());
        }
        // A second reply to the same request finds no such request.
        slot.cookie = 0;
        self.done.push(index);
        Ok(())
    }
}

/// Data that no server takes for zeroes.
fn payload(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index % 251 + 1) as u8).collect()
}
