//! Changes that only jobs ask for: which is which.

use millpond_drivers::api::BackingLink;
use millpond_messages::Result;
use millpond_messages::graph::{JobEdit, JoinBitmap};

use crate::change::backing_link::{self, Shorten, Store};
use crate::change::bitmap::Joining;
use crate::change::insert::{Insert, Inserted};
use crate::change::pivot::Pivot;
use crate::change::rebase::Rebase;
use crate::change::resize::NewLength;
use crate::transaction::{bitmaps, run};
use crate::world::World;

/// Carries one of them out.
///
/// # Errors
/// The change's; then nothing has changed.
pub async fn carry_out(world: &World, edit: JobEdit) -> Result<()> {
    match edit {
        JobEdit::InsertFilter {
            node,
            options,
            says_step,
        } => {
            let owned = false;
            let inserted = Inserted { owned, says_step };
            run(world, "insert", Insert::of(node, options, inserted)).await
        }
        JobEdit::JoinBitmap(join) => join_bitmap(world, join).await,
        JobEdit::DropImages { top, base, named } => {
            run(world, "drop-intermediate", Shorten::naming(top, base, named)).await
        }
        JobEdit::Rebase {
            node_name,
            base,
            named,
        } => run(world, "rebase", Rebase::new(node_name, base, named)).await,
        JobEdit::StoreBacking {
            node_name,
            backing_file,
            backing_format,
        } => {
            let link = backing_file.map(|filename| BackingLink {
                filename,
                format: backing_format,
            });
            run(world, backing_link::USER, Store::new(node_name, link)).await
        }
        JobEdit::Pivot {
            filter,
            replaced,
            target,
            backing,
        } => run(world, "pivot", Pivot::new(filter, replaced, target, backing)).await,
        JobEdit::ResizeHeld { root, size } => run(world, "block_resize", NewLength::held(root, size)).await,
    }
}

/// Puts a bitmap together again, which nobody's requests wait for unless its image is to store it.
async fn join_bitmap(world: &World, join: JoinBitmap) -> Result<()> {
    let (node, bitmap) = (join.node, join.bitmap);
    let is_stored = world.graph(|graph| {
        let is_logged = bitmaps::are_logged(graph, node);
        let bitmap = graph.bitmap_mut(node, bitmap);
        is_logged && bitmap.is_some_and(|bitmap| bitmap.is_persistent)
    });
    match is_stored {
        true => run(world, "backup", Joining(join)).await,
        false => bitmaps::join(world, &join).await,
    }
}
