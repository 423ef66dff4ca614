//! Format options of open images, changed in place.

use millpond_messages::graph::Options;
use millpond_messages::{Error, ErrorKind, NodeId, Permissions, Result};

use crate::change::{resize, roots};
use crate::order::NodeTask;
use crate::transaction::Transaction;
use crate::world::World;

/// Changes options of an image's format, as `qemu-img amend` does.
///
/// # Errors
/// There is no such node, its format cannot, a user relies on what would change, or the driver's.
pub async fn amend(world: &World, name: &str, options: Options) -> Result<()> {
    let node = world.graph(|graph| {
        let node = graph.look_up("", name)?;
        if !node.kind.amends() {
            let text = format!(
                "Format driver '{}' does not support option amendment",
                node.kind.name()
            );
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        Ok(node.id)
    })?;
    let mut transaction = Transaction::new(world);
    let result = carry_out(&mut transaction, node, name, options).await;
    // The hold and the section end in either case.
    transaction.roll_back().await;
    result
}

async fn carry_out(transaction: &mut Transaction, node: NodeId, name: &str, options: Options) -> Result<()> {
    let world = transaction.world.clone();
    let permissions = Permissions::CONSISTENT_READ | Permissions::WRITE | Permissions::RESIZE;
    let request = roots::hold(name, "amend", permissions);
    let root = roots::link_root(transaction, node, &request);
    roots::take(transaction, node, root, request.permissions, request.shared).await?;
    transaction.drain([node], "amend").await;
    let amended = world.ask(node, NodeTask::Amend { options }).done().await;
    // Where several options change, some may have before one failed.
    resize::refresh_sizes(&world, node).await;
    amended
}
