//! `blockdev-add`.

use millpond_messages::graph::Options;
use millpond_messages::{Error, ErrorKind, Result};

use crate::open::options;
use crate::open::tree::{self, Inherited};
use crate::transaction::Transaction;
use crate::world::World;

/// `blockdev-add`.
///
/// # Errors
/// Whatever a node's open met. Nothing is left behind then.
pub async fn blockdev_add(world: &World, options: Options) -> Result<()> {
    if !options.contains_key("driver") {
        return Err(options::missing("driver"));
    }
    if !options.contains_key("node-name") {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            "'node-name' must be specified for the root node",
        ));
    }
    let mut transaction = Transaction::new(world);
    match tree::open_tree(&mut transaction, options, Inherited::default()).await {
        Ok(node) => {
            world.graph(|graph| {
                if let Some(node) = graph.node_mut(node) {
                    node.owned = true;
                }
            });
            transaction.commit();
            Ok(())
        }
        Err(error) => {
            transaction.roll_back().await;
            Err(error)
        }
    }
}
