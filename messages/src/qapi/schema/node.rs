//! Nodes: opened, closed, changed and moved.

use super::crypto::BlockdevOptionsLUKS;
use super::driver::{
    BlockdevOptionsFile, BlockdevOptionsGenericFormat, BlockdevOptionsNbd, BlockdevOptionsNull,
    BlockdevOptionsQcow2, BlockdevOptionsQuorum, BlockdevOptionsRaw,
};
use super::filter::{
    BlockdevOptionsBlkdebug, BlockdevOptionsBlklogwrites, BlockdevOptionsBlkverify, BlockdevOptionsCbw,
    BlockdevOptionsCor, BlockdevOptionsPreallocate, BlockdevOptionsThrottle,
};
use crate::qapi::define::{AlternateType, Null, Qapi, Type};
use crate::qapi::row::qapi;
use serde::{Deserialize, Serialize};

qapi! {
    /// Options of a node, also what `--blockdev` takes. Only the driver knows what they all mean: they are checked and stay an
    /// object.
    open union BlockdevOptions {
        @"driver": BlockdevDriver {
            "blkdebug": BlockdevOptionsBlkdebug,
            "blklogwrites": BlockdevOptionsBlklogwrites,
            "blkverify": BlockdevOptionsBlkverify,
            "compress": BlockdevOptionsGenericFormat,
            "copy-before-write": BlockdevOptionsCbw,
            "copy-on-read": BlockdevOptionsCor,
            "file": BlockdevOptionsFile,
            "host_device": BlockdevOptionsFile,
            "luks": BlockdevOptionsLUKS,
            "nbd": BlockdevOptionsNbd,
            "null-aio": BlockdevOptionsNull,
            "null-co": BlockdevOptionsNull,
            "preallocate": BlockdevOptionsPreallocate,
            "qcow2": BlockdevOptionsQcow2,
            "quorum": BlockdevOptionsQuorum,
            "raw": BlockdevOptionsRaw,
            "snapshot-access": BlockdevOptionsGenericFormat,
            "throttle": BlockdevOptionsThrottle,
            "vdi": BlockdevOptionsGenericFormat,
        },
        node_name: Option<String>,
        discard: Option<BlockdevDiscardOptions>,
        cache: Option<BlockdevCacheOptions>,
        active: Option<bool>,
        read_only: Option<bool>,
        auto_read_only: Option<bool>,
        force_share: Option<bool>,
        detect_zeroes: Option<BlockdevDetectZeroesOptions>,
    }

    /// The drivers that there are.
    enum BlockdevDriver {
        /// A filter that fails requests by rules.
        Blkdebug = "blkdebug",
        /// A filter that writes a log of writes.
        Blklogwrites = "blklogwrites",
        /// A filter that compares two nodes.
        Blkverify = "blkverify",
        /// A filter that has writes compressed.
        Compress = "compress",
        /// A filter that keeps what its node was at a moment.
        CopyBeforeWrite = "copy-before-write",
        /// A filter that copies up what is read.
        CopyOnRead = "copy-on-read",
        /// A file of the host.
        File = "file",
        /// A view of the moment that a node below keeps.
        SnapshotAccess = "snapshot-access",
        /// A block device of the host.
        HostDevice = "host_device",
        /// Images that are encrypted as a whole.
        Luks = "luks",
        /// A disk that an NBD server has.
        Nbd = "nbd",
        /// No storage, with answers that come later.
        NullAio = "null-aio",
        /// No storage, with answers at once.
        NullCo = "null-co",
        /// A filter that allocates ahead of writes.
        Preallocate = "preallocate",
        /// Images in the format qcow2.
        Qcow2 = "qcow2",
        /// Copies of the same data that are compared.
        Quorum = "quorum",
        /// An image that is its data alone.
        Raw = "raw",
        /// A filter that limits how fast requests go.
        Throttle = "throttle",
        /// Images of VirtualBox.
        Vdi = "vdi",
    }

    /// What is done with discards.
    enum BlockdevDiscardOptions {
        /// They are answered and not passed on.
        Ignore = "ignore",
        /// They are passed on to the storage.
        Unmap = "unmap",
    }

    /// How a node is asked to use caches.
    open struct BlockdevCacheOptions {
        direct: Option<bool>,
        no_flush: Option<bool>,
    }

    /// What is done with writes of zeroes.
    #[derive(Default)]
    enum BlockdevDetectZeroesOptions {
        /// They are written as they are.
        #[default]
        Off = "off",
        /// They become zero writes.
        On = "on",
        /// They become zero writes that may unmap.
        Unmap = "unmap",
    }

    /// A node by its options or by its name.
    open alternate BlockdevRef [BlockdevOptions, String];

    /// A node by its options or by its name, or none.
    open alternate BlockdevRefOrNull [BlockdevOptions, String, Null];

    /// Opens a node.
    command BlockdevAdd = "blockdev-add" (BlockdevOptions);

    /// Closes a node.
    command BlockdevDel = "blockdev-del" {
        /// The node to close.
        node_name: String,
    };

    /// Changes the options of nodes, all together or none.
    command BlockdevReopen = "blockdev-reopen" {
        /// The options, complete for each node.
        options: Vec<BlockdevOptions>,
    };

    /// Puts an overlay over a node, between it and whoever uses it.
    command BlockdevSnapshot = "blockdev-snapshot" {
        /// The node that is not written to any more.
        node: String,
        /// The node that comes above it.
        overlay: String,
    } ["allow-write-only-overlay"];

    /// What of a new image is made.
    enum NewImageMode {
        /// Nothing: it is there.
        Existing = "existing",
        /// All of it, and it names what is below by a whole path.
        AbsolutePaths = "absolute-paths",
    }

    /// Makes an overlay, and puts it over a node.
    command BlockdevSnapshotSync = "blockdev-snapshot-sync" {
        /// The device that is meant; there are none.
        device: Option<String>,
        /// The node that is not written to any more.
        node_name: Option<String>,
        /// The file of the overlay.
        snapshot_file: String,
        /// The name of the overlay.
        snapshot_node_name: Option<String>,
        /// The format of the overlay: qcow2, if left out.
        format: Option<String>,
        /// What of the overlay is made: all, if left out.
        mode: Option<NewImageMode>,
    };

    /// Lets a node use its storage, or no more.
    command BlockdevSetActive = "blockdev-set-active" {
        /// The node that is meant; all, if left out.
        node_name: Option<String>,
        /// Whether it may use its storage.
        active: bool,
    };

    /// Gives a node another child, or takes one away.
    command XBlockdevChange = "x-blockdev-change" {
        /// The node whose children change.
        parent: String,
        /// The name of the child's edge to take away.
        child: Option<String>,
        /// The node that becomes a child.
        node: Option<String>,
    } ["unstable"];

    /// Moves a node to another iothread, with all that is joined to it.
    command XBlockdevSetIothread = "x-blockdev-set-iothread" {
        /// The node that is moved.
        node_name: String,
        /// The iothread, or null for the main one.
        iothread: StrOrNull,
        /// Move it even if somebody uses it.
        force: bool = default,
    } ["unstable"];

    /// Moves one node to another iothread.
    command XMillpondMoveNode = "x-millpond-move-node" {
        /// The node that is moved.
        node_name: String,
        /// The iothread, or null for the main one.
        iothread: StrOrNull,
        /// Move all that is joined to it as well.
        joined: bool = default,
        /// Only say whether it could be moved.
        dry_run: bool = default,
    } ["unstable"];
}

impl BlockdevOptions {
    /// Whether they name the node.
    pub fn has_node_name(&self) -> bool {
        self.0.contains_key("node-name")
    }
}

/// Text, or null for none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StrOrNull(pub Option<String>);

impl Qapi for StrOrNull {
    const TYPE: Type = Type::Alternate(|| {
        static SCHEMA: AlternateType = AlternateType {
            name: "StrOrNull",
            branches: &[Type::Str, Type::Null],
        };
        &SCHEMA
    });
}
