//! Exports, and the clients connected to them.

use serde::{Deserialize, Serialize};

use super::SavedOptions;
use crate::{IoThreadId, RootId};

/// An export and its clients.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedExport {
    /// The id of the export.
    pub id: String,
    /// The kind of export, such as `nbd`.
    pub kind: String,
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
    /// Its clients, in the order in which they came.
    pub connections: Vec<SavedConnection>,
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

/// An NBD client that has chosen an export. Between two of its requests nothing else is known of it.
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
    /// What the server said of the export: transmission flags as NBD has them.
    pub flags: u16,
    /// The length in bytes that the client was told.
    pub size: u64,
}
