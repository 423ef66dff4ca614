//! Format options of open images, changed in place.

use millpond_messages::graph::{Amend, Options};
use millpond_messages::{Error, ErrorKind, NodeId, Permissions, Result};

use crate::change::{resize, roots};
use crate::order::NodeTask;
use crate::transaction::{self, Change, Transaction};
use crate::world::World;

/// Changes options of an image's format, as `qemu-img amend` does.
///
/// # Errors
/// There is no such node, its format cannot, a user relies on what would change, or the driver's.
pub async fn amend(world: &World, request: Amend) -> Result<()> {
    let Amend { node_name, options } = request;
    let node = world.graph(|graph| {
        let node = graph.look_up("", &node_name)?;
        if !node.kind.amends() {
            let text = format!(
                "Format driver '{}' does not support option amendment",
                node.kind.name()
            );
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        Ok(node.id)
    })?;
    let name = node_name;
    transaction::run(world, "amend", Amendment { node, name, options }).await
}

/// Options that are changed under a hold, in a drained section: both end with it.
struct Amendment {
    node: NodeId,
    name: String,
    options: Options,
}

impl Change for Amendment {
    type Answer = ();

    const LASTS: bool = false;

    async fn prepare(&mut self, transaction: &mut Transaction) -> Result<()> {
        let (node, options) = (self.node, std::mem::take(&mut self.options));
        let world = transaction.world.clone();
        let permissions = Permissions::CONSISTENT_READ | Permissions::WRITE | Permissions::RESIZE;
        let request = roots::hold(&self.name, "amend", permissions);
        let root = roots::link_root(transaction, node, &request);
        roots::take(transaction, node, root, request.permissions, request.shared).await?;
        transaction.drain([node], "amend").await;
        let amended = world.ask(node, NodeTask::Amend { options }).done().await;
        // Where several options change, some may have before one failed.
        resize::refresh_sizes(&world, node).await;
        amended
    }

    async fn finish(self, _: &World) {}
}
