//! What steps that concern dirty bitmaps do to them, and what undoes it.

use millpond_engine::node::FoundBitmap;
use millpond_messages::graph::JoinBitmap;
use millpond_messages::{BitmapId, ChunkSet, NodeId, Result};

use crate::order::{BitmapOrder, NodeOrder, NodeTask};
use crate::value::bitmap::{Bitmap, Stage};
use crate::value::graph::Graph;
use crate::world::{Answered, World};

/// Has a cell do something with a bitmap.
pub fn ask(world: &World, node: NodeId, bitmap: BitmapId, order: BitmapOrder) -> Answered {
    world.ask(node, NodeOrder::Bitmap { bitmap, order })
}

/// Takes note of the bitmaps that a node has read with its image.
pub fn adopt(world: &World, node: NodeId, found: &[FoundBitmap]) {
    for found in found {
        let known = world.graph(|graph| {
            let id = graph.new_bitmap_id();
            let node = graph.node_mut(node)?;
            // No image stores a larger one.
            let granularity = u32::try_from(found.granularity).ok()?;
            node.bitmaps.push(Bitmap {
                is_recording: found.is_recording,
                is_persistent: true,
                is_inconsistent: found.is_inconsistent,
                is_read_only: !node.writable(),
                stage: Stage::Live,
                ..Bitmap::new(id, found.name.clone(), granularity)
            });
            Some(id)
        });
        if let Some(bitmap) = known {
            let name = found.name.clone();
            let order = BitmapOrder::Adopt { name };
            world.send(node, NodeOrder::Bitmap { bitmap, order });
        }
    }
}

/// Takes note that a node's image is written to from now on, or not. One that is left to others takes its bitmaps along, but
/// for those of which nobody knows what is dirty.
pub fn reopened(world: &World, node: NodeId) {
    let left = world.graph(|graph| {
        let Some(node) = graph.node_mut(node) else {
            return Vec::new();
        };
        let (is_read_only, is_inactive) = (!node.writable(), node.is_inactive());
        let stored = node.bitmaps.iter_mut().filter(|bitmap| bitmap.is_persistent);
        let mut left = Vec::new();
        for bitmap in stored {
            bitmap.is_read_only = is_read_only;
            if is_inactive && !bitmap.is_inconsistent {
                left.push(bitmap.id);
            }
        }
        left
    });
    left.into_iter().for_each(|bitmap| forget(world, node, bitmap));
}

/// Whether a node's image stores dirty bitmaps that are kept here.
pub fn are_stored(graph: &Graph, node: NodeId) -> bool {
    let mut bitmaps = graph.node(node).into_iter().flat_map(|node| &node.bitmaps);
    bitmaps.any(|bitmap| bitmap.is_persistent)
}

/// Has an image that can be written say that the bitmaps it stores are kept here: they may change before its data does. Where
/// that fails, the first write to the image fails too.
pub async fn mark(world: &World, node: NodeId) {
    let stores =
        world.graph(|graph| are_stored(graph, node) && graph.node(node).is_some_and(|node| node.writable()));
    if stores && let Err(error) = world.ask(node, NodeTask::MarkBitmaps).done().await {
        tracing::error!(%node, "Failed to make dirty bitmaps writable: {error}");
    }
}

/// Whether a node's image keeps a log of its bitmaps, so that it is to store them whenever they change otherwise than by writes.
pub fn are_logged(graph: &Graph, node: NodeId) -> bool {
    let node = graph.node(node);
    node.is_some_and(|node| node.writable() && node.kind.logs_bitmaps(&node.options))
}

/// Has the image of a node store its bitmaps as they are now, if it keeps a log of them. The node is still.
///
/// # Errors
/// What the image would say after a crash is neither what they are nor what they were, and it cannot be told so.
pub async fn store_and_log(world: &World, node: NodeId) -> Result<()> {
    match world.graph(|graph| are_logged(graph, node)) {
        true => world.ask(node, NodeTask::StoreAndLog).done().await,
        false => Ok(()),
    }
}

/// Has a bitmap record writes, or not; answers whether it did before.
///
/// # Errors
/// The node is gone.
pub async fn record(world: &World, node: NodeId, bitmap: BitmapId, on: bool) -> Result<bool> {
    ask(world, node, bitmap, BitmapOrder::Record(on)).done().await?;
    let before = world.graph(|graph| {
        let bitmap = graph.bitmap_mut(node, bitmap)?;
        Some(std::mem::replace(&mut bitmap.is_recording, on))
    });
    Ok(before.unwrap_or(on))
}

/// Notes where a bitmap stands between its coming and its going.
pub fn set_stage(world: &World, node: NodeId, bitmap: BitmapId, stage: Stage) {
    world.graph(|graph| {
        if let Some(bitmap) = graph.bitmap_mut(node, bitmap) {
            bitmap.stage = stage;
        }
    });
}

/// Notes whether a backup keeps a bitmap split.
pub fn set_split(world: &World, node: NodeId, bitmap: BitmapId, is_split: bool) {
    world.graph(|graph| {
        if let Some(bitmap) = graph.bitmap_mut(node, bitmap) {
            bitmap.is_split = is_split;
        }
    });
}

/// Puts a bitmap together again at a backup's end. One that is gone with its node is none of anybody's business.
///
/// # Errors
/// The node is gone, or the filter that could tell what it has not copied.
pub async fn join(world: &World, join: &JoinBitmap) -> Result<()> {
    let &JoinBitmap {
        node, bitmap, keeps, ..
    } = join;
    let more = match &join.left_of {
        None => Ok(None),
        Some(filter) => left_of(world, filter).await.map(Some),
    };
    // Of what cannot be told any more, all that was dirty stays so.
    let (keeps, more) = more.map_or((true, None), |more| (keeps, more));
    let joined = ask(world, node, bitmap, BitmapOrder::Join { keeps, more })
        .done()
        .await;
    set_split(world, node, bitmap, false);
    joined
}

async fn left_of(world: &World, filter: &str) -> Result<Box<ChunkSet>> {
    let filter = world.graph(|graph| graph.look_up("", filter).map(|node| node.id))?;
    world.ask(filter, NodeOrder::LeftOfMoment).bits().await
}

/// Puts a bitmap together again as it was.
pub async fn join_again(world: &World, node: NodeId, bitmap: BitmapId) {
    let whole = JoinBitmap {
        node,
        bitmap,
        keeps: true,
        left_of: None,
    };
    if let Err(error) = join(world, &whole).await {
        tracing::warn!(%error, %node, "a dirty bitmap could not be put together again");
    }
}

/// Lets others see a bitmap that was added.
pub fn show(world: &World, node: NodeId, bitmap: BitmapId) {
    set_stage(world, node, bitmap, Stage::Live);
}

/// Removes a bitmap for good.
pub fn forget(world: &World, node: NodeId, bitmap: BitmapId) {
    let order = BitmapOrder::Remove;
    world.send(node, NodeOrder::Bitmap { bitmap, order });
    world.graph(|graph| graph.remove_bitmap(node, bitmap));
}

/// Lets a bitmap record as it did before.
pub async fn record_again(world: &World, node: NodeId, bitmap: BitmapId, on: bool) {
    if let Err(error) = record(world, node, bitmap, on).await {
        tracing::warn!(%error, %node, "a dirty bitmap could not be put back");
    }
}

/// Lets a bitmap say what it said before.
pub async fn restore(world: &World, node: NodeId, bitmap: BitmapId, before: Box<ChunkSet>) {
    let order = BitmapOrder::Replace(before);
    if let Err(error) = ask(world, node, bitmap, order).bits().await {
        tracing::warn!(%error, %node, "a dirty bitmap could not be put back");
    }
}
