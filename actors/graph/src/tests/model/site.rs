//! The world around the policy as the model checker sees it: iothreads with mailboxes, cells with real gates and queues.
//!
//! An order that a real iothread carries out at once is carried out as it is taken from the mailbox. One that it spawns a
//! task for becomes a task here, which ends at any later time. The rules are those of the engine's `node/`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use millpond_drivers::api::Abilities;
use millpond_messages::{
    ChildSlot, Error, ErrorKind, IoError, IoThreadId, Limits, NodeId, OpenFlags, Permissions, RootId, Token,
};

use super::requests::{Request, Root, Stage};
use super::{Breach, Breaches};
use crate::order::{IothreadOrder, NewRoot, NodeOrder, NodeTask, Open, Order, Wiring};
use millpond_engine::node::{self, Gate, InTurn, OpenFacts, OrderId, OrderOutcome};

/// What an iothread finds in its mailbox.
pub enum Mail {
    Order(OrderId, Order),
    /// A node that arrives, with its root edges.
    Arrive(OrderId, NodeId, Box<Cell>, Vec<Luggage>),
    /// A root edge that arrives by itself.
    ArriveRoot(OrderId, Luggage),
    /// A request for a root edge that is on its way here.
    Request(RootId, usize),
}

/// A root edge on its way, with what was parked at it.
pub struct Luggage {
    pub root: RootId,
    pub node: NodeId,
    pub parked: Vec<usize>,
}

/// An iothread: a mailbox, events on their way to the policy, and orders that take time.
#[derive(Default)]
pub struct Thread {
    pub inbox: VecDeque<Mail>,
    pub outbox: VecDeque<node::Event>,
    pub tasks: Vec<(OrderId, Order)>,
}

/// Work that a driver does of itself, at one of its children.
#[derive(Clone, Copy, Debug, Default, Hash, PartialEq, Eq)]
pub struct Background {
    /// How many pieces it may still begin.
    pub left: u8,
    /// Where the piece under way stands.
    pub at: Option<NodeId>,
    /// Stops that wait until nothing is under way.
    pub stopping: u8,
    /// Stops that have seen that, and are about to say so.
    pub idle: u8,
}

/// A node's cell.
pub struct Cell {
    pub home: IoThreadId,
    pub gate: Gate,
    pub edges: BTreeMap<u32, NodeId>,
    pub flags: OpenFlags,
    /// Times that the driver was told to stop, and to go on.
    pub stops: u32,
    pub resumes: u32,
    pub background: Background,
    /// Making an image in it.
    pub creating: u32,
    pub granted: Option<(Permissions, Permissions)>,
    pub prepared: Option<(Permissions, Permissions)>,
    pub reopening: Option<OpenFlags>,
}

impl Cell {
    fn new(home: IoThreadId, flags: OpenFlags) -> Self {
        Self {
            home,
            gate: Gate::default(),
            edges: BTreeMap::new(),
            flags,
            stops: 0,
            resumes: 0,
            background: Background::default(),
            creating: 0,
            granted: None,
            prepared: None,
            reopening: None,
        }
    }

    pub fn is_stopped(&self) -> bool {
        self.stops != self.resumes
    }
}

/// All iothreads with what is in them.
#[derive(Default)]
pub struct Site {
    pub threads: BTreeMap<IoThreadId, Thread>,
    pub cells: BTreeMap<NodeId, Cell>,
    pub roots: BTreeMap<RootId, Root>,
    pub requests: Vec<Request>,
    pub turns: InTurn,
    /// Drivers that take their time to stop: nodes with background work.
    pub slow: BTreeSet<NodeId>,
    /// Root edges that end in this scenario: only their requests may be refused.
    pub may_refuse: bool,
    /// The sections that have not ended, as the policy has it.
    pub in_force: BTreeSet<Token>,
    pub breaches: Breaches,
}

impl Site {
    pub fn breach(&mut self, breach: Breach) {
        self.breaches |= 1 << breach as u8;
    }

    pub fn tell(&mut self, home: IoThreadId, event: node::Event) {
        self.threads.entry(home).or_default().outbox.push_back(event);
    }

    fn end(&mut self, home: IoThreadId, order_id: OrderId, outcome: OrderOutcome) {
        self.tell(home, node::Event::Ended(order_id, outcome));
    }

    fn done(&mut self, home: IoThreadId, order_id: OrderId) {
        self.end(home, order_id, OrderOutcome::Done(Ok(())));
    }

    pub fn post(&mut self, home: IoThreadId, order_id: OrderId, order: Order) {
        let thread = self.threads.entry(home).or_default();
        thread.inbox.push_back(Mail::Order(order_id, order));
    }

    /// Whether anything passes a node or is done at it.
    pub fn is_busy(&self, id: NodeId) -> bool {
        let stands = |request: &Request| match &request.stage {
            Stage::Admitted { node, pieces, .. } => *node == id || pieces.contains(&id),
            _ => false,
        };
        let cell = self.cells.get(&id);
        cell.is_some_and(|cell| cell.creating > 0 || cell.background.at.is_some())
            || self.cells.values().any(|cell| cell.background.at == Some(id))
            || self.requests.iter().any(stands)
    }

    /// The nodes from which one of `ids` can be reached over the cells' own edges, those themselves included.
    pub fn above(&self, ids: impl IntoIterator<Item = NodeId>) -> BTreeSet<NodeId> {
        let mut found: BTreeSet<NodeId> = ids.into_iter().collect();
        loop {
            let before = found.len();
            let parents = self
                .cells
                .iter()
                .filter(|(_, cell)| cell.edges.values().any(|child| found.contains(child)));
            let parents: Vec<NodeId> = parents.map(|(id, _)| *id).collect();
            found.extend(parents);
            if found.len() == before {
                return found;
            }
        }
    }

    /// The nodes that can be reached from one, itself included.
    pub fn below(&self, id: NodeId) -> BTreeSet<NodeId> {
        let mut found = BTreeSet::from([id]);
        let mut open = vec![id];
        while let Some(id) = open.pop() {
            for child in self
                .cells
                .get(&id)
                .into_iter()
                .flat_map(|cell| cell.edges.values())
            {
                if found.insert(*child) {
                    open.push(*child);
                }
            }
        }
        found
    }

    /// An iothread takes its next mail.
    pub fn take_mail(&mut self, home: IoThreadId, fails: bool) {
        let mail = self
            .threads
            .get_mut(&home)
            .and_then(|thread| thread.inbox.pop_front());
        match mail {
            None => {}
            Some(Mail::Order(order_id, order)) if fails => self.fail(home, order_id, &order),
            Some(Mail::Order(order_id, order)) => self.obey(home, order_id, order),
            Some(Mail::Arrive(order_id, id, mut cell, roots)) => {
                cell.home = home;
                cell.gate = Gate::held(cell.gate.holds());
                self.cells.insert(id, *cell);
                for luggage in roots {
                    self.arrive_root(luggage);
                }
                self.done(home, order_id);
            }
            Some(Mail::ArriveRoot(order_id, luggage)) => {
                self.arrive_root(luggage);
                self.done(home, order_id);
            }
            Some(Mail::Request(root, request)) => self.enter(root, request),
        }
    }

    fn arrive_root(&mut self, luggage: Luggage) {
        if !self.cells.contains_key(&luggage.node) {
            self.breach(Breach::Cells);
        }
        self.roots.insert(luggage.root, Root::new(luggage.node));
        for request in luggage.parked {
            self.requests[request].stage = Stage::Sent;
            self.enter(luggage.root, request);
        }
    }

    fn pack_root(&mut self, id: RootId, node: NodeId) -> Option<Luggage> {
        let root = self.roots.remove(&id)?;
        let parked = root
            .queue
            .take(|| ((), ()))
            .into_iter()
            .map(|(request, ())| request)
            .collect();
        Some(Luggage {
            root: id,
            node,
            parked,
        })
    }

    fn obey(&mut self, home: IoThreadId, order_id: OrderId, order: Order) {
        if let Some(id) = super::super::subject::subject(&order)
            && self.cells.get(&id).is_none_or(|cell| cell.home != home)
        {
            self.breach(Breach::Cells);
        }
        match order {
            Order::Node(id, NodeOrder::Quiesce { token, after }) => self.quiesce(home, id, token, after),
            Order::Node(id, NodeOrder::Resume(token)) => self.resume(home, id, token),
            Order::Wiring(Wiring::Connect {
                parent,
                slot: ChildSlot(slot),
                target,
            }) => {
                self.must_be_still(parent);
                if let Some(cell) = self.cells.get_mut(&parent) {
                    match target {
                        Some(target) => cell.edges.insert(slot, target.node),
                        None => cell.edges.remove(&slot),
                    };
                }
                self.done(home, order_id);
            }
            Order::Wiring(Wiring::AttachRoot {
                root: NewRoot { root, .. },
                node,
            }) => {
                self.roots.insert(root, Root::new(node));
                self.done(home, order_id);
            }
            Order::Wiring(Wiring::MoveRoot { root, target }) => {
                self.move_root(home, order_id, root, target.node, target.iothread)
            }
            Order::Wiring(Wiring::DetachRoot(id)) => {
                if let Some(root) = self.roots.get_mut(&id) {
                    root.ended = true;
                    root.queue.end();
                    if root.waiting.is_empty() {
                        self.roots.remove(&id);
                    }
                }
                self.done(home, order_id);
            }
            Order::Wiring(Wiring::Depart { node, to }) if to == home => {
                self.must_be_still(node);
                self.done(home, order_id);
            }
            Order::Wiring(Wiring::Depart { node, to }) => {
                self.must_be_still(node);
                let Some(mut cell) = self.cells.remove(&node) else {
                    return;
                };
                cell.edges.clear();
                let roots: Vec<RootId> = self
                    .roots
                    .iter()
                    .filter(|(_, root)| root.node == node)
                    .map(|(id, _)| *id)
                    .collect();
                let roots = roots
                    .into_iter()
                    .filter_map(|root| self.pack_root(root, node))
                    .collect();
                let thread = self.threads.entry(to).or_default();
                thread
                    .inbox
                    .push_back(Mail::Arrive(order_id, node, Box::new(cell), roots));
            }
            Order::Node(id, NodeOrder::PermissionsCommit) => {
                if let Some(cell) = self.cells.get_mut(&id) {
                    cell.granted = cell.prepared.take();
                }
            }
            Order::Node(id, NodeOrder::PermissionsAbort) => {
                if let Some(cell) = self.cells.get_mut(&id) {
                    cell.prepared = None;
                }
            }
            Order::Node(id, NodeOrder::ExchangeCommit | NodeOrder::ExchangeAbort) => self.must_be_still(id),
            Order::Node(id, NodeOrder::ReopenAbort) => {
                if let Some(cell) = self.cells.get_mut(&id) {
                    cell.reopening = None;
                }
            }
            Order::Node(id, NodeOrder::ReopenCommit) => {
                let Some(cell) = self.cells.get_mut(&id) else {
                    return;
                };
                match cell.reopening.take() {
                    Some(flags) => cell.flags = flags,
                    None => self.breach(Breach::Cells),
                }
                let facts = facts(self.cells[&id].flags);
                self.end(home, order_id, OrderOutcome::Opened(Ok(facts)));
            }
            Order::Node(_, NodeOrder::Pending) => self.end(home, order_id, OrderOutcome::Pending(Vec::new())),
            later => {
                if let Order::Wiring(Wiring::Create { file: Some(file), .. }) = &later
                    && let Some(cell) = self.cells.get_mut(&file.node)
                {
                    cell.creating += 1;
                }
                let tasks = &mut self.threads.entry(home).or_default().tasks;
                tasks.push((order_id, later));
            }
        }
    }

    fn move_root(&mut self, home: IoThreadId, order_id: OrderId, id: RootId, node: NodeId, to: IoThreadId) {
        let Some(root) = self.roots.get_mut(&id) else {
            self.breach(Breach::Cells);
            return;
        };
        let from = root.node;
        if to == home {
            root.node = node;
            root.queue.wake_first();
            self.done(home, order_id);
        } else if let Some(luggage) = self.pack_root(id, node) {
            let thread = self.threads.entry(to).or_default();
            thread.inbox.push_back(Mail::ArriveRoot(order_id, luggage));
        }
        self.must_be_still(from);
    }

    /// What an order changes must not be in use.
    fn must_be_still(&mut self, id: NodeId) {
        if self.is_busy(id) {
            self.breach(Breach::Stillness);
        }
    }

    /// A task of an iothread ends.
    pub fn end_task(&mut self, home: IoThreadId, at: usize, fails: bool) {
        let Some(thread) = self.threads.get_mut(&home) else {
            return;
        };
        let (order_id, order) = thread.tasks.remove(at);
        if fails {
            self.fail(home, order_id, &order);
            return;
        }
        match order {
            Order::Wiring(Wiring::Open(open)) => {
                let facts = self.open(home, &open);
                self.end(home, order_id, OrderOutcome::Opened(Ok(facts)));
                return;
            }
            Order::Task(id, NodeTask::Close) => {
                self.must_be_still(id);
                if self.cells.remove(&id).is_none() {
                    self.breach(Breach::Cells);
                }
                self.gone(home, id);
            }
            Order::Task(node, NodeTask::PermissionsPrepare { taken, shared }) => {
                if let Some(cell) = self.cells.get_mut(&node) {
                    cell.prepared = Some((taken, shared));
                }
            }
            Order::Task(node, NodeTask::ReopenPrepare { request, .. }) => {
                if let Some(cell) = self.cells.get_mut(&node) {
                    cell.reopening = Some(request.flags);
                }
            }
            Order::Task(node, NodeTask::Truncate { .. } | NodeTask::ExchangePrepare { .. }) => {
                self.must_be_still(node)
            }
            Order::Task(node, NodeTask::Exchange { .. }) => {
                self.must_be_still(node);
                let flags = self
                    .cells
                    .get(&node)
                    .map_or(OpenFlags::empty(), |cell| cell.flags);
                self.end(home, order_id, OrderOutcome::Opened(Ok(facts(flags))));
                return;
            }
            Order::Wiring(Wiring::Create { file: Some(file), .. }) => {
                if let Some(cell) = self.cells.get_mut(&file.node) {
                    cell.creating -= 1;
                }
            }
            Order::Task(_, NodeTask::Describe) => {
                self.end(home, order_id, OrderOutcome::Described(Err(IoError::NoMedium)));
                return;
            }
            Order::Iothread(IothreadOrder::DescribeMany(_)) => {
                self.end(home, order_id, OrderOutcome::DescribedMany(Vec::new()));
                return;
            }
            Order::Task(_, NodeTask::ReadHead { .. }) => {
                self.end(home, order_id, OrderOutcome::Head(Ok(Vec::new())));
                return;
            }
            _ => {}
        }
        self.done(home, order_id);
    }

    fn open(&mut self, home: IoThreadId, open: &Open) -> OpenFacts {
        let children = open.children.iter().enumerate();
        let edges =
            children.filter_map(|(slot, child)| Some((u32::try_from(slot).ok()?, child.as_ref()?.node)));
        let edges = edges.collect();
        self.cells.insert(
            open.node,
            Cell {
                edges,
                ..Cell::new(home, open.flags)
            },
        );
        facts(open.flags)
    }

    /// Whether a mail may end with an error: an order that real iothreads refuse for some reason.
    pub fn can_fail(order: &Order) -> bool {
        matches!(
            order,
            Order::Wiring(Wiring::Open(_))
                | Order::Wiring(Wiring::Connect { .. })
                | Order::Wiring(Wiring::AttachRoot { .. })
                | Order::Wiring(Wiring::MoveRoot { .. })
                | Order::Task(
                    _,
                    NodeTask::PermissionsPrepare { .. } | NodeTask::ReopenPrepare { .. }
                )
                | Order::Task(
                    _,
                    NodeTask::ExchangePrepare { .. } | NodeTask::Exchange { .. } | NodeTask::Truncate { .. }
                )
        )
    }

    /// Whether an order becomes a task.
    pub fn takes_time(order: &Order) -> bool {
        !matches!(
            order,
            Order::Wiring(Wiring::Connect { .. })
                | Order::Wiring(Wiring::AttachRoot { .. })
                | Order::Wiring(Wiring::MoveRoot { .. })
        )
    }

    fn fail(&mut self, home: IoThreadId, order_id: OrderId, order: &Order) {
        let error = Error::new(ErrorKind::Io(IoError::Os(5)), "made to fail");
        let outcome = match order {
            Order::Wiring(Wiring::Open(_)) => OrderOutcome::Opened(Err(error)),
            _ => OrderOutcome::Done(Err(error)),
        };
        self.end(home, order_id, outcome);
    }
}

fn facts(flags: OpenFlags) -> OpenFacts {
    OpenFacts {
        flags,
        backing: None,
        data_file: None,
        size: 1 << 20,
        abilities: Abilities::default(),
        limits: Limits::default(),
        filename: None,
        read_bitmaps: Vec::new(),
    }
}
