//! Root edges: users that take hold of nodes, change what they do there, and let go.
//!
//! Letting go is no [`Change`]: what came over the edge has ended with it, and a node that nobody holds is closed.

use millpond_messages::graph::{GraphReply, RootRequest, RootUser, Serialise, SetRootPermissions};
use millpond_messages::{Error, ErrorKind, NodeId, Permissions, Result, Role, RootId};

use crate::change::{delete, iothreads};
use crate::order::{NewRoot, NodeOrder, Wiring};
use crate::procedure::Next;
use crate::sections::Cover;
use crate::state::PolicyState;
use crate::transaction::{self, Change, Outcome, Transaction};
use crate::value::edge::{Edge, Parent, Root};
use crate::value::graph::Graph;
use crate::value::node::Node;
use crate::value::permissions::Plan;
use crate::value::refusal::Refusal;
use crate::world::World;

/// What a root edge is to its user.
const ROLE: Role = Role::DATA.union(Role::PRIMARY);

/// Whether a user keeps its hold on a node that is, or becomes, inactive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inactive {
    /// What it takes must be possible, and what it writes keeps the node from being inactivated.
    Refused,
    /// It takes and shares nothing while the node is inactive.
    Allowed,
}

/// A user takes hold of a node.
///
/// Bringing the node to the user's iothread is a change of its own: where the user does not insist, it may fail alone.
pub async fn attach(world: &World, request: RootRequest, inactive: Inactive) -> Next {
    if let Err(error) = bring(world, &request).await {
        return Next::Reply(Err(error));
    }
    let attach = Attach {
        request,
        inactive,
        node: None,
        root: RootId(0),
    };
    let root = transaction::run(world, "attach", attach).await;
    Next::Reply(root.map(GraphReply::Root))
}

/// Brings a node to where its user is.
async fn bring(world: &World, request: &RootRequest) -> Result<()> {
    let Some(iothread) = request.iothread else {
        return Ok(());
    };
    let node = world.graph(|graph| graph.look_up("", &request.node).map(|node| node.id))?;
    let moved = iothreads::bring(world, node, iothread).await;
    match request.iothread_required {
        true => moved,
        false => Ok(()),
    }
}

/// A user that takes hold of a node.
struct Attach {
    request: RootRequest,
    inactive: Inactive,
    node: Option<NodeId>,
    root: RootId,
}

impl Change for Attach {
    type Answer = RootId;

    fn check(&mut self, state: &PolicyState) -> Result<()> {
        self.node = Some(state.graph.look_up("", &self.request.node)?.id);
        Ok(())
    }

    async fn prepare(&mut self, transaction: &mut Transaction) -> Result<()> {
        if let Some(node) = self.node {
            self.root = attach_to(transaction, node, &self.request, self.inactive).await?;
        }
        Ok(())
    }

    async fn finish(self, world: &World) -> RootId {
        has_cell(world, self.root);
        self.root
    }
}

/// Notes that the cell of a root edge is where the graph says: it can be moved from now on.
pub fn has_cell(world: &World, root: RootId) {
    world.graph(|graph| {
        if let Some(root) = graph.root_mut(root) {
            root.has_cell = true;
        }
    });
}

/// The same of a user that keeps its hold while the node is inactive.
pub async fn attach_inactive(world: &World, request: RootRequest) -> Next {
    attach(world, request, Inactive::Allowed).await
}

/// Gives a user a hold on a node, and the cell that requests come through.
///
/// # Errors
/// Somebody does not share what the user takes.
pub async fn attach_to(
    transaction: &mut Transaction,
    node: NodeId,
    request: &RootRequest,
    inactive: Inactive,
) -> Result<RootId> {
    let world = transaction.world.clone();
    let root = link_root(transaction, node, request);
    let suspended = world.graph(|graph| {
        let is_inactive = graph.node(node).is_some_and(Node::is_inactive);
        let root = graph.root_mut(root)?;
        root.allows_inactive = inactive == Inactive::Allowed;
        if is_inactive && root.allows_inactive {
            root.suspended = Some((request.permissions, request.shared));
        }
        root.suspended
    });
    if suspended.is_none() {
        check_taking(transaction, node, root, request.permissions)?;
        take(transaction, node, root, request.permissions, request.shared).await?;
    }
    let order = Wiring::AttachRoot {
        root: NewRoot {
            root,
            permissions: request.permissions,
            writethrough: request.writethrough,
        },
        node,
    };
    world.ask(node, order).done().await?;
    Ok(root)
}

/// Puts a root edge into the graph that takes and shares nothing in particular yet.
pub fn link_root(transaction: &mut Transaction, node: NodeId, request: &RootRequest) -> RootId {
    let root = transaction.world.graph(Graph::new_root_id);
    let edge = transaction.link(Parent::Root(root), node, "root", ROLE);
    let pinned = request.iothread.is_some() && request.iothread_required;
    transaction.insert_root(
        root,
        Root {
            user: request.user.clone(),
            edge,
            wants: request.iothread,
            pinned,
            serves: Vec::new(),
            has_cell: false,
            allows_inactive: false,
            suspended: None,
        },
    );
    root
}

/// What a user takes is looked at before what it does not share: of two reasons to refuse, it hears that one.
fn check_taking(transaction: &Transaction, node: NodeId, root: RootId, taken: Permissions) -> Result<()> {
    transaction.world.graph(|graph| {
        check_active(graph, node, taken)?;
        let edge = graph.root_edge(root)?;
        Plan::with_edge(edge, taken, Permissions::all())
            .complete(graph, [node])
            .map(|_| ())
    })
}

/// Has a root edge take and share.
///
/// # Errors
/// Somebody else's permissions, or a lock.
pub async fn take(
    transaction: &mut Transaction,
    node: NodeId,
    root: RootId,
    taken: Permissions,
    shared: Permissions,
) -> Result<()> {
    let edge = transaction.world.graph(|graph| {
        check_active(graph, node, taken)?;
        graph.root_edge(root)
    })?;
    transaction
        .apply_permissions(Plan::with_edge(edge, taken, shared), [node])
        .await
}

/// An inactive node can only be read.
fn check_active(graph: &Graph, node: NodeId, taken: Permissions) -> Result<()> {
    let refused = taken - Permissions::CONSISTENT_READ;
    if refused.is_empty() || !graph.node(node).is_some_and(Node::is_inactive) {
        return Ok(());
    }
    let text = format!("Permission '{}' unavailable on inactive node", refused.in_words());
    Err(Error::new(ErrorKind::Permission, text))
}

/// What a user takes and shares from now on.
pub struct SetPermissions {
    request: SetRootPermissions,
    found: Option<Held>,
}

/// What a user has until now.
#[derive(Debug, Clone, Copy)]
struct Held {
    node: NodeId,
    taken: Permissions,
    /// What it takes and shares once its node is active again.
    suspended: Option<(Permissions, Permissions)>,
}

impl From<SetRootPermissions> for SetPermissions {
    fn from(request: SetRootPermissions) -> Self {
        let found = None;
        Self { request, found }
    }
}

impl SetPermissions {
    fn suspend(&self, world: &World, held: (Permissions, Permissions)) {
        world.graph(|graph| {
            if let Some(root) = graph.root_mut(self.request.root) {
                root.suspended = Some(held);
            }
        });
    }
}

impl Change for SetPermissions {
    type Answer = ();

    fn check(&mut self, state: &PolicyState) -> Result<()> {
        let graph = &state.graph;
        let root = self.request.root;
        let edge = graph.edge(graph.root_edge(root)?);
        let edge = edge.ok_or(Refusal::NoRoot(root))?;
        self.found = Some(Held {
            node: edge.child,
            taken: edge.taken,
            suspended: graph.root(root).and_then(|root| root.suspended),
        });
        Ok(())
    }

    async fn prepare(&mut self, transaction: &mut Transaction) -> Result<()> {
        let Some(held) = self.found else { return Ok(()) };
        let SetRootPermissions {
            root,
            permissions,
            shared,
        } = self.request;
        if held.suspended.is_some() {
            self.suspend(&transaction.world, (permissions, shared));
            return Ok(());
        }
        // A permission is given up before others rely on that, and used only after it was granted.
        let world = transaction.world.clone();
        world.set_root_permissions(root, permissions & held.taken);
        take(transaction, held.node, root, permissions, shared).await
    }

    async fn settle(&mut self, world: &World, outcome: Outcome) -> Result<()> {
        let SetRootPermissions {
            root, permissions, ..
        } = self.request;
        match (outcome, self.found) {
            (Outcome::Committed, _) => world.set_root_permissions(root, permissions),
            (Outcome::RolledBack, Some(held)) => match held.suspended {
                Some(suspended) => self.suspend(world, suspended),
                None => world.set_root_permissions(root, held.taken),
            },
            (Outcome::RolledBack, None) => {}
        }
        Ok(())
    }

    async fn finish(self, _: &World) {}
}

/// The node of a root edge notes all that it has in flight, for the sake of requests of the edge that are serialised. It begins
/// while nothing is in flight, so nothing is missed.
pub struct Serialising {
    root: RootId,
    node: Option<NodeId>,
}

impl From<Serialise> for Serialising {
    fn from(Serialise(root): Serialise) -> Self {
        let node = None;
        Self { root, node }
    }
}

impl Change for Serialising {
    type Answer = ();

    const LASTS: bool = false;

    fn check(&mut self, state: &PolicyState) -> Result<()> {
        self.node = Some(state.graph.root_node(self.root)?);
        Ok(())
    }

    fn cover(&self, _: &Graph) -> Cover {
        Cover::Nodes(self.node.into_iter().collect())
    }

    async fn prepare(&mut self, transaction: &mut Transaction) -> Result<()> {
        let Some(node) = self.node else { return Ok(()) };
        let order = NodeOrder::Serialise { root: self.root };
        transaction.world.ask(node, order).done().await
    }

    async fn finish(self, _: &World) {}
}

/// A user lets go.
///
/// # Errors
/// There is no such root.
pub async fn detach(world: &World, root: RootId) -> Result<()> {
    let node = world.graph(|graph| graph.root_node(root))?;
    if let Err(error) = world.ask(node, Wiring::DetachRoot(root)).done().await {
        tracing::warn!(%error, %root, "a root edge did not end cleanly");
    }
    forget(world, root);
    delete::refresh(world, &[node]).await;
    delete::release(world, [node]).await;
    iothreads::fall_back(world, node).await;
    Ok(())
}

/// Takes a root edge out of the graph.
pub fn forget(world: &World, root: RootId) -> Option<Edge> {
    world.with(|state| {
        let entry = state.graph.remove_root(root)?;
        state.push(crate::Effect::RootGone(root));
        state.graph.unlink(entry.edge)
    })
}

/// A hold that lasts as long as an operation.
pub fn hold(node: &str, operation: &str, permissions: Permissions) -> RootRequest {
    RootRequest {
        node: node.to_owned(),
        user: RootUser::Embedder(operation.to_owned()),
        permissions,
        shared: Permissions::all(),
        iothread: None,
        iothread_required: false,
        writethrough: false,
    }
}
