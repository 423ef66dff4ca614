//! Transactions: the steps that changes are made of, each with what undoes it.

mod bitmap_steps;
pub mod bitmaps;
mod burst;
mod change;
pub mod exchange;
pub mod moving;
pub mod nodes;
mod permissions;
mod ready;
pub mod snapshots;
mod steps;
pub mod together;

pub use change::{Change, Outcome, run, run_all};
pub use steps::Transaction;
