//! Delays messages between actors by rules, so as to find code that relies on their arriving quickly, or in some order.
//!
//! ```text
//!   client --request--> node    node --request--> node    graph --order--> node    user --command--> graph
//!          <--reply----              <--reply----               <--event--             <--answer----
//!   connection --request--> session (an NBD client and the iothread's end of it)
//!              <--reply----
//! ```
//! What must hold:
//! - Messages of one pair (sender, receiver) stay in order; those of different pairs may overtake each other.
//! - No message is lost or doubled. A held message keeps what it owns: a request that is counted stays counted, so that a
//!   drain waits for what is delayed, and for nothing else.
//! - All decisions come from one seed, by a stream for each pair and rule: the traffic of one pair does not change what
//!   becomes of another's.
//! - While no rules are in force, a hop costs one look at a flag of the thread.
//!
//! A hop is held on the iothread that receives it, or sends it to the control thread or back to an asker, by the clock of
//! its ring; the control thread holds what users ask of the graph and what they are answered, by tokio's clock. An iothread
//! is stalled by holding every hop to and from it: a real stall of its loop would stop the clock of a simulator, and the
//! timer that is to end it. What it began before goes on, and what comes of that is held.
//!
//! Not held: nodes that move between iothreads (the order before and the event after are), a child's reads where the
//! choke point finds them by itself in the same step, and what parents tell children by a plain call.

mod distribution;
mod lanes;
mod options;
mod rules;

pub use distribution::{Delay, Dying, Window};
pub use lanes::{End, Hop, Lanes, Pair};
pub use options::{RuleError, RuleOptions};
pub use rules::{Actor, Chaos, DelayRules, KINDS, Kind, Rule, Statistics, kind};
