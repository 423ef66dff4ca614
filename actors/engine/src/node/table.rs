//! The table of an iothread: its nodes and root edges by id, and the way back to the graph actor.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Weak as ArcWeak};

use millpond_drivers::api::Notices;
use millpond_messages::graph::IothreadCounters;
use millpond_messages::io::Outcome;
use millpond_messages::record::MessageEvent;
use millpond_messages::{IoError, NodeId, RootId};
use rustc_hash::FxHashMap;

use crate::delay;
use crate::flight::Open;
use crate::iothread::{IoThread, Local, guarded};
use crate::node::cell::node::NodeCell;
use crate::node::entry::client::{RootHandle, RootShared};
use crate::node::entry::root::RootCell;
use crate::node::io;
use crate::node::order::carry_out;
use crate::node::order::late;
use crate::node::order::mail::{Entry, Event, Mail, RemoteRequest};
use crate::node::order::moving;
use crate::node::order::recorded;

/// How an iothread tells the graph actor something. Called on the iothread; must not block.
pub type EventSink = Arc<dyn Fn(Event) + Send + Sync>;

/// Above how many entries the list of edges that moved away is swept of those that have ended.
const MOVED_SWEEP: usize = 64;

thread_local! {
    /// The table of the iothread that this thread is. A simulator that runs several on one thread has several.
    static TABLES: RefCell<Vec<Weak<NodeTable>>> = const { RefCell::new(Vec::new()) };
}

/// What lives on one iothread.
pub struct NodeTable {
    local: Rc<Local>,
    events: EventSink,
    nodes: RefCell<FxHashMap<NodeId, Rc<NodeCell>>>,
    roots: RefCell<FxHashMap<RootId, Rc<RootCell>>>,
    /// How many requests were admitted on this iothread.
    requests: Cell<u64>,
    /// Requests from nodes of other iothreads.
    from_elsewhere: Cell<u64>,
    /// Root edges that moved to another iothread, for requests that were sent here before their clients knew.
    moved: RefCell<FxHashMap<RootId, Moved>>,
    /// Handles on this iothread by which root edges were sent to until they moved away. One that is here alone is of no
    /// use to anybody any more.
    left: RefCell<Vec<Arc<IoThread<Mail>>>>,
}

/// Where a root edge went.
struct Moved {
    shared: ArcWeak<RootShared>,
    /// The handle by which it is sent to once it has arrived. Weak, since who holds one is about to send.
    to: ArcWeak<IoThread<Mail>>,
}

/// Makes the handler of an iothread's mailbox: pass it to [`IoThread::start`](crate::iothread::IoThread::start).
pub fn serve(local: Rc<Local>, events: EventSink) -> Box<dyn Fn(Mail)> {
    let table = Rc::new(NodeTable {
        local,
        events,
        nodes: RefCell::default(),
        roots: RefCell::default(),
        requests: Cell::new(0),
        from_elsewhere: Cell::new(0),
        moved: RefCell::default(),
        left: RefCell::default(),
    });
    let weak = Rc::downgrade(&table);
    table
        .local
        .retire_when(move || weak.upgrade().is_none_or(|table| table.is_unreachable()));
    TABLES.with_borrow_mut(|tables| {
        tables.retain(|other| other.strong_count() > 0);
        tables.push(Rc::downgrade(&table));
    });
    Box::new(move |mail| table.receive(mail))
}

impl NodeTable {
    /// The table of the iothread that runs this code.
    pub fn current() -> Option<Rc<Self>> {
        let id = Local::current_id()?;
        TABLES.with_borrow(|tables| {
            tables
                .iter()
                .filter_map(Weak::upgrade)
                .find(|table| table.local.id() == id)
        })
    }

    pub fn local(&self) -> &Rc<Local> {
        &self.local
    }

    /// Tells the graph actor.
    pub fn tell(&self, event: Event) {
        self.local.note(recorded::event(MessageEvent::Told, &event));
        if delay::is_on() {
            return late::tell(self, &self.events, event);
        }
        (self.events)(event);
    }

    /// Where a node's driver tells what happened, wherever the node goes.
    pub fn notices(&self, node: NodeId) -> Notices {
        let events = Arc::clone(&self.events);
        Notices::new(move |posted| late::notice(&events, node, posted))
    }

    pub fn node(&self, id: NodeId) -> Option<Rc<NodeCell>> {
        self.nodes.borrow().get(&id).cloned()
    }

    pub fn insert_node(&self, cell: Rc<NodeCell>) {
        self.nodes.borrow_mut().insert(cell.id(), cell);
    }

    pub fn remove_node(&self, id: NodeId) -> Option<Rc<NodeCell>> {
        self.nodes.borrow_mut().remove(&id)
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

    /// Whether nothing lives here and nobody is about to send here.
    fn is_unreachable(&self) -> bool {
        let mut left = self.left.borrow_mut();
        left.retain(|other| Arc::strong_count(other) > 1);
        // What was sent by a handle happened before that was let go.
        fence(Ordering::Acquire);
        left.is_empty() && self.nodes.borrow().is_empty() && self.roots.borrow().is_empty()
    }

    /// What is open here, for a flight record.
    fn open(&self) -> Open {
        let (now, now_ns) = (self.local.ring().now(), self.local.look_at_time());
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
                    let pending = cell.gate().pending(now_ns, self).into_iter();
                    pending.map(|request| (cell.name().to_owned(), request))
                })
                .collect(),
            held: self.local.chaos().held(now),
        }
    }

    /// Counts a request that enters the graph here.
    #[inline]
    pub fn count_request(&self) {
        self.requests.set(self.requests.get().wrapping_add(1));
    }

    /// What this iothread has done up to its present turn.
    pub fn counters(&self) -> IothreadCounters {
        let (stats, ring) = (self.local.stats(), self.local.ring().stats());
        let age = self
            .local
            .ring()
            .now()
            .saturating_duration_since(self.local.begun());
        let age_ns = u64::try_from(age.as_nanos()).unwrap_or(u64::MAX);
        IothreadCounters {
            age_ns,
            slept_ns: stats.slept_ns,
            polled_ns: stats.spun_ns,
            busy_ns: age_ns.saturating_sub(stats.slept_ns.saturating_add(stats.spun_ns)),
            turns: stats.turns,
            system_calls: stats.enters,
            sleeps: stats.parks,
            wake_ups: self.local.wake_ups(),
            polls: stats.spins,
            polls_paid: stats.spins_paid,
            messages: stats.messages,
            task_runs: stats.polls,
            requests: self.requests.get(),
            requests_from_elsewhere: self.from_elsewhere.get(),
            operations: ring.started,
            operations_in_flight: ring.started.saturating_sub(ring.completed),
        }
    }

    fn receive(self: &Rc<Self>, mail: Mail) {
        if delay::is_on() {
            return late::receive(self, mail);
        }
        self.handle(mail);
    }

    /// Handles a message that has arrived.
    pub fn handle(self: &Rc<Self>, mail: Mail) {
        match mail {
            Mail::Run(job) => job(),
            Mail::Request(request) => self.request(request),
            Mail::Control { ticket, order } => {
                self.local
                    .note(recorded::order(MessageEvent::Ordered, ticket, &order));
                // Whoever gave the order hears of its end, come what may.
                if !guarded("an order", || carry_out::carry_out(self, ticket, order)) {
                    carry_out::lost(self, ticket);
                }
            }
            Mail::Arrive(moved) => moving::arrive(self, *moved),
            Mail::ArriveRoot(moved) => moving::arrive_root(self, *moved),
            Mail::Chaos(policy, done) => {
                self.local.chaos().set(&self.local, policy);
                drop(done);
            }
            // Whoever asked may have lost patience.
            Mail::Flight(tell) => drop(tell.send(self.open())),
        }
    }

    fn request(self: &Rc<Self>, request: RemoteRequest) {
        match request.entry {
            Entry::Root(id) => self.request_over_root(id, request),
            Entry::Node(id) => self.request_to_node(id, request),
        }
    }

    fn request_over_root(self: &Rc<Self>, id: RootId, request: RemoteRequest) {
        if let Some(root) = self.root(id) {
            root.enter_remote(&self.local, request.operation, request.reply);
            return;
        }
        let moved = self.moved.borrow();
        // Where the edge has ended, dropping the request tells its asker.
        let Some((shared, to)) = moved
            .get(&id)
            .and_then(|moved| Some((moved.shared.upgrade()?, &moved.to)))
        else {
            return;
        };
        let mail = Mail::Request(request);
        let sent = if shared.is_at(self.local.id()) {
            // It is on its way: behind it, nothing comes before it.
            to.upgrade().is_some_and(|to| to.send(mail).is_ok())
        } else {
            shared.send(mail)
        };
        if !sent {
            tracing::debug!(
                root = id.0,
                "a request came for a root edge whose iothread has stopped"
            );
        }
    }

    fn request_to_node(self: &Rc<Self>, id: NodeId, request: RemoteRequest) {
        let Some(cell) = self.node(id) else {
            refuse(request);
            return;
        };
        self.from_elsewhere.set(self.from_elsewhere.get().wrapping_add(1));
        self.local.spawn(async move {
            let outcome = io::execute(&cell, request.operation, None).await;
            late::reply_elsewhere(&cell, request.reply, outcome);
        });
    }
}

impl Drop for NodeTable {
    fn drop(&mut self) {
        TABLES.with_borrow_mut(|tables| tables.retain(|other| other.strong_count() > 0));
    }
}

fn refuse(request: RemoteRequest) {
    drop(request.reply.send(Outcome::plain(Err(IoError::NoMedium))));
}
