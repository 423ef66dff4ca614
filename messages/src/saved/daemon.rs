//! Everything: the one record that a later daemon would begin from.

use serde::{Deserialize, Serialize};

use super::{Saved, SavedExport, SavedGraph, SavedJob, SavedNbdServer, SavedOptions};

/// The state of a whole daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedDaemon {
    /// Nodes, edges, users and iothreads.
    pub graph: SavedGraph,
    /// The objects of users in the order in which they were made.
    pub objects: Vec<SavedObject>,
    /// The throttle groups, by name.
    pub throttle_groups: Vec<SavedThrottleGroup>,
    /// The NBD server, if it listens.
    pub nbd_server: Option<SavedNbdServer>,
    /// The exports in the order in which they were added.
    pub exports: Vec<SavedExport>,
    /// The jobs in the order in which they were made.
    pub jobs: Vec<SavedJob>,
}

impl Saved for SavedDaemon {
    const KIND: &'static str = "daemon";
    const VERSION: u32 = 8;
}

/// An object that a user made. An iothread is with the graph too, and a throttle group with its levels among the groups.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedObject {
    /// The id of the object.
    pub id: String,
    /// The name of its type.
    pub kind: String,
    /// Its properties, as the command `object-add` has them.
    pub options: SavedOptions,
}

/// A throttle group: its limits and how full its buckets are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedThrottleGroup {
    /// The name of the group.
    pub name: String,
    /// Bytes of a request that count as one, for limits of requests; 0 counts each once.
    pub iops_size: u64,
    /// The rates in the order of QEMU's property names: all bytes, bytes read, bytes written, and the same of requests.
    pub rates: [SavedRate; 6],
}

/// A rate and its two buckets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SavedRate {
    /// Units a second in the long run; 0 for no limit.
    pub average: u64,
    /// Units a second during a burst; 0 for none.
    pub max: u64,
    /// How many seconds a burst may last.
    pub length: u64,
    /// How full the bucket is that leaks at the average rate, in units and nanoseconds multiplied.
    pub level: u128,
    /// How full the bucket is that leaks at the burst's rate.
    pub burst: u128,
}
