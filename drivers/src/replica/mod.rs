//! Replicas: drivers that keep the same data in several nodes below them.

pub(crate) mod copies;
pub mod quorum;
