//! Jobs that copy the data of nodes: their control halves, which ask the graph, and their data halves, on an iothread.
//!
//! A job here is a file. It is made of a plan: what a user asks for, checked against the graph as it is, before anything
//! is taken. What it takes is in [`Holds`](holds::Holds), and is given back as the job ends, however it does.

mod backup;
mod backup_checks;
mod backup_data;
mod chain;
mod commit;
mod copy;
mod data;
mod holds;
mod mirror;
mod outline;
mod stream;
mod stream_data;

pub use backup::BackupPlan;
pub use commit::{Committing, commit_plan};
pub use mirror::MirrorPlan;
pub(super) use outline::{FilterMade, Outline};
pub use stream::StreamPlan;
