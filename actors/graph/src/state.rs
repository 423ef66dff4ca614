//! What the policy knows: the graph, the sections, and the orders on their way.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use millpond_drivers::api::Registry;
use millpond_engine::node::{OrderId, OrderOutcome};
use millpond_messages::graph::IothreadOptions;
use millpond_messages::{IoThreadId, NodeId, Result, Token};

use crate::effect::{Effect, ImplicitOpens};
use crate::order::{self, Address, AtNode, Order};
use crate::sections::Sections;
use crate::undo::Log;
use crate::value::graph::Graph;
use crate::value::refusal::Refusal;

/// An iothread that nodes can live in.
#[derive(Debug, Clone)]
pub struct IothreadEntry {
    /// Its properties; `None` for the main one.
    pub options: Option<IothreadOptions>,
    /// The host's id of the thread.
    pub thread: u32,
}

/// The state behind a [`World`](crate::world::World).
pub struct PolicyState {
    /// The nodes, the edges and their users.
    pub graph: Graph,
    /// The drained sections in force.
    pub sections: Sections,
    /// The drivers there are.
    pub registry: Registry,
    /// Whether names stored in images are opened.
    pub implicit: ImplicitOpens,
    /// The iothreads, by their numbers.
    pub iothreads: BTreeMap<IoThreadId, IothreadEntry>,
    /// The iothread that nodes are made in.
    pub main: IoThreadId,
    /// The time of the request or event that is being handled.
    pub now: Duration,
    /// Everything was closed, or is being closed: only questions are answered.
    pub closed: bool,
    /// The procedure that was polled last waits for drained sections and has no order under way.
    pub waits_for_stillness: bool,
    /// The procedure that was polled last has done what was asked: only what comes of it is left.
    pub settles: bool,
    /// How many transactions are being undone.
    pub undoing: u32,
    /// What procedures that were given up have left behind.
    pub abandoned: Vec<Log>,
    effects: Vec<Effect>,
    /// Orders somebody waits for, with their answers.
    pub answers: HashMap<OrderId, Option<OrderOutcome>>,
    /// The nodes at which orders on their way have work done.
    internal_io: HashMap<OrderId, Vec<NodeId>>,
    /// Orders to nodes that have not been answered, by what they do.
    pub under_way: BTreeMap<OrderId, (NodeId, &'static str)>,
    /// The iothreads that are being started.
    pub starts: HashMap<OrderId, Option<Result<(IoThreadId, u32)>>>,
    last_order_id: u64,
    /// What procedures have asked and heard. A model checker cannot look into them, but they go by nothing else.
    #[cfg(test)]
    pub past: Vec<String>,
}

impl PolicyState {
    /// A state without nodes.
    pub fn new(registry: Registry, implicit: ImplicitOpens, main: IoThreadId, thread: u32) -> Self {
        Self {
            graph: Graph::default(),
            sections: Sections::default(),
            registry,
            implicit,
            iothreads: BTreeMap::from([(
                main,
                IothreadEntry {
                    options: None,
                    thread,
                },
            )]),
            main,
            now: Duration::ZERO,
            closed: false,
            waits_for_stillness: false,
            settles: false,
            undoing: 0,
            abandoned: Vec::new(),
            effects: Vec::new(),
            answers: HashMap::new(),
            internal_io: HashMap::new(),
            under_way: BTreeMap::new(),
            starts: HashMap::new(),
            last_order_id: 0,
            #[cfg(test)]
            past: Vec::new(),
        }
    }

    /// A name for an order.
    pub fn order_id(&mut self) -> OrderId {
        self.last_order_id += 1;
        OrderId(self.last_order_id)
    }

    /// Adds an effect to what is to be done.
    pub fn push(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    /// All effects so far, those of the sections included.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        self.flush_sections();
        std::mem::take(&mut self.effects)
    }

    /// Sends what the sections want sent.
    pub fn flush_sections(&mut self) {
        for (node, order) in self.sections.take_orders() {
            // The gate of a node that is closing goes with it.
            if self.graph.node(node).is_some_and(|node| !node.closing) {
                self.send(node, order);
            }
        }
    }

    /// Sends an order to a node, or keeps it until the node has arrived where it is going. An order to a node that is
    /// gone is dropped.
    pub fn send(&mut self, node: NodeId, order: impl AtNode) -> OrderId {
        let order = order.at(node);
        let order_id = self.order_id();
        if self.graph.node(node).is_some() {
            self.note_internal_io(order_id, &order);
        }
        let Some(entry) = self.graph.node_mut(node) else {
            return order_id;
        };
        if entry.moving {
            entry.deferred.push((order_id, order));
        } else {
            let iothread = entry.iothread;
            self.effects.push(Effect::Send {
                iothread,
                order_id,
                order,
            });
        }
        order_id
    }

    /// Sends an order to an iothread, whatever node it concerns.
    pub fn send_to(&mut self, iothread: IoThreadId, order: impl Into<Order>) -> OrderId {
        let order_id = self.order_id();
        self.effects.push(Effect::Send {
            iothread,
            order_id,
            order: order.into(),
        });
        order_id
    }

    /// Lets others see a node: the transaction that made it has been committed.
    pub fn show(&mut self, node: NodeId) {
        let Some(entry) = self.graph.node_mut(node) else {
            return;
        };
        entry.live = true;
        let (name, driver) = (entry.name.clone(), entry.kind.name());
        self.effects.push(Effect::NodeFound { node, name, driver });
    }

    /// Lets nobody see a node any more: it is about to be closed.
    pub fn hide(&mut self, node: NodeId) {
        let Some(entry) = self.graph.node_mut(node) else {
            return;
        };
        if std::mem::take(&mut entry.live) {
            let name = entry.name.clone();
            self.effects.push(Effect::NodeGone(name));
        }
    }

    /// Sends what was kept while the node moved.
    pub fn arrived(&mut self, node: NodeId) {
        let Some(entry) = self.graph.node_mut(node) else {
            return;
        };
        entry.moving = false;
        let iothread = entry.iothread;
        for (order_id, order) in std::mem::take(&mut entry.deferred) {
            self.effects.push(Effect::Send {
                iothread,
                order_id,
                order,
            });
        }
    }

    fn note_internal_io(&mut self, order_id: OrderId, order: &Order) {
        let nodes = order::internal_io_of(order);
        if nodes.is_empty() {
            return;
        }
        for node in &nodes {
            if let Some(node) = self.graph.node_mut(*node) {
                node.internal_io += 1;
            }
        }
        self.internal_io.insert(order_id, nodes);
    }

    /// Begins work of the graph actor's own at a node, unless a drained section covers it.
    pub fn begin_internal_io(&mut self, node: NodeId) -> bool {
        if self.sections.cover(node) {
            return false;
        }
        if let Some(node) = self.graph.node_mut(node) {
            node.internal_io += 1;
        }
        true
    }

    /// As [`PolicyState::begin_internal_io`], for work that goes on inside a section of its own.
    pub fn begin_internal_io_in_section(&mut self, node: NodeId, section: Token) -> bool {
        if self.sections.cover_beside(node, section) {
            return false;
        }
        if let Some(node) = self.graph.node_mut(node) {
            node.internal_io += 1;
        }
        true
    }

    /// Ends it: sections that waited for it go on.
    pub fn end_internal_io(&mut self, node: NodeId) {
        if let Some(entry) = self.graph.node_mut(node) {
            entry.internal_io = entry.internal_io.saturating_sub(1);
        }
        self.sections.ask(&self.graph, node);
        self.flush_sections();
    }

    /// The address of a node.
    pub fn address(&self, node: NodeId) -> Option<Address> {
        self.graph.node(node).map(|entry| Address {
            node,
            iothread: entry.iothread,
        })
    }

    /// The orders that nodes have not answered: each node's name, and what it was to do.
    pub fn under_way(&self) -> Vec<(String, &'static str)> {
        let orders = self.under_way.values();
        orders
            .filter_map(|(node, what)| Some((self.graph.node(*node)?.name.clone(), *what)))
            .collect()
    }

    /// An order was carried out.
    pub fn ended(&mut self, order_id: OrderId, outcome: OrderOutcome) {
        for node in self.internal_io.remove(&order_id).into_iter().flatten() {
            self.end_internal_io(node);
        }
        self.under_way.remove(&order_id);
        if let Some(answer) = self.answers.get_mut(&order_id) {
            *answer = Some(outcome);
        }
    }

    /// An iothread runs, or does not.
    pub fn started(&mut self, order_id: OrderId, result: Result<(IoThreadId, u32)>) {
        if let Some(answer) = self.starts.get_mut(&order_id) {
            *answer = Some(result);
        }
    }

    /// Where nodes go that are moved to an iothread by its name; without one to the main iothread.
    ///
    /// # Errors
    /// There is no such iothread.
    pub fn destination(&self, iothread: Option<&str>) -> Result<IoThreadId> {
        match iothread {
            None => Ok(self.main),
            Some(name) => Ok(self
                .iothread_named(name)
                .ok_or_else(|| Refusal::NoIothread(name.to_owned()))?),
        }
    }

    /// The iothread with this name.
    pub fn iothread_named(&self, name: &str) -> Option<IoThreadId> {
        let named = |entry: &IothreadEntry| entry.options.as_ref().is_some_and(|options| options.id == name);
        self.iothreads
            .iter()
            .find(|(_, entry)| named(entry))
            .map(|(id, _)| *id)
    }
}

#[cfg(test)]
impl PolicyState {
    /// The orders somebody waits for, with the answers that have come.
    pub fn awaited(&self) -> Vec<(OrderId, Option<String>)> {
        let answers = self.answers.iter();
        let mut awaited: Vec<_> = answers
            .map(|(order_id, answer)| (*order_id, answer.as_ref().map(print)))
            .collect();
        awaited.sort_unstable();
        awaited
    }
}

/// An answer as text: what a model checker goes by.
#[cfg(test)]
pub fn print(outcome: &OrderOutcome) -> String {
    match outcome {
        OrderOutcome::Done(result) => format!("{result:?}"),
        OrderOutcome::Opened(result) => format!("{result:?}"),
        OrderOutcome::Described(result) => format!("{result:?}"),
        OrderOutcome::DescribedMany(described) => format!("{described:?}"),
        OrderOutcome::Pending(requests) => format!("{requests:?}"),
        OrderOutcome::Head(result) => format!("{result:?}"),
        OrderOutcome::Statistics(statistics) => format!("{statistics:?}"),
        OrderOutcome::Saved(saved) => format!("{saved:?}"),
        OrderOutcome::Counters(counters) => format!("{counters:?}"),
        OrderOutcome::Debugged(result) => format!("{result:?}"),
        OrderOutcome::Bits(result) => format!("{result:?}"),
        OrderOutcome::DirtyRuns(result) => format!("{result:?}"),
        OrderOutcome::Named(result) => format!("{result:?}"),
        OrderOutcome::Snapshot(result) => format!("{result:?}"),
        OrderOutcome::VmState(result) => format!("{:?}", result.as_ref().map(Vec::len)),
        OrderOutcome::Device(result) => format!("{result:?}"),
        OrderOutcome::Scsi(result) => format!("{result:?}"),
        OrderOutcome::Checked(result) => format!("{result:?}"),
        OrderOutcome::RealPaths(paths) => format!("{paths:?}"),
    }
}
