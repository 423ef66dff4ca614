//! What was written, as nodes hear of it: tests hold it against what was asked.

use std::cell::RefCell;

use millpond_messages::{IoResult, NodeId, Range};

thread_local! {
    static DONE: RefCell<Vec<(NodeId, Range, IoResult<()>)>> = const { RefCell::new(Vec::new()) };
}

/// A write or discard has ended on this iothread.
pub fn note(node: NodeId, range: Range, result: IoResult<()>) {
    DONE.with_borrow_mut(|done| done.push((node, range, result)));
}

/// What has ended on this iothread since this was asked last.
pub fn take() -> Vec<(NodeId, Range, IoResult<()>)> {
    DONE.take()
}
