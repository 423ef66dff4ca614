//! Steps that concern dirty bitmaps.

use millpond_engine::node::NewBitmap;
use millpond_messages::{BitmapId, ChunkSet, NodeId, Result};

use crate::order::{BitmapMerge, BitmapOrder, NodeTask};
use crate::transaction::{Transaction, bitmaps};
use crate::undo::Undo;
use crate::value::bitmap::{Bitmap, Stage};

impl Transaction {
    /// Adds a bitmap with nothing dirty.
    ///
    /// # Errors
    /// It would have more bits than a bitmap can have, or the image cannot store it.
    pub async fn add_bitmap(&mut self, node: NodeId, bitmap: Bitmap) -> Result<()> {
        let order = BitmapOrder::Add(NewBitmap {
            granularity: bitmap.granularity.into(),
            is_recording: bitmap.is_recording,
            stored_as: bitmap.is_persistent.then(|| bitmap.name.clone()),
        });
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

    /// Has a bitmap go with the commit. Nobody uses it until then. The image forgets it at once: what was stored there was
    /// called in use, and is stored anew when the image is closed.
    ///
    /// # Errors
    /// The image that stores it cannot be written.
    pub async fn remove_bitmap(&mut self, node: NodeId, bitmap: BitmapId) -> Result<()> {
        let is_stored = self.world.graph(|graph| {
            graph
                .bitmap_mut(node, bitmap)
                .is_some_and(|bitmap| bitmap.is_persistent)
        });
        if is_stored {
            self.world
                .ask(node, NodeTask::UnstoreBitmap { bitmap })
                .done()
                .await?;
        }
        bitmaps::set_stage(&self.world, node, bitmap, Stage::Leaving);
        self.log.push(Undo::BitmapRemoved(node, bitmap));
        Ok(())
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

    /// Keeps what is written from now on apart from what is dirty by a bitmap now. The node is still. Nobody else uses the
    /// bitmap until it is put together again.
    ///
    /// # Errors
    /// The node is gone.
    pub async fn split_bitmap(&mut self, node: NodeId, bitmap: BitmapId) -> Result<()> {
        bitmaps::ask(&self.world, node, bitmap, BitmapOrder::Split)
            .done()
            .await?;
        bitmaps::set_split(&self.world, node, bitmap, true);
        self.log.push(Undo::BitmapSplit(node, bitmap));
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
