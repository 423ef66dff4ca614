//! Images for any program: checked, resized, described, and their files deleted.

use millpond_messages::graph::{DriverFacts, Mutation, Query};
use millpond_messages::io::Preallocation;
use millpond_messages::{CheckResult, DriverInfo, ErrorKind, Repair, RequestFlags, Result};

use super::handle::GraphHandle;

impl GraphHandle {
    /// Changes a node's length, and says how: with `exact` it fails rather than end up longer; `preallocation` lays the new
    /// space out; ZERO_WRITE among `flags` has it read as zeroes.
    ///
    /// # Errors
    /// Somebody relies on the length, a flag means nothing here, or the driver's.
    pub async fn truncate(
        &self,
        node_name: impl Into<String>,
        size: u64,
        exact: bool,
        preallocation: Preallocation,
        flags: RequestFlags,
    ) -> Result<()> {
        self.get(Mutation::Truncate {
            node_name: node_name.into(),
            size,
            exact,
            preallocation,
            flags,
        })
        .await
    }

    /// Checks the metadata of a node's image, and mends what `repair` says. Requests to the node wait until that is done.
    ///
    /// # Errors
    /// There is no such node, its format has nothing to check, somebody forbids what a repair needs, or the driver's.
    pub async fn check(&self, node_name: impl Into<String>, repair: Repair) -> Result<CheckResult> {
        let node_name = node_name.into();
        self.get(Mutation::Check { node_name, repair }).await
    }

    /// Deletes the file that an open node keeps its data in. The node can be used until it is closed.
    ///
    /// # Errors
    /// There is no such node, its driver has no file that it could delete ([`ErrorKind::Unsupported`]), or the host's.
    pub async fn delete_file(&self, node_name: impl Into<String>) -> Result<()> {
        let node_name = node_name.into();
        self.get(Mutation::DeleteFile { node_name }).await
    }

    /// The same for who is cleaning up and can do no more: a driver that has no file is fine, and any other error is a line
    /// in the log.
    pub async fn delete_file_noerr(&self, node_name: impl Into<String>) {
        match self.delete_file(node_name).await {
            Err(error) if error.kind() != ErrorKind::Unsupported => {
                tracing::warn!(%error, "the file of a node is not deleted");
            }
            Ok(()) | Err(_) => {}
        }
    }

    /// What a format says of its image; raw images and filters say what the node below them says.
    ///
    /// # Errors
    /// There is no such node, or its driver has nothing to say ([`ErrorKind::Unsupported`]).
    pub async fn driver_info(&self, node_name: impl Into<String>) -> Result<DriverInfo> {
        let node_name = node_name.into();
        self.get(Query::DriverInfo { node_name }).await
    }

    /// The drivers that may be used, by name: for reading at least, or for writing too.
    ///
    /// # Errors
    /// The actor has ended.
    pub async fn drivers(&self, read_only: bool) -> Result<Vec<DriverFacts>> {
        self.get(Query::Drivers { read_only }).await
    }
}
