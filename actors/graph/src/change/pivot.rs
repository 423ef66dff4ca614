//! The end of a mirror: its target takes the place of a node, and its filter goes.

use millpond_messages::graph::SetBacking;
use millpond_messages::{Error, ErrorKind, NodeId, Result};

use crate::change::links::Relink;
use crate::change::replace::{Besides, Moving, Reachable, find_filter, moving, redirect};
use crate::change::{delete, reopen};
use crate::query::replace::shows_the_same;
use crate::sections::Cover;
use crate::state::PolicyState;
use crate::transaction::{Change, Outcome, Transaction};
use crate::value::chain;
use crate::value::graph::Graph;
use crate::world::World;

/// A target that takes the place of a mirror's source, filter and all, or of a node that shows the same as that.
pub struct Pivot {
    filter: String,
    replaced: Option<String>,
    target: String,
    backing: Option<String>,
    found: Option<Found>,
}

#[derive(Debug, Clone, Copy)]
struct Found {
    filter: NodeId,
    source: NodeId,
    target: NodeId,
    /// The node whose place the target takes where that is not the filter's.
    replaced: Option<NodeId>,
    /// What the target is to stand on.
    backing: Option<NodeId>,
}

impl Pivot {
    /// `filter` shows the source. Without `replaced` it is the source that is replaced.
    pub const fn new(
        filter: String,
        replaced: Option<String>,
        target: String,
        backing: Option<String>,
    ) -> Self {
        Self {
            filter,
            replaced,
            target,
            backing,
            found: None,
        }
    }
}

impl Change for Pivot {
    type Answer = ();

    fn check(&mut self, state: &PolicyState) -> Result<()> {
        self.found = Some(find(&state.graph, self)?);
        Ok(())
    }

    fn cover(&self, _: &Graph) -> Cover {
        let nodes = self.found.map(|found| {
            let nodes = [
                Some(found.filter),
                Some(found.target),
                found.replaced,
                found.backing,
            ];
            nodes.into_iter().flatten().collect()
        });
        Cover::Nodes(nodes.unwrap_or_default())
    }

    async fn prepare(&mut self, transaction: &mut Transaction) -> Result<()> {
        let Some(found) = self.found else { return Ok(()) };
        self.replace(transaction, found).await?;
        let Some(backing) = self.backing.clone() else {
            return Ok(());
        };
        // The source can be relied on only once nobody writes to it through the filter.
        let mut link = Relink::from(SetBacking {
            node_name: self.target.clone(),
            backing: Some(backing),
        });
        transaction.world.with(|state| link.check(state))?;
        link.prepare(transaction).await
    }
    /// Who could not write to what was replaced cannot write to the target either.
    async fn settle(&mut self, world: &World, outcome: Outcome) -> Result<()> {
        let Some(found) = self.found.filter(|_| outcome == Outcome::Committed) else {
            return Ok(());
        };
        let replaced = found.replaced.unwrap_or(found.source);
        let was_read_only = world.graph(|graph| graph.expect(replaced).map(|node| node.flags.is_read_only()));
        if was_read_only? && let Err(error) = reopen::set_access(world, found.target, true).await {
            tracing::warn!(%error, "the target of a mirror stays writable");
        }
        Ok(())
    }

    async fn finish(self, world: &World) {
        delete::release(world, self.found.map(|found| found.filter)).await;
    }
}

impl Pivot {
    async fn replace(&self, transaction: &mut Transaction, found: Found) -> Result<()> {
        let (filter, target) = (found.filter, found.target);
        let world = transaction.world.clone();
        let Some(replaced) = found.replaced else {
            let edges = world.graph(|graph| moving(graph, filter, target, Reachable::Refuse))?;
            return redirect(transaction, filter, target, &edges, Besides::Nothing).await;
        };
        // First the filter goes, which lets nobody else write to the target.
        let gone = world.graph(|graph| find_filter(graph, &self.filter))?;
        redirect(transaction, gone.from, gone.to, &gone.edges, gone.besides).await?;
        let edges: Vec<Moving> = world.graph(|graph| moving(graph, replaced, target, Reachable::Keep))?;
        redirect(transaction, replaced, target, &edges, Besides::Nothing).await
    }
}

fn find(graph: &Graph, asked: &Pivot) -> Result<Found> {
    let filter = graph.find(&asked.filter)?;
    let target = graph.find(&asked.target)?.id;
    let source = chain::next(graph, filter.id).ok_or_else(|| {
        let text = format!("Node '{}' is not a filter", filter.name);
        Error::new(ErrorKind::InvalidArgument, text)
    })?;
    let backing = asked.backing.as_ref().map(|name| graph.find(name)).transpose()?;
    let replaced = asked.replaced.as_ref().map(|name| graph.find(name)).transpose()?;
    let replaced = replaced.filter(|replaced| replaced.id != source);
    if let Some(replaced) = replaced
        && !shows_the_same(graph, source, replaced.id)
    {
        let text = format!(
            "Can no longer replace '{}' by '{}', because it can no longer be guaranteed that doing so would not lead to \
             an abrupt change of visible data",
            replaced.name, asked.target
        );
        return Err(Error::new(ErrorKind::Permission, text));
    }
    Ok(Found {
        filter: filter.id,
        source,
        target,
        replaced: replaced.map(|replaced| replaced.id),
        backing: backing.map(|backing| backing.id),
    })
}
