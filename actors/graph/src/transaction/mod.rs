//! Transactions: the steps that changes are made of, each with what undoes it.

pub mod moving;
pub mod nodes;
mod permissions;
mod steps;
pub mod together;

pub use steps::Transaction;
