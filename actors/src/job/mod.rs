//! Jobs: work that takes long, which users watch, pause and cancel by its id.
//!
//! ```text
//!   QMP, embedders         JobRegistry (an actor on the control thread)            data half
//!     Jobs --start, verb--> state table: may this verb be used, may this      Job::run, anywhere
//!          <--answer------- state follow? events, progress, what is left  <--reports--  Pace
//!                                                                         ---wishes--->
//! ```
//! What a user wants of a job (paused, cancelled, complete) and what the job is are two things: a verb leaves a wish in the
//! job's [`Pace`], and the job's state changes when its data half has come to where the wish can be granted.
//! A job is one file here, which implements [`Job`].

mod amend;
mod block;
mod copy;
mod create;
mod ending;
mod entry;
mod handle;
mod limit;
mod order;
mod pace;
mod planned;
pub mod policy;
mod rate;
mod registry;
mod retry;
mod saved;
#[cfg(test)]
mod start_tests;
pub mod state;
#[cfg(test)]
mod state_tests;
#[cfg(test)]
mod tests;
mod together;
mod work;

pub use amend::{AmendJob, Amendment};
pub use block::{BackupPlan, Committing, MirrorPlan, StreamPlan, commit_plan};
pub use create::CreateJob;
pub use handle::Jobs;
pub use order::{Family, JobOptions, JobOrder};
pub use pace::{Cancelled, Gates, Pace};
pub use state::Verb;
pub use together::{TransactionOutcome, TransactionPart};
pub use work::Job;
