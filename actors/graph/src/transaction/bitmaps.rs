//! What steps that concern dirty bitmaps do to them, and what undoes it.

use millpond_messages::{BitmapId, ChunkSet, NodeId, Result};

use crate::order::{BitmapOrder, NodeOrder};
use crate::value::bitmap::Stage;
use crate::world::{Answered, World};

/// Has a cell do something with a bitmap.
pub fn ask(world: &World, node: NodeId, bitmap: BitmapId, order: BitmapOrder) -> Answered {
    world.ask(node, NodeOrder::Bitmap { bitmap, order })
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
