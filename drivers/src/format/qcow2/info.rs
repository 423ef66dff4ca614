//! The facts about an open image that queries show.

use millpond_messages::DriverInfo;
use serde_json::{Value, json};

use super::header::{CORRUPT, Compression, DIRTY, LAZY_REFCOUNTS};
use super::state::State;

impl State {
    /// The facts that every format reports of itself.
    pub fn info(&self) -> DriverInfo {
        let cluster_size = self.geometry.cluster_size();
        DriverInfo {
            cluster_size,
            vm_state_offset: self.geometry.l1_entries(self.header.size) << self.geometry.l2_span_bits(),
            is_dirty: self.header.incompatible & DIRTY != 0,
            subcluster_size: cluster_size,
            needs_compressed_writes: false,
        }
    }

    /// The facts that only this format has, as QAPI's `ImageInfoSpecificQCow2`.
    pub fn specific_info(&self) -> Value {
        let refcount_bits = 1 << self.geometry.refcount_order;
        let compression = match self.header.compression {
            Compression::Zlib => "zlib",
            Compression::Zstd => "zstd",
        };
        let data = if self.header.version < 3 {
            json!({"compat": "0.10", "compression-type": compression, "refcount-bits": refcount_bits})
        } else {
            json!({
                "compat": "1.1",
                "compression-type": compression,
                "lazy-refcounts": self.header.compatible & LAZY_REFCOUNTS != 0,
                "refcount-bits": refcount_bits,
                "corrupt": self.header.incompatible & CORRUPT != 0,
                "extended-l2": false,
            })
        };
        json!({"type": "qcow2", "data": data})
    }
}
