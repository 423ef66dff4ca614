//! Exports: how they are asked for and shown.

use super::SocketAddress;
use serde::{Deserialize, Serialize};

/// The arguments of `block-export-add`.
///
/// Unknown members are refused by the schema's validation, which runs before; serde cannot refuse
/// them here because of the flattened union.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockExportOptions {
    /// What kind of export, and the options of that kind.
    #[serde(flatten)]
    pub kind: BlockExportKind,
    /// The export's id, unique among exports.
    pub id: String,
    /// Do not follow the node when it moves to another iothread; default false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fixed_iothread: Option<bool>,
    /// The iothread to move the node to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iothread: Option<String>,
    /// The node to export.
    pub node_name: String,
    /// Allow writes; default false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub writable: Option<bool>,
    /// Flush after each write; default false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub writethrough: Option<bool>,
    /// Allow an inactive node; default false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_inactive: Option<bool>,
}

/// The kinds of export.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum BlockExportKind {
    /// On the NBD server.
    Nbd(NbdExportOptions),
}

/// The options of an NBD export.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct NbdExportOptions {
    /// The name clients ask for, at most 4096 bytes; default is the node's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Text shown to clients, at most 4096 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Dirty bitmaps to offer as `qemu:dirty-bitmap:NAME`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bitmaps: Option<Vec<BlockDirtyBitmapOrStr>>,
    /// Offer `qemu:allocation-depth`; default false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allocation_depth: Option<bool>,
}

/// A bitmap of the exported node's chain by name, or of a given node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum BlockDirtyBitmapOrStr {
    /// By name, looked for along the backing chain.
    Local(String),
    /// On the node named.
    External(BlockDirtyBitmap),
}

/// A dirty bitmap of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockDirtyBitmap {
    /// The name of the node with the bitmap.
    pub node: String,
    /// The bitmap's name at that node.
    pub name: String,
}

/// How `block-export-del` treats clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BlockExportRemoveMode {
    /// Refuse while clients are connected.
    #[default]
    Safe,
    /// Clients are disconnected, and the export goes.
    Hard,
}

/// The arguments of `block-export-del`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockExportDel {
    /// The id of the export to delete.
    pub id: String,
    /// How clients are treated.
    #[serde(default)]
    pub mode: BlockExportRemoveMode,
}

/// The name of a kind of export.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BlockExportType {
    /// On the NBD server.
    Nbd,
}

/// One entry of the reply of `query-block-exports`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct BlockExportInfo {
    /// The id of the export.
    pub id: String,
    /// What kind it is.
    #[serde(rename = "type")]
    pub kind: BlockExportType,
    /// The node it shows now.
    pub node_name: String,
    /// It is being removed and waits for its clients.
    pub shutting_down: bool,
}

/// The arguments of the deprecated `nbd-server-add`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NbdServerAdd {
    /// The export's name and id; default is `device`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Text shown to clients.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The device or node to export.
    pub device: String,
    /// Allow writes; default false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub writable: Option<bool>,
    /// A dirty bitmap to offer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bitmap: Option<String>,
}

/// The arguments of the deprecated `nbd-server-remove`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NbdServerRemove {
    /// The name of the export to remove.
    pub name: String,
    /// How clients are treated.
    #[serde(default)]
    pub mode: BlockExportRemoveMode,
}

/// The arguments of `nbd-server-start`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct NbdServerStart {
    /// Seconds a client has for the handshake, 0 for no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handshake_max_seconds: Option<u32>,
    /// The TLS credentials object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_creds: Option<String>,
    /// The object that says who may connect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_authz: Option<String>,
    /// How many clients at once, 0 for no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<u32>,
    /// Where to listen, with the kind's options one level down in `data`.
    pub addr: SocketAddressLegacy,
}

/// A socket address as older commands write it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    tag = "type",
    content = "data",
    rename_all = "kebab-case",
    deny_unknown_fields
)]
pub enum SocketAddressLegacy {
    /// A TCP address and its options.
    Inet(super::InetSocketAddress),
    /// A unix socket and its options.
    Unix(super::UnixSocketAddress),
    /// A virtual machine socket.
    Vsock(super::VsockSocketAddress),
    /// A file descriptor, by number or name.
    Fd(super::FdSocketAddress),
}

impl From<SocketAddressLegacy> for SocketAddress {
    fn from(legacy: SocketAddressLegacy) -> Self {
        match legacy {
            SocketAddressLegacy::Inet(inet) => Self::Inet(inet),
            SocketAddressLegacy::Unix(unix) => Self::Unix(unix),
            SocketAddressLegacy::Vsock(vsock) => Self::Vsock(vsock),
            SocketAddressLegacy::Fd(fd) => Self::Fd(fd),
        }
    }
}

impl From<NbdServerStart> for super::NbdServerOptions {
    fn from(start: NbdServerStart) -> Self {
        Self {
            addr: start.addr.into(),
            handshake_max_seconds: start.handshake_max_seconds,
            tls_creds: start.tls_creds,
            tls_authz: start.tls_authz,
            max_connections: start.max_connections,
        }
    }
}
