//! Replicas: drivers that keep the same data in several nodes below them.

pub(crate) mod abandoned;
pub(crate) mod copies;
pub mod left;
pub mod offload;
pub mod quorum;
