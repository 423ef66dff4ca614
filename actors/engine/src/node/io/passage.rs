//! How a request passes: by whose leave, with which flags, and whether it is tracked where it enters.

use millpond_messages::RequestFlags;

use crate::node::cell::admission::Admission;
use crate::node::cell::node::NodeCell;

/// What a request brings along: whether it is admitted over a root edge, or a piece of what a parent does.
#[derive(Clone, Copy)]
pub struct By<'a> {
    admission: Option<&'a Admission>,
    /// Ranges that leave the node are an error for users. A parent may read past the end (as zeroes) and grow its child.
    may_pass_end: bool,
}

/// A request's passage, which it keeps from its entry to the driver that serves it.
#[derive(Clone, Copy)]
pub struct Passage<'a> {
    /// What the request asks for besides its range.
    pub flags: RequestFlags,
    /// Whose request it is.
    pub by: By<'a>,
    /// Whether the node where it enters tracks it. A piece of a request that is tracked there already must not be.
    pub track: bool,
    /// Whether the request that it is a piece of has the blocks of that node to itself: its transfers must not wait for them.
    pub has_blocks: bool,
}

impl<'a> By<'a> {
    /// A piece of a parent's work, not counted by itself.
    pub const PARENT: By<'static> = By {
        admission: None,
        may_pass_end: true,
    };
    /// A user's request that is counted once it has been begun.
    pub const USER: By<'static> = By {
        admission: None,
        may_pass_end: false,
    };

    /// A user's request that is counted.
    pub const fn admitted(admission: &'a Admission) -> Self {
        By {
            admission: Some(admission),
            may_pass_end: false,
        }
    }

    /// Whether it is counted, so that a drain waits for it.
    pub const fn is_admitted(self) -> bool {
        self.admission.is_some()
    }

    /// Whether its range may leave the node.
    pub const fn may_pass_end(self) -> bool {
        self.may_pass_end
    }

    /// Whether a write may be serialised against all others: those of root edges wait until the node tracks what it has in
    /// flight, and a parent's can only if it does already.
    pub fn may_serialise(self, node: &NodeCell, flags: RequestFlags) -> bool {
        !flags.contains(RequestFlags::SERIALISING) || self.is_admitted() || node.tracks()
    }

    /// The request goes on to `node`'s driver.
    pub fn stands_at(self, node: &NodeCell) {
        tracing::trace!(target: "millpond::request", node = node.name(), driver = node.kind().name(), "handed to driver");
        if let Some(admission) = self.admission {
            admission.stands_at(node.id());
        }
    }
}

impl<'a> Passage<'a> {
    /// A request on its own.
    pub const fn new(flags: RequestFlags, by: By<'a>) -> Self {
        Self {
            flags,
            by,
            track: true,
            has_blocks: false,
        }
    }

    /// The same with other flags.
    pub const fn with(self, flags: RequestFlags) -> Self {
        Self { flags, ..self }
    }

    /// The same where the request is tracked already.
    pub const fn tracked(self) -> Self {
        Self { track: false, ..self }
    }
}

impl Passage<'static> {
    /// A piece of a request that the same node tracks already. `has_blocks` tells whether that request keeps all others away
    /// from whole blocks of the node.
    pub const fn piece(flags: RequestFlags, has_blocks: bool) -> Self {
        Self {
            flags,
            by: By::PARENT,
            track: false,
            has_blocks,
        }
    }
}

/// What is written below is another matter than how the request is ordered where it was sent to.
pub fn flags_below(flags: RequestFlags) -> RequestFlags {
    flags.difference(RequestFlags::SERIALISING | RequestFlags::NO_WAIT)
}
