//! How long something is held, as it is written and as it is drawn.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

/// An exponential delay is cut off at so many times its mean: one in 22,000 is.
const CUT_OFF: u32 = 10;

/// Past this many windows in which no message came, a schedule begins anew rather than catch up.
const UNSEEN: u32 = 1000;

/// The shortest mean time between two windows.
const OFTEN: Duration = Duration::from_millis(1);

/// The longest time that an option may name. No sum of such times is out of a clock's range.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// How long the delays of a rule are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Delay {
    /// Messages are not held at all.
    #[default]
    None,
    /// Each message is held equally long.
    Fixed(Duration),
    /// Anything from the first to the second.
    Uniform(Duration, Duration),
    /// Exponential, with this mean; at most ten times that.
    Exponential(Duration),
}

/// How long windows are, and how often they come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// How long the window stays open.
    pub length: Duration,
    /// The mean time from the end of one window to the beginning of the next; exponential.
    pub every: Duration,
}

/// When an NBD client's connection is cut.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Dying {
    /// After so many of its messages.
    After(u64),
    /// With each message, with this probability.
    Probability(f64),
}

impl Delay {
    /// The delay of the next message, by chance.
    pub fn draw(self, rng: &mut fastrand::Rng) -> Duration {
        match self {
            Self::None => Duration::ZERO,
            Self::Fixed(time) => time,
            Self::Uniform(least, most) => least + (most - least).mul_f64(rng.f64()),
            Self::Exponential(mean) => exponential(mean, rng),
        }
    }

    /// The longest that can be drawn.
    #[must_use]
    pub fn longest(self) -> Duration {
        match self {
            Self::None => Duration::ZERO,
            Self::Fixed(time) | Self::Uniform(_, time) => time,
            Self::Exponential(mean) => mean * CUT_OFF,
        }
    }
}

fn exponential(mean: Duration, rng: &mut fastrand::Rng) -> Duration {
    // Of [0, 1): the logarithm's argument is never zero.
    let factor = -(1.0 - rng.f64()).ln();
    mean.mul_f64(factor.min(f64::from(CUT_OFF)))
}

impl Dying {
    /// Whether the connection is cut with its message of this number.
    pub fn draw(self, message: u64, rng: &mut fastrand::Rng) -> bool {
        match self {
            Self::After(messages) => message > messages,
            Self::Probability(probability) => rng.f64() < probability,
        }
    }
}

/// A schedule of windows, drawn as time goes by.
#[derive(Debug)]
pub struct Windows {
    window: Window,
    rng: fastrand::Rng,
    begin: Instant,
    end: Instant,
}

impl Windows {
    /// The schedule from `now` on.
    pub fn new(window: Window, mut rng: fastrand::Rng, now: Instant) -> Self {
        let begin = now + exponential(window.every, &mut rng);
        Self {
            window,
            rng,
            begin,
            end: begin + window.length,
        }
    }

    /// The end of the window that `now` is in, if it is in one.
    pub fn at(&mut self, now: Instant) -> Option<Instant> {
        let mut left = UNSEEN;
        while self.end <= now {
            if left == 0 {
                self.end = now;
            }
            left = left.saturating_sub(1);
            self.begin = self.end + exponential(self.window.every, &mut self.rng);
            self.end = self.begin + self.window.length;
        }
        (self.begin <= now).then_some(self.end)
    }
}

/// A time as it is written: a whole number with its unit.
fn time(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let wrong = || format!("'{text}' is no time: expected a whole number with ns, us, ms or s");
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let time = match unit {
        "ns" => Some(Duration::from_nanos(number)),
        "us" => Some(Duration::from_micros(number)),
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        _ => return Err(wrong()),
    };
    time.filter(|time| *time <= LONGEST)
        .ok_or_else(|| format!("'{text}' is longer than a day"))
}

impl FromStr for Delay {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(':');
        let name = parts.next().unwrap_or_default();
        let times: Vec<Duration> = parts.map(time).collect::<Result<_, _>>()?;
        match (name, times.as_slice()) {
            ("none", []) => Ok(Self::None),
            ("fixed", [time]) => Ok(Self::Fixed(*time)),
            ("uniform", [least, most]) if least <= most => Ok(Self::Uniform(*least, *most)),
            ("uniform", [_, _]) => Err(format!("'{text}': the first time is longer than the second")),
            ("exponential", [mean]) => Ok(Self::Exponential(*mean)),
            _ => Err(format!(
                "'{text}' is no delay: expected none, fixed:TIME, uniform:TIME:TIME or exponential:TIME"
            )),
        }
    }
}

impl FromStr for Window {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (length, every) = text.split_once('/').ok_or_else(|| {
            format!("'{text}' does not say how often: expected LENGTH/INTERVAL, as in 20ms/1s")
        })?;
        let window = Self {
            length: time(length)?,
            every: time(every)?,
        };
        if window.every < OFTEN {
            return Err(format!("'{text}': the interval is shorter than 1ms"));
        }
        Ok(window)
    }
}

impl FromStr for Dying {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("'{text}' is no death: expected after:NUMBER or probability:P with P from 0 to 1");
        match text.split_once(':').ok_or_else(wrong)? {
            ("after", number) => number.parse().map(Self::After).map_err(|_| wrong()),
            ("probability", number) => match number.parse::<f64>() {
                Ok(probability) if (0.0..=1.0).contains(&probability) => Ok(Self::Probability(probability)),
                _ => Err(wrong()),
            },
            _ => Err(wrong()),
        }
    }
}

/// A time in the largest unit that it is a whole number of.
struct Written(Duration);

impl fmt::Display for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ns = self.0.as_nanos();
        let units = [(1_000_000_000, "s"), (1_000_000, "ms"), (1000, "us")];
        match units.iter().find(|(unit, _)| ns > 0 && ns.is_multiple_of(*unit)) {
            Some((unit, name)) => write!(f, "{}{name}", ns / unit),
            None => write!(f, "{ns}ns"),
        }
    }
}

impl fmt::Display for Delay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::None => f.write_str("none"),
            Self::Fixed(time) => write!(f, "fixed:{}", Written(time)),
            Self::Uniform(least, most) => write!(f, "uniform:{}:{}", Written(least), Written(most)),
            Self::Exponential(mean) => write!(f, "exponential:{}", Written(mean)),
        }
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", Written(self.length), Written(self.every))
    }
}

impl fmt::Display for Dying {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::After(messages) => write!(f, "after:{messages}"),
            Self::Probability(probability) => write!(f, "probability:{probability}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_as_it_was() {
        for text in [
            "none",
            "fixed:0ns",
            "fixed:5ms",
            "uniform:1us:1500ns",
            "exponential:1s",
        ] {
            assert_eq!(
                text.parse::<Delay>().map(|delay| delay.to_string()).as_deref(),
                Ok(text)
            );
        }
        for text in ["20ms/1s", "0ns/1ms"] {
            assert_eq!(
                text.parse::<Window>().map(|window| window.to_string()).as_deref(),
                Ok(text)
            );
        }
        for text in ["after:0", "probability:0.25"] {
            assert_eq!(
                text.parse::<Dying>().map(|dying| dying.to_string()).as_deref(),
                Ok(text)
            );
        }
    }

    #[test]
    fn nonsense_is_named() {
        let delay = |text: &str| text.parse::<Delay>().unwrap_err();
        assert!(delay("often").starts_with("'often' is no delay: expected none, fixed:TIME"));
        assert!(delay("fixed:5").starts_with("'5' is no time"));
        assert!(delay("fixed:-5ms").starts_with("'-5ms' is no time"));
        assert!(delay("fixed:5ms:6ms").contains("is no delay"));
        assert_eq!(delay("fixed:99999999s"), "'99999999s' is longer than a day");
        assert!(delay("fixed:99999999999999999999s").contains("is no time"));
        assert!(delay("uniform:2ms:1ms").contains("the first time is longer"));
        let window = |text: &str| text.parse::<Window>().unwrap_err();
        assert!(window("20ms").contains("how often"));
        assert!(window("20ms/1us").contains("shorter than 1ms"));
        for text in [
            "after",
            "after:-1",
            "probability:2",
            "probability:NaN",
            "sometimes:1",
        ] {
            assert!(
                text.parse::<Dying>().unwrap_err().contains("is no death"),
                "{text}"
            );
        }
    }

    #[test]
    fn no_delay_is_longer_than_the_longest() {
        let mut rng = fastrand::Rng::with_seed(1);
        let ms = Duration::from_millis;
        for delay in [
            Delay::Fixed(ms(3)),
            Delay::Uniform(ms(1), ms(9)),
            Delay::Exponential(ms(2)),
        ] {
            let drawn: Vec<Duration> = (0..100_000).map(|_| delay.draw(&mut rng)).collect();
            assert!(drawn.iter().all(|time| *time <= delay.longest()));
            let mean = drawn.iter().sum::<Duration>() / 100_000;
            let expected = match delay {
                Delay::Uniform(..) => ms(5),
                Delay::Exponential(mean) => mean,
                _ => ms(3),
            };
            assert!(mean.abs_diff(expected) < expected / 20, "{delay}: {mean:?}");
        }
    }

    #[test]
    fn spells_come_as_often_and_last_as_long_as_is_said() {
        let ms = Duration::from_millis;
        let begin = Instant::now();
        let window = Window {
            length: ms(20),
            every: ms(80),
        };
        let mut windows = Windows::new(window, fastrand::Rng::with_seed(7), begin);
        let inside = (0..1_000_000_u64).filter(|step| {
            let now = begin + ms(*step);
            let end = windows.at(now);
            end.is_some_and(|end| end > now && end <= now + ms(20))
        });
        let inside = inside.count();
        assert!(
            (180_000..220_000).contains(&inside),
            "{inside} ms of 1,000,000 were in a window"
        );
    }

    #[test]
    fn a_schedule_that_nobody_looked_at_for_long_begins_anew() {
        let begin = Instant::now();
        let window = Window {
            length: Duration::ZERO,
            every: OFTEN,
        };
        let mut windows = Windows::new(window, fastrand::Rng::with_seed(7), begin);
        let later = begin + LONGEST;
        assert_eq!(windows.at(later), None);
        assert!(windows.begin >= later);
    }
}
