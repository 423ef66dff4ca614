//! Changes that only jobs ask for: which is which.

use millpond_messages::Result;
use millpond_messages::graph::JobEdit;

use crate::change::backing_link::Shorten;
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
        JobEdit::JoinBitmap(join) => bitmaps::join(world, &join).await,
        JobEdit::DropImages { top, base, named } => {
            run(world, "drop-intermediate", Shorten::naming(top, base, named)).await
        }
        JobEdit::Rebase {
            node_name,
            base,
            named,
        } => run(world, "rebase", Rebase::new(node_name, base, named)).await,
        JobEdit::Pivot {
            filter,
            replaced,
            target,
            backing,
        } => run(world, "pivot", Pivot::new(filter, replaced, target, backing)).await,
        JobEdit::ResizeHeld { root, size } => run(world, "block_resize", NewLength::held(root, size)).await,
    }
}
