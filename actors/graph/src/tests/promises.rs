//! The orders of two steps: what a fake node has been asked to prepare is committed or aborted, once, and then holds.

use std::collections::BTreeMap;

use millpond_messages::graph::GraphFacts;
use millpond_messages::{NodeId, OpenFlags, Permissions};

/// What a node has prepared, and what it was last told to grant.
#[derive(Debug)]
pub struct Promises {
    /// Taken by all parents together, shared by all of them.
    granted: (Permissions, Permissions),
    permissions: Option<(Permissions, Permissions)>,
    /// What it granted when it refused to give something up: it may grant more than it must then, and does so again where a
    /// later change is undone.
    refused: Option<(Permissions, Permissions)>,
    flags: Option<OpenFlags>,
}

impl Default for Promises {
    fn default() -> Self {
        Self {
            granted: NOBODY,
            permissions: None,
            refused: None,
            flags: None,
        }
    }
}

const NOBODY: (Permissions, Permissions) = (Permissions::empty(), Permissions::all());

impl Promises {
    pub fn has_refused(&self) -> bool {
        self.refused == Some(self.granted)
    }

    pub fn refuse_permissions(&mut self) {
        self.refused = Some(self.granted);
    }

    pub fn prepare_permissions(&mut self, taken: Permissions, shared: Permissions) {
        let before = self.permissions.replace((taken, shared));
        assert_eq!(
            before, None,
            "one change of permissions ends before the next begins"
        );
    }

    pub fn commit_permissions(&mut self) {
        self.granted = self.permissions.take().expect("what is committed was prepared");
    }

    pub fn abort_permissions(&mut self) {
        assert!(self.permissions.take().is_some(), "what is aborted was prepared");
    }

    pub fn prepare_reopen(&mut self, flags: OpenFlags) {
        let before = self.flags.replace(flags);
        assert_eq!(before, None, "one reopen ends before the next begins");
    }

    pub fn commit_reopen(&mut self) -> OpenFlags {
        self.flags.take().expect("what is committed was prepared")
    }

    pub fn abort_reopen(&mut self) {
        assert!(self.flags.take().is_some(), "what is aborted was prepared");
    }

    /// Nothing is prepared any more, and the node grants `expected`.
    fn assert_kept(&self, expected: (Permissions, Permissions)) {
        assert_eq!((self.permissions, self.flags), (None, None));
        if self.has_refused() {
            assert!(self.granted.0.contains(expected.0) && expected.1.contains(self.granted.1));
        } else {
            assert_eq!(self.granted, expected);
        }
    }
}

/// Every node grants exactly what the edges that lead to it take and share.
pub fn assert_kept<'a>(facts: &GraphFacts, nodes: impl Iterator<Item = (NodeId, &'a Promises)>) {
    let mut sums: BTreeMap<NodeId, (Permissions, Permissions)> = BTreeMap::new();
    for edge in &facts.edges {
        let (taken, shared) = sums.entry(edge.child).or_insert(NOBODY);
        *taken |= edge.permissions;
        *shared &= edge.shared;
    }
    for (id, promises) in nodes {
        promises.assert_kept(sums.get(&id).copied().unwrap_or(NOBODY));
    }
}
