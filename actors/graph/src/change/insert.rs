//! A node that is opened and put in the place of one of its children, whole or not at all.

use millpond_messages::graph::{InsertNode, Options};
use millpond_messages::{Error, ErrorKind, NodeId, Result};
use serde_json::Value;

use crate::change::replace::{Besides, Reachable, get_ready, moving, redirect};
use crate::open::tree::{self, Inherited};
use crate::state::PolicyState;
use crate::transaction::{Change, Transaction};
use crate::world::World;

/// A node that is opened, and put in the place of one of its children. It belongs to the user as one that was added.
pub struct Insert {
    request: InsertNode,
    inserted: Inserted,
    node: Option<NodeId>,
}

/// What becomes of a node that is inserted, or of the attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inserted {
    /// It stays until it is deleted, as one that was added; else it is closed with its last parent.
    pub owned: bool,
    /// An error says whether the node could not be made, or not be put there.
    pub says_step: bool,
}

impl Inserted {
    fn within(self, step: &str, error: Error) -> Error {
        match self.says_step {
            true => error.within(step),
            false => error,
        }
    }
}

impl Insert {
    /// The same of a node that need not be a user's.
    pub fn of(node: String, options: Options, inserted: Inserted) -> Self {
        Self {
            inserted,
            ..Self::from(InsertNode { node, options })
        }
    }
}

impl From<InsertNode> for Insert {
    fn from(request: InsertNode) -> Self {
        let inserted = Inserted {
            owned: true,
            says_step: true,
        };
        Self {
            request,
            inserted,
            node: None,
        }
    }
}

impl Change for Insert {
    type Answer = ();

    fn check(&mut self, state: &PolicyState) -> Result<()> {
        let invalid = |text: String| Err(Error::new(ErrorKind::InvalidArgument, text));
        let node = state.graph.find(&self.request.node)?.id;
        let Some(Value::String(driver)) = self.request.options.get("driver") else {
            return invalid("driver is not specified".to_owned());
        };
        if state.registry.find(driver).is_none() {
            return invalid(format!("Unknown driver: '{driver}'"));
        }
        self.node = Some(node);
        Ok(())
    }

    async fn prepare(&mut self, transaction: &mut Transaction) -> Result<()> {
        let Some(node) = self.node else { return Ok(()) };
        let options = std::mem::take(&mut self.request.options);
        insert(transaction, node, options, self.inserted).await.map(drop)
    }

    async fn finish(self, _: &World) {}
}

/// Opens a node and puts it in the place of one of its children; answers the new one.
///
/// # Errors
/// The open's, a parent relies on its edge, or permissions.
pub async fn insert(
    transaction: &mut Transaction,
    node: NodeId,
    options: Options,
    inserted: Inserted,
) -> Result<NodeId> {
    let new = open(transaction, options, inserted).await?;
    get_ready(transaction, node, new, None);
    let readied = transaction.readied(transaction.getting_ready()).await;
    readied.map_err(|error| inserted.within("Could not replace node", error))?;
    transaction.drain([node, new], "replace").await;
    put(transaction, node, new, inserted).await?;
    Ok(new)
}

/// The first half of [`insert`]: opens the node. It has no users yet, so that nobody feels it.
///
/// # Errors
/// The open's.
pub async fn open(transaction: &mut Transaction, options: Options, inserted: Inserted) -> Result<NodeId> {
    let new = tree::open_tree(transaction, options, Inherited::default())
        .await
        .map_err(|error| inserted.within("Could not create node", error))?;
    transaction.world.graph(|graph| {
        if let Some(new) = graph.node_mut(new) {
            new.owned = inserted.owned;
        }
    });
    Ok(new)
}

/// The second half: puts a node in the place of one of its children. Both are still.
///
/// # Errors
/// A parent relies on its edge, or permissions.
pub async fn put(transaction: &mut Transaction, node: NodeId, new: NodeId, inserted: Inserted) -> Result<()> {
    let edges = transaction
        .world
        .graph(|graph| moving(graph, node, new, Reachable::Keep));
    let put = match edges {
        Ok(edges) => redirect(transaction, node, new, &edges, Besides::Nothing).await,
        Err(error) => Err(error),
    };
    put.map_err(|error| inserted.within("Could not replace node", error))
}
