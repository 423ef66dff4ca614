//! A handle on a node that is found by name, for any thread.

use std::sync::Arc;

use millpond_engine::node::Client;
use millpond_messages::graph::{NodeFacts, RootRequest};
use millpond_messages::{NodeId, Result};

use super::handle::GraphHandle;
use super::names::Known;

/// A node, found by its name. The node may be deleted while somebody has this; what is asked by it fails then.
#[derive(Clone)]
pub struct NodeHandle {
    known: Arc<Known>,
    graph: GraphHandle,
}

impl NodeHandle {
    /// The number of the node, which no other node ever has.
    #[must_use]
    pub fn id(&self) -> NodeId {
        self.known.id
    }

    /// The name of the node.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.known.name
    }

    /// The name of the node's driver.
    #[must_use]
    pub fn driver(&self) -> &'static str {
        self.known.driver
    }

    /// Asks the graph actor for all facts of the node that has this name by then.
    ///
    /// # Errors
    /// There is none any more.
    pub async fn facts(&self) -> Result<NodeFacts> {
        self.graph.node(self.name()).await
    }

    /// Has the graph actor take hold of the node that has this name by then, whatever node `request` names. Only a hold
    /// permits requests.
    ///
    /// # Errors
    /// There is none any more, or others do not share what is asked for.
    pub async fn attach(&self, request: RootRequest) -> Result<Client> {
        let node = self.name().to_owned();
        self.graph.attach(RootRequest { node, ..request }).await
    }
}

impl GraphHandle {
    /// Finds a node by its name, at once and on any thread: the graph actor is not asked. A node is found from before the reply
    /// to the request that added it until before the reply to the one that deleted it.
    #[must_use]
    pub fn find(&self, node_name: &str) -> Option<NodeHandle> {
        let known = self.names().get(node_name)?;
        let graph = self.clone();
        Some(NodeHandle { known, graph })
    }
}
