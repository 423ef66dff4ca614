//! A transaction: steps that are taken one by one, each with what undoes it, until all hold or none does.

use std::borrow::Cow;
use std::collections::BTreeMap;

use millpond_drivers::api::BackingLink;
use millpond_messages::{ChildSlot, EdgeId, IoThreadId, NodeId, OpBlocker, Result, Role, RootId, Token};

use crate::effect::Effect;
use crate::order::{Address, NodeOrder, Wiring};
use crate::sections::Cover;
use crate::transaction::burst::{Burst, addresses_behind};
use crate::transaction::ready::Ready;
use crate::transaction::{bitmaps, moving, nodes, permissions, snapshots};
use crate::undo::{Facts, Log, Undo};
use crate::value::edge::{Edge, Parent, Root, Target};
use crate::value::node::Node;
use crate::value::permissions::Plan;
use crate::world::World;

/// Steps taken so far. It must be ended by [`Transaction::commit`] or [`Transaction::roll_back`].
#[must_use = "a transaction is committed or rolled back"]
pub struct Transaction {
    /// What it works on.
    pub world: World,
    pub(super) log: Vec<Undo>,
    pub(super) burst: Burst,
    pub(super) ready: Ready,
}

impl Transaction {
    /// A transaction with no step taken.
    pub fn new(world: &World) -> Self {
        Self {
            world: world.clone(),
            log: Vec::new(),
            burst: Burst::default(),
            ready: Ready::default(),
        }
    }

    /// The transaction that was dropped with this log.
    pub fn resumed(world: &World, log: Log) -> Self {
        Self {
            world: world.clone(),
            log: log.0,
            burst: Burst::default(),
            ready: Ready::default(),
        }
    }

    /// Everything holds: nodes made become visible, sections end.
    pub fn commit(self) {
        let world = self.world.clone();
        for section in self.commit_still() {
            world.undrain(section);
        }
    }

    /// Everything holds, and nodes made become visible. The sections go on: whoever asked ends them in this order.
    #[must_use = "the sections are ended by whoever asked"]
    pub fn commit_still(mut self) -> Vec<Token> {
        self.unready();
        let mut sections = Vec::new();
        for step in self.log.drain(..).rev() {
            match step {
                Undo::Section(token) => sections.push(token),
                Undo::Inserted(node) => self.world.with(|state| state.show(node)),
                Undo::BitmapAdded(node, bitmap) => bitmaps::show(&self.world, node, bitmap),
                Undo::BitmapRemoved(node, bitmap) => bitmaps::forget(&self.world, node, bitmap),
                Undo::Unlinked(edge) => {
                    if let Parent::Node(parent, _) = edge.parent {
                        nodes::shrink(&self.world, parent);
                    }
                }
                Undo::Redirected(edge, _) => {
                    let parent = self.world.graph(|graph| graph.edge(edge).map(|edge| edge.parent));
                    if let Some(Parent::Node(parent, _)) = parent {
                        nodes::shrink(&self.world, parent);
                    }
                }
                Undo::Facts(kept) if kept.is_stale => {
                    self.world.send(kept.node, NodeOrder::ExchangeCommit);
                }
                Undo::Facts(_)
                | Undo::BitmapSplit(..)
                | Undo::BitmapRecording(..)
                | Undo::BitmapChanged(..)
                | Undo::SnapshotTaken(..)
                | Undo::Moved(..)
                | Undo::Linked(_)
                | Undo::Root(_)
                | Undo::Blocked(_)
                | Undo::Permissions { .. }
                | Undo::Readied(_)
                | Undo::Planned { .. }
                | Undo::Connected(..)
                | Undo::RootMoved(..)
                | Undo::Numbered(..)
                | Undo::EdgeSuspended(_)
                | Undo::Recorded(..)
                | Undo::ReopenPrepared(_) => {}
            }
        }
        sections
    }

    /// Undoes all steps, the last one first.
    pub async fn roll_back(self) {
        let world = self.world.clone();
        for section in self.roll_back_still().await {
            world.undrain(section);
        }
    }

    /// Undoes all steps but the section that was begun before all others: whoever asked ends it.
    #[must_use = "the sections are ended by whoever asked"]
    pub async fn roll_back_still(mut self) -> Vec<Token> {
        self.burst = Burst::default();
        self.unready();
        self.world.with(|state| state.undoing += 1);
        let mut sections = Vec::new();
        while let Some(step) = self.log.pop() {
            let is_section = |step: &Undo| matches!(step, Undo::Section(_));
            match step {
                Undo::Section(token) if !self.log.iter().any(is_section) => sections.push(token),
                step => self.undo(step).await,
            }
        }
        self.world.with(|state| state.undoing -= 1);
        sections
    }

    async fn undo(&self, step: Undo) {
        let world = &self.world;
        match step {
            Undo::Section(token) => world.undrain(token),
            Undo::Inserted(node) => nodes::discard_node(world, node).await,
            Undo::Linked(edge) => self.unlink_again(edge),
            Undo::Blocked(token) => world.graph(|graph| graph.blockers.unblock(token, None, &OpBlocker::ALL)),
            Undo::Root(root) => world.with(|state| {
                state.graph.remove_root(root);
                state.push(Effect::RootGone(root));
            }),
            Undo::Unlinked(edge) => {
                // A section begun meanwhile did not know that its nodes have this parent.
                if let Parent::Node(parent, _) = edge.parent {
                    world.may_link(parent, edge.child).await;
                }
                world.graph(|graph| graph.relink(*edge));
            }
            Undo::Redirected(edge, target) => self.redirect_back(edge, target).await,
            Undo::Permissions { edges, nodes } => permissions::restore(world, edges, nodes).await,
            Undo::Planned { edges, nodes } => permissions::forget(world, edges, nodes),
            Undo::Readied(node) => permissions::abort(world, [node]),
            Undo::Connected(parent, slot, target) => self.connect_back(parent, slot, target).await,
            Undo::RootMoved(root, from, to) => self.move_root_back(root, from, to).await,
            Undo::Numbered(node, next) => {
                self.set_number(node, next);
            }
            Undo::EdgeSuspended(edge) => world.graph(|graph| {
                if let Some(edge) = graph.edge_mut(edge) {
                    edge.suspended = false;
                }
            }),
            Undo::Recorded(node, link, implicit) => {
                if let Err(error) = nodes::record_backing(world, node, link, implicit).await {
                    tracing::warn!(%error, %node, "an image still names another backing file");
                }
            }
            Undo::ReopenPrepared(node) => world.send(node, NodeOrder::ReopenAbort),
            Undo::Moved(nodes, home) => {
                if let Err(error) = moving::move_still(world, &nodes, home).await {
                    tracing::warn!(%error, "nodes stay in another iothread");
                }
            }
            Undo::BitmapAdded(node, bitmap) => bitmaps::forget(world, node, bitmap),
            Undo::BitmapRemoved(node, bitmap) => bitmaps::show(world, node, bitmap),
            Undo::BitmapSplit(node, bitmap) => bitmaps::join_again(world, node, bitmap).await,
            Undo::BitmapRecording(node, bitmap, on) => bitmaps::record_again(world, node, bitmap, on).await,
            Undo::BitmapChanged(node, bitmap, before) => bitmaps::restore(world, node, bitmap, before).await,
            Undo::SnapshotTaken(node, id) => snapshots::take_back(world, node, id).await,
            Undo::Facts(kept) => self.restore_facts(*kept),
        }
    }

    fn unlink_again(&self, edge: EdgeId) {
        let edge = self.world.graph(|graph| graph.unlink(edge));
        if let Some(Edge {
            parent: Parent::Node(parent, _),
            ..
        }) = edge
        {
            nodes::shrink(&self.world, parent);
        }
    }

    async fn redirect_back(&self, edge: EdgeId, target: Target) {
        let world = &self.world;
        let parent = world.graph(|graph| graph.edge(edge).map(|edge| edge.parent));
        let Some(Parent::Node(parent, _)) = parent else {
            world.graph(|graph| graph.redirect_back(edge, target));
            return;
        };
        world.may_link(parent, target.child).await;
        let old = world.graph(|graph| graph.redirect_back(edge, target));
        nodes::shrink(world, parent);
        if let Some(old) = old {
            nodes::parent_lost(world, old.child);
        }
    }

    async fn connect_back(&self, parent: NodeId, slot: ChildSlot, target: Option<Address>) {
        let connected = self.world.ask(parent, Wiring::Connect { parent, slot, target });
        if let Err(error) = connected.done().await {
            tracing::warn!(%error, node = %parent, "an edge could not be put back");
        }
    }

    async fn move_root_back(&self, root: RootId, from: NodeId, to: NodeId) {
        let Some(target) = self.world.with(|state| state.address(from)) else {
            return;
        };
        let moved = self.world.ask(to, Wiring::MoveRoot { root, target });
        if let Err(error) = moved.done().await {
            tracing::warn!(%error, %root, "a root edge could not be put back");
        }
    }

    fn restore_facts(&self, kept: Facts) {
        self.world.send(kept.node, NodeOrder::ExchangeAbort);
        self.world.graph(|graph| {
            if let Some(node) = graph.node_mut(kept.node) {
                node.facts = kept.facts;
                node.implicit_backing = kept.implicit_backing;
            }
        });
    }

    /// Takes note of a snapshot that was taken inside an image.
    pub fn snapshot_taken(&mut self, node: NodeId, id: String) {
        self.log.push(Undo::SnapshotTaken(node, id));
    }

    /// Begins a drained section that lasts until the end of the transaction.
    pub async fn drain(&mut self, nodes: impl IntoIterator<Item = NodeId>, user: &str) {
        self.drain_cover(Cover::Nodes(nodes.into_iter().collect()), user)
            .await;
    }

    /// The same for all that is covered.
    pub async fn drain_cover(&mut self, cover: Cover, user: &str) {
        let token = self.world.drain(cover, user).await;
        self.log.push(Undo::Section(token));
    }

    /// Inserts a node that is about to be opened.
    pub fn insert(&mut self, node: Node) {
        self.log.push(Undo::Inserted(node.id));
        self.world.graph(|graph| graph.insert(node));
    }

    /// Adds an edge to the graph's value. The parent's cell is not told.
    pub fn link(
        &mut self,
        parent: Parent,
        child: NodeId,
        name: impl Into<Cow<'static, str>>,
        role: Role,
    ) -> EdgeId {
        let name = name.into();
        let edge = self.world.graph(|graph| graph.link(parent, child, name, role));
        self.log.push(Undo::Linked(edge));
        edge
    }

    /// Adds the user of a root edge.
    pub fn insert_root(&mut self, id: RootId, root: Root) {
        self.world.graph(|graph| graph.insert_root(id, root));
        self.log.push(Undo::Root(id));
    }

    /// Forbids operations on a node, until whoever is told the blocker's number ends that.
    pub fn block(&mut self, node: NodeId, token: Token, operations: impl IntoIterator<Item = OpBlocker>) {
        self.world
            .graph(|graph| graph.blockers.block(token, node, operations));
        self.log.push(Undo::Blocked(token));
    }

    /// Takes an edge out of the graph's value.
    pub fn unlink(&mut self, edge: EdgeId) {
        if let Some(edge) = self.world.graph(|graph| graph.unlink(edge)) {
            nodes::parent_lost(&self.world, edge.child);
            self.log.push(Undo::Unlinked(Box::new(edge)));
        }
    }

    /// Lets an edge lead elsewhere in the graph's value.
    pub fn redirect(&mut self, edge: EdgeId, child: NodeId) {
        if let Some(old) = self.world.graph(|graph| graph.redirect(edge, child)) {
            nodes::parent_lost(&self.world, old.child);
            self.log.push(Undo::Redirected(edge, old));
        }
    }

    /// Computes the permissions below `starts` and commits them to edges and nodes, or fails without a change.
    ///
    /// # Errors
    /// A conflict in the graph, or a lock that another process holds.
    pub async fn update_permissions(&mut self, starts: impl IntoIterator<Item = NodeId>) -> Result<()> {
        self.apply_permissions(Plan::default(), starts).await
    }

    /// As [`Transaction::update_permissions`], from a plan that has something in it already.
    pub async fn apply_permissions(
        &mut self,
        plan: Plan,
        starts: impl IntoIterator<Item = NodeId>,
    ) -> Result<()> {
        let plan = self.prepare_permissions(plan, starts).await?;
        self.commit_permissions(plan);
        Ok(())
    }

    /// The first half: all nodes have agreed. It must be followed by the second.
    pub async fn prepare_permissions(
        &mut self,
        plan: Plan,
        starts: impl IntoIterator<Item = NodeId>,
    ) -> Result<Plan> {
        self.send_burst().await?;
        let plan = self.world.graph(|graph| plan.complete(graph, starts))?;
        let unready = self.not_ready(&plan.nodes);
        permissions::prepare_nodes(&self.world, &unready).await?;
        plan.nodes.iter().for_each(|(node, _)| self.used(*node));
        Ok(plan)
    }

    /// Instead of the second half: all nodes forget what they have agreed to.
    pub fn abort_permissions(&self, plan: &Plan) {
        permissions::abort(&self.world, plan.nodes.iter().map(|(node, _)| *node));
    }

    /// Has drivers and edges take what was prepared.
    pub fn commit_permissions(&mut self, plan: Plan) {
        let undo = permissions::commit(&self.world, plan);
        self.log.push(undo);
    }

    /// Tells a parent's cell what is behind one of its edges.
    ///
    /// # Errors
    /// The iothread is gone.
    pub async fn connect(&mut self, parent: NodeId, slot: ChildSlot, old: Option<NodeId>) -> Result<()> {
        self.send_burst().await?;
        let (target, old) = addresses_behind(&self.world, parent, slot, old);
        self.world
            .ask(parent, Wiring::Connect { parent, slot, target })
            .done()
            .await?;
        self.log.push(Undo::Connected(parent, slot, old));
        Ok(())
    }

    /// Sets the number that a node's next numbered child gets.
    pub fn number(&mut self, node: NodeId, next: u32) {
        if let Some(old) = self.set_number(node, next) {
            self.log.push(Undo::Numbered(node, old));
        }
    }

    fn set_number(&self, node: NodeId, next: u32) -> Option<u32> {
        self.world.graph(|graph| {
            let node = graph.node_mut(node)?;
            Some(std::mem::replace(&mut node.next_numbered, next))
        })
    }

    /// Lets a parent rely on nothing behind its edge. Permissions follow when they are computed next.
    pub fn suspend_edge(&mut self, edge: EdgeId) {
        self.world.graph(|graph| {
            if let Some(edge) = graph.edge_mut(edge) {
                edge.suspended = true;
            }
        });
        self.log.push(Undo::EdgeSuspended(edge));
    }

    /// Lets an image name another backing file, in its header and for those who ask.
    ///
    /// # Errors
    /// The header cannot be written.
    pub async fn record_backing(&mut self, node: NodeId, link: Option<BackingLink>) -> Result<()> {
        let world = self.world.clone();
        let (old, implicit) = world.graph(|graph| {
            let node = graph.expect(node)?;
            let old = node.facts.as_ref().and_then(|facts| facts.backing.clone());
            Ok::<_, millpond_messages::Error>((old, node.implicit_backing))
        })?;
        self.send_burst().await?;
        nodes::record_backing(&world, node, link, None).await?;
        self.log.push(Undo::Recorded(node, old, implicit));
        Ok(())
    }

    /// Keeps what is known of a node until the end of the transaction, as it is about to change with what is below.
    pub fn keep_facts(&mut self, node: NodeId, is_stale: bool) {
        let kept = self.world.graph(|graph| {
            let node = graph.node(node)?;
            Some(Facts {
                node: node.id,
                facts: node.facts.clone(),
                implicit_backing: node.implicit_backing,
                is_stale,
            })
        });
        self.log.extend(kept.map(|kept| Undo::Facts(Box::new(kept))));
    }

    /// Moves nodes to an iothread, in a section of their own.
    ///
    /// # Errors
    /// One of the iothreads is gone.
    pub async fn move_nodes(&mut self, nodes: Vec<NodeId>, to: IoThreadId) -> Result<()> {
        self.drain(nodes.iter().copied(), "move to another iothread")
            .await;
        self.move_still(&nodes, to).await
    }

    /// Moves nodes that are still to an iothread.
    ///
    /// # Errors
    /// One of the iothreads is gone.
    pub async fn move_still(&mut self, nodes: &[NodeId], to: IoThreadId) -> Result<()> {
        self.send_burst().await?;
        self.unready();
        let world = self.world.clone();
        let mut homes: BTreeMap<IoThreadId, Vec<NodeId>> = BTreeMap::new();
        world.graph(|graph| {
            for node in nodes.iter().filter_map(|node| graph.node(*node)) {
                homes.entry(node.iothread).or_default().push(node.id);
            }
        });
        let back = homes.into_iter().map(|(home, nodes)| Undo::Moved(nodes, home));
        self.log.extend(back);
        moving::move_still(&world, nodes, to).await
    }

    /// Notes that a node's new options were prepared.
    pub fn reopen_prepared(&mut self, node: NodeId) {
        self.log.push(Undo::ReopenPrepared(node));
    }

    /// The prepared options were committed: there is no way back from that.
    pub fn reopen_committed(&mut self) {
        self.log.retain(|step| !matches!(step, Undo::ReopenPrepared(_)));
    }
}

impl Drop for Transaction {
    // The procedure that it was part of has been given up.
    fn drop(&mut self) {
        let unready = self.undo_ready();
        self.log.extend(unready);
        if !self.log.is_empty() {
            self.world.abandon(Log(std::mem::take(&mut self.log)));
        }
    }
}
