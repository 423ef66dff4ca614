//! What runs in the policy.

use std::future::Future;
use std::pin::Pin;

use millpond_messages::Error;

use crate::effect::Reply;

/// What runs: a mutation, a question, or work in the background.
pub type Procedure = Pin<Box<dyn Future<Output = Next>>>;

/// How a procedure ends.
pub enum Next {
    /// It has ended, with this reply.
    Reply(Reply),
    /// With work that changes nothing in the graph, and that other mutations need not wait for.
    Background(Procedure),
    /// With a mutation to be run next.
    Mutation(Procedure),
    /// With why a request takes longer than it may.
    Late(Error),
}
