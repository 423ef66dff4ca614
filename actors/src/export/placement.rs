//! Where an export is to be served, by what its user says.

use millpond_messages::graph::{ListIothreads, NodeFacts};
use millpond_messages::qapi::{BlockExportIothreads, BlockExportOptions};
use millpond_messages::{Error, ErrorKind, IoThreadId, Result};

use crate::graph::GraphHandle;

/// Where an export is served.
pub(super) struct Placement {
    /// The iothread that the node is wanted on, if anywhere.
    pub(super) home: Option<IoThreadId>,
    /// The iothreads that the user has named.
    pub(super) named: Vec<IoThreadId>,
}

fn invalid(text: &'static str) -> Error {
    Error::new(ErrorKind::InvalidArgument, text)
}

impl Placement {
    /// Where an export of `node` with these options is to be served.
    ///
    /// # Errors
    /// QEMU's texts: iothreads that are not there, none at all, or several that are to be fixed.
    pub(super) async fn find(
        graph: &GraphHandle,
        options: &BlockExportOptions,
        node: &NodeFacts,
    ) -> Result<Self> {
        let is_fixed = options.fixed_iothread.unwrap_or(false);
        let (home, named) = match &options.iothread {
            Some(BlockExportIothreads::Single(name)) => {
                let named = iothreads(graph, std::slice::from_ref(name)).await?;
                (named.first().copied(), named)
            }
            Some(BlockExportIothreads::Multi(_)) if is_fixed => {
                return Err(invalid("Cannot use fixed-iothread for a multi-threaded export"));
            }
            Some(BlockExportIothreads::Multi(names)) if names.is_empty() => {
                return Err(invalid("The set of I/O threads must not be empty"));
            }
            Some(BlockExportIothreads::Multi(names)) => {
                let named = iothreads(graph, names).await?;
                // A node that lives on one of them already need not go.
                let home = named.iter().find(|id| **id == node.iothread).or(named.first());
                (home.copied(), named)
            }
            // What is fixed stays where it is.
            None => {
                let home = is_fixed.then_some(node.iothread);
                (home, home.into_iter().collect())
            }
        };
        Ok(Self { home, named })
    }
}

/// The iothreads of these names.
async fn iothreads(graph: &GraphHandle, names: &[String]) -> Result<Vec<IoThreadId>> {
    let iothreads = graph.ask(ListIothreads).await?;
    let found = names.iter().map(|name| {
        let found = iothreads.iter().find(|(options, ..)| options.id == *name);
        let id = found.map(|(.., id)| *id);
        id.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("iothread \"{name}\" not found")))
    });
    found.collect()
}
