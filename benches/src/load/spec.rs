//! What a load is to do.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::choice::Choice;
use super::target::Target;
use crate::Outcome;

/// The most bytes a request may have: what servers take at the least, and QEMU's at the most.
pub const MOST_BYTES: u64 = 32 << 20;

/// The most requests in flight on one connection.
const MOST_DEPTH: u32 = 1 << 16;

/// What a request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Read bytes.
    Read,
    /// Write bytes.
    Write,
    /// Make a range read as zeroes.
    Zero,
    /// Say that a range's bytes are of no more interest.
    Trim,
    /// Make what was written durable.
    Flush,
}

impl Kind {
    /// All of them, in the order of their numbers.
    pub const ALL: [Kind; 5] = [Kind::Read, Kind::Write, Kind::Zero, Kind::Trim, Kind::Flush];

    /// The name by which it is chosen and shown.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Read => "read",
            Kind::Write => "write",
            Kind::Zero => "zero",
            Kind::Trim => "trim",
            Kind::Flush => "flush",
        }
    }

    /// Whether it changes what is stored.
    pub const fn changes(self) -> bool {
        matches!(self, Kind::Write | Kind::Zero | Kind::Trim)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Kind, String> {
        let found = Kind::ALL.into_iter().find(|kind| kind.name() == text);
        found.ok_or_else(|| format!("'{text}' is none of read, write, zero, trim and flush"))
    }
}

/// A number of bytes, written as a number with an optional suffix k, M, G or T (powers of 1024).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

const SUFFIXES: [(char, u32); 4] = [('T', 40), ('G', 30), ('M', 20), ('k', 10)];

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Size, String> {
        let wrong = || format!("'{text}' is no size: 4096, 4k, 1M, 2G are");
        let suffix = SUFFIXES.into_iter().find(|(suffix, _)| {
            text.ends_with([*suffix, suffix.to_ascii_lowercase(), suffix.to_ascii_uppercase()])
        });
        let (digits, shift) = match suffix {
            Some((_, shift)) => (&text[..text.len() - 1], shift),
            None => (text, 0),
        };
        let number: u64 = digits.parse().map_err(|_| wrong())?;
        number.checked_mul(1 << shift).map(Size).ok_or_else(wrong)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let suffix = SUFFIXES
            .into_iter()
            .find(|(_, shift)| self.0 > 0 && self.0.is_multiple_of(1 << shift));
        match suffix {
            Some((suffix, shift)) => write!(f, "{}{suffix}", self.0 >> shift),
            None => write!(f, "{}", self.0),
        }
    }
}

/// Where requests go.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pattern {
    /// Each where the one before ended, and from the front again at the end.
    Sequential,
    /// Anywhere.
    Random,
    /// Some places far more often than others: the n-th most frequent in proportion to `1 / n^theta`. Frequent places do
    /// not lie side by side.
    Zipf(f64),
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Pattern, String> {
        let theta = |text: &str| text.parse().ok().filter(|theta| *theta > 0.0 && *theta <= 100.0);
        match text.split_once(':') {
            None if text == "sequential" => Ok(Pattern::Sequential),
            None if text == "random" => Ok(Pattern::Random),
            None if text == "zipf" => Ok(Pattern::Zipf(1.1)),
            Some(("zipf", number)) if theta(number).is_some() => {
                Ok(Pattern::Zipf(theta(number).unwrap_or(1.1)))
            }
            _ => Err(format!(
                "'{text}' is none of sequential, random, zipf and zipf:THETA"
            )),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pattern::Sequential => f.write_str("sequential"),
            Pattern::Random => f.write_str("random"),
            Pattern::Zipf(theta) => write!(f, "zipf:{theta}"),
        }
    }
}

/// A load: where it goes, what it asks for, and how long.
#[derive(Debug, Clone)]
pub struct Spec {
    /// What is loaded.
    pub target: Target,
    /// Kinds of requests.
    pub mix: Choice<Kind>,
    /// Bytes a request; offsets are multiples of their greatest common divisor.
    pub sizes: Choice<Size>,
    /// Requests in flight on each connection at the most.
    pub depth: u32,
    /// Connections, each with a thread of its own.
    pub connections: u16,
    /// Where requests go.
    pub pattern: Pattern,
    /// Requests a second on all connections together, sent whether earlier ones were answered or not, as far as `depth`
    /// allows; the latency counts from when a request was due. Without a rate, each answer is followed by a request.
    pub rate: Option<f64>,
    /// Use only this many bytes at the front.
    pub span: Option<u64>,
    /// Check every byte that was written. Each connection has its own part of the span.
    pub verify: bool,
    /// Negotiate structured replies.
    pub structured: bool,
    /// How long requests run before they count: for caches, polling and the allocator to settle.
    pub warm_up: Duration,
    /// How long they count.
    pub duration: Duration,
    /// Makes the sequence of requests.
    pub seed: u64,
    /// The server's process, to tell what it uses of the machine.
    pub server: Option<u32>,
    /// With a node of this process: send requests from the iothread where the node lives, by direct calls, rather than from
    /// threads of the client through that iothread's mailbox.
    pub home: bool,
    /// Count system calls and instructions, where the machine allows it.
    pub counters: bool,
}

impl Default for Spec {
    /// Random reads of 4 KiB on one connection, 32 in flight for 5 seconds, from a null node in this process.
    fn default() -> Spec {
        Spec {
            target: Target::default(),
            mix: Choice::only(Kind::Read),
            sizes: Choice::only(Size(4096)),
            depth: 32,
            connections: 1,
            pattern: Pattern::Random,
            rate: None,
            span: None,
            verify: false,
            structured: false,
            warm_up: Duration::from_millis(300),
            duration: Duration::from_secs(5),
            seed: 1,
            server: None,
            home: false,
            counters: true,
        }
    }
}

impl Spec {
    /// Bytes of the largest request.
    pub fn largest(&self) -> u64 {
        self.sizes.items().map(|size| size.0).max().unwrap_or(0)
    }

    /// What offsets and sizes are multiples of, in bytes.
    pub fn grain(&self) -> u64 {
        self.sizes.items().fold(0, |one, size| gcd(one, size.0))
    }

    /// Refuses what makes no sense.
    ///
    /// # Errors
    /// Says which part does not.
    pub fn check(&self) -> Outcome<()> {
        let wrong = |text: &str| Err(text.into());
        if self.sizes.items().any(|size| size.0 == 0 || size.0 > MOST_BYTES) {
            return wrong("a request has at least a byte, and 32 MiB at the most");
        }
        if self.depth == 0 || self.depth > MOST_DEPTH {
            return wrong("between 1 and 65536 requests can be in flight");
        }
        if self.connections == 0 {
            return wrong("there must be a connection");
        }
        if self.rate.is_some_and(|rate| !rate.is_finite() || rate <= 0.0) {
            return wrong("a rate is a number of requests a second above 0");
        }
        if self.duration.is_zero() {
            return wrong("the load must last some time");
        }
        if self.verify && !self.grain().is_multiple_of(512) {
            return wrong("with verification, sizes are multiples of 512 bytes");
        }
        Ok(())
    }
}

fn gcd(one: u64, other: u64) -> u64 {
    if other == 0 { one } else { gcd(other, one % other) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_shown_with_their_suffix() {
        for (text, bytes, shown) in [
            ("512", 512, "512"),
            ("4k", 4096, "4k"),
            ("4K", 4096, "4k"),
            ("3m", 3 << 20, "3M"),
        ] {
            let size: Size = text.parse().unwrap();
            assert_eq!((size.0, size.to_string().as_str()), (bytes, shown), "{text}");
        }
        for text in ["", "k", "4kk", "-1", "99999999999T"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }

    #[test]
    fn offsets_are_multiples_of_what_all_sizes_are() {
        let spec = Spec {
            sizes: "12k:1,8k:2,64k:1".parse().unwrap(),
            ..Spec::default()
        };
        assert_eq!((spec.grain(), spec.largest()), (4096, 65536));
    }

    #[test]
    fn patterns_are_understood() {
        assert_eq!("zipf:0.9".parse(), Ok(Pattern::Zipf(0.9)));
        for text in ["zipf:0", "zipf:x", "zipf:nan", "rand"] {
            assert!(text.parse::<Pattern>().is_err(), "{text}");
        }
    }
}
