//! The whole daemon, written down: what a later one would begin from.

use std::collections::BTreeSet;

use millpond_messages::graph::{DrainScope, RootUser, SaveGraph};
use millpond_messages::qapi::QmpError;
use millpond_messages::saved::SavedDaemon;
use millpond_ring::Fd;

use super::Daemon;
use crate::export::saved::Descriptors;

/// The state of a daemon, and what it names by its place in a list.
#[derive(Debug)]
pub struct DaemonState {
    /// The state, as it is written down.
    pub daemon: SavedDaemon,
    /// The sockets that the state names: of the NBD server, and of its clients.
    pub descriptors: Vec<Fd>,
}

impl Daemon {
    /// The state of everything that outlives a request, taken in a drained section of all nodes, which is in the state too.
    /// Monitors are not in it, nor are clients that have not chosen an export yet: both come again.
    ///
    /// The daemon goes on afterwards, and what clients send from then on is not in the state: whoever hands their sockets over
    /// has it receive no more before.
    ///
    /// A client in the middle of a request is said to be there, and not waited for: it may be one that does not read its
    /// replies.
    ///
    /// # Errors
    /// Something was being made, changed or removed meanwhile, so that there is no one state; or a node's cannot be saved.
    pub async fn save(&self) -> Result<DaemonState, QmpError> {
        let (graph, descriptors) = (&self.site().graph, Descriptors::default());
        let still = graph.drain(DrainScope::All, "saving the state").await?;
        let daemon = SavedDaemon {
            objects: self.objects(|objects| objects.save()),
            throttle_groups: self.site().throttle_groups.save(),
            nbd_server: self.exports().save_server(&descriptors)?,
            exports: self.exports().save(&descriptors).await?,
            jobs: self.jobs().save().await,
            graph: *graph.ask(SaveGraph).await?,
        };
        drop(still);
        let with_exports = daemon.exports.iter().map(|export| export.root);
        let in_graph = daemon.graph.roots.iter();
        let in_graph = in_graph.filter(|root| matches!(root.user, RootUser::Export(_)));
        if with_exports.collect::<BTreeSet<_>>() != in_graph.map(|root| root.id).collect() {
            let text = "The state cannot be saved while an export is being added or removed";
            return Err(QmpError::generic(text));
        }
        let descriptors = descriptors.take();
        Ok(DaemonState { daemon, descriptors })
    }
}
