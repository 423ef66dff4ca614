//! The graph's edits for any program: what may be done to chains, and who forbids what meanwhile.

use millpond_messages::graph::{BlockedBy, Blocker, ChildOf, Mutation, NodeFacts, Options, Query};
use millpond_messages::{OpBlocker, Result, Token};

use super::handle::{GraphHandle, unblock_all};

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
        let request = Mutation::OpBlock {
            node_name: node_name.into(),
            operations: operations.to_vec(),
            by,
        };
        let token = self.get(request).await?;
        let handle = self.clone();
        Ok(OpBlockGuard { token, handle })
    }

    /// What is forbidden on a node and why, the newest reason first; nothing is if this is empty.
    ///
    /// # Errors
    /// There is no such node.
    pub async fn op_blockers(&self, node_name: impl Into<String>) -> Result<Vec<Blocker>> {
        let node_name = node_name.into();
        self.get(Query::OpBlockers { node_name }).await
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

    /// Puts `new` in the place of `node`, and `node` behind it: as what a filter filters, or as its backing node.
    ///
    /// # Errors
    /// `new` has such a child already or takes none, it would close a circle, a parent relies on its edge, or
    /// permissions; nothing has changed.
    pub async fn append(&self, node: impl Into<String>, new: impl Into<String>) -> Result<()> {
        let (node, new) = (node.into(), new.into());
        self.get(Mutation::Append { node, new }).await
    }

    /// Puts `to` in the place of `from`, under all parents of `from` that cannot be reached from `to`.
    ///
    /// # Errors
    /// There are no such nodes, a parent relies on its edge, or permissions; nothing has changed.
    pub async fn replace_node(&self, from: impl Into<String>, to: impl Into<String>) -> Result<()> {
        let (from, to) = (from.into(), to.into());
        self.get(Mutation::ReplaceNode { from, to }).await
    }

    /// Lets one edge lead to another node.
    ///
    /// # Errors
    /// There is no such edge or node, it would close a circle, or permissions; nothing has changed.
    pub async fn replace_child(&self, of: ChildOf, node: impl Into<String>) -> Result<()> {
        let node = node.into();
        self.get(Mutation::ReplaceChild { of, node }).await
    }

    /// Opens a node and puts it in the place of its child `node`.
    ///
    /// # Errors
    /// The open's, a parent relies on its edge, or permissions; nothing is left behind.
    pub async fn insert_node(&self, node: impl Into<String>, options: Options) -> Result<()> {
        let node = node.into();
        self.get(Mutation::InsertNode { node, options }).await
    }

    /// Takes a filter out and closes it: what it filters takes its place.
    ///
    /// # Errors
    /// There is no such filter, a link is frozen, or permissions; nothing has changed.
    pub async fn drop_filter(&self, node_name: impl Into<String>) -> Result<()> {
        let node_name = node_name.into();
        self.get(Mutation::DropFilter { node_name }).await
    }

    /// Puts a node behind another as its backing node, or leaves it without. The image's header stays as it is.
    ///
    /// # Errors
    /// The driver has no backing nodes, the link is frozen, it would close a circle, or permissions; nothing has changed.
    pub async fn set_backing(&self, node_name: impl Into<String>, backing: Option<String>) -> Result<()> {
        let node_name = node_name.into();
        self.get(Mutation::SetBacking { node_name, backing }).await
    }

    /// Puts a node behind an edge of `parent` that leads nowhere.
    ///
    /// # Errors
    /// There is no such edge or it is taken, it would close a circle, or permissions; nothing has changed.
    pub async fn attach_child(&self, parent: &str, child: &str, node: &str) -> Result<()> {
        let (parent, child, node) = (parent.to_owned(), child.to_owned(), node.to_owned());
        self.get(Mutation::AttachChild { parent, child, node }).await
    }

    /// Takes away the node behind an edge that `parent` can do without.
    ///
    /// # Errors
    /// There is no such child, the driver cannot do without it, or the link is frozen; nothing has changed.
    pub async fn detach_child(&self, parent: &str, child: &str) -> Result<()> {
        let (parent, child) = (parent.to_owned(), child.to_owned());
        self.get(Mutation::DetachChild { parent, child }).await
    }

    /// Lets an image in the chain of `device` name another backing file; an empty name stores that there is none.
    ///
    /// # Errors
    /// There are no such nodes, the image has no backing file, or its header cannot be written.
    pub async fn change_backing_file(&self, device: &str, image: &str, backing_file: &str) -> Result<()> {
        self.get(Mutation::ChangeBackingFile {
            device: device.to_owned(),
            image_node_name: image.to_owned(),
            backing_file: backing_file.to_owned(),
        })
        .await
    }

    /// Takes the images from `top` down to the one above `base` out of chains: overlays of `top` get `base`, and name it
    /// `backing_file` in their headers, or what opens it.
    ///
    /// # Errors
    /// There are no such nodes, `base` is not below `top`, a parent relies on its edge, permissions, or a header cannot be
    /// written; nothing has changed.
    pub async fn drop_intermediate(&self, top: &str, base: &str, backing_file: Option<String>) -> Result<()> {
        let (top, base) = (top.to_owned(), base.to_owned());
        self.get(Mutation::DropIntermediate {
            top,
            base,
            backing_file,
        })
        .await
    }

    /// Writes what an image has of its own to its backing image, and empties it. Requests to it wait until that is done.
    ///
    /// # Errors
    /// It has no backing image, somebody forbids it or relies on the backing image, or an image cannot be read or
    /// written. Then the overlay is as it was; the backing image may have some of it.
    pub async fn commit(&self, node_name: impl Into<String>) -> Result<()> {
        let node_name = node_name.into();
        self.get(Mutation::Commit { node_name }).await
    }

    /// Lets an image forget all that it has of its own.
    ///
    /// # Errors
    /// The driver cannot, or permissions.
    pub async fn make_empty(&self, node_name: impl Into<String>) -> Result<()> {
        let node_name = node_name.into();
        self.get(Mutation::MakeEmpty { node_name }).await
    }

    /// The node `node_name`, if one with the data of `parent` can take its place without anybody seeing other data than
    /// before.
    ///
    /// # Errors
    /// There are no such nodes, somebody forbids that it is replaced, or somebody could see other data.
    pub async fn check_to_replace_node(&self, parent: &str, node_name: &str) -> Result<Option<NodeFacts>> {
        let (parent, node_name) = (parent.to_owned(), node_name.to_owned());
        self.found(Query::CheckReplace { parent, node_name }).await
    }

    /// Keeps the links of a chain from `top` down to `base`, or to its end, as they are until the guard is dropped.
    ///
    /// # Errors
    /// There are no such nodes, or a link is frozen already or must not be.
    pub async fn freeze_chain(&self, top: impl Into<String>, base: Option<String>) -> Result<FreezeGuard> {
        let (top, root) = (top.into(), None);
        let token = self.get(Mutation::FreezeChain { top, base, root }).await?;
        let handle = self.clone();
        Ok(FreezeGuard { token, handle })
    }

    /// Asks whether the links of a chain may be changed.
    ///
    /// # Errors
    /// There are no such nodes, or a link is frozen: it is named.
    pub async fn check_chain_unfrozen(&self, top: impl Into<String>, base: Option<String>) -> Result<()> {
        let top = top.into();
        self.get(Query::ChainUnfrozen { top, base }).await
    }

    async fn found(&self, query: Query) -> Result<Option<NodeFacts>> {
        self.get(query).await
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
        self.get(Query::ChainContains { top, base }).await
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
        let request = Mutation::OpBlock {
            node_name: node_name.into(),
            operations: operations.to_vec(),
            by,
        };
        self.handle.get(request).await
    }

    /// Allows operations on a node again. A blocker that forbids nothing any more is gone.
    ///
    /// # Errors
    /// There is no such node, or the blocker is gone.
    pub async fn unblock(&self, node_name: impl Into<String>, operations: &[OpBlocker]) -> Result<()> {
        self.handle
            .get(Mutation::OpUnblock {
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
        self.handle.send(Mutation::UnfreezeChain(self.token));
    }
}
