//! The table of an iothread: its nodes and root edges by id, and where root edges have gone.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Weak as ArcWeak};

use millpond_messages::graph::IothreadCounters;
use millpond_messages::{NodeId, RootId, Token};
use rustc_hash::FxHashMap;

use super::cell::edge::Behind;
use super::cell::home::{EventSink, Home};
use super::cell::node::NodeCell;
use super::entry::root::RootCell;
use super::gate::in_turn::InTurn;
use super::order::mail::{Mail, NodeAddress};
use super::order::outcome::Event;
use super::order::root_handle::{RootHandle, RootShared};
use crate::flight::Open;
use crate::iothread::{IoThread, Local};

/// Above how many entries the list of edges that moved away is swept of those that have ended.
const MOVED_SWEEP: usize = 64;

thread_local! {
    /// The table of the iothread that this thread is. A simulator that runs several on one thread has several.
    static TABLES: RefCell<Vec<Weak<NodeTable>>> = const { RefCell::new(Vec::new()) };
}

/// What lives on one iothread.
pub struct NodeTable {
    home: Rc<Home>,
    nodes: RefCell<FxHashMap<NodeId, Rc<NodeCell>>>,
    roots: RefCell<FxHashMap<RootId, Rc<RootCell>>>,
    /// How many requests came from nodes of other iothreads.
    from_elsewhere: Cell<u64>,
    /// Root edges that moved to another iothread, for requests that were sent here before their clients knew.
    moved: RefCell<FxHashMap<RootId, Moved>>,
    /// Handles on this iothread by which clients sent to root edges that have moved away. Once nobody else holds such a
    /// handle, no client can send by it any more.
    left: RefCell<Vec<Arc<IoThread<Mail>>>>,
    turns: Turns,
}

/// Nodes that sections reach in turn.
#[derive(Default)]
pub struct Turns {
    /// Those whose turn has not come.
    pub waiting: RefCell<InTurn>,
    /// Those whose turn has come, and that are about to be quiesced.
    pub due: RefCell<Vec<(NodeId, Token)>>,
}

/// Where a root edge went.
struct Moved {
    shared: ArcWeak<RootShared>,
    /// The handle by which clients send to it once it has arrived. It is weak, because a strong one means that its holder is
    /// about to send.
    to: ArcWeak<IoThread<Mail>>,
}

impl NodeTable {
    /// A table that code of this iothread finds from now on.
    pub fn new(local: Rc<Local>, events: EventSink) -> Rc<Self> {
        let table = Rc::new_cyclic(|table: &Weak<Self>| Self {
            home: Home::new(local, events, Weak::<Self>::clone(table)),
            nodes: RefCell::default(),
            roots: RefCell::default(),
            from_elsewhere: Cell::new(0),
            moved: RefCell::default(),
            left: RefCell::default(),
            turns: Turns::default(),
        });
        let weak = Rc::downgrade(&table);
        let local = table.local();
        local.retire_when(move || weak.upgrade().is_none_or(|table| table.is_unreachable()));
        TABLES.with_borrow_mut(|tables| {
            tables.retain(|other| other.strong_count() > 0);
            tables.push(Rc::downgrade(&table));
        });
        table
    }

    /// The table of the iothread that runs this code.
    pub fn current() -> Option<Rc<Self>> {
        let id = Local::current_id()?;
        TABLES.with_borrow(|tables| {
            tables
                .iter()
                .filter_map(Weak::upgrade)
                .find(|table| table.local().id() == id)
        })
    }

    pub fn local(&self) -> &Rc<Local> {
        self.home.local()
    }

    /// What the nodes that live here share.
    pub fn home(&self) -> &Rc<Home> {
        &self.home
    }

    /// Reports an event that is about no node in particular.
    pub fn report(&self, event: Event) {
        self.home.report("", event);
    }

    /// What stands behind an edge that leads to `target`.
    pub fn behind(&self, target: Option<NodeAddress>) -> Behind {
        match target {
            None => Behind::None,
            Some(address) if address.iothread.id() == self.local().id() => {
                self.node(address.node).map_or(Behind::None, Behind::Here)
            }
            Some(address) => Behind::There(address),
        }
    }

    /// The name of a node, or its number where it is not here.
    pub fn name_of(&self, id: NodeId) -> String {
        self.node(id)
            .map_or_else(|| format!("#{id}"), |node| node.name().to_owned())
    }

    pub fn node(&self, id: NodeId) -> Option<Rc<NodeCell>> {
        self.nodes.borrow().get(&id).cloned()
    }

    pub fn insert_node(&self, cell: Rc<NodeCell>) {
        self.nodes.borrow_mut().insert(cell.id(), cell);
    }

    pub fn remove_node(&self, id: NodeId) -> Option<Rc<NodeCell>> {
        let removed = self.nodes.borrow_mut().remove(&id);
        self.quiet_for_good(id);
        removed
    }

    /// Whose turn it is to be quiesced.
    pub const fn turns(&self) -> &Turns {
        &self.turns
    }

    pub fn root(&self, id: RootId) -> Option<Rc<RootCell>> {
        self.roots.borrow().get(&id).cloned()
    }

    pub fn insert_root(&self, root: Rc<RootCell>) {
        self.moved.borrow_mut().remove(&root.handle().id());
        root.set_here(true);
        self.roots.borrow_mut().insert(root.handle().id(), root);
    }

    pub fn remove_root(&self, id: RootId) -> Option<Rc<RootCell>> {
        let root = self.roots.borrow_mut().remove(&id)?;
        root.set_here(false);
        Some(root)
    }

    /// Remembers where a root edge goes, and the handle that its clients may be sending here by until they know.
    pub fn note_moved(&self, handle: &RootHandle, to: &Arc<IoThread<Mail>>) {
        let mut moved = self.moved.borrow_mut();
        if moved.len() >= MOVED_SWEEP {
            moved.retain(|_, moved| moved.shared.strong_count() > 0);
        }
        let entry = Moved {
            shared: handle.downgrade(),
            to: Arc::downgrade(to),
        };
        moved.insert(handle.id(), entry);
        let mut left = self.left.borrow_mut();
        left.retain(|other| Arc::strong_count(other) > 1);
        left.push(handle.home());
    }

    /// Whether nothing lives here and no client is about to send here.
    fn is_unreachable(&self) -> bool {
        let mut left = self.left.borrow_mut();
        left.retain(|other| Arc::strong_count(other) > 1);
        // Everything that was sent by a handle was sent before the handle was dropped.
        fence(Ordering::Acquire);
        left.is_empty() && self.nodes.borrow().is_empty() && self.roots.borrow().is_empty()
    }

    /// The nodes, requests and held messages here, for a flight record.
    pub fn open(&self) -> Open {
        let (now, now_ns) = (self.local().ring().now(), self.local().look_at_time());
        let nodes = self.nodes.borrow();
        let mut cells: Vec<&Rc<NodeCell>> = nodes.values().collect();
        cells.sort_by_key(|cell| cell.id());
        Open {
            nodes: cells
                .iter()
                .map(|cell| (cell.id().0, cell.name().to_owned()))
                .collect(),
            in_flight: cells
                .iter()
                .flat_map(|cell| {
                    let pending = cell.gate().pending(now_ns, |id| self.name_of(id)).into_iter();
                    pending.map(|request| (cell.name().to_owned(), request))
                })
                .collect(),
            held: self.local().chaos().held(now),
        }
    }

    /// Counts a request of a node of another iothread.
    pub fn count_from_elsewhere(&self) {
        self.from_elsewhere.set(self.from_elsewhere.get().wrapping_add(1));
    }

    /// The root edges that lead to a node, in the order of their numbers.
    pub fn roots_of(&self, node: &Rc<NodeCell>) -> Vec<Rc<RootCell>> {
        let roots = self.roots.borrow();
        let leads_there = |root: &&Rc<RootCell>| Rc::ptr_eq(&root.node(), node);
        let mut found: Vec<_> = roots.values().filter(leads_there).cloned().collect();
        found.sort_by_key(|root| root.handle().id());
        found
    }

    /// Sends mail on to where a root edge has gone. It travels behind the edge, so it cannot arrive before it.
    pub fn send_after(&self, root: RootId, mail: Mail) -> bool {
        let moved = self.moved.borrow();
        let Some((shared, to)) = moved
            .get(&root)
            .and_then(|moved| Some((moved.shared.upgrade()?, &moved.to)))
        else {
            return true;
        };
        if shared.is_at(self.local().id()) {
            to.upgrade().is_some_and(|to| to.send(mail).is_ok())
        } else {
            shared.send(mail)
        }
    }

    /// The counters of this iothread up to its present turn.
    pub fn counters(&self) -> IothreadCounters {
        let (stats, ring) = (self.local().stats(), self.local().ring().stats());
        let age = self
            .local()
            .ring()
            .now()
            .saturating_duration_since(self.local().begun());
        let age_ns = u64::try_from(age.as_nanos()).unwrap_or(u64::MAX);
        IothreadCounters {
            age_ns,
            slept_ns: stats.slept_ns,
            polled_ns: stats.spun_ns,
            busy_ns: age_ns.saturating_sub(stats.slept_ns.saturating_add(stats.spun_ns)),
            turns: stats.turns,
            system_calls: stats.enters,
            sleeps: stats.parks,
            wake_ups: self.local().wake_ups(),
            polls: stats.spins,
            polls_paid: stats.spins_paid,
            messages: stats.messages,
            task_runs: stats.polls,
            requests: self.home.requests(),
            requests_from_elsewhere: self.from_elsewhere.get(),
            operations: ring.started,
            operations_in_flight: ring.started.saturating_sub(ring.completed),
        }
    }
}

impl Drop for NodeTable {
    fn drop(&mut self) {
        TABLES.with_borrow_mut(|tables| tables.retain(|other| other.strong_count() > 0));
    }
}
