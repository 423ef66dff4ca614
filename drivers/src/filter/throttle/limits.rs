//! What a throttle group allows: rates, bursts, and how large requests are counted.

use millpond_messages::{Error, ErrorKind, Result};

/// The greatest rate, in bytes or requests a second.
const GREATEST: u64 = 1_000_000_000_000_000;

/// One second in the parts in which levels are counted: a level is units × nanoseconds, so that a leak is exact.
const SECOND: u128 = 1_000_000_000;

/// The rate of one kind of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rate {
    /// Units a second in the long run; 0 for no limit.
    pub(super) average: u64,
    /// Units a second during a burst; 0 for none.
    pub(super) max: u64,
    /// How many seconds a burst at `max` may last.
    pub(super) length: u64,
}

impl Default for Rate {
    fn default() -> Self {
        Self {
            average: 0,
            max: 0,
            length: 1,
        }
    }
}

impl Rate {
    /// How full its bucket may be for a request to go ahead: a tenth of a second's work, or a burst.
    pub(super) const fn size(&self) -> u128 {
        if self.max == 0 {
            self.average as u128 * (SECOND / 10)
        } else {
            self.max as u128 * self.length as u128 * SECOND
        }
    }

    /// How full the bucket that holds a long burst to its rate may be; `None` if there is no such bucket.
    pub(super) const fn burst_size(&self) -> Option<u128> {
        if self.max > 0 && self.length > 1 {
            Some(self.max as u128 * (SECOND / 10))
        } else {
            None
        }
    }

    fn check(&self) -> std::result::Result<(), &'static str> {
        let &Self { average, max, length } = self;
        let refused = if average > GREATEST || max > GREATEST {
            "bps/iops/max values must be within [0, 1000000000000000]"
        } else if length == 0 {
            "the burst length cannot be 0"
        } else if length > 1 && max == 0 {
            "burst length set without burst rate"
        } else if max > 0 && length > GREATEST / max {
            "burst length too high for this burst rate"
        } else if max > 0 && average == 0 {
            "bps_max/iops_max require corresponding bps/iops values"
        } else if max > 0 && max < average {
            "bps_max/iops_max cannot be lower than bps/iops"
        } else {
            return Ok(());
        };
        Err(refused)
    }
}

/// The kinds of work that have a rate, in the order of [`Limits::rates`].
const KINDS: [&str; 6] = [
    "bps-total",
    "bps-read",
    "bps-write",
    "iops-total",
    "iops-read",
    "iops-write",
];

/// Whether work reads or writes; zero writes and discards write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Out of the node.
    Read,
    /// Into the node, or what discards there.
    Write,
}

impl Direction {
    pub(super) const fn index(self) -> usize {
        match self {
            Self::Read => 0,
            Self::Write => 1,
        }
    }

    /// The rates for bytes that hold in this direction.
    pub(super) const fn bytes(self) -> [usize; 2] {
        [0, 1 + self.index()]
    }

    /// The rates for requests that hold in this direction.
    pub(super) const fn requests(self) -> [usize; 2] {
        [3, 4 + self.index()]
    }
}

/// The limits of a group. They are named as in QAPI's `ThrottleLimits`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Bytes in total, read and written; requests in total, reads and writes.
    pub(super) rates: [Rate; 6],
    /// A larger request counts as several of this size; 0 counts each as one.
    pub(super) iops_size: u64,
}

/// A field of [`Limits`].
enum Field {
    Average(usize),
    Max(usize),
    Length(usize),
    IopsSize,
}

impl Field {
    fn named(name: &str) -> Option<Self> {
        if name == "iops-size" {
            return Some(Self::IopsSize);
        }
        let (index, rest) = KINDS
            .iter()
            .enumerate()
            .find_map(|(index, kind)| name.strip_prefix(kind).map(|rest| (index, rest)))?;
        match rest {
            "" => Some(Self::Average(index)),
            "-max" => Some(Self::Max(index)),
            "-max-length" => Some(Self::Length(index)),
            _ => None,
        }
    }
}

impl Limits {
    /// The value called `name`, such as `iops-total-max`; `None` if there is none of that name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<u64> {
        Field::named(name).map(|field| match field {
            Field::Average(index) => self.rates[index].average,
            Field::Max(index) => self.rates[index].max,
            Field::Length(index) => self.rates[index].length,
            Field::IopsSize => self.iops_size,
        })
    }

    /// These limits with the value called `name` changed; without effect if there is none of that name.
    #[must_use]
    pub fn with(mut self, name: &str, value: u64) -> Self {
        match Field::named(name) {
            Some(Field::Average(index)) => self.rates[index].average = value,
            Some(Field::Max(index)) => self.rates[index].max = value,
            Some(Field::Length(index)) => self.rates[index].length = value,
            Some(Field::IopsSize) => self.iops_size = value,
            None => {}
        }
        self
    }

    /// Whether they can hold together.
    ///
    /// # Errors
    /// Tells the first that cannot.
    pub fn check(&self) -> Result<()> {
        let refuse = |text: &'static str| Err(Error::new(ErrorKind::InvalidArgument, text));
        let mixed = |of: fn(&Rate) -> u64| {
            self.rates
                .chunks(3)
                .any(|kind| of(&kind[0]) > 0 && kind[1..].iter().any(|rate| of(rate) > 0))
        };
        if mixed(|rate| rate.average) || mixed(|rate| rate.max) {
            return refuse("bps/iops/max total values and read/write values cannot be used at the same time");
        }
        if self.iops_size > 0 && self.rates[3..].iter().all(|rate| rate.average == 0) {
            return refuse("iops size requires an iops value to be set");
        }
        self.rates.iter().try_for_each(Rate::check).or_else(refuse)
    }

    /// Whether anything is limited in a direction.
    #[must_use]
    pub fn any(&self, direction: Direction) -> bool {
        let [bytes, requests] = [direction.bytes(), direction.requests()];
        bytes
            .iter()
            .chain(&requests)
            .any(|index| self.rates[*index].average > 0)
    }

    /// How much a request of so many bytes adds to the level of the buckets for bytes, and of those for requests.
    pub(super) fn cost(&self, bytes: u64) -> (u128, u128) {
        let scaled = u128::from(bytes) * SECOND;
        let counted = if self.iops_size > 0 && bytes > self.iops_size {
            scaled / u128::from(self.iops_size)
        } else {
            SECOND
        };
        (scaled, counted)
    }
}
