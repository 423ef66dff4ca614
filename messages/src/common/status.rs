//! Block status: what a range of a node is made of.

use bitflags::bitflags;
use serde::{Deserialize, Serialize};

use super::id::NodeId;

bitflags! {
    /// What is known of a range.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
    pub struct StatusFlags: u8 {
        /// Reads return data that is stored somewhere.
        const DATA = 1 << 0;
        /// The range reads as zeroes.
        const ZERO = 1 << 1;
        /// [`BlockStatus::map`] names where the data is.
        const OFFSET_VALID = 1 << 2;
        /// The driver asks that its file be looked at instead.
        const RAW = 1 << 3;
        /// The node itself decides what is read; its backing node is not looked at.
        const ALLOCATED = 1 << 4;
        /// The range ends at the end of the node.
        const EOF = 1 << 5;
        /// The child may know better (for instance that data is zeroes).
        const RECURSE = 1 << 6;
        /// The data is stored compressed.
        const COMPRESSED = 1 << 7;
    }
}

/// The status of the first `len` bytes of a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockStatus {
    /// What is known of it.
    pub flags: StatusFlags,
    /// How many bytes this holds for.
    pub len: u64,
    /// Where the data is, if `OFFSET_VALID`: the offset in bytes in this node.
    pub map: Option<(NodeId, u64)>,
    /// Which layer of the backing chain decides: 1 for the node that was asked, 2 for the one below; 0 if none has it
    /// allocated.
    pub depth: u32,
}
