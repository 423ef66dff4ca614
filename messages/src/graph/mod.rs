//! What may be asked of the graph actor, and what each request is answered by.
//!
//! A request is a struct that is a [`Request`]: its type says what the answer is. The policy takes it as a variant of the same
//! name, of one enum for each of its queues: [`Mutation`], [`Immediate`] or [`Query`].

#[macro_use]
mod request;

mod bitmap;
mod blocker;
mod drain;
mod facts;
mod image;
mod immediate;
mod iothread;
mod job;
mod mutation;
mod query;
mod reply;
mod transaction;
mod user;

pub use bitmap::{BitmapChange, BitmapEdit, BitmapHold, BitmapName, DirtyRun, HeldBitmap, ShownBitmap};
pub use blocker::Blocker;
pub use drain::DrainScope;
pub use facts::{DriverFacts, EdgeFacts, GraphFacts, NodeFacts};
pub use image::{OpenImage, Options, Probing};
pub use immediate::*;
pub use iothread::{IothreadCounters, IothreadOptions, IothreadReport};
pub use job::{BackingName, JobEdit};
pub use mutation::*;
pub use query::*;
pub use reply::GraphReply;
pub use request::Request;
pub use transaction::{
    Action, BackupBitmap, BackupFile, BackupStart, BackupStarted, BackupTarget, BelowBackup, CompletionMode,
    JobAction, JoinBitmap, SnapshotSync, StartedBitmap, TakeSnapshot, Transacted,
};
pub use user::{ChildOf, EdgeParent, RootRequest, RootUser};

/// Any request to the graph actor, by the queue that it goes to.
#[derive(Debug)]
pub enum GraphRequest {
    /// Runs when all mutations that came before it have ended.
    Mutation(Mutation),
    /// It begins at once, whatever else goes on.
    Immediate(Immediate),
    /// Answered at once, or as soon as the nodes it concerns have answered.
    Query(Query),
}
