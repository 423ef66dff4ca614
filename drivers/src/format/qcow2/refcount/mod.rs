//! Refcounts: reading, setting and allocating by them, and the check that holds them against what refers to each cluster.

mod check;
pub(crate) mod counts;
mod preallocation;
mod references;
mod repair;
mod snapshot_table;
mod width;
