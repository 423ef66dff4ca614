//! The drivers that are built in.

use std::sync::Arc;

use crate::api::{DriverKind, Registry};
use crate::filter::blkdebug::BlkdebugKind;
use crate::filter::blklogwrites::BlklogwritesKind;
use crate::filter::blkverify::BlkverifyKind;
use crate::filter::commit_top::CommitTopKind;
use crate::filter::compress::CompressKind;
use crate::filter::copy_before_write::CopyBeforeWriteKind;
use crate::filter::copy_on_read::CopyOnReadKind;
use crate::filter::mirror_top::MirrorTopKind;
use crate::filter::preallocate::PreallocateKind;
use crate::filter::snapshot_access::SnapshotAccessKind;
use crate::filter::throttle::ThrottleKind;
use crate::format::luks::LuksKind;
use crate::format::qcow2::Qcow2Kind;
use crate::format::raw::RawKind;
use crate::format::vdi::VdiKind;
use crate::protocol::file::FileKind;
use crate::protocol::nbd::NbdKind;
use crate::protocol::null::NullKind;
use crate::replica::quorum::QuorumKind;

/// A registry of all drivers that are built in.
#[must_use]
pub fn builtin() -> Registry {
    let mut registry = Registry::empty();
    let kinds: [Arc<dyn DriverKind>; 21] = [
        Arc::new(BlkdebugKind),
        Arc::new(BlklogwritesKind),
        Arc::new(BlkverifyKind),
        Arc::new(CommitTopKind),
        Arc::new(CompressKind),
        Arc::new(CopyBeforeWriteKind),
        Arc::new(CopyOnReadKind),
        Arc::new(FileKind::FILE),
        Arc::new(FileKind::HOST_DEVICE),
        Arc::new(LuksKind::new(registry.secrets().clone())),
        Arc::new(MirrorTopKind),
        Arc::new(NbdKind::new(registry.client_credentials().clone())),
        Arc::new(NullKind::CO),
        Arc::new(NullKind::AIO),
        Arc::new(PreallocateKind),
        Arc::new(Qcow2Kind::new(registry.secrets().clone())),
        Arc::new(QuorumKind),
        Arc::new(RawKind),
        Arc::new(SnapshotAccessKind),
        Arc::new(ThrottleKind::new(registry.throttle_groups().clone())),
        Arc::new(VdiKind),
    ];
    for kind in kinds {
        let name = kind.name();
        if registry.register(kind).is_err() {
            // The test below registers the same list, so a clash is found there.
            tracing::error!(name, "two built-in drivers of one name");
        }
    }
    registry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_built_in_driver_is_found_by_its_name() {
        let registry = builtin();
        for name in [
            "blkdebug",
            "blklogwrites",
            "blkverify",
            "commit_top",
            "compress",
            "copy-before-write",
            "copy-on-read",
            "file",
            "host_device",
            "luks",
            "mirror_top",
            "nbd",
            "null-aio",
            "null-co",
            "preallocate",
            "qcow2",
            "quorum",
            "raw",
            "snapshot-access",
            "throttle",
            "vdi",
        ] {
            assert_eq!(registry.find(name).map(|kind| kind.name()), Some(name));
        }
    }
}
