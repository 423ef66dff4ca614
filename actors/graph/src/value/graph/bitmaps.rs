//! Dirty bitmaps of nodes: by name, as they come and go, and while users hold them.

use millpond_messages::{BitmapId, NodeId, Result, RootId};

use super::Graph;
use crate::value::bitmap::{Bitmap, Wanted};
use crate::value::node::Node;
use crate::value::refusal::Refusal;

impl Graph {
    /// An id for a bitmap to be added.
    pub fn new_bitmap_id(&mut self) -> BitmapId {
        BitmapId(self.next_id())
    }

    /// The bitmap of this name, with its node. Changes earlier in the same list may have made either.
    ///
    /// # Errors
    /// There is no such node, or no such bitmap.
    pub fn find_bitmap(&self, node: &str, name: &str) -> Result<(&Node, &Bitmap)> {
        let found = self.look_up_new(node, node);
        let found = found.map_err(|_| Refusal::NoSuchNode(node.to_owned()))?;
        let bitmap = found.bitmap_named(name);
        Ok((found, bitmap.ok_or_else(|| Refusal::NoBitmap(name.to_owned()))?))
    }

    /// The same of one that can be had for what is wanted.
    ///
    /// # Errors
    /// There is none, or as of [`Bitmap::check`].
    pub fn find_free_bitmap(&self, node: &str, name: &str, wanted: Wanted) -> Result<(&Node, &Bitmap)> {
        let (node, bitmap) = self.find_bitmap(node, name)?;
        bitmap.check(wanted)?;
        Ok((node, bitmap))
    }

    /// A bitmap of a node, to be changed.
    pub fn bitmap_mut(&mut self, node: NodeId, id: BitmapId) -> Option<&mut Bitmap> {
        let bitmaps = &mut self.node_mut(node)?.bitmaps;
        bitmaps.iter_mut().find(|bitmap| bitmap.id == id)
    }

    /// Takes a bitmap away.
    pub fn remove_bitmap(&mut self, node: NodeId, id: BitmapId) {
        if let Some(node) = self.node_mut(node) {
            node.bitmaps.retain(|bitmap| bitmap.id != id);
        }
    }

    /// Keeps others from changing a bitmap until a root edge ends.
    pub fn hold_bitmap(&mut self, root: RootId, node: NodeId, id: BitmapId) {
        if let Some(bitmap) = self.bitmap_mut(node, id) {
            bitmap.holder = Some(root);
            self.held_bitmaps.entry(root).or_default().push((node, id));
        }
    }

    /// Lets go of all bitmaps that are held until a root edge ends.
    pub(super) fn release_bitmaps(&mut self, root: RootId) {
        for (node, id) in self.held_bitmaps.remove(&root).into_iter().flatten() {
            if let Some(bitmap) = self.bitmap_mut(node, id) {
                bitmap.holder = None;
            }
        }
    }
}
