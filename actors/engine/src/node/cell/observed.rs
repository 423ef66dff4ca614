//! The writes and discards that nodes were told of, which tests compare with those that were asked for.

use std::cell::RefCell;

use millpond_messages::{IoResult, NodeId, Range};

thread_local! {
    static DONE: RefCell<Vec<(NodeId, Range, IoResult<()>)>> = const { RefCell::new(Vec::new()) };
}

/// Records that a write or discard has ended on this iothread.
pub fn note(node: NodeId, range: Range, result: IoResult<()>) {
    DONE.with_borrow_mut(|done| done.push((node, range, result)));
}

/// The writes and discards that have ended on this iothread since the last call.
pub fn take() -> Vec<(NodeId, Range, IoResult<()>)> {
    DONE.take()
}
