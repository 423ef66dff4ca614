//! What is dirty by the bitmaps of nodes.

use millpond_engine::node::{BitmapFacts, OrderOutcome};
use millpond_messages::graph::{BitmapName, DirtyRun, ReadBitmap};
use millpond_messages::qapi::BlockDirtyInfo;
use millpond_messages::{ChunkSet, Error, ErrorKind, Result};

use crate::order::BitmapOrder;
use crate::transaction::bitmaps;
use crate::value::bitmap::Stage;
use crate::value::node::Node;
use crate::value::refusal::Refusal;
use crate::world::World;

/// What is dirty now by a bitmap that all see.
///
/// # Errors
/// There is no such node or bitmap.
pub async fn copy(world: &World, asked: &BitmapName) -> Result<Box<ChunkSet>> {
    let (node, bitmap) = world.graph(|graph| {
        let (node, bitmap) = graph.find_bitmap(&asked.node, &asked.name)?;
        match node.live && bitmap.stage != Stage::Coming {
            true => Ok::<_, Error>((node.id, bitmap.id)),
            false => Err(Refusal::NoBitmap(asked.name.clone()).into()),
        }
    })?;
    bitmaps::ask(world, node, bitmap, BitmapOrder::Copy).bits().await
}

/// What is dirty in a range.
///
/// # Errors
/// The bitmap is gone.
pub async fn read(world: &World, asked: &ReadBitmap) -> Result<Vec<DirtyRun>> {
    let order = BitmapOrder::Read {
        range: asked.range,
        most: asked.most,
    };
    match bitmaps::ask(world, asked.node, asked.bitmap, order).await {
        OrderOutcome::DirtyRuns(runs) => runs,
        OrderOutcome::Done(Err(error)) => Err(error),
        _ => Err(Error::new(ErrorKind::Closed, "The iothread gave no answer")),
    }
}

/// The bitmaps of a node as they are shown, the newest first; nothing where there are none. `facts` is what its cell has told.
pub fn shown(node: &Node, facts: &[BitmapFacts]) -> Option<Vec<BlockDirtyInfo>> {
    let visible = node.bitmaps.iter().rev();
    let visible = visible.filter(|bitmap| bitmap.stage != Stage::Coming);
    let shown = visible.filter_map(|bitmap| {
        let facts = facts.iter().find(|facts| facts.id == bitmap.id)?;
        Some(BlockDirtyInfo {
            name: Some(bitmap.name.clone()),
            count: i64::try_from(facts.count).unwrap_or(i64::MAX),
            granularity: bitmap.granularity,
            recording: bitmap.is_recording,
            busy: bitmap.is_busy(),
            persistent: bitmap.is_persistent,
            inconsistent: (facts.is_lost || bitmap.is_inconsistent).then_some(true),
        })
    });
    Some(shown.collect()).filter(|shown: &Vec<_>| !shown.is_empty())
}
