//! Format options of open images, changed in place.

use millpond_messages::graph::Amend;
use millpond_messages::{Error, ErrorKind, NodeId, Permissions, Result};

use crate::change::{resize, roots};
use crate::order::NodeTask;
use crate::state::PolicyState;
use crate::transaction::{Change, Transaction};
use crate::world::World;

/// Options of an image that are changed under a hold, in a drained section: both end with it.
pub struct Amendment {
    request: Amend,
    node: Option<NodeId>,
    permissions: Permissions,
}

impl From<Amend> for Amendment {
    fn from(request: Amend) -> Self {
        Self {
            request,
            node: None,
            permissions: Permissions::empty(),
        }
    }
}

impl Change for Amendment {
    type Answer = ();

    const LASTS: bool = false;

    fn check(&mut self, state: &PolicyState) -> Result<()> {
        let node = state.graph.look_up("", &self.request.node_name)?;
        if !node.kind.amends() {
            let text = format!(
                "Format driver '{}' does not support option amendment",
                node.kind.name()
            );
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        self.node = Some(node.id);
        self.permissions = node.kind.amend_permissions();
        Ok(())
    }

    async fn prepare(&mut self, transaction: &mut Transaction) -> Result<()> {
        let Some(node) = self.node else { return Ok(()) };
        let world = transaction.world.clone();
        let permissions = self.permissions;
        let hold = roots::hold(&self.request.node_name, "amend", permissions);
        let root = roots::link_root(transaction, node, &hold);
        roots::take(transaction, node, root, hold.permissions, hold.shared).await?;
        let (options, force) = (std::mem::take(&mut self.request.options), self.request.force);
        let prepare = NodeTask::PrepareAmend {
            options: options.clone(),
            force,
        };
        world.ask(node, prepare).done().await?;
        transaction.drain([node], "amend").await;
        let amended = world.ask(node, NodeTask::Amend { options, force }).done().await;
        // Where several options change, some may have before one failed.
        resize::refresh_sizes(&world, node).await;
        amended
    }

    async fn finish(self, _: &World) {}
}
