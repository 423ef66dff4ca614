//! Named moments in the work of drivers and nodes, at which a node that listens below can fail, hold or count requests.

use serde::{Deserialize, Serialize};

/// Defines the enum and the table of its names together, so that neither can lack one.
macro_rules! debug_events {
    ($($(#[$doc:meta])* $event:ident => $name:literal,)*) => {
        /// A moment that can be listened for; the names are those of QAPI's `BlkdebugEvent`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum DebugEvent {
            $($(#[$doc])* #[serde(rename = $name)] $event,)*
        }

        impl DebugEvent {
            /// Every event, in the order in which QAPI lists them.
            pub const ALL: &'static [Self] = &[$(Self::$event),*];
            /// Their names, in the same order.
            pub const NAMES: &'static [&'static str] = &[$($name),*];

            /// The name that QAPI and blkdebug's files have for it.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$event => $name,)*
                }
            }
        }
    };
}

debug_events! {
    /// An L1 entry is written.
    L1Update => "l1_update",
    /// A larger L1 table is given a place.
    L1GrowAllocTable => "l1_grow_alloc_table",
    /// A grown L1 table is written.
    L1GrowWriteTable => "l1_grow_write_table",
    /// The header is pointed at it.
    L1GrowActivateTable => "l1_grow_activate_table",
    /// An L2 table is read.
    L2Load => "l2_load",
    /// An L2 table is written.
    L2Update => "l2_update",
    /// An L2 entry is pointed at a compressed cluster.
    L2UpdateCompressed => "l2_update_compressed",
    /// An L2 table that a snapshot shares is read to be copied.
    L2AllocCowRead => "l2_alloc_cow_read",
    /// A new L2 table is written.
    L2AllocWrite => "l2_alloc_write",
    /// Data is read from the image file.
    ReadAio => "read_aio",
    /// Data is read from the backing file.
    ReadBackingAio => "read_backing_aio",
    /// A compressed cluster is read.
    ReadCompressed => "read_compressed",
    /// Data is written to the image file.
    WriteAio => "write_aio",
    /// A compressed cluster is written.
    WriteCompressed => "write_compressed",
    /// A machine's state is read.
    VmstateLoad => "vmstate_load",
    /// A machine's state is written.
    VmstateSave => "vmstate_save",
    /// Bytes beside a write are read, to be copied along.
    CowRead => "cow_read",
    /// Copied-on-write data is written back.
    CowWrite => "cow_write",
    /// The refcount table is read.
    ReftableLoad => "reftable_load",
    /// A larger refcount table is wanted.
    ReftableGrow => "reftable_grow",
    /// An entry of the refcount table is written.
    ReftableUpdate => "reftable_update",
    /// A refcount block is read.
    RefblockLoad => "refblock_load",
    /// A refcount block is written.
    RefblockUpdate => "refblock_update",
    /// A part of a refcount block is written.
    RefblockUpdatePart => "refblock_update_part",
    /// The refcount block is looked for in which clusters are to be counted, and added if there is none.
    RefblockAlloc => "refblock_alloc",
    /// The refcount table is pointed at it.
    RefblockAllocHookup => "refblock_alloc_hookup",
    /// A new refcount block is written.
    RefblockAllocWrite => "refblock_alloc_write",
    /// Blocks for a larger refcount table are written.
    RefblockAllocWriteBlocks => "refblock_alloc_write_blocks",
    /// A larger refcount table is written.
    RefblockAllocWriteTable => "refblock_alloc_write_table",
    /// The header is pointed at it.
    RefblockAllocSwitchTable => "refblock_alloc_switch_table",
    /// Clusters for guest data are allocated.
    ClusterAlloc => "cluster_alloc",
    /// A part of a cluster is allocated, for compressed data.
    ClusterAllocBytes => "cluster_alloc_bytes",
    /// Clusters are no longer used.
    ClusterFree => "cluster_free",
    /// Caches of the driver are written back.
    FlushToOs => "flush_to_os",
    /// What was written is made durable.
    FlushToDisk => "flush_to_disk",
    /// The block is read in which an unaligned write begins.
    PwritevRmwHead => "pwritev_rmw_head",
    /// It has been read.
    PwritevRmwAfterHead => "pwritev_rmw_after_head",
    /// The block is read in which an unaligned write ends.
    PwritevRmwTail => "pwritev_rmw_tail",
    /// It has been read.
    PwritevRmwAfterTail => "pwritev_rmw_after_tail",
    /// A write reaches a node.
    Pwritev => "pwritev",
    /// A zero write reaches a node.
    PwritevZero => "pwritev_zero",
    /// A write of a node has ended.
    PwritevDone => "pwritev_done",
    /// An image is about to be emptied.
    EmptyImagePrepare => "empty_image_prepare",
    /// The L1 table is cut.
    L1ShrinkWriteTable => "l1_shrink_write_table",
    /// L2 tables behind its new end are freed.
    L1ShrinkFreeL2Clusters => "l1_shrink_free_l2_clusters",
    /// Data read from below is written to a node, by copy-on-read.
    CorWrite => "cor_write",
    /// Space for new clusters is reserved with zeroes.
    ClusterAllocSpace => "cluster_alloc_space",
    /// Once, when the node that listens is opened.
    None => "none",
}

impl DebugEvent {
    /// The event of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|event| event.name() == name)
    }
}

/// What is to be done about requests that reach an event of a node that listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DebugOrder {
    /// Hold the next request that reaches `event`, and call it `tag`.
    Breakpoint {
        /// The event's name, as QAPI has it.
        event: String,
        /// What the request is called from then on.
        tag: String,
    },
    /// Forget the breakpoints of this tag, and let go of every request that they hold.
    RemoveBreakpoint {
        /// The tag of suspended requests and their breakpoint.
        tag: String,
    },
    /// Let go of one request that is held under this tag.
    Resume {
        /// The tag of the requests to resume.
        tag: String,
    },
    /// Whether a request is held under this tag.
    IsSuspended {
        /// The tag that a suspended request may have.
        tag: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_is_found_by_its_name() {
        for event in DebugEvent::ALL {
            assert_eq!(DebugEvent::from_name(event.name()), Some(*event));
            assert_eq!(serde_json::to_value(event).unwrap(), event.name());
        }
        assert_eq!(DebugEvent::from_name("write_oai"), None);
        assert_eq!(DebugEvent::NAMES.len(), DebugEvent::ALL.len());
    }
}
