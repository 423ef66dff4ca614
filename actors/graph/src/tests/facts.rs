//! What nodes that are not there tell of themselves.

use millpond_drivers::api::{Abilities, BackingLink};
use millpond_engine::node::OpenFacts;
use millpond_messages::Limits;

use super::world::FakeNode;

/// What opening a node gives.
pub fn facts(node: &FakeNode, backing: Option<BackingLink>, size: u64) -> OpenFacts {
    OpenFacts {
        flags: node.flags,
        backing,
        data_file: None,
        size,
        abilities: Abilities::default(),
        limits: Limits::default(),
        filename: node.filename.clone(),
        read_bitmaps: Vec::new(),
    }
}
