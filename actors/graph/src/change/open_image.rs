//! Images opened by name, with a hold on them where one is asked for.

use millpond_messages::graph::{GraphReply, Open, OpenHeld, OpenImage, Options, RootRequest, RootUser};
use millpond_messages::{OpenFlags, Result, RootId};
use serde_json::Value;

use crate::change::roots::{self, Inactive};
use crate::effect::Reply;
use crate::open::{image, options};
use crate::transaction::{Change, Transaction};
use crate::world::World;

/// An image that is to be opened, and the answer once it is.
pub struct OpenOne {
    image: OpenImage,
    holder: Option<RootUser>,
    opened: GraphReply<RootId>,
}

impl From<Open> for OpenOne {
    fn from(Open(image): Open) -> Self {
        Self {
            image: *image,
            holder: None,
            opened: GraphReply::Done,
        }
    }
}

impl From<OpenHeld> for OpenOne {
    fn from(OpenHeld { image, holder }: OpenHeld) -> Self {
        Self {
            image: *image,
            holder: Some(holder),
            opened: GraphReply::Done,
        }
    }
}

impl Change for OpenOne {
    type Answer = GraphReply<RootId>;

    async fn prepare(&mut self, transaction: &mut Transaction) -> Result<()> {
        let image = std::mem::take(&mut self.image);
        self.opened = open_held(transaction, image, self.holder.take()).await?;
        Ok(())
    }

    async fn finish(self, world: &World) -> Self::Answer {
        if let GraphReply::Root(root) = &self.opened {
            roots::has_cell(world, *root);
        }
        self.opened
    }
}

async fn open_held(transaction: &mut Transaction, mut image: OpenImage, holder: Option<RootUser>) -> Reply {
    let world = transaction.world.clone();
    let writethrough = holder.is_some() && take_writethrough(&mut image.options)?;
    let (flags, existing) = (image.flags, image.reference.is_some());
    let node = image::open_node(transaction, image).await?;
    let name = world.graph(|graph| graph.expect(node).map(|node| node.name.clone()))?;
    let Some(user) = holder else {
        if !existing {
            world.graph(|graph| {
                if let Some(node) = graph.node_mut(node) {
                    node.owned = true;
                }
            });
        }
        return Ok(GraphReply::Text(name));
    };
    let (permissions, shared) = flags.root_permissions();
    let request = RootRequest {
        node: name,
        user,
        permissions,
        shared,
        iothread: None,
        iothread_required: false,
        writethrough,
    };
    let inactive = if flags.contains(OpenFlags::INACTIVE) {
        Inactive::Allowed
    } else {
        Inactive::Refused
    };
    roots::attach_to(transaction, node, &request, inactive)
        .await
        .map(GraphReply::Root)
}

fn take_writethrough(options: &mut Options) -> Result<bool> {
    let mut writeback = options::take_bool(options, WRITEBACK)?;
    if let Some(Value::Object(cache)) = options.get_mut("cache") {
        writeback = options::take_bool(cache, "writeback")?.or(writeback);
    }
    Ok(writeback == Some(false))
}

/// The option of the root edge that an opener gets: off makes every write durable before it is answered.
const WRITEBACK: &str = "cache.writeback";
