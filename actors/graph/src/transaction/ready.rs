//! Permissions that drivers get ready for ahead of a drained section: files are locked while clients go on.
//!
//! A driver that is ready for what its node comes to be granted is not asked again in the section. Whatever else happens to the
//! node in the same transaction has its driver forget that first.

use std::collections::{HashMap, VecDeque};

use millpond_messages::{NodeId, Result};

use crate::transaction::{Transaction, permissions};
use crate::undo::Undo;
use crate::value::node::Granted;
use crate::value::rewired::Rewired;
use crate::world::Answered;

/// What drivers are ready for, or asked to be.
#[derive(Default)]
pub struct Ready {
    asked: VecDeque<(NodeId, Granted, Answered)>,
    nodes: HashMap<NodeId, Granted>,
}

impl Transaction {
    /// Asks drivers below `starts` to get ready for what their nodes would be granted. They are waited for by
    /// [`Transaction::readied`].
    pub fn get_ready(&mut self, rewired: &Rewired, starts: impl IntoIterator<Item = NodeId>) {
        let world = self.world.clone();
        // A conflict is told when it is one.
        let Ok(plan) = world.graph(|graph| rewired.plan(graph, starts)) else {
            return;
        };
        let granted: HashMap<NodeId, Granted> = plan.nodes.iter().copied().collect();
        let asked = permissions::ask_to_prepare(&world, &plan.nodes).into_iter();
        self.ready
            .asked
            .extend(asked.filter_map(|(node, answer)| Some((node, *granted.get(&node)?, answer))));
    }

    /// How many drivers are asked that were not waited for yet.
    pub fn getting_ready(&self) -> usize {
        self.ready.asked.len()
    }

    /// Waits until the first `count` of the drivers that were asked are ready.
    ///
    /// # Errors
    /// The first refusal.
    pub async fn readied(&mut self, count: usize) -> Result<()> {
        let mut result = Ok(());
        for _ in 0..count {
            let Some((node, granted, answer)) = self.ready.asked.pop_front() else {
                break;
            };
            match answer.done().await {
                Ok(()) => drop(self.ready.nodes.insert(node, granted)),
                Err(error) => result = result.and(Err(error)),
            }
        }
        result
    }

    /// Those of `nodes` whose drivers are not ready for what they are to grant. None of them is ready for anything else.
    pub(super) fn not_ready(&mut self, nodes: &[(NodeId, Granted)]) -> Vec<(NodeId, Granted)> {
        let is_ready = |(node, granted): &(NodeId, Granted)| self.ready.nodes.get(node) == Some(granted);
        let unready: Vec<_> = nodes.iter().filter(|node| !is_ready(node)).copied().collect();
        for (node, _) in &unready {
            if self.ready.nodes.remove(node).is_some() {
                permissions::abort(&self.world, [*node]);
            }
        }
        unready
    }

    /// A driver is told that its node grants what it was readied for: it has nothing to forget any more.
    pub(super) fn used(&mut self, node: NodeId) {
        self.ready.nodes.remove(&node);
    }

    /// Has drivers forget what they are ready for.
    pub(super) fn unready(&mut self) {
        let nodes = std::mem::take(&mut self.ready.nodes);
        permissions::abort(&self.world, nodes.into_keys());
    }

    /// What has drivers forget what they are ready for, where that cannot be done at once.
    pub(super) fn undo_ready(&mut self) -> impl Iterator<Item = Undo> + use<> {
        let nodes = std::mem::take(&mut self.ready.nodes);
        nodes.into_keys().map(Undo::Readied)
    }
}
