//! A transaction: steps that are taken one by one, each with what undoes it, until all hold or none does.

use std::borrow::Cow;
use std::collections::HashMap;

use millpond_drivers::api::BackingLink;
use millpond_engine::node::OpenFacts;
use millpond_messages::{ChildSlot, EdgeId, IoThreadId, NodeId, Permissions, Result, Role, RootId, Token};

use crate::change::iothreads;
use crate::order::{Address, Order};
use crate::value::graph::{Edge, Granted, Node, Parent, Root, Target};
use crate::value::permissions::Plan;
use crate::world::{Answered, World};

/// The steps that an unfinished transaction has taken.
pub struct Log(Vec<Undo>);

/// How a step is undone.
enum Undo {
    /// End a section.
    Section(Token),
    /// Remove a node, closing it if it was opened.
    Inserted(NodeId),
    /// Remove an edge.
    Linked(EdgeId),
    /// Remove a root edge's user.
    Root(RootId),
    /// Put back an edge that was taken away.
    Unlinked(Box<Edge>),
    /// Put an edge back to where it led.
    Redirected(EdgeId, Target),
    /// Put permissions back.
    Permissions {
        edges: HashMap<EdgeId, (Permissions, Permissions)>,
        nodes: Vec<(NodeId, Granted)>,
    },
    /// Connect a parent's cell as it was.
    Connected(NodeId, ChildSlot, Option<Address>),
    /// Put a root's cell back behind a node; it is where the second one is.
    RootMoved(RootId, NodeId, NodeId),
    /// Put back the number of a node's next numbered child.
    Numbered(NodeId, u32),
    /// Let a parent rely again on what is behind its edge.
    Lent(EdgeId),
    /// Let an image name the backing file that it named before, which was this node if it was opened by that name.
    Recorded(NodeId, Option<BackingLink>, Option<NodeId>),
    /// Forget a node's prepared options.
    ReopenPrepared(NodeId),
    /// Move nodes back to an iothread.
    Moved(Vec<NodeId>, IoThreadId),
    /// Let a node be again what it was before edges below it led elsewhere.
    Facts(Box<Facts>),
}

/// What the graph knows of a node, from before edges below it led elsewhere.
struct Facts {
    node: NodeId,
    facts: Option<OpenFacts>,
    implicit_backing: Option<NodeId>,
    /// Its driver may have put its old state aside.
    is_stale: bool,
}

/// Steps taken so far. It must be ended by [`Transaction::commit`] or [`Transaction::roll_back`].
#[must_use = "a transaction is committed or rolled back"]
pub struct Transaction {
    /// What it works on.
    pub world: World,
    log: Vec<Undo>,
}

impl Transaction {
    /// A transaction with no step taken.
    pub fn new(world: &World) -> Self {
        Self {
            world: world.clone(),
            log: Vec::new(),
        }
    }

    /// The transaction that was dropped with this log.
    pub fn resumed(world: &World, log: Log) -> Self {
        Self {
            world: world.clone(),
            log: log.0,
        }
    }

    /// Everything holds: nodes made become visible, sections end.
    pub fn commit(mut self) {
        for step in self.log.drain(..).rev() {
            match step {
                Undo::Section(token) => self.world.undrain(token),
                Undo::Inserted(node) => self.world.graph(|graph| {
                    if let Some(node) = graph.node_mut(node) {
                        node.live = true;
                    }
                }),
                Undo::Unlinked(edge) => {
                    if let Parent::Node(parent, _) = edge.parent {
                        shrink(&self.world, parent);
                    }
                }
                Undo::Redirected(edge, _) => {
                    let parent = self.world.graph(|graph| graph.edge(edge).map(|edge| edge.parent));
                    if let Some(Parent::Node(parent, _)) = parent {
                        shrink(&self.world, parent);
                    }
                }
                Undo::Facts(kept) if kept.is_stale => {
                    self.world.tell(kept.node, Order::ExchangeCommit(kept.node));
                }
                Undo::Facts(_)
                | Undo::Moved(..)
                | Undo::Linked(_)
                | Undo::Root(_)
                | Undo::Permissions { .. }
                | Undo::Connected(..)
                | Undo::RootMoved(..)
                | Undo::Numbered(..)
                | Undo::Lent(_)
                | Undo::Recorded(..)
                | Undo::ReopenPrepared(_) => {}
            }
        }
    }

    /// Undoes all steps, the last one first.
    pub async fn roll_back(mut self) {
        self.world.with(|state| state.undoing += 1);
        while let Some(step) = self.log.pop() {
            self.undo(step).await;
        }
        self.world.with(|state| state.undoing -= 1);
    }

    async fn undo(&self, step: Undo) {
        let world = &self.world;
        match step {
            Undo::Section(token) => world.undrain(token),
            Undo::Inserted(node) => discard_node(world, node).await,
            Undo::Linked(edge) => {
                let edge = world.graph(|graph| graph.unlink(edge));
                if let Some(Edge {
                    parent: Parent::Node(parent, _),
                    ..
                }) = edge
                {
                    shrink(world, parent);
                }
            }
            Undo::Root(root) => world.with(|state| {
                state.graph.remove_root(root);
                state.push(crate::Effect::RootGone(root));
            }),
            Undo::Unlinked(edge) => {
                // A section begun meanwhile did not know that its nodes have this parent.
                if let Parent::Node(parent, _) = edge.parent {
                    world.may_link(parent, edge.child).await;
                }
                world.graph(|graph| graph.relink(*edge));
            }
            Undo::Redirected(edge, target) => {
                let parent = world.graph(|graph| graph.edge(edge).map(|edge| edge.parent));
                if let Some(Parent::Node(parent, _)) = parent {
                    world.may_link(parent, target.child).await;
                    let old = world.graph(|graph| graph.redirect_back(edge, target));
                    shrink(world, parent);
                    if let Some(old) = old {
                        parent_lost(world, old.child);
                    }
                } else {
                    world.graph(|graph| graph.redirect_back(edge, target));
                }
            }
            Undo::Permissions { edges, nodes } => restore(world, edges, nodes).await,
            Undo::Connected(parent, slot, target) => {
                let result = world
                    .ask(parent, Order::Connect { parent, slot, target })
                    .done()
                    .await;
                if let Err(error) = result {
                    tracing::warn!(%error, node = %parent, "an edge could not be put back");
                }
            }
            Undo::RootMoved(root, from, to) => {
                let Some(target) = world.with(|state| state.address(from)) else {
                    return;
                };
                if let Err(error) = world.ask(to, Order::MoveRoot { root, target }).done().await {
                    tracing::warn!(%error, %root, "a root edge could not be put back");
                }
            }
            Undo::Numbered(node, next) => {
                self.set_number(node, next);
            }
            Undo::Lent(edge) => world.graph(|graph| {
                if let Some(edge) = graph.edge_mut(edge) {
                    edge.lent = false;
                }
            }),
            Undo::Recorded(node, link, implicit) => {
                if let Err(error) = record_backing(world, node, link, implicit).await {
                    tracing::warn!(%error, %node, "an image still names another backing file");
                }
            }
            Undo::ReopenPrepared(node) => world.tell(node, Order::ReopenAbort(node)),
            Undo::Moved(nodes, home) => {
                if let Err(error) = iothreads::move_still(world, &nodes, home).await {
                    tracing::warn!(%error, "nodes stay in another iothread");
                }
            }
            Undo::Facts(kept) => {
                let kept = *kept;
                world.tell(kept.node, Order::ExchangeAbort(kept.node));
                world.graph(|graph| {
                    if let Some(node) = graph.node_mut(kept.node) {
                        node.facts = kept.facts;
                        node.implicit_backing = kept.implicit_backing;
                    }
                });
            }
        }
    }

    /// Begins a drained section that lasts until the end of the transaction.
    pub async fn drain(&mut self, nodes: impl IntoIterator<Item = NodeId>, user: &str) {
        let cover = crate::sections::Cover::Nodes(nodes.into_iter().collect());
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

    /// Takes an edge out of the graph's value.
    pub fn unlink(&mut self, edge: EdgeId) {
        if let Some(edge) = self.world.graph(|graph| graph.unlink(edge)) {
            parent_lost(&self.world, edge.child);
            self.log.push(Undo::Unlinked(Box::new(edge)));
        }
    }

    /// Lets an edge lead elsewhere in the graph's value.
    pub fn redirect(&mut self, edge: EdgeId, child: NodeId) {
        if let Some(old) = self.world.graph(|graph| graph.redirect(edge, child)) {
            parent_lost(&self.world, old.child);
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
        let plan = self.world.graph(|graph| plan.complete(graph, starts))?;
        prepare(&self.world, &plan).await?;
        Ok(plan)
    }

    /// Instead of the second half: all nodes forget what they have agreed to.
    pub fn abort_permissions(&self, plan: &Plan) {
        for (node, _) in &plan.nodes {
            self.world.tell(*node, Order::PermissionsAbort(*node));
        }
    }

    /// The second half.
    pub fn commit_permissions(&mut self, plan: Plan) {
        let undo = commit(&self.world, plan);
        self.log.push(undo);
    }

    /// Tells a parent's cell what is behind one of its edges.
    ///
    /// # Errors
    /// The iothread is gone.
    pub async fn connect(&mut self, parent: NodeId, slot: ChildSlot, old: Option<NodeId>) -> Result<()> {
        let (target, old) = self.world.with(|state| {
            let child = state.graph.child_node(parent, slot);
            let address = |node: Option<NodeId>| node.and_then(|node| state.address(node));
            (address(child), address(old))
        });
        self.world
            .ask(parent, Order::Connect { parent, slot, target })
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

    /// Notes that a root's cell went from one node to another.
    pub fn root_moved(&mut self, root: RootId, from: NodeId, to: NodeId) {
        self.log.push(Undo::RootMoved(root, from, to));
    }

    /// Lets a parent rely on nothing behind its edge. Permissions follow when they are computed next.
    pub fn lend(&mut self, edge: EdgeId) {
        self.world.graph(|graph| {
            if let Some(edge) = graph.edge_mut(edge) {
                edge.lent = true;
            }
        });
        self.log.push(Undo::Lent(edge));
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
        record_backing(&world, node, link, None).await?;
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

    /// Moves nodes that live in one iothread to another.
    ///
    /// # Errors
    /// One of the iothreads is gone.
    pub async fn move_nodes(&mut self, nodes: Vec<NodeId>, to: IoThreadId) -> Result<()> {
        let world = self.world.clone();
        let home = world.graph(|graph| {
            nodes
                .first()
                .and_then(|node| graph.node(*node))
                .map(|node| node.iothread)
        });
        self.drain(nodes.iter().copied(), "move to another iothread")
            .await;
        self.log.extend(home.map(|home| Undo::Moved(nodes.clone(), home)));
        iothreads::move_still(&world, &nodes, to).await
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

/// Has sections look again whether a node may be asked, now that it has a parent less: when that parent answers, nobody
/// thinks of this child any more.
fn parent_lost(world: &World, node: NodeId) {
    world.with(|state| {
        state.sections.ask(&state.graph, node);
        state.flush_sections();
    });
}

impl Drop for Transaction {
    // The procedure that it was part of has been given up.
    fn drop(&mut self) {
        if !self.log.is_empty() {
            self.world.abandon(Log(std::mem::take(&mut self.log)));
        }
    }
}

/// Lets sections give back what they covered only because of an edge below `parent` that is gone.
pub fn shrink(world: &World, parent: NodeId) {
    world.with(|state| {
        state.sections.shrink(&state.graph, parent);
        state.flush_sections();
    });
}

fn ask_to_prepare(world: &World, nodes: &[(NodeId, Granted)]) -> Vec<Answered> {
    let ask = |(node, Granted { taken, shared })| {
        world.ask(node, Order::PermissionsPrepare { node, taken, shared })
    };
    nodes.iter().copied().map(ask).collect()
}

/// Asks all nodes of a plan, and forgets it on all if one refuses.
async fn prepare(world: &World, plan: &Plan) -> Result<()> {
    let asked = ask_to_prepare(world, &plan.nodes);
    let mut prepared = Vec::new();
    let mut failure = None;
    for ((node, _), answer) in plan.nodes.iter().zip(asked) {
        match answer.done().await {
            Ok(()) => prepared.push(*node),
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    let Some(error) = failure else { return Ok(()) };
    for node in prepared {
        world.tell(node, Order::PermissionsAbort(node));
    }
    Err(error)
}

/// Makes a prepared plan hold, and answers what undoes it.
fn commit(world: &World, plan: Plan) -> Undo {
    let edges = commit_edges(world, plan.edges);
    let nodes = plan.nodes.into_iter();
    let nodes = nodes
        .filter_map(|(node, granted)| Some((node, commit_node(world, node, granted)?)))
        .collect();
    Undo::Permissions { edges, nodes }
}

/// Has edges take and share; answers what they did before.
fn commit_edges(
    world: &World,
    edges: HashMap<EdgeId, (Permissions, Permissions)>,
) -> HashMap<EdgeId, (Permissions, Permissions)> {
    world.graph(|graph| {
        let before = edges.into_iter().filter_map(|(id, (taken, shared))| {
            let edge = graph.edge_mut(id)?;
            let before = (edge.taken, edge.shared);
            (edge.taken, edge.shared) = (taken, shared);
            Some((id, before))
        });
        before.collect()
    })
}

/// Has a node grant what it has prepared; answers what it granted before.
fn commit_node(world: &World, node: NodeId, granted: Granted) -> Option<Granted> {
    world.with(|state| {
        let entry = state.graph.node_mut(node)?;
        let before = std::mem::replace(&mut entry.granted, granted);
        state.send(node, Order::PermissionsCommit(node));
        Some(before)
    })
}

/// Puts permissions back as they were. They held before, so only a lock lost to another process meanwhile can fail; the
/// node then keeps what it has, and the next plan that reaches it finds the difference.
async fn restore(
    world: &World,
    edges: HashMap<EdgeId, (Permissions, Permissions)>,
    nodes: Vec<(NodeId, Granted)>,
) {
    let asked = ask_to_prepare(world, &nodes);
    commit_edges(world, edges);
    for ((node, granted), answer) in nodes.into_iter().zip(asked) {
        match answer.done().await {
            Ok(()) => {
                commit_node(world, node, granted);
            }
            Err(error) => {
                tracing::warn!(%error, %node, "a node could not take its old permissions back");
            }
        }
    }
}

/// Has an image name a backing file. `implicit` is the node that was opened by that name, if one was.
async fn record_backing(
    world: &World,
    node: NodeId,
    link: Option<BackingLink>,
    implicit: Option<NodeId>,
) -> Result<()> {
    let order = Order::ChangeBackingFile {
        node,
        link: link.clone(),
    };
    world.ask(node, order).done().await?;
    world.graph(|graph| {
        if let Some(node) = graph.node_mut(node) {
            node.implicit_backing = implicit;
            if let Some(facts) = &mut node.facts {
                facts.backing = link;
            }
        }
    });
    Ok(())
}

/// Removes a node that nothing leads to, closing its cell if there is one.
async fn discard_node(world: &World, node: NodeId) {
    close_cell(world, node).await;
    forget_node(world, node);
}

/// Closes a node's cell, if it was opened.
pub async fn close_cell(world: &World, node: NodeId) {
    let is_open = world.graph(|graph| {
        graph.node_mut(node).is_some_and(|node| {
            node.closing = true;
            node.facts.is_some()
        })
    });
    if is_open && let Err(error) = world.ask(node, Order::Close(node)).done().await {
        tracing::warn!(%error, %node, "a node did not close cleanly");
    }
}

/// Removes a node that has no edges from the graph and from all sections.
pub fn forget_node(world: &World, node: NodeId) {
    world.with(|state| {
        state.graph.remove(node);
        state.sections.forget(&state.graph, node);
        state.flush_sections();
    });
}
