//! `blockdev-add`.

use millpond_messages::graph::{AddNode, Options};
use millpond_messages::{Error, ErrorKind, Result};

use crate::open::options;
use crate::open::tree::{self, Inherited};
use crate::state::PolicyState;
use crate::transaction::{Change, Transaction};
use crate::world::World;

/// A node that a user adds, with what it needs below it.
pub struct Add {
    options: Options,
}

impl From<AddNode> for Add {
    fn from(AddNode(options): AddNode) -> Self {
        Self { options }
    }
}

impl Change for Add {
    type Answer = ();

    fn check(&mut self, _: &PolicyState) -> Result<()> {
        if !self.options.contains_key("driver") {
            return Err(options::missing("driver"));
        }
        if !self.options.contains_key("node-name") {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                "'node-name' must be specified for the root node",
            ));
        }
        Ok(())
    }

    async fn prepare(&mut self, transaction: &mut Transaction) -> Result<()> {
        let options = std::mem::take(&mut self.options);
        let node = tree::open_tree(transaction, options, Inherited::default()).await?;
        transaction.world.graph(|graph| {
            if let Some(node) = graph.node_mut(node) {
                node.owned = true;
            }
        });
        Ok(())
    }

    async fn finish(self, _: &World) {}
}
