//! The nodes that a request passes on its way down: each counts it at its end, and those that it wrote to are told of the
//! write.

use std::rc::Rc;

use millpond_messages::{IoResult, Range};
use smallvec::SmallVec;

use crate::iothread::now_ns;
use crate::node::cell::node::NodeCell;
use crate::node::gate::statistics::Asked;

/// A node that was passed.
pub struct PassedNode {
    pub node: Rc<NodeCell>,
    /// Where the request begins there if it writes, else [`NOT_WRITTEN`].
    written_at: u64,
}

/// Stands for a node that the request does not write to. No request begins at this offset.
const NOT_WRITTEN: u64 = u64::MAX;

/// The nodes that a request or a piece of one passes, its entry first. Few chains are deeper than this holds in place.
pub type Passed = SmallVec<[PassedNode; PASSED_IN_PLACE]>;

const PASSED_IN_PLACE: usize = 4;

/// How many nodes there is room for once those in place are taken. To grow step by step would cost as much as the nodes
/// themselves.
const PASSED_ON_HEAP: usize = 32;

/// Notes a node that the request passes without writing to it.
#[inline]
pub fn pass(passed: &mut Passed, node: Rc<NodeCell>) {
    pass_writing(passed, node, NOT_WRITTEN);
}

/// Notes a node that the request writes to, from `at` on.
#[inline]
pub fn pass_writing(passed: &mut Passed, node: Rc<NodeCell>, at: u64) {
    if passed.len() == PASSED_IN_PLACE {
        passed.reserve(PASSED_ON_HEAP - PASSED_IN_PLACE);
    }
    passed.push(PassedNode { node, written_at: at });
}

/// The nodes that were passed.
pub fn nodes(passed: &Passed) -> impl Iterator<Item = &Rc<NodeCell>> {
    passed.iter().map(|passed| &passed.node)
}

impl PassedNode {
    /// Tells the node how the write of `len` bytes ended, if it was one.
    #[inline]
    pub fn write_done(&self, len: u64, result: IoResult<()>) {
        if let Some(range) = self.written(len) {
            self.node.write_done(range, result);
        }
    }

    /// The same of a write that left the node as it was.
    pub fn rewrite_done(&self, len: u64, result: IoResult<()>) {
        if let Some(range) = self.written(len) {
            self.node.rewrite_done(range, result);
        }
    }

    #[inline]
    fn written(&self, len: u64) -> Option<Range> {
        let is_written = self.written_at != NOT_WRITTEN;
        is_written
            .then(|| Range::new(self.written_at, len).ok())
            .flatten()
    }
}

/// Counts a piece at the nodes that it passed below `entry`, where the whole request is counted.
pub fn ended_below<'a>(
    asked: Asked,
    entry: &Rc<NodeCell>,
    passed: impl IntoIterator<Item = &'a Rc<NodeCell>>,
    failed: bool,
) {
    let now = now_ns();
    for node in passed {
        if !Rc::ptr_eq(node, entry) {
            node.counters().count(asked, now, failed);
        }
    }
}
