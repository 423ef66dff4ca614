//! Exports, and the NBD server.

use super::socket::{SocketAddress, SocketAddressLegacy};
use crate::qapi::row::qapi;

/// Seconds a client has for the handshake if nothing else is said.
pub const DEFAULT_HANDSHAKE_MAX_SECONDS: u32 = 10;
/// Clients at once if nothing else is said.
pub const DEFAULT_MAX_CONNECTIONS: u32 = 100;

qapi! {
    /// The kinds of export.
    enum BlockExportType {
        /// On the NBD server.
        Nbd = "nbd",
        /// A virtio block device on a socket.
        VhostUserBlk = "vhost-user-blk",
        /// As a file of the host.
        Fuse = "fuse",
        /// A virtio block device of the host's kernel.
        VduseBlk = "vduse-blk",
    }

    /// What an export is to be, also what `--export` takes.
    union BlockExportOptions {
        @kind: BlockExportKind,
        /// The export's id, unique among exports.
        id: String,
        /// Do not follow the node when it moves to another iothread; default false.
        fixed_iothread: Option<bool>,
        /// The iothread to move the node to, or those that the export runs on.
        iothread: Option<BlockExportIothreads>,
        /// The node to export.
        node_name: String,
        /// Allow writes; default false.
        writable: Option<bool>,
        /// Flush after each write; default false.
        writethrough: Option<bool>,
        /// Allow an inactive node; default false.
        allow_inactive: Option<bool>,
    }

    /// The iothreads of an export.
    alternate BlockExportIothreads {
        /// The one where the export runs beside its node.
        Single(String),
        /// Those among which the export shares its work, wherever its node lives.
        Multi(Vec<String>),
    }

    /// What only one kind of export has.
    branches BlockExportKind by "type": BlockExportType {
        /// On the NBD server.
        Nbd = "nbd": NbdExportOptions,
        /// A virtio block device on a socket.
        VhostUserBlk = "vhost-user-blk": VhostUserBlkExportOptions,
        /// As a file of the host.
        Fuse = "fuse": FuseExportOptions,
        /// A virtio block device of the host's kernel.
        VduseBlk = "vduse-blk": VduseBlkExportOptions,
    }

    /// The options of a vhost-user-blk export.
    struct VhostUserBlkExportOptions {
        /// Where front ends connect: a unix socket, or one that was passed.
        addr: SocketAddress,
        /// Bytes of a block, a power of two from 512 to 2 MiB; default 512.
        logical_block_size: Option<u64>,
        /// How many queues the device has, up to 256; default 1.
        num_queues: Option<u16>,
    }

    /// The options of an NBD export.
    #[derive(Default)]
    struct NbdExportOptions {
        /// The name clients ask for, at most 4096 bytes; default is the node's name.
        name: Option<String>,
        /// Text shown to clients, at most 4096 bytes.
        description: Option<String>,
        /// Dirty bitmaps to offer as `qemu:dirty-bitmap:NAME`.
        bitmaps: Option<Vec<BlockDirtyBitmapOrStr>>,
        /// Offer `qemu:allocation-depth`; default false.
        allocation_depth: Option<bool>,
    }

    /// The options of a FUSE export.
    struct FuseExportOptions {
        /// The path of an existing regular file, which the export covers.
        mountpoint: String,
        /// A write past the end makes the node longer; default false.
        growable: Option<bool>,
        /// Whether other users than that of the daemon may open the file; default `auto`.
        allow_other: Option<FuseExportAllowOther>,
        /// Whether requests come over io_uring; default `auto`: where the kernel offers it (`enable_uring` of its module `fuse`).
        x_millpond_io_uring: Option<MillpondFuseIoUring> ["unstable"],
    }

    /// Whether the requests of a FUSE export come over io_uring.
    enum MillpondFuseIoUring {
        /// By the device only.
        Off = "off",
        /// Over io_uring; an error where the kernel does not offer it.
        On = "on",
        /// As `on` where the kernel offers it, and else as `off`.
        Auto = "auto",
    }

    /// The options of a VDUSE export.
    struct VduseBlkExportOptions {
        /// The name of the device, as `vdpa dev add` takes it.
        name: String,
        /// How many queues the device has, up to 1024; default 1.
        num_queues: Option<u16>,
        /// How many descriptors a queue has at most, a power of two from 4 to 1024; default 256.
        queue_size: Option<u16>,
        /// Bytes of a block, a power of two from 512 to 2 MiB; default 512.
        logical_block_size: Option<u64>,
        /// The serial number, of which a guest sees at most 20 bytes; default is none.
        serial: Option<String>,
    }

    /// Whether other users may open the file of a FUSE export.
    enum FuseExportAllowOther {
        /// Only the user of the daemon may.
        Off = "off",
        /// All may that the file's mode admits; an error where the host forbids it.
        On = "on",
        /// As `on` where the host allows it, and else as `off`.
        Auto = "auto",
    }

    /// A bitmap of the exported node's chain by name, or of a given node.
    alternate BlockDirtyBitmapOrStr {
        /// By name, looked for along the backing chain.
        Local(String),
        /// On the node named.
        External(BlockDirtyBitmap),
    }

    /// A dirty bitmap of a node.
    struct BlockDirtyBitmap {
        /// The name of the node with the bitmap.
        node: String,
        /// The bitmap's name at that node.
        name: String,
    }

    /// Adds an export, and begins to serve it.
    command BlockExportAdd = "block-export-add" (BlockExportOptions);

    /// How the removal of an export treats clients.
    #[derive(Default)]
    enum BlockExportRemoveMode {
        /// Refuse while clients are connected.
        #[default]
        Safe = "safe",
        /// Clients are disconnected, and the export goes.
        Hard = "hard",
    }

    /// Begins to remove an export.
    command BlockExportDel = "block-export-del" {
        /// The id of the export to delete.
        id: String,
        /// How clients are treated.
        mode: BlockExportRemoveMode = default,
    };

    /// An export as it is shown.
    struct BlockExportInfo {
        /// The id of the export.
        id: String,
        /// What kind it is.
        kind as "type": BlockExportType,
        /// The node it shows now.
        node_name: String,
        /// It is being removed and waits for its clients.
        shutting_down: bool,
    }

    /// Shows all exports.
    command QueryBlockExports = "query-block-exports" {} -> Vec<BlockExportInfo>;

    /// The NBD server as `--nbd-server` describes it.
    struct NbdServerOptions {
        /// Seconds a client has for the handshake, 0 for no limit; see [`DEFAULT_HANDSHAKE_MAX_SECONDS`].
        handshake_max_seconds: Option<u32>,
        /// The TLS credentials object.
        tls_creds: Option<String>,
        /// The object that says who may connect.
        tls_authz: Option<String>,
        /// How many clients at once, 0 for no limit; see [`DEFAULT_MAX_CONNECTIONS`].
        max_connections: Option<u32>,
        /// The address to listen at.
        addr: SocketAddress,
    }

    /// Starts the NBD server.
    command NbdServerStart = "nbd-server-start" {
        /// Seconds a client has for the handshake, 0 for no limit.
        handshake_max_seconds: Option<u32>,
        /// The TLS credentials object.
        tls_creds: Option<String>,
        /// The object that says who may connect.
        tls_authz: Option<String>,
        /// How many clients at once, 0 for no limit.
        max_connections: Option<u32>,
        /// Where to listen.
        addr: SocketAddressLegacy,
    };

    /// An NBD export in its deprecated form.
    struct NbdServerAddOptions {
        /// The export's name and id; default is `device`.
        name: Option<String>,
        /// Text shown to clients.
        description: Option<String>,
        /// The device or node to export.
        device: String,
        /// Allow writes; default false.
        writable: Option<bool>,
        /// A dirty bitmap to offer.
        bitmap: Option<String>,
    }

    /// The deprecated form of `block-export-add`.
    command NbdServerAdd = "nbd-server-add" (NbdServerAddOptions) ["deprecated"];

    /// The deprecated form of `block-export-del`.
    command NbdServerRemove = "nbd-server-remove" {
        /// The name of the export to remove.
        name: String,
        /// How clients are treated.
        mode: BlockExportRemoveMode = default,
    } ["deprecated"];

    /// Stops the NBD server, and removes its exports.
    command NbdServerStop = "nbd-server-stop" {};
}

impl BlockExportOptions {
    /// A node on the NBD server under a name, with all else at its default.
    pub fn nbd(id: &str, node_name: &str, name: &str) -> Self {
        Self {
            kind: BlockExportKind::Nbd(NbdExportOptions {
                name: Some(name.to_owned()),
                ..NbdExportOptions::default()
            }),
            id: id.to_owned(),
            fixed_iothread: None,
            iothread: None,
            node_name: node_name.to_owned(),
            writable: None,
            writethrough: None,
            allow_inactive: None,
        }
    }
}

impl From<NbdServerStart> for NbdServerOptions {
    fn from(start: NbdServerStart) -> Self {
        Self {
            handshake_max_seconds: start.handshake_max_seconds,
            tls_creds: start.tls_creds,
            tls_authz: start.tls_authz,
            max_connections: start.max_connections,
            addr: start.addr.into(),
        }
    }
}
