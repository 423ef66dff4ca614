//! Delay rules: which messages they apply to, what they do with them, and what they have done so far.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use millpond_messages::io::OperationKind;

use super::distribution::{Delay, Dying, Window};
use super::lanes::Hop;

/// Who sends or receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Actor {
    /// Whoever asks the graph actor.
    User,
    /// The graph actor, on the control thread.
    Graph,
    /// A client of a node: an export, a job, an embedder.
    Client,
    /// A node on its iothread.
    Node,
    /// A client of the NBD server.
    Connection,
    /// The iothread's end of an NBD connection.
    Session,
}

impl Actor {
    /// All actors, by name.
    pub const ALL: [(&'static str, Self); 6] = [
        ("user", Self::User),
        ("graph", Self::Graph),
        ("client", Self::Client),
        ("node", Self::Node),
        ("connection", Self::Connection),
        ("session", Self::Session),
    ];

    /// The name that options have for the actor.
    #[must_use]
    pub fn name(self) -> &'static str {
        let found = Self::ALL.iter().find(|(_, actor)| *actor == self);
        found.map_or("", |(name, _)| name)
    }
}

/// A kind of message.
#[derive(Debug, PartialEq, Eq)]
pub struct Kind {
    /// The name that options and records have for it.
    pub name: &'static str,
    /// The name of the group of kinds that it belongs to.
    pub group: &'static str,
    /// Its place in the list of all kinds.
    pub number: u8,
}

/// The kinds of messages there are.
#[allow(missing_docs, reason = "their names say what they are")]
pub mod kind {
    use super::Kind;

    macro_rules! kinds {
        ($($constant:ident = $name:literal in $group:literal;)*) => {
            #[allow(non_camel_case_types, clippy::upper_case_acronyms, reason = "the constants' names")]
            enum Number { $($constant),* }
            $(pub const $constant: &Kind = &Kind {
                name: $name,
                group: $group,
                number: Number::$constant as u8,
            };)*
            /// Every kind of message there is.
            pub const ALL: &[&Kind] = &[$($constant),*];
        };
    }

    kinds! {
        READ = "read" in "request";
        WRITE = "write" in "request";
        WRITE_ZEROES = "write-zeroes" in "request";
        DISCARD = "discard" in "request";
        FLUSH = "flush" in "request";
        TRUNCATE = "truncate" in "request";
        BLOCK_STATUS = "block-status" in "request";
        QUERY = "query" in "request";
        REPLY = "reply" in "reply";
        JOB = "job" in "job";
        OPEN = "open" in "order";
        CLOSE = "close" in "order";
        QUIESCE = "quiesce" in "order";
        RESUME = "resume" in "order";
        CONNECT = "connect" in "order";
        ATTACH_ROOT = "attach-root" in "order";
        MOVE_ROOT = "move-root" in "order";
        DETACH_ROOT = "detach-root" in "order";
        DEPART = "depart" in "order";
        OTHER_ORDER = "other-order" in "order";
        ENDED = "ended" in "event";
        QUIESCED = "quiesced" in "event";
        NOTICED = "noticed" in "event";
        NBD_REQUEST = "nbd-request" in "nbd";
        NBD_REPLY = "nbd-reply" in "nbd";
        COMMAND = "command" in "command";
        ANSWER = "answer" in "answer";
    }

    /// The kind of a request.
    pub const fn of_request(kind: super::OperationKind) -> &'static Kind {
        match kind {
            super::OperationKind::Read => READ,
            super::OperationKind::Write => WRITE,
            super::OperationKind::WriteZeroes => WRITE_ZEROES,
            super::OperationKind::Discard => DISCARD,
            super::OperationKind::Flush => FLUSH,
            super::OperationKind::Truncate => TRUNCATE,
            super::OperationKind::BlockStatus => BLOCK_STATUS,
            super::OperationKind::Query => QUERY,
        }
    }
}

/// All kinds of messages.
pub const KINDS: &[&Kind] = kind::ALL;

/// One rule: the messages that it applies to (a choice left out takes any), and what becomes of them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rule {
    /// The kind of actor that sends; any if None.
    pub sender: Option<Actor>,
    /// The kind of actor that receives; any if None.
    pub receiver: Option<Actor>,
    /// The name of a kind of message, or of a group of them.
    pub kind: Option<&'static str>,
    /// The name of the node that the message concerns; of an NBD connection's, of its export.
    pub node: Option<String>,
    /// The name of the iothread where the message is held. What the control thread holds is in none.
    pub iothread: Option<String>,
    /// How long each message is held.
    pub delay: Delay,
    /// Windows in which all messages of a pair are held, to be delivered together at their end.
    pub burst: Option<Window>,
    /// Windows in which all messages of an iothread are.
    pub stall: Option<Window>,
    /// How long messages from and to an NBD client are held.
    pub slow_client: Delay,
    /// When the connection of an NBD client is cut.
    pub dying_client: Option<Dying>,
}

impl Rule {
    /// Whether the rule applies to a hop on a thread.
    pub(super) fn applies(&self, hop: &Hop<'_>, thread: Option<&str>) -> bool {
        self.sender.is_none_or(|actor| actor == hop.pair.from.actor())
            && self.receiver.is_none_or(|actor| actor == hop.pair.to.actor())
            && self
                .kind
                .is_none_or(|kind| kind == hop.kind.name || kind == hop.kind.group)
            && self.node.as_deref().is_none_or(|node| node == hop.node)
            && self.iothread.as_deref().is_none_or(|name| Some(name) == thread)
    }

    /// The longest that the rule holds one message.
    #[must_use]
    pub fn longest(&self) -> Duration {
        let length = |window: Option<Window>| window.map_or(Duration::ZERO, |window| window.length);
        self.delay.longest() + self.slow_client.longest() + length(self.burst).max(length(self.stall))
    }
}

/// A list of rules, and the seed of their decisions. The delays of all rules that apply to a message add up.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DelayRules {
    /// What all decisions come from.
    pub seed: u64,
    /// The rules, all of which apply.
    pub list: Vec<Rule>,
}

impl DelayRules {
    /// Rules with this seed, or a random one.
    #[must_use]
    pub fn new(seed: Option<u64>, list: Vec<Rule>) -> Self {
        let seed = seed.unwrap_or_else(|| fastrand::u64(..));
        Self { seed, list }
    }

    /// The longest that one message is held on one hop, however many are held before it.
    #[must_use]
    pub fn longest(&self) -> Duration {
        self.list.iter().map(Rule::longest).sum()
    }
}

/// What rules have done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Messages that were held.
    pub delayed: u64,
    /// Messages that are held now.
    pub held: u64,
    /// The longest that one was held, in nanoseconds.
    pub longest_ns: u64,
    /// Connections that were cut.
    pub cut: u64,
}

/// Rules to put in force, and their counters. Clones share both.
#[derive(Clone)]
pub struct Chaos(Arc<Inner>);

struct Inner {
    rules: DelayRules,
    delayed: AtomicU64,
    held: AtomicU64,
    longest_ns: AtomicU64,
    cut: AtomicU64,
}

impl Chaos {
    /// Readies rules for use by all threads.
    #[must_use]
    pub fn new(rules: DelayRules) -> Self {
        Self(Arc::new(Inner {
            rules,
            delayed: AtomicU64::new(0),
            held: AtomicU64::new(0),
            longest_ns: AtomicU64::new(0),
            cut: AtomicU64::new(0),
        }))
    }

    /// The rules that are in force.
    #[must_use]
    pub fn rules(&self) -> &DelayRules {
        &self.0.rules
    }

    /// What the rules have done so far.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        Statistics {
            delayed: self.0.delayed.load(Ordering::Relaxed),
            held: self.0.held.load(Ordering::Relaxed),
            longest_ns: self.0.longest_ns.load(Ordering::Relaxed),
            cut: self.0.cut.load(Ordering::Relaxed),
        }
    }

    pub(super) fn holds(&self) {
        self.0.delayed.fetch_add(1, Ordering::Relaxed);
        self.0.held.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn lets_go(&self, count: usize, after: Duration) {
        self.0.held.fetch_sub(count as u64, Ordering::Relaxed);
        let ns = u64::try_from(after.as_nanos()).unwrap_or(u64::MAX);
        self.0.longest_ns.fetch_max(ns, Ordering::Relaxed);
    }

    pub(super) fn cuts(&self) {
        self.0.cut.fetch_add(1, Ordering::Relaxed);
    }
}

impl PartialEq for Chaos {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Chaos {}

impl fmt::Debug for Chaos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chaos")
            .field("rules", &self.0.rules)
            .field("statistics", &self.statistics())
            .finish()
    }
}
