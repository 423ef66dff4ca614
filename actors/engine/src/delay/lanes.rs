//! What is held on one thread: a lane for each pair, in which nothing overtakes. It has no time and no thread of its own.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use millpond_messages::record::HeldMessage;
use millpond_messages::{NodeId, RootId};

use super::distribution::Windows;
use super::rules::{Actor, Chaos, Kind, Rule};

/// Above this many pairs those with no message held are forgotten: each client that connects makes new ones.
const PAIRS: usize = 4096;

/// One end of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// Those who ask the graph actor.
    User,
    /// The graph actor, on the control thread.
    Graph,
    /// The nodes of this iothread together, as the graph actor speaks with them.
    Nodes,
    /// Nodes of other iothreads.
    Elsewhere,
    /// A node, wherever it lives.
    Node(NodeId),
    /// The clients of a root edge.
    Client(RootId),
    /// An NBD client, by a number of this iothread's own.
    Connection(u64),
    /// The iothread's end of an NBD connection, by the same number.
    Session(u64),
}

impl End {
    pub(super) const fn actor(self) -> Actor {
        match self {
            Self::User => Actor::User,
            Self::Graph => Actor::Graph,
            Self::Nodes | Self::Elsewhere | Self::Node(_) => Actor::Node,
            Self::Client(_) => Actor::Client,
            Self::Connection(_) => Actor::Connection,
            Self::Session(_) => Actor::Session,
        }
    }

    /// A number that tells this end from all others.
    const fn number(self) -> (u64, u64) {
        match self {
            Self::User => (0, 0),
            Self::Graph => (1, 0),
            Self::Nodes => (2, 0),
            Self::Elsewhere => (3, 0),
            Self::Node(node) => (4, node.0),
            Self::Client(root) => (5, root.0),
            Self::Connection(number) => (6, number),
            Self::Session(number) => (7, number),
        }
    }
}

/// A sender and a receiver. Messages between them stay in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pair {
    /// The actor that sends the message.
    pub from: End,
    /// The actor that receives the message.
    pub to: End,
}

/// A message on its way, as rules see it.
#[derive(Debug, Clone, Copy)]
pub struct Hop<'a> {
    /// The sender and receiver, whose order is kept.
    pub pair: Pair,
    /// The kind of message, which rules choose by.
    pub kind: &'static Kind,
    /// The node that it concerns, or nothing.
    pub node: &'a str,
}

/// The random state of one rule for one pair.
struct RuleRng {
    rng: fastrand::Rng,
    /// The rule's bursts on this pair.
    windows: Option<Windows>,
}

/// The state of one pair.
struct Lane {
    /// The random states by rule; each is made when its rule first applies.
    rule_rngs: Vec<Option<RuleRng>>,
    /// How many messages are held.
    held: usize,
    /// When the last held message is due.
    last_due: Instant,
    /// How many messages have passed, for rules that cut connections.
    messages: u64,
}

struct Held<T> {
    pair: Pair,
    kind: &'static Kind,
    node: String,
    since: Instant,
    message: T,
}

/// The lanes of one thread.
pub struct Lanes<T> {
    chaos: Chaos,
    /// The iothread's name; None for the control thread.
    thread: Option<String>,
    begun: Instant,
    lanes: BTreeMap<Pair, Lane>,
    /// The held messages by when they are due and, of those due together, by when they came.
    held: BTreeMap<(Instant, u64), Held<T>>,
    next: u64,
    /// The stalls of this thread, by rule.
    stalls: Vec<Option<Windows>>,
    /// Everything goes out: new messages are no longer delayed, only kept in order.
    closing: bool,
}

impl<T> Lanes<T> {
    /// Lanes under rules, from `now` on.
    pub fn new(chaos: Chaos, thread: Option<String>, now: Instant) -> Self {
        let seed = chaos.rules().seed;
        let stalls = chaos.rules().list.iter().enumerate().map(|(number, rule)| {
            let stream = stream(seed, &[number as u64], thread.as_deref().unwrap_or_default());
            rule.stall
                .filter(|_| thread.is_some())
                .map(|window| Windows::new(window, stream, now))
        });
        let stalls = stalls.collect();
        Self {
            chaos,
            thread,
            begun: now,
            lanes: BTreeMap::new(),
            held: BTreeMap::new(),
            next: 0,
            stalls,
            closing: false,
        }
    }

    /// Takes a message in. It comes back if it is to be delivered at once.
    pub fn pass(&mut self, hop: &Hop<'_>, now: Instant, message: T) -> Option<T> {
        let due = if self.closing { now } else { self.due(hop, now) };
        let lane = self.lane(hop.pair, now);
        if lane.held == 0 && due <= now {
            return Some(message);
        }
        let due = if lane.held > 0 {
            due.max(lane.last_due)
        } else {
            due
        };
        lane.held += 1;
        lane.last_due = due;
        let held = Held {
            pair: hop.pair,
            kind: hop.kind,
            node: hop.node.to_owned(),
            since: now,
            message,
        };
        self.held.insert((due, self.next), held);
        self.next += 1;
        self.chaos.holds();
        None
    }

    /// The held messages, the next one due first.
    pub fn held(&self, now: Instant) -> Vec<HeldMessage> {
        self.held
            .values()
            .map(|held| HeldMessage {
                sender: held.pair.from.actor().name().to_owned(),
                receiver: held.pair.to.actor().name().to_owned(),
                kind: held.kind.name.to_owned(),
                node: held.node.clone(),
                age_ns: u64::try_from(now.saturating_duration_since(held.since).as_nanos())
                    .unwrap_or(u64::MAX),
            })
            .collect()
    }

    /// When the next message is due.
    pub fn next_due(&self) -> Option<Instant> {
        self.held.first_key_value().map(|((due, _), _)| *due)
    }

    /// Takes out the next message that is due.
    pub fn pop_due(&mut self, now: Instant) -> Option<T> {
        self.next_due().filter(|due| *due <= now)?;
        self.pop(now)
    }

    /// Takes out the next message, due or not. From the first call on new messages are no longer delayed.
    pub fn close_and_pop(&mut self, now: Instant) -> Option<T> {
        self.closing = true;
        self.pop(now)
    }

    fn pop(&mut self, now: Instant) -> Option<T> {
        let (_, held) = self.held.pop_first()?;
        if let Some(lane) = self.lanes.get_mut(&held.pair) {
            lane.held -= 1;
        }
        self.chaos.lets_go(1, now.saturating_duration_since(held.since));
        Some(held.message)
    }

    /// Whether an NBD connection is cut with its next message.
    pub fn cuts(&mut self, hop: &Hop<'_>, now: Instant) -> bool {
        let chaos = self.chaos.clone();
        let message = {
            let lane = self.lane(hop.pair, now);
            lane.messages += 1;
            lane.messages
        };
        let mut cut = false;
        for (number, rule) in self.applying(&chaos, hop) {
            if let Some(dying) = rule.dying_client {
                cut |= dying.draw(message, &mut self.rule_rng(hop.pair, number, rule, now).rng);
            }
        }
        if cut {
            chaos.cuts();
        }
        cut
    }

    fn applying<'a>(&self, chaos: &'a Chaos, hop: &Hop<'_>) -> Vec<(usize, &'a Rule)> {
        let rules = chaos.rules().list.iter().enumerate();
        rules
            .filter(|(_, rule)| rule.applies(hop, self.thread.as_deref()))
            .collect()
    }

    fn due(&mut self, hop: &Hop<'_>, now: Instant) -> Instant {
        let chaos = self.chaos.clone();
        let is_client = matches!(hop.pair.from.actor(), Actor::Connection | Actor::Session);
        let mut delay = Duration::ZERO;
        let mut until = now;
        for (number, rule) in self.applying(&chaos, hop) {
            let rule_rng = self.rule_rng(hop.pair, number, rule, now);
            delay += rule.delay.draw(&mut rule_rng.rng);
            if is_client {
                delay += rule.slow_client.draw(&mut rule_rng.rng);
            }
            let burst = rule_rng.windows.as_mut().and_then(|windows| windows.at(now));
            let stall = self.stalls.get_mut(number).and_then(Option::as_mut);
            let stall = stall.and_then(|windows| windows.at(now));
            until = until.max(burst.unwrap_or(now)).max(stall.unwrap_or(now));
        }
        until.max(now + delay)
    }

    fn lane(&mut self, pair: Pair, now: Instant) -> &mut Lane {
        if self.lanes.len() >= PAIRS && !self.lanes.contains_key(&pair) {
            self.lanes.retain(|_, lane| lane.held > 0);
        }
        self.lanes.entry(pair).or_insert_with(|| Lane {
            rule_rngs: Vec::new(),
            held: 0,
            last_due: now,
            messages: 0,
        })
    }

    fn rule_rng(&mut self, pair: Pair, number: usize, rule: &Rule, now: Instant) -> &mut RuleRng {
        let (seed, begun) = (self.chaos.rules().seed, self.begun);
        let rule_rngs = &mut self.lane(pair, now).rule_rngs;
        if rule_rngs.len() <= number {
            rule_rngs.resize_with(number + 1, || None);
        }
        rule_rngs[number].get_or_insert_with(|| {
            let ((from, which), (to, other)) = (pair.from.number(), pair.to.number());
            let words = |purpose| [number as u64, from, which, to, other, purpose];
            RuleRng {
                rng: stream(seed, &words(0), ""),
                windows: rule
                    .burst
                    .map(|window| Windows::new(window, stream(seed, &words(1), ""), begun)),
            }
        })
    }
}

impl<T> Drop for Lanes<T> {
    fn drop(&mut self) {
        self.chaos.lets_go(self.held.len(), Duration::ZERO);
    }
}

/// The random stream that a seed, numbers and a name stand for. FNV-1a, since it must be the same in every build.
fn stream(seed: u64, words: &[u64], name: &str) -> fastrand::Rng {
    let words = std::iter::once(&seed).chain(words);
    let bytes = words.flat_map(|word| word.to_le_bytes()).chain(name.bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    fastrand::Rng::with_seed(hash)
}

#[cfg(test)]
#[path = "lanes_tests.rs"]
mod tests;
