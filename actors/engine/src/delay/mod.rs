//! The message policy: which messages between actors are held back, and for how long, to find what relies on luck.
//!
//! ```text
//!   client --request--> node    node --request--> node    graph --order--> node    user --command--> graph
//!          <--reply----              <--reply----               <--event--             <--answer----
//!   connection --request--> session (an NBD client and the iothread's end of it)
//!              <--reply----
//! ```
//! What must hold:
//! - Messages of one pair (sender, receiver) stay in order; those of different pairs may overtake each other.
//! - Nothing is lost or doubled. What is held keeps what it holds: a request that is counted stays counted, so that a drain
//!   waits for what is delayed, and for nothing else.
//! - All decisions come from one seed, by a stream for each pair and rule: the traffic of one pair does not change what
//!   becomes of another's.
//! - While there is no policy, a hop costs one look at a flag of the thread.
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
mod policy;

pub use distribution::{Delay, Dying, Spell};
pub use lanes::{End, Hop, Lanes, Pair};
pub use options::{PolicyError, RuleOptions};
pub use policy::{Actor, Chaos, KINDS, Kind, Policy, Rule, Statistics, kind};
