//! Drained sections, op blockers and frozen chains: each lasts as long as its guard.

use millpond_messages::graph::{
    DrainBegin, DrainEnd, DrainScope, ExtendOpBlock, FreezeChain, ListOpBlockers, OpBlock, OpUnblock,
    UnfreezeChain,
};
use millpond_messages::{OpBlocker, Result, Token};

use super::asked::unblock_all;
use super::handle::GraphHandle;

impl GraphHandle {
    /// Begins a drained section, and waits until it is still. The section ends when the guard is dropped.
    ///
    /// # Errors
    /// There is no such node.
    pub async fn drain(&self, scope: DrainScope, user: impl Into<String>) -> Result<DrainGuard> {
        let user = user.into();
        let token = self.ask(DrainBegin { scope, user }).await?;
        let handle = self.clone();
        Ok(DrainGuard { token, handle })
    }

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
        let request = OpBlock {
            node_name: node_name.into(),
            operations: operations.to_vec(),
            reason: reason.into(),
            root: None,
        };
        let token = self.ask(request).await?;
        let handle = self.clone();
        Ok(OpBlockGuard { token, handle })
    }

    /// Asks whether an operation is allowed on a node at present.
    ///
    /// # Errors
    /// There is no such node, or somebody forbids it: `Node 'X' is busy: REASON`.
    pub async fn check_operation(&self, node_name: &str, operation: OpBlocker) -> Result<()> {
        let query = ListOpBlockers {
            node_name: node_name.to_owned(),
        };
        let blockers = self.ask(query).await?;
        let found = blockers.iter().find(|blocker| blocker.operation == operation);
        found.map_or(Ok(()), |blocker| Err(blocker.error(node_name)))
    }

    /// Keeps the links of a chain from `top` down to `base`, or to its end, as they are until the guard is dropped.
    ///
    /// # Errors
    /// There are no such nodes, or a link is frozen already or must not be.
    pub async fn freeze_chain(&self, top: impl Into<String>, base: Option<String>) -> Result<FreezeGuard> {
        let (top, root) = (top.into(), None);
        let token = self.ask(FreezeChain { top, base, root }).await?;
        let handle = self.clone();
        Ok(FreezeGuard { token, handle })
    }
}

/// A drained section that is still. It ends when this is dropped.
#[must_use = "the section ends when the guard is dropped"]
pub struct DrainGuard {
    token: Token,
    handle: GraphHandle,
}

impl DrainGuard {
    /// The number of the section, which queries show.
    #[must_use]
    pub const fn token(&self) -> Token {
        self.token
    }
}

impl Drop for DrainGuard {
    fn drop(&mut self) {
        self.handle.send(DrainEnd(self.token));
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
        let request = ExtendOpBlock {
            token: self.token,
            node_name: node_name.into(),
            operations: operations.to_vec(),
        };
        self.handle.ask(request).await
    }

    /// Allows operations on a node again. A blocker that forbids nothing any more is gone.
    ///
    /// # Errors
    /// There is no such node, or the blocker is gone.
    pub async fn unblock(&self, node_name: impl Into<String>, operations: &[OpBlocker]) -> Result<()> {
        let request = OpUnblock {
            token: self.token,
            node_name: Some(node_name.into()),
            operations: operations.to_vec(),
        };
        self.handle.ask(request).await
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
        self.handle.send(UnfreezeChain(self.token));
    }
}
