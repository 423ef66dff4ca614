//! What a run showed, what several runs showed, and how that stands against what is wanted.

use super::rows::Goal;
use crate::compare::statistics::Samples;
use crate::load::Report;

/// One run of one program.
#[derive(Debug, Clone, Copy)]
pub struct Figures {
    /// Requests a second.
    pub rate: f64,
    /// Half of the requests took at most this, in microseconds.
    pub p50: f64,
    /// And all but a hundredth this.
    pub p99: f64,
    /// The server's CPU time a request in microseconds; not a number if it is not known.
    pub cpu: f64,
    /// Its system calls a request; the same.
    pub calls: f64,
    /// Its instructions a request; the same.
    pub instructions: f64,
}

impl From<&Report> for Figures {
    fn from(report: &Report) -> Figures {
        let server = report.server.as_ref();
        let known = |figure: Option<f64>| figure.unwrap_or(f64::NAN);
        Figures {
            rate: report.rate(),
            p50: report.microseconds(50.0),
            p99: report.microseconds(99.0),
            cpu: known(report.cpu_microseconds()),
            calls: known(server.and_then(|usage| usage.system_calls_each())),
            instructions: known(server.and_then(|usage| usage.instructions_each())),
        }
    }
}

/// All runs of one program.
#[derive(Debug, Clone, Default)]
pub struct Shown {
    /// Requests a second.
    pub rate: Samples,
    /// Microseconds.
    pub p50: Samples,
    /// Microseconds.
    pub p99: Samples,
    /// Microseconds a request.
    pub cpu: Samples,
    /// System calls a request.
    pub calls: Samples,
    /// Instructions a request.
    pub instructions: Samples,
}

impl Shown {
    /// From the runs.
    pub fn new(runs: &[Figures]) -> Shown {
        let samples = |figure: fn(&Figures) -> f64| Samples::new(runs.iter().map(figure));
        Shown {
            rate: samples(|figures| figures.rate),
            p50: samples(|figures| figures.p50),
            p99: samples(|figures| figures.p99),
            cpu: samples(|figures| figures.cpu),
            calls: samples(|figures| figures.calls),
            instructions: samples(|figures| figures.instructions),
        }
    }
}

/// What the goals of a row are held against.
#[derive(Debug, Clone, Copy)]
pub struct Standing<'a> {
    /// The peer.
    pub peer: &'a Shown,
    /// Millpond.
    pub ours: &'a Shown,
    /// The bare responder.
    pub ceiling: Option<&'a Shown>,
    /// fio without a server.
    pub limit: Option<&'a Shown>,
    /// Millpond where the same data is not encrypted.
    pub plain: Option<&'a Shown>,
}

impl Goal {
    /// What is wanted, in words.
    pub fn words(self) -> String {
        match self {
            Goal::Ratio(times) => format!("{times}x"),
            Goal::Ceiling(part) => format!("{:.0}% of the ceiling", part * 100.0),
            Goal::Limit(part) => format!("{:.0}% of the limit", part * 100.0),
            Goal::Plain(part) => format!("{:.0}% of the speed without encryption", part * 100.0),
            Goal::Tail(times) => format!("p99 within {times} x peer's p50"),
            Goal::Cpu(part) => format!("{:.0}% of the peer's CPU", part * 100.0),
            Goal::Calls(calls) => format!("under {calls} system calls"),
            Goal::Instructions(part) => format!("under {:.0}% of the peer's instructions", part * 100.0),
        }
    }

    /// How it stands: nothing if it is met, else what was reached; an error says why that cannot be told.
    pub fn miss(self, standing: Standing<'_>) -> Result<Option<String>, String> {
        let Standing { peer, ours, .. } = standing;
        let beside = |other: Option<&Shown>, what: &str| {
            let other = other.ok_or_else(|| format!("no {what} to hold it against"))?;
            rate_by(&ours.rate, &other.rate, what)
        };
        let percent = |part: f64| format!("{:.0}%", part * 100.0);
        let (met, reached) = match self {
            Goal::Ratio(times) => {
                let ratio = rate_by(&ours.rate, &peer.rate, "peer")?;
                (ratio >= times, format!("{ratio:.2}x"))
            }
            Goal::Ceiling(part) => {
                let reached = beside(standing.ceiling, "ceiling")?;
                (reached >= part, format!("{} of the ceiling", percent(reached)))
            }
            Goal::Limit(part) => {
                let reached = beside(standing.limit, "limit")?;
                (reached >= part, format!("{} of the limit", percent(reached)))
            }
            Goal::Plain(part) => {
                let reached = beside(standing.plain, "plain image")?;
                let reached_words = format!("{} of the speed without encryption", percent(reached));
                (reached >= part, reached_words)
            }
            Goal::Tail(times) => {
                let reached = known(&ours.p99, "p99")? / known(&peer.p50, "the peer's p50")?;
                (reached <= times, format!("p99 is {reached:.1} x peer's p50"))
            }
            Goal::Cpu(part) => {
                let reached = known(&ours.cpu, "CPU time")? / known(&peer.cpu, "the peer's CPU time")?;
                // A third is met by what a percentage shows as a third.
                (
                    reached <= part + 0.005,
                    format!("{} of the CPU", percent(reached)),
                )
            }
            Goal::Calls(bound) => {
                let calls = known(&ours.calls, "system calls")?;
                (calls < bound, format!("{calls:.3} system calls"))
            }
            Goal::Instructions(part) => {
                let instructions = known(&ours.instructions, "instructions")?;
                let reached = instructions / known(&peer.instructions, "the peer's instructions")?;
                (
                    reached < part,
                    format!("{} of the instructions", percent(reached)),
                )
            }
        };
        Ok((!met).then_some(reached))
    }
}

fn known(samples: &Samples, what: &str) -> Result<f64, String> {
    samples
        .median()
        .ok_or_else(|| format!("{what} cannot be counted on this machine"))
}

fn rate_by(ours: &Samples, other: &Samples, what: &str) -> Result<f64, String> {
    let (Some(our), Some(theirs)) = (ours.median(), other.median()) else {
        return Err(format!("no {what} to hold it against"));
    };
    if ours.scatter() || other.scatter() {
        let spread = |samples: &Samples| samples.spread().unwrap_or_default() * 100.0;
        return Err(format!(
            "scatters: {what} {:.0}%, ours {:.0}%",
            spread(other),
            spread(ours)
        ));
    }
    Ok(our / theirs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(rate: f64) -> Shown {
        Shown::new(
            &[Figures {
                rate,
                p50: 10.0,
                p99: 25.0,
                cpu: 4.0,
                calls: 0.15,
                instructions: f64::NAN,
            }; 5],
        )
    }

    fn standing<'a>(peer: &'a Shown, ours: &'a Shown, ceiling: &'a Shown) -> Standing<'a> {
        Standing {
            peer,
            ours,
            ceiling: Some(ceiling),
            limit: None,
            plain: None,
        }
    }

    #[test]
    fn each_goal_is_met_or_says_what_was_reached() {
        let (peer, ours, ceiling) = (shown(100.0), shown(300.0), shown(400.0));
        let standing = standing(&peer, &ours, &ceiling);
        let miss = |goal: Goal| goal.miss(standing);
        assert_eq!(miss(Goal::Ratio(3.0)), Ok(None));
        assert_eq!(miss(Goal::Ratio(4.0)), Ok(Some("3.00x".to_owned())));
        assert_eq!(miss(Goal::Ceiling(0.75)), Ok(None));
        assert_eq!(
            miss(Goal::Ceiling(0.8)),
            Ok(Some("75% of the ceiling".to_owned()))
        );
        let beside = Standing {
            plain: Some(&ceiling),
            ..standing
        };
        assert_eq!(Goal::Plain(0.75).miss(beside), Ok(None));
        let reached = "75% of the speed without encryption".to_owned();
        assert_eq!(Goal::Plain(0.8).miss(beside), Ok(Some(reached)));
        assert_eq!(miss(Goal::Tail(3.0)), Ok(None));
        assert_eq!(
            miss(Goal::Tail(2.0)),
            Ok(Some("p99 is 2.5 x peer's p50".to_owned()))
        );
        assert_eq!(miss(Goal::Cpu(1.0 / 3.0)), Ok(Some("100% of the CPU".to_owned())));
        assert_eq!(miss(Goal::Calls(0.2)), Ok(None));
        assert_eq!(miss(Goal::Calls(0.1)), Ok(Some("0.150 system calls".to_owned())));
    }

    #[test]
    fn what_is_not_known_is_said_and_not_taken_for_met() {
        let (peer, ours) = (shown(100.0), shown(300.0));
        let standing = standing(&peer, &ours, &ours);
        assert!(Goal::Limit(0.9).miss(standing).is_err());
        assert!(Goal::Plain(0.9).miss(standing).is_err());
        let error = Goal::Instructions(0.5).miss(standing).unwrap_err();
        assert_eq!(error, "instructions cannot be counted on this machine");
    }

    #[test]
    fn a_ceiling_that_scatters_tells_nothing() {
        let (peer, ours, mut ceiling) = (shown(100.0), shown(300.0), shown(0.0));
        ceiling.rate = Samples::new([100.0, 200.0, 300.0, 400.0, 500.0]);
        let error = Goal::Ceiling(0.8)
            .miss(standing(&peer, &ours, &ceiling))
            .unwrap_err();
        assert_eq!(error, "scatters: ceiling 67%, ours 0%");
    }
}
