//! What must hold of cells and graph whenever nothing goes on.

use std::collections::BTreeMap;

use millpond_messages::{NodeId, Token};

use super::*;

impl FakeWorld {
    /// What must hold whenever nothing is on its way: cells and the graph agree, and no gate is closed for nobody.
    pub fn assert_settled(&mut self, sections: &[Token]) {
        let facts = self.facts();
        let mut edges: BTreeMap<(NodeId, u32), NodeId> = BTreeMap::new();
        for (id, node) in &self.nodes {
            edges.extend(node.edges.iter().map(|(slot, child)| ((*id, *slot), *child)));
            assert!(
                facts.nodes.iter().any(|known| known.id == *id),
                "node {id} is left over"
            );
            for token in &node.tokens {
                assert!(sections.contains(token), "node {id} is held by nobody");
            }
        }
        assert_eq!(facts.nodes.len(), self.nodes.len());
        let shown = facts.nodes.iter().map(|node| (node.name.clone(), node.id));
        assert_eq!(
            shown.collect::<BTreeMap<_, _>>(),
            self.names,
            "nodes found by name"
        );
        let known = facts.edges.iter().filter_map(|edge| match &edge.parent {
            millpond_messages::graph::EdgeParent::Node(parent) => Some((*parent, edge.child)),
            millpond_messages::graph::EdgeParent::Root(root, _) => {
                assert_eq!(self.roots.get(root), Some(&edge.child));
                None
            }
        });
        let mut known: Vec<_> = known.collect();
        let mut cells: Vec<_> = edges
            .into_iter()
            .map(|((parent, _), child)| (parent, child))
            .collect();
        known.sort_unstable();
        cells.sort_unstable();
        assert_eq!(known, cells, "the cells' edges are those of the graph");
        promises::assert_kept(&facts, self.nodes.iter().map(|(id, node)| (*id, &node.promises)));
    }
}
