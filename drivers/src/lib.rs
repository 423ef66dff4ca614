//! What a node does: the ring, protocol drivers, format drivers and filters.

pub mod buffer;
pub mod driver;
pub mod ring;
