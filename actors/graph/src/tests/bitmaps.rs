//! What nodes that keep no bits answer to orders about dirty bitmaps.

use millpond_engine::node::OrderOutcome;
use millpond_messages::ChunkSet;

use crate::order::BitmapOrder;

/// The answer to an order about a bitmap.
pub fn answer(order: &BitmapOrder) -> OrderOutcome {
    match order {
        BitmapOrder::Copy | BitmapOrder::Clear | BitmapOrder::Replace(_) => no_bits(),
        BitmapOrder::Read { .. } => OrderOutcome::DirtyRuns(Ok(Vec::new())),
        BitmapOrder::Add(_)
        | BitmapOrder::Adopt { .. }
        | BitmapOrder::Remove
        | BitmapOrder::Record(_)
        | BitmapOrder::Split
        | BitmapOrder::Join { .. } => OrderOutcome::Done(Ok(())),
    }
}

/// What a bitmap says of a disk without a byte.
pub fn no_bits() -> OrderOutcome {
    let empty = ChunkSet::new(0, 512).expect("it has no chunks");
    OrderOutcome::Bits(Ok(Box::new(empty)))
}
