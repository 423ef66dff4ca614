//! The graph's edits for any program: what may be done to chains, and who forbids what meanwhile.

use messages::global_state::{BlockedBy, Blocker, GraphReply, GraphRequest, NodeFacts, Query};
use messages::{OpBlocker, Result, Token};

use super::handle::{GraphHandle, unblock_all, unexpected};

impl GraphHandle {
    /// Forbids operations on a node until the guard is dropped.
    ///
    /// # Errors
    /// There is no such node.
    pub async fn op_block(
        &self,
        node_name: impl Into<String>,
        operations: &[OpBlocker],
        reason: impl Into<String>,
    ) -> Result<OpBlockGuard> {
        let by = BlockedBy::New {
            reason: reason.into(),
            root: None,
        };
        match self
            .ask(GraphRequest::OpBlock {
                node_name: node_name.into(),
                operations: operations.to_vec(),
                by,
            })
            .await?
        {
            GraphReply::Blocked(token) => Ok(OpBlockGuard {
                token,
                handle: self.clone(),
            }),
            _ => Err(unexpected()),
        }
    }

    /// What is forbidden on a node and why, the newest reason first; nothing is if this is empty.
    ///
    /// # Errors
    /// There is no such node.
    pub async fn op_blockers(&self, node_name: impl Into<String>) -> Result<Vec<Blocker>> {
        let node_name = node_name.into();
        match self
            .ask(GraphRequest::Query(Query::OpBlockers { node_name }))
            .await?
        {
            GraphReply::Blockers(blockers) => Ok(blockers),
            _ => Err(unexpected()),
        }
    }

    /// Asks whether an operation is allowed on a node at present.
    ///
    /// # Errors
    /// There is no such node, or somebody forbids it: `Node 'X' is busy: REASON`.
    pub async fn check_operation(&self, node_name: &str, operation: OpBlocker) -> Result<()> {
        let blockers = self.op_blockers(node_name).await?;
        let found = blockers.iter().find(|blocker| blocker.operation == operation);
        found.map_or(Ok(()), |blocker| Err(blocker.error(node_name)))
    }

    /// Keeps the links of a chain from `top` down to `base`, or to its end, as they are until the guard is dropped.
    ///
    /// # Errors
    /// There are no such nodes, or a link is frozen already or must not be.
    pub async fn freeze_chain(&self, top: impl Into<String>, base: Option<String>) -> Result<FreezeGuard> {
        let (top, root) = (top.into(), None);
        match self.ask(GraphRequest::FreezeChain { top, base, root }).await? {
            GraphReply::Frozen(token) => Ok(FreezeGuard {
                token,
                handle: self.clone(),
            }),
            _ => Err(unexpected()),
        }
    }

    /// Asks whether the links of a chain may be changed.
    ///
    /// # Errors
    /// There are no such nodes, or a link is frozen: it is named.
    pub async fn check_chain_unfrozen(&self, top: impl Into<String>, base: Option<String>) -> Result<()> {
        let top = top.into();
        self.done(GraphRequest::Query(Query::ChainUnfrozen { top, base }))
            .await
    }

    async fn found(&self, query: Query) -> Result<Option<NodeFacts>> {
        match self.ask(GraphRequest::Query(query)).await? {
            GraphReply::Found(node) => Ok(node),
            _ => Err(unexpected()),
        }
    }

    /// The image of `active`'s chain that has `node_name` as its backing image, filters left out.
    ///
    /// # Errors
    /// There are no such nodes.
    pub async fn find_overlay(&self, active: &str, node_name: &str) -> Result<Option<NodeFacts>> {
        let (active, node_name) = (active.to_owned(), Some(node_name.to_owned()));
        self.found(Query::FindOverlay { active, node_name }).await
    }

    /// The last image of a node's chain: itself, if nothing is behind it.
    ///
    /// # Errors
    /// There is no such node.
    pub async fn find_base(&self, node_name: &str) -> Result<Option<NodeFacts>> {
        let (active, node_name) = (node_name.to_owned(), None);
        self.found(Query::FindOverlay { active, node_name }).await
    }

    /// The image of a chain that its overlay has under this filename.
    ///
    /// # Errors
    /// There is no such node.
    pub async fn find_backing_image(&self, top: &str, filename: &str) -> Result<Option<NodeFacts>> {
        let (top, filename) = (top.to_owned(), filename.to_owned());
        self.found(Query::FindBackingImage { top, filename }).await
    }

    /// Whether `base` is in the chain of `top`.
    ///
    /// # Errors
    /// There are no such nodes.
    pub async fn chain_contains(&self, top: &str, base: &str) -> Result<bool> {
        let (top, base) = (top.to_owned(), base.to_owned());
        match self
            .ask(GraphRequest::Query(Query::ChainContains { top, base }))
            .await?
        {
            GraphReply::Truth(truth) => Ok(truth),
            _ => Err(unexpected()),
        }
    }

    /// The node that users added next after `after`, or first.
    ///
    /// # Errors
    /// There is no node `after`.
    pub async fn next_owned(&self, after: Option<String>) -> Result<Option<NodeFacts>> {
        self.found(Query::NextOwned { after }).await
    }
}

/// An op blocker. What it forbids is allowed again when this is dropped.
#[must_use = "the operations are allowed again when the guard is dropped"]
pub struct OpBlockGuard {
    token: Token,
    handle: GraphHandle,
}

impl OpBlockGuard {
    /// Forbids operations on this node as well.
    ///
    /// # Errors
    /// There is no such node.
    pub async fn block(&self, node_name: impl Into<String>, operations: &[OpBlocker]) -> Result<()> {
        let by = BlockedBy::Token(self.token);
        let request = GraphRequest::OpBlock {
            node_name: node_name.into(),
            operations: operations.to_vec(),
            by,
        };
        self.handle.done(request).await
    }

    /// Allows operations on a node again. A blocker that forbids nothing any more is gone.
    ///
    /// # Errors
    /// There is no such node, or the blocker is gone.
    pub async fn unblock(&self, node_name: impl Into<String>, operations: &[OpBlocker]) -> Result<()> {
        self.handle
            .done(GraphRequest::OpUnblock {
                token: self.token,
                node_name: Some(node_name.into()),
                operations: operations.to_vec(),
            })
            .await
    }
}

impl Drop for OpBlockGuard {
    fn drop(&mut self) {
        self.handle.send(unblock_all(self.token));
    }
}

/// A hold on a chain's links. They may be changed again when this is dropped.
#[must_use = "the links are given free when the guard is dropped"]
pub struct FreezeGuard {
    token: Token,
    handle: GraphHandle,
}

impl Drop for FreezeGuard {
    fn drop(&mut self) {
        self.handle.send(GraphRequest::UnfreezeChain(self.token));
    }
}
