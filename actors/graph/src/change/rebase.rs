//! An image that gets another backing node, and names it in its header.

use millpond_drivers::api::BackingLink;
use millpond_messages::graph::{BackingName, SetBacking};
use millpond_messages::{NodeId, Result};

use crate::change::backing_link;
use crate::change::links::Relink;
use crate::sections::Cover;
use crate::state::PolicyState;
use crate::transaction::{Change, Transaction};
use crate::value::chain;
use crate::value::graph::Graph;
use crate::world::World;

/// An image that gets another backing node, or is left without; its header names that, or that there is none.
pub struct Rebase {
    node_name: String,
    base: Option<String>,
    named: BackingName,
    relink: Relink,
    /// The image's node, and what its header is to say.
    found: Option<(NodeId, Option<BackingLink>)>,
}

impl Rebase {
    /// Puts `base` behind the image of a node.
    pub fn new(node_name: String, base: Option<String>, named: BackingName) -> Self {
        let relink = Relink::from(SetBacking {
            node_name: node_name.clone(),
            backing: base.clone(),
        });
        Self {
            node_name,
            base,
            named,
            relink,
            found: None,
        }
    }
}

impl Change for Rebase {
    type Answer = ();

    fn check(&mut self, state: &PolicyState) -> Result<()> {
        self.relink.check(state)?;
        let graph = &state.graph;
        let base = self.base.as_ref().map(|name| graph.find(name)).transpose()?;
        // A header names an image, not the filters over it.
        let image = base.map(|base| chain::skip_filters(graph, base.id));
        let link = image.map(|image| backing_link::link(graph, image, self.named.clone()));
        self.found = Some((graph.find(&self.node_name)?.id, link.transpose()?));
        Ok(())
    }

    fn cover(&self, graph: &Graph) -> Cover {
        self.relink
            .cover(graph)
            .join(Cover::Nodes(self.found.iter().map(|(node, _)| *node).collect()))
    }

    async fn prepare(&mut self, transaction: &mut Transaction) -> Result<()> {
        self.relink.prepare(transaction).await?;
        match self.found.take() {
            Some((node, link)) => transaction.record_backing(node, link).await,
            None => Ok(()),
        }
    }

    async fn finish(self, world: &World) {
        self.relink.finish(world).await;
    }
}
