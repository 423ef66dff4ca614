//! Dirty bitmaps: added, removed, changed and merged, each as one change.

use millpond_messages::graph::{
    BitmapChange, BitmapEdit, BitmapHold, BitmapName, GraphReply, HeldBitmap, JoinBitmap, ShownBitmap,
};
use millpond_messages::{BitmapId, ChunkSet, Error, ErrorKind, NodeId, Result};

use crate::effect::Reply;
use crate::order::BitmapOrder;
use crate::query::device;
use crate::sections::Cover;
use crate::state::PolicyState;
use crate::transaction::{Change, Outcome, Transaction, bitmaps};
use crate::value::bitmap::{Bitmap, Wanted};
use crate::value::chain;
use crate::value::graph::Graph;
use crate::value::node::Node;
use crate::world::World;

/// The least bytes that a bit stands for.
const LEAST_GRANULARITY: u32 = 512;
/// What a bit stands for where the format says nothing.
const DEFAULT_GRANULARITY: u64 = 65_536;
/// The least that a bit stands for where the format has clusters.
const CLUSTER_AT_LEAST: u64 = 4096;
/// The longest name, in bytes.
const LONGEST_NAME: usize = 1023;

/// A change of one bitmap.
pub struct Editing {
    request: BitmapEdit,
    node: Option<NodeId>,
    bitmap: Option<BitmapId>,
    /// The node's image stores it, or is to.
    is_stored: bool,
    /// The nodes of bitmaps that are merged, as far as they have been found.
    sources: Vec<NodeId>,
}

impl From<BitmapEdit> for Editing {
    fn from(request: BitmapEdit) -> Self {
        Self {
            request,
            node: None,
            bitmap: None,
            is_stored: false,
            sources: Vec::new(),
        }
    }
}

fn refused<T>(text: impl Into<String>) -> Result<T> {
    Err(Error::new(ErrorKind::InvalidArgument, text.into()))
}

impl Change for Editing {
    type Answer = ();

    fn check(&mut self, state: &PolicyState) -> Result<()> {
        let BitmapName { node, name } = &self.request.bitmap;
        if let BitmapChange::Add {
            granularity,
            persistent,
            ..
        } = self.request.change
        {
            let node = check_new(&state.graph, node, name, granularity, persistent)?;
            (self.node, self.is_stored) = (Some(node.id), persistent);
            return Ok(());
        }
        let (node, bitmap) = state
            .graph
            .find_free_bitmap(node, name, wanted(&self.request.change))?;
        (self.node, self.bitmap) = (Some(node.id), Some(bitmap.id));
        self.is_stored = bitmap.is_persistent;
        if let BitmapChange::Merge(sources) = &self.request.change {
            let found = sources
                .iter()
                .filter_map(|source| state.graph.find_bitmap(&source.node, &source.name).ok());
            self.sources = found.map(|(node, _)| node.id).collect();
        }
        Ok(())
    }

    /// A write that is under way is marked before the change, or after it as a whole.
    fn cover(&self, _: &Graph) -> Cover {
        Cover::Nodes(
            self.node
                .into_iter()
                .chain(self.sources.iter().copied())
                .collect(),
        )
    }

    async fn prepare(&mut self, transaction: &mut Transaction) -> Result<()> {
        let Some(node) = self.node else { return Ok(()) };
        if let BitmapChange::Add {
            granularity,
            persistent,
            disabled,
        } = self.request.change
        {
            let new = self.new_bitmap(&transaction.world, node, granularity).await;
            let bitmap = Bitmap {
                is_recording: !disabled,
                is_persistent: persistent,
                ..new
            };
            return transaction.add_bitmap(node, bitmap).await;
        }
        let Some(bitmap) = self.bitmap else { return Ok(()) };
        match &self.request.change {
            BitmapChange::Add { .. } => Ok(()),
            BitmapChange::Remove => transaction.remove_bitmap(node, bitmap).await,
            BitmapChange::Clear => transaction.clear_bitmap(node, bitmap).await,
            BitmapChange::Enable => transaction.record_bitmap(node, bitmap, true).await,
            BitmapChange::Disable => transaction.record_bitmap(node, bitmap, false).await,
            BitmapChange::Merge(sources) => {
                let world = transaction.world.clone();
                let order = BitmapOrder::Copy;
                let into = bitmaps::ask(&world, node, bitmap, order).bits().await?;
                let sources = copies(&world, sources, into.len()).await?;
                transaction.merge_bitmap(node, bitmap, into, sources).await
            }
        }
    }

    /// An image with a log stores what has come of it, or of its being undone. Until then a crash leaves the bitmaps as they
    /// were, with all that was written since.
    async fn settle(&mut self, world: &World, _: Outcome) -> Result<()> {
        let Some(node) = self.node.filter(|_| self.is_stored) else {
            return Ok(());
        };
        let stored = bitmaps::store_and_log(world, node).await;
        match &self.request.change {
            BitmapChange::Add { .. } | BitmapChange::Enable | BitmapChange::Merge(_) => stored,
            // What was dirty before stays so: nothing is missed by it.
            BitmapChange::Remove | BitmapChange::Clear | BitmapChange::Disable => {
                if let Err(error) = stored {
                    tracing::error!(%error, %node, "a change of a dirty bitmap is not stored");
                }
                Ok(())
            }
        }
    }

    async fn finish(self, _: &World) {}
}

impl Editing {
    async fn new_bitmap(&self, world: &World, node: NodeId, granularity: Option<u32>) -> Bitmap {
        let granularity = match granularity {
            Some(granularity) => granularity,
            None => default_granularity(world, node).await,
        };
        let id = world.graph(Graph::new_bitmap_id);
        Bitmap::new(id, self.request.bitmap.name.clone(), granularity)
    }
}

/// What a change of a bitmap wants of it.
const fn wanted(change: &BitmapChange) -> Wanted {
    match change {
        BitmapChange::Add { .. } | BitmapChange::Clear | BitmapChange::Merge(_) => Wanted::Change,
        BitmapChange::Enable | BitmapChange::Disable => Wanted::Use,
        BitmapChange::Remove => Wanted::Removal,
    }
}

/// Whether a node can get a bitmap of this name, in QEMU's order of checks.
fn check_new<'a>(
    graph: &'a Graph,
    node: &str,
    name: &str,
    granularity: Option<u32>,
    persistent: bool,
) -> Result<&'a Node> {
    if name.is_empty() {
        return refused("Bitmap name cannot be empty");
    }
    let node = graph.look_up_new(node, node)?;
    if granularity.is_some_and(|bytes| bytes < LEAST_GRANULARITY || !bytes.is_power_of_two()) {
        return refused("Granularity must be power of 2 and at least 512");
    }
    if persistent && !node.kind.stores_bitmaps() {
        let text = format!(
            "Can't store persistent bitmaps to {}: Operation not supported",
            node.name
        );
        return Err(Error::new(ErrorKind::Unsupported, text));
    }
    if node.bitmap_named(name).is_some() {
        let text = format!("Bitmap already exists: {name}");
        return Err(Error::new(ErrorKind::Exists, text));
    }
    // What its image says of a name that is too long comes first.
    if name.len() > LONGEST_NAME && !persistent {
        return refused(format!("Bitmap name too long: {name}"));
    }
    Ok(node)
}

async fn default_granularity(world: &World, node: NodeId) -> u32 {
    let granularity = match device::cluster_size(world, node).await {
        0 => DEFAULT_GRANULARITY,
        cluster => cluster.max(CLUSTER_AT_LEAST),
    };
    // No format has clusters of 4 GiB.
    u32::try_from(granularity).unwrap_or(u32::MAX / 2 + 1)
}

/// What is dirty by each of some bitmaps of nodes that are as long as the first, which nobody else uses.
async fn copies(world: &World, sources: &[BitmapName], len: u64) -> Result<Vec<ChunkSet>> {
    let mut copies = Vec::with_capacity(sources.len());
    for source in sources {
        let (node, bitmap) = world.graph(|graph| {
            let (node, bitmap) = graph.find_free_bitmap(&source.node, &source.name, Wanted::Use)?;
            Ok::<_, Error>((node.id, bitmap.id))
        })?;
        let copy = bitmaps::ask(world, node, bitmap, BitmapOrder::Copy)
            .bits()
            .await?;
        if copy.len() != len {
            return refused(format!(
                "Bitmaps are of different sizes (destination size is {len}, source size is {}) and can't be merged",
                copy.len()
            ));
        }
        copies.push(*copy);
    }
    Ok(copies)
}

/// The end of a backup's use of a bitmap that its node's image stores: the image stores it as it is then.
pub struct Joining(pub JoinBitmap);

impl Change for Joining {
    type Answer = ();

    fn cover(&self, _: &Graph) -> Cover {
        Cover::Nodes(vec![self.0.node])
    }

    async fn prepare(&mut self, transaction: &mut Transaction) -> Result<()> {
        bitmaps::join(&transaction.world, &self.0).await
    }

    async fn settle(&mut self, world: &World, _: Outcome) -> Result<()> {
        if let Err(error) = bitmaps::store_and_log(world, self.0.node).await {
            tracing::error!(%error, node = %self.0.node, "a dirty bitmap is not stored at the end of a backup");
        }
        Ok(())
    }

    async fn finish(self, _: &World) {}
}

/// Keeps bitmaps from being changed by others until a root edge ends: all of them, or none.
///
/// # Errors
/// One is not there, is in use, or records what the user does not know of.
pub fn hold(world: &World, hold: &BitmapHold) -> Reply {
    world.graph(|graph| {
        let exported = graph.root_node(hold.root)?;
        let found = hold.bitmaps.iter().map(|shown| {
            let (node, bitmap) = match shown {
                ShownBitmap::InChain(name) => in_chain(graph, exported, name, hold.writable)?,
                ShownBitmap::Of(BitmapName { node, name }) => graph.find_bitmap(node, name)?,
            };
            bitmap.check(Wanted::Use)?;
            Ok(HeldBitmap {
                node: node.id,
                bitmap: bitmap.id,
                name: bitmap.name.clone(),
            })
        });
        let found = found.collect::<Result<Vec<_>>>()?;
        for held in &found {
            graph.hold_bitmap(hold.root, held.node, held.bitmap);
        }
        Ok(GraphReply::Bitmaps(found))
    })
}

/// The first bitmap of this name in a chain. One that records goes on changing, which a user who does not write would not
/// expect.
fn in_chain<'a>(graph: &'a Graph, top: NodeId, name: &str, writable: bool) -> Result<(&'a Node, &'a Bitmap)> {
    let nodes = std::iter::successors(Some(top), |node| chain::next(graph, *node));
    let mut nodes = nodes.filter_map(|node| graph.node(node));
    let found = nodes.find_map(|node| Some((node, node.bitmap_named(name)?)));
    let (node, bitmap) = found.ok_or_else(|| {
        let text = format!("Bitmap '{name}' is not found");
        Error::new(ErrorKind::NotFound, text)
    })?;
    if !writable && node.writable() && bitmap.is_recording {
        return refused(format!(
            "Enabled bitmap '{name}' incompatible with readonly export"
        ));
    }
    Ok((node, bitmap))
}
