//! What may be asked of the graph actor: a closed set for each of its queues, and the answers.
//!
//! The names follow QMP's where there is a command for it; an embedder sends the same requests.

mod blocker;
mod drain;
mod facts;
mod image;
mod immediate;
mod iothread;
mod mutation;
mod query;
mod reply;
mod transaction;
mod user;

pub use blocker::{BlockedBy, Blocker};
pub use drain::DrainScope;
pub use facts::{DriverFacts, EdgeFacts, GraphFacts, NodeFacts};
pub use image::{OpenImage, Options, Probing};
pub use immediate::Immediate;
pub use iothread::{IothreadCounters, IothreadOptions, IothreadReport};
pub use mutation::Mutation;
pub use query::Query;
pub use reply::GraphReply;
pub use transaction::{Action, CompletionMode};
pub use user::{ChildOf, EdgeParent, RootRequest, RootUser};

/// A request to the graph actor, by the queue that it goes to.
#[derive(Debug)]
pub enum GraphRequest {
    /// Runs when all mutations that came before it have ended.
    Mutation(Mutation),
    /// It begins at once, whatever else goes on.
    Immediate(Immediate),
    /// Answered at once, or as soon as the nodes it concerns have answered.
    Query(Query),
}

impl From<Mutation> for GraphRequest {
    fn from(mutation: Mutation) -> Self {
        Self::Mutation(mutation)
    }
}

impl From<Immediate> for GraphRequest {
    fn from(immediate: Immediate) -> Self {
        Self::Immediate(immediate)
    }
}

impl From<Query> for GraphRequest {
    fn from(query: Query) -> Self {
        Self::Query(query)
    }
}
