//! Formats: drivers that keep an image in the node below them.

pub mod luks;
pub mod qcow2;
pub mod raw;
