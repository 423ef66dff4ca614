//! What is looked at after every step, whenever nothing is under way, and at the end.

use std::collections::BTreeSet;

use millpond_messages::graph::DrainScope;
use millpond_messages::{NodeId, Token};

use super::Breach;
use super::live::Live;
use super::requests::Stage;
use crate::sections::Section;
use millpond_engine::node::BackgroundState;

impl Live {
    /// What a section covers by what the cells say of themselves.
    fn covered(&self, scope: &DrainScope, node: Option<NodeId>) -> Vec<NodeId> {
        let covered = match (scope, node) {
            (DrainScope::All, _) => return self.site.cells.keys().copied().collect(),
            (_, None) => return Vec::new(),
            (DrainScope::Node(_) | DrainScope::Parent(_), Some(node)) => self.site.above([node]),
            (DrainScope::Subtree(_), Some(node)) => self.site.above(self.site.below(node)),
        };
        covered
            .into_iter()
            .filter(|id| self.site.cells.contains_key(id))
            .collect()
    }

    pub fn check_stillness(&mut self) {
        let held = self.users.iter().flat_map(|user| &user.holds);
        let mut covered: Vec<NodeId> = held
            .flat_map(|held| self.covered(&held.scope, held.node))
            .collect();
        covered.sort_unstable();
        covered.dedup();
        if covered.into_iter().any(|id| self.site.is_busy(id)) {
            self.site.breach(Breach::Stillness);
        }
    }

    /// Nothing is to be delivered, and nothing is under way.
    pub fn check_settled(&mut self) {
        let holds = self.users.iter().any(|user| !user.holds.is_empty());
        // Making an image waits for sections that cover the node, and only that does.
        let waits = self.policy.running.is_some()
            || !self.policy.queue.is_empty()
            || !self.policy.waiting.is_empty()
            || !(self.policy.questions.is_empty() || holds);
        let parked = self.site.roots.values().filter(|root| !root.waiting.is_empty());
        let held: Vec<Token> = self
            .users
            .iter()
            .flat_map(|user| &user.holds)
            .map(|held| held.token)
            .collect();
        let is_held = |node: &NodeId| {
            let cell = self.site.cells.get(node);
            cell.is_some_and(|cell| cell.gate.holds().iter().any(|hold| held.contains(hold)))
        };
        let stuck = parked.map(|root| root.node).any(|node| !is_held(&node));
        let lost = self
            .site
            .requests
            .iter()
            .any(|request| request.stage == Stage::Sent);
        if waits || stuck || lost {
            self.site.breach(Breach::Progress);
        }
        let refused = self
            .site
            .requests
            .iter()
            .any(|request| request.stage == Stage::Refused);
        if refused && !self.site.may_refuse {
            self.site.breach(Breach::Loss);
        }
        if !self.cells_agree() {
            self.site.breach(Breach::Cells);
        }
        if !self.held_exactly() {
            self.site.breach(Breach::Restoration);
        }
        if self.actions().is_empty() {
            self.check_end();
        }
    }

    /// Whether every gate is held by the sections that cover its node, and by no other.
    fn held_exactly(&self) -> bool {
        let held = self.users.iter().flat_map(|user| &user.holds);
        let covers: Vec<(Token, Vec<NodeId>)> = held
            .map(|held| (held.token, self.covered(&held.scope, held.node)))
            .collect();
        self.site.cells.iter().all(|(id, cell)| {
            let covering = covers.iter().filter(|(_, nodes)| nodes.contains(id));
            let covering: BTreeSet<Token> = covering.map(|(token, _)| *token).collect();
            cell.gate.holds().into_iter().collect::<BTreeSet<_>>() == covering
        })
    }

    /// Whether the cells have the edges, root edges and permissions that the graph has.
    fn cells_agree(&self) -> bool {
        self.policy.world.graph(|graph| {
            let nodes: Vec<_> = graph.nodes().filter(|node| node.facts.is_some()).collect();
            let agrees = nodes.iter().all(|node| {
                self.site.cells.get(&node.id).is_some_and(|cell| {
                    let edges = node.children.iter();
                    let edges = edges.filter_map(|(slot, edge)| Some((slot.0, graph.edge(*edge)?.child)));
                    let granted = (node.granted.taken, node.granted.shared);
                    edges.eq(cell.edges.iter().map(|(slot, child)| (*slot, *child)))
                        && cell.granted.is_none_or(|cell| cell == granted)
                        && cell.home == node.iothread
                        && cell.flags == node.flags
                })
            });
            let roots: Vec<_> = graph.roots().filter(|(_, root)| root.has_cell).collect();
            let rooted = roots.iter().all(|(id, root)| {
                let node = graph.edge(root.edge).map(|edge| edge.child);
                self.site.roots.get(id).map(|root| root.node) == node
            });
            let ended = self.site.roots.values().filter(|root| root.ended).count();
            agrees
                && rooted
                && self.site.cells.len() == nodes.len()
                && self.site.roots.len() - ended == roots.len()
        })
    }

    /// Nothing can happen any more.
    fn check_end(&mut self) {
        let open = self.site.cells.values().all(|cell| {
            cell.gate.parts() == (Vec::new(), Vec::new(), 0, BackgroundState::Running)
                && !cell.is_stopped()
                && cell.prepared.is_none()
                && cell.reopening.is_none()
        });
        let clean = self.policy.world.with(|state| {
            state.awaited().is_empty()
                && state.sections.iter().next().is_none()
                && state.graph.nodes().all(|node| {
                    node.live
                        && node.internal_io == 0
                        && !node.moving
                        && !node.closing
                        && node.deferred.is_empty()
                })
        });
        if !open || !clean {
            self.site.breach(Breach::Restoration);
        }
        let answered = |stage: &Stage| matches!(stage, Stage::Answered | Stage::Refused);
        if !self.site.requests.iter().all(|request| answered(&request.stage)) {
            self.site.breach(Breach::Loss);
        }
    }

    /// Whether a section is still, and whether a request is parked.
    pub fn seen(&self) -> (bool, bool) {
        let still = self.policy.world.with(|state| {
            state
                .sections
                .iter()
                .any(|(_, section)| Section::is_still(section))
        });
        (
            still,
            self.site
                .requests
                .iter()
                .any(|request| request.stage == Stage::Parked),
        )
    }
}
