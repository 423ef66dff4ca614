//! What a load has shown.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::record::Tally;
use super::spec::{Kind, Spec};
use super::timeline::{Slowest, Timeline};
use super::usage::Usage;
use super::workload::Part;
use crate::Outcome;

/// What verification has checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verified {
    /// Bytes that were compared, those of the read-back included.
    pub checked: u64,
    /// Bytes that were compared in the end, when all requests had been answered: everything whose contents are known.
    pub read_back: u64,
}

/// What a load has shown.
#[derive(Debug, Clone)]
pub struct Report {
    /// What was to be done.
    pub spec: Spec,
    /// How long requests counted.
    pub elapsed: Duration,
    /// Requests of all kinds together.
    pub all: Tally,
    /// Requests by kind: those of the mix.
    pub kinds: Vec<(Kind, Tally)>,
    /// Requests that were due at the rate that was asked for but never sent, as too many were in flight.
    pub unsent: u64,
    /// What the client's threads used. With requests sent from a node's own iothread, that iothread's use is in it.
    pub client: Usage,
    /// What the server used, if it is known.
    pub server: Option<Usage>,
    /// What verification has checked, if it was asked for.
    pub verified: Option<Verified>,
    /// Latencies over time, and what happened meanwhile.
    pub timeline: Timeline,
    pub(super) slowest: Slowest,
    pub(super) counted_from: Instant,
}

impl Report {
    /// Puts together what the connections have seen.
    pub(super) fn new(
        spec: Spec,
        elapsed: Duration,
        counted_from: Instant,
        parts: &[Part],
        timeline: Timeline,
        (client, server): (Usage, Option<Usage>),
    ) -> Outcome<Report> {
        let mut all = Tally::new()?;
        let mut kinds = Vec::new();
        for kind in Kind::ALL {
            let mut tally = Tally::new()?;
            for part in parts {
                tally.add(&part.tallies[kind as usize])?;
            }
            all.add(&tally)?;
            if spec.mix.items().any(|item| item == kind) {
                kinds.push((kind, tally));
            }
        }
        let mut slowest = Slowest::new();
        parts.iter().for_each(|part| slowest.merge(&part.slowest));
        let requests = all.requests;
        let counted = |usage: Usage| Usage { requests, ..usage };
        Ok(Report {
            elapsed,
            kinds,
            unsent: parts.iter().map(|part| part.unsent).sum(),
            client: counted(client),
            server: server.map(counted),
            verified: spec.verify.then(|| Verified {
                checked: parts.iter().map(|part| part.checked).sum(),
                read_back: parts.iter().map(|part| part.read_back).sum(),
            }),
            timeline,
            slowest,
            counted_from,
            all,
            spec,
        })
    }

    /// Requests a second.
    pub fn rate(&self) -> f64 {
        self.all.requests as f64 / self.elapsed.as_secs_f64()
    }

    /// Bytes a second.
    pub fn bytes_a_second(&self) -> f64 {
        self.all.bytes as f64 / self.elapsed.as_secs_f64()
    }

    /// A percentile (0 to 100) of the latencies of all requests in microseconds.
    pub fn microseconds(&self, percentile: f64) -> f64 {
        self.all.microseconds(percentile)
    }

    /// Latencies of all requests in nanoseconds.
    pub fn latencies(&self) -> &Histogram<u64> {
        &self.all.latencies
    }

    /// The server's CPU time a request in microseconds, if its process is known.
    pub fn cpu_microseconds(&self) -> Option<f64> {
        self.server.as_ref().map(Usage::cpu_microseconds)
    }

    /// The longest latency among requests that were in flight at any time between two instants, such as those of a mark;
    /// none if there were none. In a load of more than a minute this is told to a few milliseconds only: of the requests
    /// answered in the same moment, the slowest stands for all.
    pub fn longest_between(&self, from: Instant, until: Instant) -> Option<Duration> {
        let time = |instant: Instant| instant.saturating_duration_since(self.counted_from).as_nanos() as u64;
        self.slowest
            .between(time(from), time(until))
            .map(Duration::from_nanos)
    }

    /// The longest latency among requests that were in flight during each mark.
    pub fn delays(&self) -> impl Iterator<Item = Option<Duration>> {
        self.timeline.marks().iter().map(|mark| {
            let (from, until) = (self.counted_from + mark.from, self.counted_from + mark.until);
            self.longest_between(from, until)
        })
    }
}
