//! The disk of the host that nodes of the tests may stand on, and what such a node says of itself.

use millpond_engine::node::{Description, DeviceFacts, OpenFacts, OrderOutcome};
use millpond_messages::{DriverInfo, IoError};

use super::world::FakeNode;

/// The file that is a disk of the host's.
pub const DISK: &str = "/dev/disk";
pub const DISK_SECTORS: millpond_messages::BlockSizes = millpond_messages::BlockSizes {
    physical: 4096,
    logical: 512,
};
pub const DISK_GEOMETRY: millpond_messages::Geometry = millpond_messages::Geometry {
    heads: 16,
    sectors: 63,
    cylinders: 100,
};

/// What a node says of its device: the disk is one, and nothing else.
pub fn device(node: &FakeNode) -> OrderOutcome {
    let is_disk = node.filename.as_deref() == Some(DISK);
    let device = DeviceFacts {
        block_sizes: Some(DISK_SECTORS),
        geometry: Some(DISK_GEOMETRY),
        ..DeviceFacts::default()
    };
    OrderOutcome::Device(is_disk.then_some(device).ok_or(IoError::NoMedium))
}

/// What a node over the disk says of itself.
pub fn description(facts: OpenFacts) -> Description {
    Description {
        facts,
        own_allocated_size: Err(IoError::NotSupported),
        info: DriverInfo::default(),
        specific: None,
        write_threshold: 0,
        bitmaps: Vec::new(),
        snapshots: Vec::new(),
    }
}
