//! What nodes have not been told yet: steps that hold in the graph's value already, and whose orders travel together.
//!
//! A step that waits for its answer costs a round trip between two threads, and clients wait meanwhile. So the changes of a
//! list only note what their nodes are to be told, and all of that takes two rounds: permissions are prepared, where a driver
//! has something to prepare; then they are committed, and edges, roots and what nodes demand of their children follow in one
//! burst, which an iothread carries out in this order. Whatever relies on the cells being as the value says sends the burst
//! first.

use std::collections::{HashMap, HashSet};

use millpond_messages::{ChildSlot, Error, ErrorKind, NodeId, Result, RootId};

use crate::order::{Address, NodeTask, Wiring};
use crate::transaction::exchange::Exchange;
use crate::transaction::{Transaction, permissions};
use crate::undo::Undo;
use crate::value::graph::Graph;
use crate::value::node::Granted;
use crate::value::permissions::Plan;
use crate::world::{Answered, World};

/// A cell that is to follow the graph's value.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// An edge leads elsewhere; what was behind it is kept for undoing.
    Connect(NodeId, ChildSlot, Option<NodeId>),
    /// A root edge goes from one node to another.
    MoveRoot(RootId, NodeId, NodeId),
}

/// What is to be sent.
#[derive(Default)]
pub struct Burst {
    steps: Vec<Step>,
    exchanges: Vec<Exchange>,
    /// Permissions hold in the value alone.
    permissions: bool,
}

impl Burst {
    /// Whether nothing is to be sent.
    pub const fn is_empty(&self) -> bool {
        self.steps.is_empty() && self.exchanges.is_empty() && !self.permissions
    }
}

impl Transaction {
    /// Computes the permissions below `starts` in the graph's value, or fails without a change. Nodes are told with the next
    /// burst.
    ///
    /// # Errors
    /// A conflict in the graph.
    pub fn plan_permissions(&mut self, starts: impl IntoIterator<Item = NodeId>) -> Result<()> {
        let world = self.world.clone();
        let plan = world.graph(|graph| Plan::default().complete(graph, starts))?;
        let edges = permissions::commit_edges(&world, plan.edges);
        let nodes = permissions::replace_granted(&world, plan.nodes);
        self.burst.permissions |= !nodes.is_empty();
        self.log.push(Undo::Planned { edges, nodes });
        Ok(())
    }

    /// Has a parent's cell told with the next burst what is behind one of its edges.
    pub fn connect_later(&mut self, parent: NodeId, slot: ChildSlot, old: Option<NodeId>) {
        self.burst.steps.push(Step::Connect(parent, slot, old));
    }

    /// Has a root's cell go from one node, where it is, to another with the next burst.
    pub fn move_root(&mut self, root: RootId, from: NodeId, to: NodeId) {
        self.burst.steps.push(Step::MoveRoot(root, from, to));
    }

    /// Has drivers read the data that is there now, and nodes ask their children what they demand. Where nothing is to be
    /// read, that goes with the next burst.
    ///
    /// # Errors
    /// A driver cannot read it, or what [`Transaction::send_burst`] met.
    pub async fn enter(&mut self, exchange: Exchange) -> Result<()> {
        if self.world.graph(|graph| exchange.reads_data(graph)) {
            self.send_burst().await?;
            return exchange.enter(self, HashMap::new()).await;
        }
        self.burst.exchanges.push(exchange);
        Ok(())
    }

    /// Tells nodes what has been noted for them, and waits until all have done it.
    ///
    /// # Errors
    /// A node's refusal, or an iothread is gone.
    pub async fn send_burst(&mut self) -> Result<()> {
        if self.burst.is_empty() {
            return Ok(());
        }
        let burst = std::mem::take(&mut self.burst);
        if burst.permissions {
            self.tell_permissions().await?;
        }
        let world = self.world.clone();
        let mut asked = Vec::with_capacity(burst.steps.len());
        for step in &burst.steps {
            asked.extend(self.send_step(*step)?);
        }
        let mut result = Ok(());
        // Mail of different iothreads is in no order.
        if !world.graph(|graph| is_of_one_iothread(graph, &burst)) {
            result = all_done(std::mem::take(&mut asked)).await;
        }
        let mut entering = Vec::with_capacity(burst.exchanges.len());
        for exchange in &burst.exchanges {
            let parents = world.graph(|graph| exchange.parents(graph)).into_iter();
            let ask = |node| (node, world.ask(node, NodeTask::Exchange { slots: Vec::new() }));
            entering.push(parents.map(ask).collect::<HashMap<NodeId, Answered>>());
        }
        result = result.and(all_done(asked).await);
        for (exchange, answers) in burst.exchanges.iter().zip(entering) {
            let entered = exchange.enter(self, answers).await;
            result = result.and(entered);
        }
        result
    }

    /// Has nodes take the permissions that hold in the value alone until now.
    async fn tell_permissions(&mut self) -> Result<()> {
        let world = self.world.clone();
        let before = first_of_each(&self.log);
        let now: Vec<(NodeId, Granted)> = world.graph(|graph| {
            let nodes = before.iter().filter_map(|(id, before)| {
                let now = graph.node(*id)?.granted;
                (now != *before).then_some((*id, now))
            });
            nodes.collect()
        });
        let unready = self.not_ready(&now);
        permissions::prepare_nodes(&world, &unready).await?;
        for (node, granted) in now {
            self.used(node);
            permissions::commit_node(&world, node, granted);
        }
        for step in &mut self.log {
            if let Undo::Planned { nodes, .. } = step {
                nodes.clear();
            }
        }
        self.log.push(Undo::Permissions {
            edges: HashMap::new(),
            nodes: before,
        });
        Ok(())
    }

    fn send_step(&mut self, step: Step) -> Result<Option<Answered>> {
        let world = self.world.clone();
        match step {
            Step::Connect(parent, slot, old) => {
                let (target, old) = addresses_behind(&world, parent, slot, old);
                let asked = world.ask(parent, Wiring::Connect { parent, slot, target });
                self.log.push(Undo::Connected(parent, slot, old));
                Ok(Some(asked))
            }
            Step::MoveRoot(root, from, to) => {
                let gone = || Error::new(ErrorKind::NotFound, "The node to move to is gone");
                let target = world.with(|state| state.address(to)).ok_or_else(gone)?;
                let asked = world.ask(from, Wiring::MoveRoot { root, target });
                self.log.push(Undo::RootMoved(root, from, to));
                Ok(Some(asked))
            }
        }
    }
}

/// Where an edge leads by the graph's value, and where the node is that it led to before.
pub(super) fn addresses_behind(
    world: &World,
    parent: NodeId,
    slot: ChildSlot,
    old: Option<NodeId>,
) -> (Option<Address>, Option<Address>) {
    world.with(|state| {
        let child = state.graph.child_node(parent, slot);
        let address = |node: Option<NodeId>| node.and_then(|node| state.address(node));
        (address(child), address(old))
    })
}

/// What nodes granted before the first of the steps that none of them knows of.
fn first_of_each(log: &[Undo]) -> Vec<(NodeId, Granted)> {
    let mut seen = HashSet::new();
    let planned = log.iter().filter_map(|step| match step {
        Undo::Planned { nodes, .. } => Some(nodes),
        _ => None,
    });
    planned
        .flatten()
        .filter(|(node, _)| seen.insert(*node))
        .copied()
        .collect()
}

/// Whether all nodes that a burst has something for live in one iothread.
fn is_of_one_iothread(graph: &Graph, burst: &Burst) -> bool {
    let told = burst.steps.iter().flat_map(|step| match *step {
        Step::Connect(parent, ..) => [parent, parent],
        Step::MoveRoot(_, from, to) => [from, to],
    });
    let asked = burst
        .exchanges
        .iter()
        .flat_map(|exchange| exchange.parents(graph));
    let mut homes = told.chain(asked).filter_map(|id| Some(graph.node(id)?.iothread));
    let first = homes.next();
    homes.all(|home| Some(home) == first)
}

async fn all_done(asked: Vec<Answered>) -> Result<()> {
    let mut result = Ok(());
    for answer in asked {
        result = result.and(answer.done().await);
    }
    result
}
