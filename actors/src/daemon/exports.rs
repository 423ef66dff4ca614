//! What the daemon needs of exports and of the NBD server.

use futures_util::future::LocalBoxFuture;
use messages::qapi::{
    BlockExportInfo, BlockExportOptions, BlockExportRemoveMode, NbdServerOptions, QmpError,
};

/// The exports and the one NBD server. Whoever implements it tells the event `BLOCK_EXPORT_DELETED` itself,
/// when the last of an export is gone.
pub trait Exports {
    /// Starts the NBD server.
    fn start_server(&self, options: NbdServerOptions) -> LocalBoxFuture<'static, Result<(), QmpError>>;

    /// Stops the NBD server, and removes its exports; does nothing if it does not run.
    fn stop_server(&self) -> LocalBoxFuture<'static, Result<(), QmpError>>;

    /// Adds an export.
    fn add(&self, options: BlockExportOptions) -> LocalBoxFuture<'static, Result<(), QmpError>>;

    /// Begins to remove an export.
    fn delete(
        &self,
        id: String,
        mode: BlockExportRemoveMode,
    ) -> LocalBoxFuture<'static, Result<(), QmpError>>;

    /// The exports there are.
    fn query(&self) -> LocalBoxFuture<'static, Vec<BlockExportInfo>>;

    /// Whether the NBD server runs.
    fn server_runs(&self) -> bool;

    /// Removes all exports and stops the NBD server; ends when both are gone.
    fn close_all(&self) -> LocalBoxFuture<'static, ()>;
}
