//! The seam between a monitor and what the daemon can do.

use futures_util::future::LocalBoxFuture;
use millpond_messages::qapi::{JsonText, Object, QmpError};

/// Carries commands out.
///
/// The arguments were checked against the schema: every member is known and of its type. A command
/// runs to its end whether or not the client that asked for it is still there.
pub trait Dispatch {
    /// The names of the commands carried out, as `query-commands` lists them.
    fn commands(&self) -> &[&'static str];

    /// Drivers an embedder brought, whose options the schema does not know.
    fn extra_drivers(&self) -> &[String] {
        &[]
    }

    /// Starts `command`; the future ends when the command has.
    fn dispatch(
        &self,
        command: &str,
        arguments: Object,
    ) -> LocalBoxFuture<'static, Result<JsonText, QmpError>>;
}
