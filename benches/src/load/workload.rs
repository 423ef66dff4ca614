//! What a connection has to do next, whatever carries its requests.
//!
//! A load has two phases. First, requests are made as the generator and the pace say, until time is up. Then, with
//! verification, everything whose contents are known is read once more.

use std::ops::Range;
use std::sync::Arc;

use super::generate::{Ask, Generator};
use super::record::{Control, Recorder, Tally};
use super::spec::{Kind, Pattern, Spec};
use super::stamp::Stamps;
use super::timeline::Slowest;
use crate::Outcome;

/// How many places are tried for a request before it waits for those in flight to make room.
const TRIES: u32 = 16;

/// Bytes of each request that reads back what was written, if the load's own are smaller.
const READ_BACK: u64 = 256 << 10;

/// A request to be sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request {
    pub ask: Ask,
    /// When it was to be sent, in nanoseconds since the load began.
    due: u64,
}

/// What to do next.
#[derive(Debug)]
pub(super) enum Next {
    /// Send this.
    Request(Request),
    /// Nothing before this time.
    At(u64),
    /// Nothing before an answer comes.
    Blocked,
    /// Nothing any more.
    Ended,
}

/// When requests are due in an open loop.
#[derive(Debug)]
struct Pace {
    /// Nanoseconds from one request of this connection to the next.
    step: f64,
    /// When the first is due.
    first: f64,
    sent: u64,
}

impl Pace {
    fn due(&self) -> u64 {
        (self.first + self.step * self.sent as f64) as u64
    }

    /// Requests that were due before a time and not sent.
    fn unsent(&self, until: u64) -> u64 {
        let due = ((until as f64 - self.first) / self.step).ceil().max(0.0) as u64;
        due.saturating_sub(self.sent)
    }
}

/// What came of a connection.
#[derive(Debug)]
pub(super) struct Part {
    pub tallies: Vec<Tally>,
    pub slowest: Slowest,
    pub unsent: u64,
    pub checked: u64,
    pub read_back: u64,
}

/// The requests of one connection, and what is known of its part of the disk.
#[derive(Debug)]
pub(super) struct Workload {
    control: Arc<Control>,
    generator: Generator,
    in_order: bool,
    stamps: Option<Stamps>,
    pace: Option<Pace>,
    recorder: Recorder,
    /// A request that has to wait for others.
    held: Option<Ask>,
    in_flight: u32,
    /// Where the read-back goes on, once it has begun.
    read_back_at: Option<u64>,
    read_back_size: u64,
    checked: u64,
    read_back: u64,
}

impl Workload {
    /// The work of connection `index` on a disk of `size` bytes. `run` tells what this run writes from what others
    /// wrote.
    pub fn new(spec: &Spec, control: &Arc<Control>, index: u16, size: u64, run: u64) -> Outcome<Workload> {
        let part = part(spec, index, size);
        let stamps = spec
            .verify
            .then(|| Stamps::new(run, part.clone(), spec.grain()))
            .transpose()?;
        let connections = f64::from(spec.connections);
        let pace = spec.rate.map(|rate| Pace {
            step: 1e9 * connections / rate,
            first: 1e9 * f64::from(index) / rate,
            sent: 0,
        });
        Ok(Workload {
            control: Arc::clone(control),
            generator: Generator::new(spec, index, part)?,
            in_order: spec.pattern == Pattern::Sequential,
            stamps,
            pace,
            recorder: Recorder::new(Arc::clone(control))?,
            held: None,
            in_flight: 0,
            read_back_at: None,
            read_back_size: spec.largest().max(READ_BACK),
            checked: 0,
            read_back: 0,
        })
    }

    /// The clock of the load.
    pub fn control(&self) -> &Arc<Control> {
        &self.control
    }

    /// Whether data is checked, and so has to be made and kept.
    pub fn verifies(&self) -> bool {
        self.stamps.is_some()
    }

    /// What to do at the time `now`.
    pub fn next(&mut self, now: u64) -> Next {
        if now >= self.control.until() {
            return self.next_read_back();
        }
        let due = match &self.pace {
            Some(pace) if pace.due() > now => return Next::At(pace.due()),
            Some(pace) => pace.due(),
            None => now,
        };
        let Some(ask) = self.next_ask() else {
            return Next::Blocked;
        };
        if let Some(pace) = &mut self.pace {
            pace.sent += 1;
        }
        self.begin(ask, due)
    }

    fn begin(&mut self, ask: Ask, due: u64) -> Next {
        if let (Some(stamps), true) = (&mut self.stamps, ask.kind != Kind::Flush) {
            stamps.begin(&ask);
        }
        self.in_flight += 1;
        Next::Request(Request { ask, due })
    }

    /// A request that may be sent beside those in flight.
    fn next_ask(&mut self) -> Option<Ask> {
        let held = self.held.take();
        let Some(stamps) = &self.stamps else {
            return Some(self.generator.next());
        };
        let mut ask = held.unwrap_or_else(|| self.generator.next());
        for _ in 0..TRIES {
            if ask.kind == Kind::Flush || stamps.is_free(&ask) {
                return Some(ask);
            }
            if self.in_order {
                break;
            }
            ask = self.generator.next();
        }
        self.held = Some(ask);
        None
    }

    fn next_read_back(&mut self) -> Next {
        let waiting = if self.in_flight > 0 {
            Next::Blocked
        } else {
            Next::Ended
        };
        let (Some(stamps), false) = (&self.stamps, self.control.has_failed()) else {
            return waiting;
        };
        let from = match self.read_back_at {
            Some(from) => from,
            // What is in flight may still change what is known.
            None if self.in_flight > 0 => return Next::Blocked,
            None => 0,
        };
        match stamps.next_known(from, self.read_back_size) {
            Some(ask) => {
                self.read_back_at = Some(ask.offset + u64::from(ask.len));
                self.begin(ask, 0)
            }
            None => {
                self.read_back_at = Some(u64::MAX);
                waiting
            }
        }
    }

    /// Makes the data of a write.
    pub fn fill(&self, request: &Request, data: &mut [u8]) {
        if let Some(stamps) = &self.stamps {
            stamps.fill(&request.ask, data);
        }
    }

    /// Takes a piece of what a read has brought, from `offset` on.
    ///
    /// # Errors
    /// It is not what was written.
    #[inline]
    pub fn received(&mut self, offset: u64, data: &[u8]) -> Outcome<()> {
        if let Some(stamps) = &self.stamps {
            let known = stamps.check(offset, data)?;
            self.checked += known;
            if self.read_back_at.is_some() {
                self.read_back += known;
            }
        }
        Ok(())
    }

    /// Notes that a request was answered well.
    #[inline]
    pub fn answered(&mut self, request: &Request, now: u64) -> Outcome<()> {
        self.in_flight -= 1;
        let ask = &request.ask;
        if let (Some(stamps), true) = (&mut self.stamps, ask.kind != Kind::Flush) {
            stamps.end(ask);
        }
        if self.read_back_at.is_some() {
            return Ok(());
        }
        self.recorder.note(ask.kind, ask.len, request.due, now)
    }

    /// Ends the work.
    pub fn finish(self) -> Outcome<Part> {
        let until = self.control.until();
        let (tallies, slowest) = self.recorder.finish()?;
        Ok(Part {
            tallies,
            slowest,
            unsent: self.pace.map_or(0, |pace| pace.unsent(until)),
            checked: self.checked,
            read_back: self.read_back,
        })
    }
}

/// The bytes that connection `index` uses: its own part where data is checked, all of the span otherwise.
fn part(spec: &Spec, index: u16, size: u64) -> Range<u64> {
    let span = spec.span.unwrap_or(size).min(size);
    if !spec.verify {
        return 0..span;
    }
    let connections = u64::from(spec.connections);
    let each = span / connections / spec.grain() * spec.grain();
    let start = each * u64::from(index);
    start..start + each
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::load::Choice;
    use crate::load::spec::Size;

    fn workload(spec: &Spec, size: u64) -> Workload {
        let control = Arc::new(Control::new(Duration::ZERO, Duration::from_secs(3600)));
        Workload::new(spec, &control, 0, size, 1).unwrap()
    }

    fn request(next: Next) -> Request {
        match next {
            Next::Request(request) => request,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn requests_of_an_open_loop_are_due_at_their_time_however_late_they_are_sent() {
        let spec = Spec {
            rate: Some(1000.0),
            ..Spec::default()
        };
        let mut work = workload(&spec, 1 << 20);
        assert_eq!(request(work.next(0)).due, 0);
        assert!(matches!(work.next(0), Next::At(1_000_000)));
        let late = 5_500_000;
        let due: Vec<_> = (0..5).map(|_| request(work.next(late)).due).collect();
        assert_eq!(due, [1_000_000, 2_000_000, 3_000_000, 4_000_000, 5_000_000]);
        assert!(matches!(work.next(late), Next::At(6_000_000)));
    }

    #[test]
    fn requests_that_a_slow_server_kept_from_being_sent_are_counted() {
        let pace = Pace {
            step: 1000.0,
            first: 0.0,
            sent: 3,
        };
        assert_eq!(pace.unsent(10_000), 7);
        assert_eq!(pace.unsent(2_500), 0);
    }

    #[test]
    fn with_verification_no_request_overlaps_a_change_in_flight() {
        let spec = Spec {
            verify: true,
            mix: Choice::only(Kind::Write),
            sizes: Choice::only(Size(4096)),
            ..Spec::default()
        };
        let mut work = workload(&spec, 4 * 4096);
        let mut requests = Vec::new();
        while let Next::Request(request) = work.next(0) {
            requests.push(request);
        }
        let mut offsets: Vec<_> = requests.iter().map(|request| request.ask.offset).collect();
        offsets.dedup();
        assert_eq!(offsets.len(), requests.len());
        assert!(requests.len() <= 4);
        work.answered(&requests[0], 1).unwrap();
        while let Next::Request(request) = work.next(2) {
            assert_eq!(request.ask.offset, requests[0].ask.offset);
        }
    }

    #[test]
    fn all_that_was_written_is_read_back_in_the_end() {
        let spec = Spec {
            verify: true,
            mix: Choice::only(Kind::Write),
            pattern: Pattern::Sequential,
            ..Spec::default()
        };
        let mut work = workload(&spec, 1 << 20);
        let writes: Vec<_> = (0..5).map(|_| request(work.next(0))).collect();
        work.control().stop();
        let late = work.control().until() + 1;
        assert!(matches!(work.next(late), Next::Blocked), "writes are in flight");
        for write in &writes {
            work.answered(write, late).unwrap();
        }
        let back = request(work.next(late));
        assert_eq!(
            (back.ask.kind, back.ask.offset, back.ask.len),
            (Kind::Read, 0, 5 * 4096)
        );
        assert!(matches!(work.next(late), Next::Blocked));
        let mut data = vec![0; 5 * 4096];
        assert!(work.received(0, &data).is_err());
        let counts_before = Stamps::new(1, 0..1 << 20, 4096).unwrap();
        counts_before.fill(&writes[0].ask, &mut data[..4096]);
        work.received(0, &data[..4096]).unwrap();
        work.answered(&back, late).unwrap();
        assert!(matches!(work.next(late), Next::Ended));
        assert_eq!(work.finish().unwrap().read_back, 4096);
    }
}
