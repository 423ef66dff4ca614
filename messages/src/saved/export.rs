//! Exports, the NBD server, and the clients connected to it.

use serde::{Deserialize, Serialize};

use super::SavedOptions;
use crate::{BitmapId, IoThreadId, NodeId, RootId};

/// An export and its clients.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedExport {
    /// The id of the export.
    pub id: String,
    /// The name of the node that it shows.
    pub node_name: String,
    /// What it was added with, as the command `block-export-add` has it.
    pub options: SavedOptions,
    /// The root edge by which it holds the node.
    pub root: RootId,
    /// Where its requests are served; none where the node lives.
    pub iothreads: Vec<IoThreadId>,
    /// It is being removed, and takes no new client.
    pub shutting_down: bool,
    /// What only its kind has.
    pub kind: SavedExportKind,
}

/// What only one kind of export has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SavedExportKind {
    /// It is on the NBD server.
    Nbd(SavedNbdExport),
    /// It is a virtio block device on a socket. Front ends connect again by themselves.
    VhostUserBlk,
    /// It is a file of the host.
    Fuse(SavedFuseExport),
    /// It is a device of the host's kernel.
    VduseBlk(SavedVduseExport),
}

/// A VDUSE export. The kernel keeps the device and what its driver has set up; requests in flight are noted in a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedVduseExport {
    /// The name of the device.
    pub name: String,
    /// The place of the device in the list of descriptors that is handed over; none once it is served no more.
    pub descriptor: Option<u32>,
    /// The path of the file in which requests in flight are noted.
    pub in_flight: String,
}

/// A FUSE export. What the kernel waits for is read from its device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedFuseExport {
    /// The path of the file that it covers.
    pub mountpoint: String,
    /// The place of its FUSE device in the list of descriptors that is handed over; none once it is served no more.
    pub descriptor: Option<u32>,
    /// The number by which the host knows the mounted device.
    pub device: u64,
    /// Other users may open the file.
    pub allow_other: bool,
    /// The mode of the file, with the bits that say that it is a regular one.
    pub mode: u32,
    /// The user whom the file belongs to.
    pub uid: u32,
    /// The group that the file belongs to.
    pub gid: u32,
    /// What was agreed on with the kernel; none before it has asked.
    pub agreed: Option<SavedFuseAgreement>,
    /// How many requests were taken from the device and not answered.
    pub in_flight: u32,
}

/// What a FUSE export and the kernel have agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedFuseAgreement {
    /// The most bytes of one write.
    pub max_write: u32,
    /// Reads and writes pass the kernel's cache by.
    pub direct: bool,
}

/// An export on the NBD server. What clients were told of it holds as long as it lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedNbdExport {
    /// The name that clients ask for.
    pub name: String,
    /// The length in bytes that clients are told.
    pub size: u64,
    /// The transmission flags that all clients are told, as NBD has them.
    pub flags: u16,
    /// What clients are told that requests must be aligned to, in bytes.
    pub request_alignment: u32,
    /// The most bytes of one request, 0 for no limit.
    pub max_transfer: u32,
    /// The dirty bitmaps that it shows, by their nodes and their own numbers, in the order of their contexts.
    pub bitmaps: Vec<(NodeId, BitmapId)>,
    /// The clients that have chosen it, in the order in which they came.
    pub connections: Vec<SavedConnection>,
}

/// The NBD server, while it listens. Clients that have chosen no export are not handed over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedNbdServer {
    /// What it was started with, as the command line has it.
    pub options: SavedOptions,
    /// The places of its listening sockets in the list of descriptors that is handed over.
    pub descriptors: Vec<u32>,
}

/// How an NBD client and the server agreed to frame replies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SavedReplies {
    /// Simple replies to everything.
    Simple,
    /// Structured replies to reads, block status and what fails.
    Structured,
    /// Requests and replies of 64 bits.
    Extended,
}

/// Where an NBD client stands between its requests, or in them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SavedStanding {
    /// Nothing of it is in flight. Another server can go on with it, beginning with these bytes, which were received and not
    /// looked at, and then with those from its socket.
    Between {
        /// Bytes of requests that have not begun.
        received: Vec<u8>,
    },
    /// A request of it has come in part, or its reply has not gone out to its last byte: because the client is slow, or a
    /// node below does not answer. Or it is inside TLS, whose keys are not handed over. Only this server can go on with it.
    /// Whoever takes over leaves the connection here until it stands between two requests, or cuts it.
    Inside,
}

/// An NBD client that has chosen an export.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedConnection {
    /// The connection's number in the server's log.
    pub id: u64,
    /// The place of its socket in the list of descriptors that is handed over.
    pub descriptor: u32,
    /// Who the client is, for people.
    pub peer: String,
    /// How replies are framed.
    pub replies: SavedReplies,
    /// The client chose `base:allocation`.
    pub base_allocation: bool,
    /// The client chose `qemu:allocation-depth`.
    pub allocation_depth: bool,
    /// Which of the export's dirty bitmaps the client chose, a bit for each, the first one lowest.
    pub dirty_bitmaps: u64,
    /// Where it stands in what it asks for.
    pub standing: SavedStanding,
    /// The server has begun to end the connection.
    pub shutting_down: bool,
}
