//! What would be granted if edges led elsewhere: found out by having them lead there for a moment.

use std::borrow::Cow;

use millpond_messages::{EdgeId, NodeId, Result, Role};

use crate::value::edge::{Parent, Target};
use crate::value::graph::Graph;
use crate::value::permissions::Plan;

/// An edge that is to come.
pub struct Coming {
    /// Who is to have it.
    pub parent: Parent,
    /// Where it is to lead.
    pub child: NodeId,
    /// The name that its parent has for it.
    pub name: Cow<'static, str>,
    /// What its parent uses it for.
    pub role: Role,
}

/// Edges that are to lead elsewhere, and one that is to come with that.
pub struct Rewired {
    /// The edges that are to lead elsewhere.
    pub edges: Vec<EdgeId>,
    /// The node where they are to lead.
    pub to: NodeId,
    /// The edge that is to come.
    pub coming: Option<Coming>,
}

impl Rewired {
    /// What nodes below `starts` would be granted. The graph is as before.
    ///
    /// # Errors
    /// A conflict that there would be.
    pub fn plan(&self, graph: &mut Graph, starts: impl IntoIterator<Item = NodeId>) -> Result<Plan> {
        let come = self.coming.as_ref();
        let come = come.map(|edge| graph.link(edge.parent, edge.child, edge.name.clone(), edge.role));
        let redirect = |edge: &EdgeId| Some((*edge, graph.redirect(*edge, self.to)?));
        let redirected: Vec<(EdgeId, Target)> = self.edges.iter().filter_map(redirect).collect();
        let plan = Plan::default().complete(graph, starts);
        for (edge, target) in redirected.into_iter().rev() {
            graph.redirect_back(edge, target);
        }
        if let Some(edge) = come {
            graph.unlink(edge);
        }
        plan
    }
}
