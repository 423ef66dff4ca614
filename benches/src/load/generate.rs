//! The sequence of requests of one connection: which kind, how long and where, all from a seed.

use std::ops::Range;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use rand_distr::{Distribution, Zipf};

use super::choice::Choice;
use super::spec::{Kind, Pattern, Size, Spec};
use crate::Outcome;

/// What a request asks for; offset and length are 0 for a flush.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ask {
    pub kind: Kind,
    pub offset: u64,
    pub len: u32,
}

/// Where the next request goes.
#[derive(Debug)]
enum Place {
    Sequential {
        next: u64,
    },
    Random,
    /// Ranks are turned into places by a multiplication modulo the number of places, to which the factor has no common
    /// divisor: so each rank has a place of its own.
    Zipf {
        ranks: Zipf<f64>,
        factor: u64,
    },
}

/// Makes requests without end.
#[derive(Debug)]
pub(super) struct Generator {
    rng: SmallRng,
    mix: Choice<Kind>,
    sizes: Choice<Size>,
    place: Place,
    /// The bytes that are used.
    part: Range<u64>,
    grain: u64,
}

impl Generator {
    /// The requests of connection `index` to the bytes of `part`.
    ///
    /// # Errors
    /// The part is smaller than the largest request.
    pub fn new(spec: &Spec, index: u16, part: Range<u64>) -> Outcome<Generator> {
        let grain = spec.grain();
        let length = part.end.saturating_sub(part.start) / grain * grain;
        if length < spec.largest() {
            return Err(format!(
                "{length} bytes for a connection have no room for requests of {} bytes",
                spec.largest()
            )
            .into());
        }
        let places = length / grain;
        let place = match spec.pattern {
            // Connections that share a part begin at different places of it.
            Pattern::Sequential => Place::Sequential {
                next: if spec.verify {
                    part.start
                } else {
                    part.start + places * u64::from(index) / u64::from(spec.connections) * grain
                },
            },
            Pattern::Random => Place::Random,
            Pattern::Zipf(theta) => Place::Zipf {
                ranks: Zipf::new(places as f64, theta).map_err(|error| format!("zipf:{theta}: {error}"))?,
                factor: scatter(places),
            },
        };
        Ok(Generator {
            // Neighbouring seeds give unrelated sequences.
            rng: SmallRng::seed_from_u64(spec.seed.wrapping_add(u64::from(index) << 32)),
            mix: spec.mix.clone(),
            sizes: spec.sizes.clone(),
            place,
            part: part.start..part.start + length,
            grain,
        })
    }

    /// The next request.
    #[inline]
    pub fn next(&mut self) -> Ask {
        let kind = self.mix.pick(&mut self.rng);
        if kind == Kind::Flush {
            return Ask {
                kind,
                offset: 0,
                len: 0,
            };
        }
        let len = self.sizes.pick(&mut self.rng).0;
        let offset = self.offset(len);
        Ask {
            kind,
            offset,
            // Sizes are at most 32 MiB.
            len: len as u32,
        }
    }

    #[inline]
    fn offset(&mut self, len: u64) -> u64 {
        // Places at which a request of this length fits: at least one, as the part has room for the largest.
        let room = (self.part.end - self.part.start - len) / self.grain + 1;
        let place = match &mut self.place {
            Place::Sequential { next } => {
                if self.part.end - *next < len {
                    *next = self.part.start;
                }
                let offset = *next;
                *next += len;
                return offset;
            }
            Place::Random => self.rng.random_range(0..room),
            Place::Zipf { ranks, factor } => {
                let rank = ranks.sample(&mut self.rng) as u64 - 1;
                let places = (self.part.end - self.part.start) / self.grain;
                // A long request at one of the last places begins a little before it.
                let place = (u128::from(rank) * u128::from(*factor) % u128::from(places)) as u64;
                place.min(room - 1)
            }
        };
        self.part.start + place * self.grain
    }
}

/// A factor near the golden section of `places` that has no common divisor with it.
fn scatter(places: u64) -> u64 {
    let near = (places as f64 * 0.618_033_988_749_895) as u64;
    (near.max(1)..)
        .find(|factor| gcd(*factor, places) == 1)
        .unwrap_or(1)
}

fn gcd(one: u64, other: u64) -> u64 {
    if other == 0 { one } else { gcd(other, one % other) }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn generator(spec: &Spec, part: Range<u64>) -> Generator {
        Generator::new(spec, 0, part).unwrap()
    }

    #[test]
    fn requests_stay_inside_and_on_the_grain() {
        for pattern in [Pattern::Sequential, Pattern::Random, Pattern::Zipf(1.2)] {
            let spec = Spec {
                sizes: "4k:3,12k:1".parse().unwrap(),
                mix: "read:1,trim:1,flush:1".parse().unwrap(),
                pattern,
                ..Spec::default()
            };
            let part = 8192..8192 + 10 * 4096 + 100;
            let mut requests = generator(&spec, part.clone());
            for _ in 0..2000 {
                let ask = requests.next();
                if ask.kind == Kind::Flush {
                    continue;
                }
                assert!(
                    ask.offset >= part.start && ask.offset + u64::from(ask.len) <= 8192 + 40960,
                    "{ask:?}"
                );
                assert_eq!(ask.offset % 4096, 0, "{ask:?}");
            }
        }
    }

    #[test]
    fn one_seed_gives_one_sequence() {
        let spec = Spec::default();
        let (mut one, mut other) = (generator(&spec, 0..1 << 30), generator(&spec, 0..1 << 30));
        let first: Vec<_> = (0..100).map(|_| one.next()).collect();
        assert!((0..100).map(|_| other.next()).eq(first.iter().copied()));
        let mut second = Generator::new(&spec, 1, 0..1 << 30).unwrap();
        assert!(!(0..100).map(|_| second.next()).eq(first));
    }

    #[test]
    fn sequential_requests_follow_each_other_and_begin_anew() {
        let spec = Spec {
            pattern: Pattern::Sequential,
            ..Spec::default()
        };
        let mut requests = generator(&spec, 4096..4096 * 4);
        let offsets: Vec<_> = (0..5).map(|_| requests.next().offset / 4096).collect();
        assert_eq!(offsets, [1, 2, 3, 1, 2]);
    }

    #[test]
    fn zipf_prefers_few_places_that_are_apart() {
        let spec = Spec {
            pattern: Pattern::Zipf(1.2),
            ..Spec::default()
        };
        let mut requests = generator(&spec, 0..1000 * 4096);
        let mut counts = HashMap::new();
        for _ in 0..20_000 {
            *counts.entry(requests.next().offset / 4096).or_insert(0) += 1;
        }
        let mut places: Vec<_> = counts.into_iter().collect();
        places.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        assert!(places[0].1 > 3 * places[5].1, "{:?}", &places[..6]);
        assert!(places[0].0.abs_diff(places[1].0) > 100, "{:?}", &places[..6]);
        assert!(places.len() > 300, "{}", places.len());
    }
}
