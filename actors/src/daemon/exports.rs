//! What the daemon needs of exports and of the NBD server.

use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use millpond_messages::qapi::{
    BlockExportInfo, BlockExportOptions, BlockExportRemoveMode, NbdServerOptions, QmpError, SocketAddress,
};

/// The exports and the one NBD server. Whoever implements it tells the event `BLOCK_EXPORT_DELETED` itself,
/// when the last of an export is gone.
pub trait Exports {
    /// Starts the NBD server.
    fn start_server(&self, options: NbdServerOptions) -> LocalBoxFuture<'static, Result<(), QmpError>>;

    /// Stops the NBD server, and removes its exports; does nothing if it does not run.
    fn stop_server(&self) -> LocalBoxFuture<'static, Result<(), QmpError>>;

    /// Adds an export, and starts to serve it.
    fn add(&self, options: BlockExportOptions) -> LocalBoxFuture<'static, Result<(), QmpError>>;

    /// Begins to remove an export.
    fn delete(
        &self,
        id: String,
        mode: BlockExportRemoveMode,
    ) -> LocalBoxFuture<'static, Result<(), QmpError>>;

    /// The exports there are.
    fn query(&self) -> LocalBoxFuture<'static, Vec<BlockExportInfo>>;

    /// Where the NBD server listens, if it runs.
    fn server_addresses(&self) -> Option<Vec<SocketAddress>>;

    /// Lets clients that connect wait, or no more. They wait while a command line is carried out: who connects to a
    /// server as soon as it listens must find the exports that come behind it.
    fn hold_clients(&self, hold: bool);

    /// Removes all exports and stops the NBD server; ends when both are gone.
    fn close_all(&self) -> LocalBoxFuture<'static, ()>;
}

/// For a daemon that shows its nodes to nobody.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoExports;

fn no_server() -> LocalBoxFuture<'static, Result<(), QmpError>> {
    async { Err(QmpError::generic("NBD server not running")) }.boxed_local()
}

impl Exports for NoExports {
    fn start_server(&self, _: NbdServerOptions) -> LocalBoxFuture<'static, Result<(), QmpError>> {
        async { Err(QmpError::generic("This daemon has no NBD server")) }.boxed_local()
    }

    fn stop_server(&self) -> LocalBoxFuture<'static, Result<(), QmpError>> {
        async { Ok(()) }.boxed_local()
    }

    fn add(&self, _: BlockExportOptions) -> LocalBoxFuture<'static, Result<(), QmpError>> {
        no_server()
    }

    fn delete(&self, id: String, _: BlockExportRemoveMode) -> LocalBoxFuture<'static, Result<(), QmpError>> {
        async move { Err(QmpError::generic(format!("Export '{id}' is not found"))) }.boxed_local()
    }

    fn query(&self) -> LocalBoxFuture<'static, Vec<BlockExportInfo>> {
        async { Vec::new() }.boxed_local()
    }

    fn server_addresses(&self) -> Option<Vec<SocketAddress>> {
        None
    }

    fn hold_clients(&self, _: bool) {}

    fn close_all(&self) -> LocalBoxFuture<'static, ()> {
        async {}.boxed_local()
    }
}
