//! From options or names to nodes.

pub mod backing;
pub mod image;
pub mod options;
pub mod temporary;
pub mod tree;
