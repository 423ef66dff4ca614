//! How a request passes a node: on whose behalf, with which flags, and whether the node tracks it.

use millpond_messages::RequestFlags;

use crate::node::cell::admission::Admission;
use crate::node::cell::node::NodeCell;

/// On whose behalf a request passes: a user's that was admitted over a root edge, or a parent's.
#[derive(Clone, Copy)]
pub struct By<'a> {
    admission: Option<&'a Admission>,
    /// Whether its range may pass the node's end: an error for users, whereas a parent reads zeroes there, and makes its
    /// child grow by writing.
    may_pass_end: bool,
}

/// A request's passage, which it keeps from its entry to the driver that serves it.
#[derive(Clone, Copy)]
pub struct Passage<'a> {
    /// What the request asks for besides its range.
    pub flags: RequestFlags,
    /// On whose behalf it passes.
    pub by: By<'a>,
    /// Whether the node where it enters tracks it. A piece of a request that is tracked there already must not be.
    pub track: bool,
    /// Whether the request that it is a piece of has the blocks of that node to itself: its transfers must not wait for them.
    pub has_blocks: bool,
}

impl<'a> By<'a> {
    /// A parent's request, which is part of one that is counted elsewhere.
    pub const PARENT: By<'static> = By {
        admission: None,
        may_pass_end: true,
    };
    /// A user's request that is counted only after it has begun.
    pub const USER: By<'static> = By {
        admission: None,
        may_pass_end: false,
    };

    /// A user's request that was counted as it was admitted.
    pub const fn admitted(admission: &'a Admission) -> Self {
        By {
            admission: Some(admission),
            may_pass_end: false,
        }
    }

    /// Whether the request is counted, so that a drain waits for it.
    pub const fn is_admitted(self) -> bool {
        self.admission.is_some()
    }

    /// Whether its range may pass the node's end.
    pub const fn may_pass_end(self) -> bool {
        self.may_pass_end
    }

    /// Whether a write may be serialised against all others: those of root edges wait until the node tracks what it has in
    /// flight, and a parent's can only if it does already.
    pub fn may_serialise(self, node: &NodeCell, flags: RequestFlags) -> bool {
        !flags.contains(RequestFlags::SERIALISING) || self.is_admitted() || node.tracks()
    }

    /// Notes that the request goes on to `node`'s driver.
    pub fn stands_at(self, node: &NodeCell) {
        tracing::trace!(target: "millpond::request", node = node.name(), driver = node.kind().name(), "handed to driver");
        if let Some(admission) = self.admission {
            admission.stands_at(node.id());
        }
    }
}

impl<'a> Passage<'a> {
    /// The passage of a whole request.
    pub const fn new(flags: RequestFlags, by: By<'a>) -> Self {
        Self {
            flags,
            by,
            track: true,
            has_blocks: false,
        }
    }

    /// The same passage with other flags.
    pub const fn with(self, flags: RequestFlags) -> Self {
        Self { flags, ..self }
    }

    /// The same passage at a node that tracks the request already.
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

/// The flags of a request for the nodes below: how it is ordered against others is a matter of the node that it was sent to.
pub fn flags_below(flags: RequestFlags) -> RequestFlags {
    flags.difference(RequestFlags::SERIALISING | RequestFlags::NO_WAIT)
}
