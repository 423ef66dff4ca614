//! Links of the graph that are frozen: who holds them, and until when.

use millpond_messages::{NodeId, Token};

use super::Graph;
use crate::value::edge::Edge;
use crate::value::frozen::Freeze;

impl Graph {
    /// The holds on links.
    pub fn freezes(&self) -> impl Iterator<Item = (Token, &Freeze)> {
        self.frozen.iter().map(|(token, freeze)| (*token, freeze))
    }

    /// Freezes links that nobody has frozen.
    pub fn freeze(&mut self, freeze: Freeze) -> Token {
        let token = Token(self.next_id());
        for edge in &freeze.edges {
            if let Some(edge) = self.edges.get_mut(edge) {
                edge.frozen = Some(token);
            }
        }
        self.frozen.insert(token, freeze);
        token
    }

    /// Whether a node itself has frozen a link.
    pub fn is_frozen_by(&self, edge: &Edge, node: NodeId) -> bool {
        let freeze = edge.frozen.and_then(|token| self.frozen.get(&token));
        freeze.is_some_and(|freeze| freeze.node == Some(node))
    }

    pub(super) fn unfreeze_all(&mut self, ends: impl Fn(&Freeze) -> bool) {
        let ended = self.frozen.iter().filter(|(_, freeze)| ends(freeze));
        for token in ended.map(|(token, _)| *token).collect::<Vec<_>>() {
            self.unfreeze(token);
        }
    }

    /// Gives links free; answers whether there was such a hold on any.
    pub fn unfreeze(&mut self, token: Token) -> bool {
        let Some(freeze) = self.frozen.remove(&token) else {
            return false;
        };
        for edge in freeze.edges {
            if let Some(edge) = self.edges.get_mut(&edge) {
                edge.frozen = None;
            }
        }
        true
    }
}
