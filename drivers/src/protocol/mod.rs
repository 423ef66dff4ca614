//! Protocols: drivers that store bytes themselves and have no node below them.

pub mod file;
pub mod nbd;
pub mod null;
