//! Printing a flight record for people: first what was unanswered, then the messages of all threads by time.

use std::collections::BTreeMap;
use std::fmt;

use millpond_messages::record::{
    FLIGHT_MAGIC, FlightHeader, FlightThread, FrameError, MessageEvent, MessageRecord, ThreadState,
    read_frame,
};

use crate::delay::kind;

/// Why a file is no flight record.
#[derive(Debug, thiserror::Error)]
pub enum FlightError {
    /// It does not begin as a flight record does.
    #[error("this is no flight record of this version of millpond")]
    Magic,
    /// A frame is malformed.
    #[error("the flight record is damaged at byte {at}: {error}")]
    Frame {
        /// The byte of the file where the frame begins.
        at: usize,
        /// What is wrong with the frame.
        error: FrameError,
    },
    /// Bytes follow the last frame.
    #[error("{0} bytes follow the flight record's end")]
    Trailing(usize),
}

/// A flight record that was read.
pub struct Printed {
    header: FlightHeader,
    threads: Vec<FlightThread>,
}

/// A request or an order that was not answered.
struct Unanswered {
    since_ns: u64,
    thread: String,
    text: String,
}

impl Printed {
    /// Reads a flight record.
    ///
    /// # Errors
    /// The bytes are no flight record.
    pub fn read(bytes: &[u8]) -> Result<Self, FlightError> {
        if !bytes.starts_with(FLIGHT_MAGIC) {
            return Err(FlightError::Magic);
        }
        let mut at = FLIGHT_MAGIC.len();
        let header: FlightHeader = next(bytes, &mut at)?;
        let mut threads = Vec::new();
        for _ in 0..header.threads {
            threads.push(next(bytes, &mut at)?);
        }
        match bytes.len() - at {
            0 => Ok(Self { header, threads }),
            more => Err(FlightError::Trailing(more)),
        }
    }

    fn kind(&self, record: &MessageRecord) -> &str {
        let name = self.header.kinds.get(usize::from(record.kind));
        name.map_or("?", String::as_str)
    }

    fn node(&self, node: u64) -> String {
        let named = self.threads.iter().flat_map(|thread| &thread.nodes);
        let mut named = named.filter(|(id, _)| *id == node);
        match named.next() {
            Some((_, name)) => format!("'{}'", plain(name)),
            None => format!("#{node}"),
        }
    }

    fn unanswered(&self) -> Vec<Unanswered> {
        let mut all = Vec::new();
        for thread in &self.threads {
            match thread.state {
                ThreadState::Told => self.reported(thread, &mut all),
                ThreadState::Silent | ThreadState::NotAsked => self.requests(thread, &mut all),
            }
            self.orders(thread, &mut all);
        }
        all.sort_by_key(|unanswered| unanswered.since_ns);
        all
    }

    /// What was open on a thread that answered, by its own report.
    fn reported(&self, thread: &FlightThread, all: &mut Vec<Unanswered>) {
        for (node, request) in &thread.in_flight {
            let (offset, len) = (request.offset, request.len);
            let (node, stands_at) = (plain(node), plain(&request.stands_at));
            all.push(Unanswered {
                since_ns: self.header.at_ns.saturating_sub(request.age_ns),
                thread: plain(&thread.name),
                text: format!(
                    "{} of {len} bytes at {offset} of '{node}', stands at '{stands_at}'",
                    kind::of_request(request.operation).name
                ),
            });
        }
        for held in &thread.held {
            let on = if held.node.is_empty() {
                String::new()
            } else {
                format!(" for '{}'", plain(&held.node))
            };
            all.push(Unanswered {
                since_ns: self.header.at_ns.saturating_sub(held.age_ns),
                thread: plain(&thread.name),
                text: format!(
                    "{}{on}, held back on its way from {} to {}",
                    plain(&held.kind),
                    plain(&held.sender),
                    plain(&held.receiver)
                ),
            });
        }
    }

    /// Requests that a thread admitted and did not answer, as far as its records go back.
    fn requests(&self, thread: &FlightThread, all: &mut Vec<Unanswered>) {
        let mut open = BTreeMap::new();
        for record in &thread.records {
            match record.event {
                MessageEvent::Admitted => drop(open.insert((record.node, record.number), record)),
                MessageEvent::Answered => drop(open.remove(&(record.node, record.number))),
                _ => {}
            }
        }
        self.add(thread, open.into_values(), all);
    }

    /// What the graph actor asked nodes, and was asked, without an answer.
    fn orders(&self, thread: &FlightThread, all: &mut Vec<Unanswered>) {
        let mut open: BTreeMap<(bool, &str, u64, u64), &MessageRecord> = BTreeMap::new();
        for record in &thread.records {
            let kind = self.kind(record);
            match (record.event, kind) {
                (MessageEvent::Sent, "resume") => {
                    open.remove(&(true, "quiesce", record.node, record.number));
                }
                // Some of these are answered by nothing.
                (MessageEvent::Sent, "other-order") => {}
                (MessageEvent::Sent, "quiesce") => {
                    open.insert((true, "quiesce", record.node, record.number), record);
                }
                (MessageEvent::Sent, _) => {
                    open.insert((true, "", 0, record.number), record);
                }
                (MessageEvent::Heard, "quiesced") => {
                    open.remove(&(true, "quiesce", record.node, record.number));
                }
                (MessageEvent::Heard, _) => {
                    open.remove(&(true, "", 0, record.number));
                }
                (MessageEvent::Asked, _) => {
                    open.insert((false, "", 0, record.number), record);
                }
                (MessageEvent::Replied, _) => {
                    open.remove(&(false, "", 0, record.number));
                }
                _ => {}
            }
        }
        self.add(thread, open.into_values(), all);
    }

    fn add<'a>(
        &self,
        thread: &FlightThread,
        records: impl Iterator<Item = &'a MessageRecord>,
        all: &mut Vec<Unanswered>,
    ) {
        all.extend(records.map(|record| Unanswered {
            since_ns: record.at_ns,
            thread: plain(&thread.name),
            text: self.describe(record),
        }));
    }

    fn describe(&self, record: &MessageRecord) -> String {
        let kind = plain(self.kind(record));
        let (number, from) = (record.number, record.from);
        let with = |word: &str| match record.node {
            0 => String::new(),
            node => format!(" {word} {}", self.node(node)),
        };
        let request = format!(
            "{kind} of {} bytes at {}{} from client {from}",
            record.len,
            record.offset,
            with("of")
        );
        match record.event {
            MessageEvent::Served => format!("{request}: served at once"),
            MessageEvent::Admitted => format!("{request}, in flight as {number}"),
            MessageEvent::Answered => format!("request {number}{} answered", with("of")),
            MessageEvent::Ordered => format!("order {kind}{} has come (number {number})", with("to")),
            MessageEvent::Told => format!("event {kind}{} told (number {number})", with("of")),
            MessageEvent::Sent => format!("order {kind}{} sent (number {number})", with("to")),
            MessageEvent::Heard => format!("event {kind}{} heard (number {number})", with("of")),
            MessageEvent::Asked => format!("{kind} {number} asked by a user"),
            MessageEvent::Replied => format!("{kind} {number} answered"),
        }
    }
}

fn next<T: serde::de::DeserializeOwned>(bytes: &[u8], at: &mut usize) -> Result<T, FlightError> {
    let rest = bytes.get(*at..).unwrap_or_default();
    let (value, used) = read_frame(rest).map_err(|error| FlightError::Frame { at: *at, error })?;
    *at += used;
    Ok(value)
}

/// A name without what could move a terminal's cursor.
fn plain(name: &str) -> String {
    name.chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

struct Seconds(u64);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, rest) = (self.0 / 1_000_000_000, self.0 % 1_000_000_000);
        write!(f, "{seconds:>6}.{:06}", rest / 1000)
    }
}

impl fmt::Display for Printed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let FlightHeader {
            reason,
            process,
            at_ns,
            ..
        } = &self.header;
        writeln!(
            f,
            "Process {process}, {} s after its start: {}",
            Seconds(*at_ns),
            plain(reason)
        )?;
        for thread in &self.threads {
            let name = plain(&thread.name);
            let known = match thread.state {
                ThreadState::Silent => ": it did not say what it has open, and is stuck or has ended",
                ThreadState::NotAsked | ThreadState::Told => "",
            };
            writeln!(
                f,
                "  {name}: the last {} of {} messages{known}",
                thread.records.len(),
                thread.written
            )?;
        }
        let unanswered = self.unanswered();
        writeln!(f, "\nUnanswered, oldest first: {}", unanswered.len())?;
        for Unanswered {
            since_ns,
            thread,
            text,
        } in unanswered
        {
            let age = Seconds(at_ns.saturating_sub(since_ns));
            writeln!(f, "{} s  for {age} s  {thread:<15} {text}", Seconds(since_ns))?;
        }
        let mut records: Vec<(&FlightThread, &MessageRecord)> = self
            .threads
            .iter()
            .flat_map(|thread| thread.records.iter().map(move |record| (thread, record)))
            .collect();
        records.sort_by_key(|(_, record)| record.at_ns);
        writeln!(f, "\nMessages: {}", records.len())?;
        for (thread, record) in records {
            let name = plain(&thread.name);
            writeln!(
                f,
                "{} s  {name:<15} {}",
                Seconds(record.at_ns),
                self.describe(record)
            )?;
        }
        Ok(())
    }
}
