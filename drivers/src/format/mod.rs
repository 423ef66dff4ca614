//! Formats: drivers that keep an image in the node below them.

mod blocks;
pub mod luks;
pub mod qcow2;
pub mod raw;
pub mod vdi;
mod wait;
