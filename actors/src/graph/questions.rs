//! Questions about nodes and iothreads, and what is done at one node, for any program.

use futures_channel::oneshot;
use millpond_messages::graph::{GraphFacts, Immediate, IothreadReport, Mutation, NodeFacts, Query};
use millpond_messages::handshake::PendingDrain;
use millpond_messages::saved::SavedGraph;
use millpond_messages::{BlockSizes, DebugOrder, Geometry, LatencyHistograms, NodeReport, Result};
use serde_json::Value;

use super::handle::GraphHandle;
use super::inbox::{Incoming, closed};

impl GraphHandle {
    /// The last messages of all threads and what is unanswered, as `millpond flight` reads it. An iothread that is stuck
    /// holds it up for two seconds at most.
    ///
    /// # Errors
    /// The graph has ended.
    pub async fn flight_record(&self, reason: impl Into<String>) -> Result<Vec<u8>> {
        let (done, written) = oneshot::channel();
        self.post(Incoming::Flight(reason.into(), done));
        written.await.map_err(|_| closed())
    }

    /// The state of the graph and of its nodes, to be written down. Another daemon can go on from it if everything is drained
    /// before and nothing is changed until it is there.
    ///
    /// # Errors
    /// A change is under way, or a node's state cannot be saved.
    pub async fn save(&self) -> Result<SavedGraph> {
        let graph: Box<SavedGraph> = self.get(Query::Save).await?;
        Ok(*graph)
    }

    /// One node's facts.
    ///
    /// # Errors
    /// There is none.
    pub async fn node(&self, node_name: impl Into<String>) -> Result<NodeFacts> {
        self.get(Query::Node {
            node_name: node_name.into(),
        })
        .await
    }

    /// The sizes of the sectors of the device behind a node.
    ///
    /// # Errors
    /// There is no such node, or no device behind it that tells.
    pub async fn block_sizes(&self, node_name: impl Into<String>) -> Result<BlockSizes> {
        let node_name = node_name.into();
        self.get(Query::BlockSizes { node_name }).await
    }

    /// The geometry of the disk behind a node.
    ///
    /// # Errors
    /// There is no such node, or no disk behind it that has one.
    pub async fn geometry(&self, node_name: impl Into<String>) -> Result<Geometry> {
        let node_name = node_name.into();
        self.get(Query::Geometry { node_name }).await
    }

    /// The directory that relative names in a node's image start from, with a slash at its end.
    ///
    /// # Errors
    /// There is no such node, or its file has no name.
    pub async fn directory(&self, node_name: impl Into<String>) -> Result<String> {
        let node_name = node_name.into();
        self.get(Query::Directory { node_name }).await
    }

    /// The whole graph.
    ///
    /// # Errors
    /// The actor has ended.
    pub async fn facts(&self) -> Result<GraphFacts> {
        self.get(Query::Graph).await
    }

    /// Has every read of a node copied up into it from below. Each call is taken back by one of
    /// [`GraphHandle::disable_copy_on_read`].
    ///
    /// # Errors
    /// There is no such node, or it cannot be written.
    pub async fn enable_copy_on_read(&self, node_name: impl Into<String>) -> Result<()> {
        let (node_name, on) = (node_name.into(), true);
        self.get(Mutation::CopyOnRead { node_name, on }).await
    }

    /// Takes one call of [`GraphHandle::enable_copy_on_read`] back.
    ///
    /// # Errors
    /// There is no such node, or no such call.
    pub async fn disable_copy_on_read(&self, node_name: impl Into<String>) -> Result<()> {
        let (node_name, on) = (node_name.into(), false);
        self.get(Mutation::CopyOnRead { node_name, on }).await
    }

    /// Holds the next request that reaches an event, at a node that listens or the next one below that does, under a tag.
    ///
    /// # Errors
    /// There is no such node or event, or nobody listens (`ErrorKind::Unsupported`).
    pub async fn debug_breakpoint(
        &self,
        node_name: impl Into<String>,
        event: impl Into<String>,
        tag: impl Into<String>,
    ) -> Result<()> {
        let (event, tag) = (event.into(), tag.into());
        self.debug(node_name, DebugOrder::Breakpoint { event, tag }).await
    }

    /// Forgets the breakpoints of a tag, and lets go of all that they hold.
    ///
    /// # Errors
    /// There is none, no such node, or nobody listens.
    pub async fn debug_remove_breakpoint(
        &self,
        node_name: impl Into<String>,
        tag: impl Into<String>,
    ) -> Result<()> {
        self.debug(node_name, DebugOrder::RemoveBreakpoint { tag: tag.into() })
            .await
    }

    /// Lets go of a request that is held under a tag.
    ///
    /// # Errors
    /// There is none, no such node, or nobody listens.
    pub async fn debug_resume(&self, node_name: impl Into<String>, tag: impl Into<String>) -> Result<()> {
        self.debug(node_name, DebugOrder::Resume { tag: tag.into() })
            .await
    }

    /// Whether a request is held under a tag; not where nobody listens.
    ///
    /// # Errors
    /// There is no such node.
    pub async fn debug_is_suspended(
        &self,
        node_name: impl Into<String>,
        tag: impl Into<String>,
    ) -> Result<bool> {
        let (node_name, order) = (node_name.into(), DebugOrder::IsSuspended { tag: tag.into() });
        self.get(Immediate::Debug { node_name, order }).await
    }

    /// The whole graph in the DOT language.
    ///
    /// # Errors
    /// The actor has ended.
    pub async fn dot(&self) -> Result<String> {
        let text: Value = self.get(Query::Dot).await?;
        Ok(text.as_str().unwrap_or_default().to_owned())
    }

    async fn debug(&self, node_name: impl Into<String>, order: DebugOrder) -> Result<()> {
        let node_name = node_name.into();
        self.get(Immediate::Debug { node_name, order }).await
    }

    /// Drains that are not still, with what they wait for.
    ///
    /// # Errors
    /// The actor has ended.
    pub async fn pending_drains(&self) -> Result<Vec<PendingDrain>> {
        self.get(Query::PendingDrains).await
    }

    /// What iothreads have done, the main one first.
    ///
    /// # Errors
    /// The actor has ended.
    pub async fn iothread_statistics(&self) -> Result<Vec<IothreadReport>> {
        self.get(Query::IothreadStatistics).await
    }

    /// What has passed each node, the oldest first.
    ///
    /// # Errors
    /// The actor has ended.
    pub async fn node_statistics(&self) -> Result<Vec<NodeReport>> {
        self.get(Query::NodeStatistics).await
    }

    /// Counts a node's latencies from now on in new histograms, in place of those of the same kinds; none at all ends those
    /// that there are.
    ///
    /// # Errors
    /// There is no such node.
    pub async fn set_histograms(
        &self,
        node_name: impl Into<String>,
        histograms: LatencyHistograms,
    ) -> Result<()> {
        let node_name = node_name.into();
        self.get(Mutation::SetHistograms {
            node_name,
            histograms,
        })
        .await
    }

    /// `query-named-block-nodes`.
    ///
    /// # Errors
    /// The actor has ended.
    pub async fn named_nodes(&self, flat: bool) -> Result<Value> {
        self.get(Query::NamedNodes { flat }).await
    }
}
