//! Steps that concern dirty bitmaps.

use millpond_messages::{BitmapId, ChunkSet, NodeId, Result};

use crate::order::{BitmapMerge, BitmapOrder, NodeTask};
use crate::transaction::{Transaction, bitmaps};
use crate::undo::Undo;
use crate::value::bitmap::{Bitmap, Stage};

impl Transaction {
    /// Adds a bitmap with nothing dirty.
    ///
    /// # Errors
    /// It would have more bits than a bitmap can have.
    pub async fn add_bitmap(&mut self, node: NodeId, bitmap: Bitmap) -> Result<()> {
        let order = BitmapOrder::Add {
            granularity: bitmap.granularity.into(),
            is_recording: bitmap.is_recording,
        };
        let id = bitmap.id;
        bitmaps::ask(&self.world, node, id, order).done().await?;
        self.log.push(Undo::BitmapAdded(node, id));
        self.world.graph(|graph| {
            if let Some(node) = graph.node_mut(node) {
                node.bitmaps.push(bitmap);
            }
        });
        Ok(())
    }

    /// Has a bitmap go with the commit. Nobody uses it until then.
    pub fn remove_bitmap(&mut self, node: NodeId, bitmap: BitmapId) {
        bitmaps::set_stage(&self.world, node, bitmap, Stage::Leaving);
        self.log.push(Undo::BitmapRemoved(node, bitmap));
    }

    /// Has a bitmap record writes, or not.
    ///
    /// # Errors
    /// The node is gone.
    pub async fn record_bitmap(&mut self, node: NodeId, bitmap: BitmapId, on: bool) -> Result<()> {
        let before = bitmaps::record(&self.world, node, bitmap, on).await?;
        self.log.push(Undo::BitmapRecording(node, bitmap, before));
        Ok(())
    }

    /// Has a bitmap say that nothing is dirty. The node is still.
    ///
    /// # Errors
    /// The node is gone.
    pub async fn clear_bitmap(&mut self, node: NodeId, bitmap: BitmapId) -> Result<()> {
        let before = bitmaps::ask(&self.world, node, bitmap, BitmapOrder::Clear)
            .bits()
            .await?;
        self.log.push(Undo::BitmapChanged(node, bitmap, before));
        Ok(())
    }

    /// Merges other bitmaps into one that says `into` now. The node is still.
    ///
    /// # Errors
    /// The node is gone.
    pub async fn merge_bitmap(
        &mut self,
        node: NodeId,
        bitmap: BitmapId,
        into: Box<ChunkSet>,
        sources: Vec<ChunkSet>,
    ) -> Result<()> {
        let merge = BitmapMerge {
            bitmap,
            into,
            sources,
        };
        let before = self.world.ask(node, NodeTask::MergeBitmap(merge)).bits().await?;
        self.log.push(Undo::BitmapChanged(node, bitmap, before));
        Ok(())
    }
}
