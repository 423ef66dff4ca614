//! Iothreads that are queues, and nodes that only keep count.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use millpond_drivers::api::BackingLink;
use millpond_messages::graph::{GraphFacts, GraphReply, GraphRequest, WholeGraph};
use millpond_messages::handshake::PendingRequest;
use millpond_messages::io::{OperationKind, Preallocation};
use millpond_messages::{
    ChildSlot, Error, ErrorKind, InternalSnapshot, IoError, IoThreadId, NodeId, NodeStatistics, OpenFlags,
    Permissions, RequestFlags, RootId, Token,
};

use super::bitmaps;
use super::disk;
use super::facts::facts;
use super::kinds::registry;
use super::promises::Promises;
use super::snapshots;
use super::subject::subject;
use crate::{
    Announcement, Effect, ImplicitOpens, IothreadOrder, NewRoot, NodeOrder, NodeTask, Order, Policy,
    PolicyEvent, Reply, RequestId, Wiring,
};
use NodeOrder::{CancelInFlight, CopyOnRead, LeftOfMoment, LimitMoment, SetHistograms, SetWriteThreshold};
use NodeTask::{ChangeMedium, DeleteFile, MarkBitmaps, SaveVmState, SendScsi, StoreAndLog, UnstoreBitmap};
use millpond_engine::node::{self, InTurn, OrderId, OrderOutcome};

/// A node's cell.
#[derive(Default, Debug)]
pub struct FakeNode {
    pub tokens: BTreeSet<Token>,
    /// Requests that entered here.
    pub in_flight: u32,
    pub unanswered: Vec<Token>,
    /// It closes when it is quiet.
    pub closing: Option<OrderId>,
    /// Times that the driver would have been told to stop and to go on.
    pub stops: u32,
    pub resumes: u32,
    pub flags: OpenFlags,
    pub filename: Option<String>,
    pub edges: BTreeMap<u32, NodeId>,
    /// Edges that it had before it moved, until they are joined again.
    unjoined: BTreeMap<u32, NodeId>,
    pub promises: Promises,
    /// Those in its image, if that has any.
    pub snapshots: Option<Vec<InternalSnapshot>>,
}

/// What nodes are told of other data behind their edges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exchanged {
    /// To write back what belongs to the old data.
    Left(NodeId),
    /// To read the other data.
    Entered(NodeId),
    /// To ask their children what they demand.
    AskedAnew(NodeId),
    Kept(NodeId),
    TakenBack(NodeId),
}

/// What users and iothreads are told besides orders; of a change of polling, the longest time.
#[derive(Debug, PartialEq, Eq)]
pub enum Told {
    MayDo(RootId, Permissions),
    Gone(RootId),
    Tune(IoThreadId, i64),
    Stop(IoThreadId),
    Serves(RootId, Vec<IoThreadId>),
}

/// The world around a policy.
pub struct FakeWorld {
    pub policy: Policy,
    pub nodes: BTreeMap<NodeId, FakeNode>,
    pub turns: InTurn,
    pub homes: HashMap<NodeId, IoThreadId>,
    pub mailboxes: BTreeMap<IoThreadId, VecDeque<(OrderId, Order)>>,
    pub replies: HashMap<RequestId, Reply>,
    pub roots: BTreeMap<RootId, NodeId>,
    /// The nodes that are found by name.
    pub names: BTreeMap<String, NodeId>,
    /// What images name as their backing files, by filename.
    pub links: HashMap<String, BackingLink>,
    /// First bytes of files.
    pub heads: HashMap<String, Vec<u8>>,
    /// Counts down with every order that may fail; the one that finds it at 0 does.
    pub fail_after: Option<u32>,
    /// Keeps images from being made.
    pub hold_creates: bool,
    /// Keeps flushes from ending.
    pub hold_flushes: bool,
    /// Nodes in the order in which they were asked to quiesce.
    pub asked: Vec<NodeId>,
    /// What was told to whoever listens.
    pub announced: Vec<Announcement>,
    pub told: Vec<Told>,
    pub flushed: Vec<NodeId>,
    /// How lengths were changed: to what, exactly, and how the rest was laid out.
    pub truncated: Vec<(u64, bool, Preallocation, RequestFlags)>,
    /// The node whose flushes fail.
    pub fail_flush: Option<NodeId>,
    held: Vec<OrderId>,
    /// When alarms are due.
    alarms: Vec<Duration>,
    /// How long nodes are that are opened from here on.
    pub sizes: u64,
    /// Root edges whose writes are made durable at once.
    pub writethrough: Vec<RootId>,
    /// What nodes were told of other data behind their edges.
    pub exchanges: Vec<Exchanged>,
    /// Nodes that were told to read their images again.
    pub invalidated: Vec<NodeId>,
    /// How many temporary files were made.
    pub temporaries: u32,
    now: Duration,
    last: u64,
    threads: u32,
}

impl FakeWorld {
    pub fn new() -> Self {
        Self::with(ImplicitOpens::Allow)
    }

    pub fn with(implicit: ImplicitOpens) -> Self {
        Self {
            policy: Policy::new(registry(), implicit, IoThreadId(1), 0),
            nodes: BTreeMap::new(),
            turns: InTurn::default(),
            homes: HashMap::new(),
            mailboxes: BTreeMap::new(),
            replies: HashMap::new(),
            roots: BTreeMap::new(),
            links: HashMap::new(),
            heads: HashMap::new(),
            fail_after: None,
            hold_creates: false,
            announced: Vec::new(),
            hold_flushes: false,
            held: Vec::new(),
            alarms: Vec::new(),
            sizes: 1 << 20,
            writethrough: Vec::new(),
            exchanges: Vec::new(),
            invalidated: Vec::new(),
            temporaries: 0,
            asked: Vec::new(),
            told: Vec::new(),
            names: BTreeMap::new(),
            flushed: Vec::new(),
            truncated: Vec::new(),
            fail_flush: None,
            now: Duration::ZERO,
            last: 0,
            threads: 1,
        }
    }

    /// Sends a request; nothing is delivered yet.
    pub fn send(&mut self, request: impl Into<GraphRequest>) -> RequestId {
        self.last += 1;
        let id = RequestId(self.last);
        self.now += Duration::from_nanos(1);
        let effects = self.policy.request(id, request, self.now);
        self.carry_out(effects);
        id
    }

    /// Sends a request and delivers everything; answers the reply, if there is one by then.
    pub fn try_request(&mut self, request: impl Into<GraphRequest>) -> Option<Reply> {
        let id = self.send(request);
        self.run();
        self.replies.remove(&id)
    }

    pub fn request(&mut self, request: impl Into<GraphRequest>) -> Reply {
        self.try_request(request).expect("the request is answered")
    }

    pub fn ok(&mut self, request: impl Into<GraphRequest>) -> GraphReply<RootId> {
        self.request(request).expect("the request succeeds")
    }

    /// The text of a request's error.
    pub fn error(&mut self, request: impl Into<GraphRequest>) -> String {
        self.request(request).expect_err("the request fails").to_string()
    }

    pub fn root(&mut self, request: impl Into<GraphRequest>) -> RootId {
        let GraphReply::Root(root) = self.ok(request) else {
            panic!("no root")
        };
        root
    }

    pub fn still(&mut self, request: impl Into<GraphRequest>) -> Token {
        let GraphReply::Still(token) = self.ok(request) else {
            panic!("no token")
        };
        token
    }

    pub fn facts(&mut self) -> GraphFacts {
        let id = self.send(WholeGraph);
        match self.replies.remove(&id) {
            Some(Ok(GraphReply::Graph(facts))) => facts,
            other => panic!("a question is answered at once: {other:?}"),
        }
    }

    /// What the graph believes that images name as their backing files, and the nodes opened by those names.
    pub fn stored(&self) -> Vec<(NodeId, Option<BackingLink>, Option<NodeId>)> {
        self.policy.world.graph(|graph| {
            let nodes = graph.nodes().map(|node| {
                let facts = node.facts.as_ref();
                let link = facts.and_then(|facts| facts.backing.clone());
                (node.id, link, node.implicit_backing)
            });
            nodes.collect()
        })
    }

    pub fn id(&mut self, name: &str) -> NodeId {
        self.facts()
            .nodes
            .iter()
            .find(|node| node.name == name)
            .expect("the node exists")
            .id
    }

    pub fn node(&mut self, name: &str) -> &mut FakeNode {
        let id = self.id(name);
        self.nodes.get_mut(&id).unwrap()
    }

    pub fn tell(&mut self, event: node::Event) {
        self.event(PolicyEvent::Node(event));
    }

    fn event(&mut self, event: PolicyEvent) {
        self.now += Duration::from_nanos(1);
        let effects = self.policy.event(event, self.now);
        self.carry_out(effects);
    }

    pub fn abandon(&mut self, id: RequestId) {
        let effects = self.policy.abandon(id, self.now);
        self.carry_out(effects);
    }

    /// Lets time pass, and tells of alarms that are due.
    pub fn pass(&mut self, time: Duration) {
        self.now += time;
        let due = self.alarms.iter().filter(|due| **due <= self.now).count();
        self.alarms.retain(|due| *due > self.now);
        for _ in 0..due {
            self.event(PolicyEvent::Alarm);
        }
    }

    /// Ends the work that is held back.
    pub fn end_held(&mut self) {
        for order_id in std::mem::take(&mut self.held) {
            self.tell(node::Event::Ended(order_id, OrderOutcome::Done(Ok(()))));
        }
    }

    /// How much work is held back.
    pub fn held(&mut self) -> usize {
        while self.deliver(|_| 0) {}
        self.held.len()
    }

    /// Delivers all mail, the mail that this causes included.
    pub fn run(&mut self) {
        if !self.hold_creates && !self.hold_flushes {
            self.end_held();
        }
        while self.deliver(|_| 0) {}
    }

    /// Delivers the next mail of one iothread with mail; `choose` picks among so many.
    pub fn deliver(&mut self, choose: impl FnOnce(usize) -> usize) -> bool {
        self.mailboxes.retain(|_, mail| !mail.is_empty());
        if self.mailboxes.is_empty() {
            return false;
        }
        let at = choose(self.mailboxes.len());
        let home = *self.mailboxes.keys().nth(at).unwrap();
        let (order_id, order) = self.mailboxes.get_mut(&home).unwrap().pop_front().unwrap();
        for event in self.obey(home, order_id, order) {
            self.tell(event);
        }
        true
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Send {
                    iothread,
                    order_id,
                    order,
                } => {
                    self.mailboxes
                        .entry(iothread)
                        .or_default()
                        .push_back((order_id, order));
                }
                Effect::Reply { id, result } => {
                    assert!(
                        self.replies.insert(id, result).is_none(),
                        "a request is answered once"
                    );
                }
                Effect::Announce(announcement) => self.announced.push(announcement),
                Effect::Alarm(after) => self.alarms.push(self.now + after),
                Effect::StartIothread { order_id, .. } => {
                    self.threads += 1;
                    self.event(PolicyEvent::Started(order_id, Ok((IoThreadId(self.threads), 0))));
                }
                Effect::RootPermissions { root, permissions } => {
                    self.told.push(Told::MayDo(root, permissions));
                }
                Effect::NodeFound { node, name, .. } => {
                    let other = self.names.insert(name, node);
                    assert_eq!(other, None, "two nodes of one name are found");
                }
                Effect::NodeGone(name) => {
                    let gone = self.names.remove(&name);
                    assert!(gone.is_some(), "a node goes that was not found");
                }
                Effect::RootGone(root) => self.told.push(Told::Gone(root)),
                Effect::TuneIothread { iothread, options } => {
                    self.told.push(Told::Tune(iothread, options.poll_max_ns));
                }
                Effect::RootServes { root, iothreads } => self.told.push(Told::Serves(root, iothreads)),
                Effect::StopIothread(iothread) => self.told.push(Told::Stop(iothread)),
            }
        }
    }

    pub fn fails(&mut self) -> bool {
        let Some(left) = &mut self.fail_after else {
            return false;
        };
        if *left == 0 {
            self.fail_after = None;
            return true;
        }
        *left -= 1;
        false
    }

    pub fn obey(&mut self, home: IoThreadId, order_id: OrderId, order: Order) -> Vec<node::Event> {
        let ended = |outcome| vec![node::Event::Ended(order_id, outcome)];
        let done = || ended(OrderOutcome::Done(Ok(())));
        let failed = || Error::new(ErrorKind::Io(IoError::Os(5)), "made to fail");
        if let Order::Node(id, NodeOrder::Pending) | Order::Task(id, NodeTask::Describe) = &order
            && !self.nodes.contains_key(id)
        {
            return ended(OrderOutcome::Pending(Vec::new()));
        }
        if let Some(id) = subject(&order) {
            assert_eq!(self.homes.get(&id), Some(&home), "an order reaches its node");
        }
        match order {
            Order::Wiring(Wiring::Open(open)) => {
                if self.fails() {
                    return ended(OrderOutcome::Opened(Err(failed())));
                }
                let filename = open
                    .options
                    .get("filename")
                    .and_then(|name| name.as_str())
                    .map(str::to_owned);
                let edges = open.children.iter().enumerate();
                let edges: BTreeMap<u32, NodeId> = edges
                    .filter_map(|(slot, child)| Some((slot as u32, child.as_ref()?.node)))
                    .collect();
                let below = edges.get(&0).and_then(|file| self.nodes[file].filename.clone());
                let backing = below.and_then(|name| self.links.get(&name).cloned());
                let node = FakeNode {
                    flags: open.flags,
                    filename,
                    edges,
                    ..FakeNode::default()
                };
                let facts = facts(&node, backing, self.sizes);
                self.nodes.insert(open.node, node);
                self.homes.insert(open.node, home);
                ended(OrderOutcome::Opened(Ok(facts)))
            }
            Order::Task(id, NodeTask::Close) => self.close(id, order_id),
            Order::Node(id, NodeOrder::Quiesce { token, after }) => self.in_turn(id, token, after),
            Order::Node(id, NodeOrder::Resume(token)) => self.resume(id, token),
            Order::Wiring(Wiring::Connect {
                parent,
                slot: ChildSlot(slot),
                target,
            }) => {
                let rejoins = self
                    .nodes
                    .get_mut(&parent)
                    .unwrap()
                    .unjoined
                    .remove(&slot)
                    .is_some();
                if !rejoins && self.fails_ahead() {
                    return ended(OrderOutcome::Done(Err(failed())));
                }
                if let Some(target) = &target {
                    let home = self.homes.get(&target.node);
                    assert_eq!(home, Some(&target.iothread), "a child is sought where it lives");
                }
                let node = self.nodes.get_mut(&parent).unwrap();
                match target {
                    Some(target) => node.edges.insert(slot, target.node),
                    None => node.edges.remove(&slot),
                };
                done()
            }
            Order::Wiring(Wiring::AttachRoot {
                root: NewRoot {
                    root, writethrough, ..
                },
                node,
            }) => {
                if self.fails() {
                    return ended(OrderOutcome::Done(Err(failed())));
                }
                if writethrough {
                    self.writethrough.push(root);
                }
                self.roots.insert(root, node);
                done()
            }
            Order::Wiring(Wiring::MoveRoot { root, target }) => {
                if self.fails_ahead() {
                    return ended(OrderOutcome::Done(Err(failed())));
                }
                let before = self.roots.insert(root, target.node).expect("a root is attached");
                assert_eq!(self.homes.get(&before), Some(&home), "an order reaches its root");
                done()
            }
            Order::Wiring(Wiring::DetachRoot(root)) => {
                let node = self.roots.remove(&root).expect("a root is detached once");
                assert_eq!(self.homes.get(&node), Some(&home), "an order reaches its root");
                done()
            }
            Order::Wiring(Wiring::Depart { node, to }) => {
                let cell = self.nodes.get_mut(&node).unwrap();
                assert!(!cell.tokens.is_empty(), "only a still node moves");
                // Edges do not travel.
                cell.unjoined = std::mem::take(&mut cell.edges);
                self.homes.insert(node, to);
                done()
            }
            Order::Node(id, NodeOrder::ReopenCommit) => {
                let node = self.nodes.get_mut(&id).unwrap();
                node.flags = node.promises.commit_reopen();
                let facts = facts(node, None, self.sizes);
                ended(OrderOutcome::Opened(Ok(facts)))
            }
            Order::Task(node, NodeTask::ReopenPrepare { request, .. }) => {
                if self.fails() {
                    return ended(OrderOutcome::Done(Err(failed())));
                }
                self.promises(node).prepare_reopen(request.flags);
                done()
            }
            Order::Task(_, NodeTask::Flush) if self.hold_flushes => {
                self.held.push(order_id);
                Vec::new()
            }
            Order::Task(id, NodeTask::Flush) => {
                self.flushed.push(id);
                let failed = || Error::new(ErrorKind::Io(IoError::NoSpace), "flush failed");
                let result = if self.fail_flush == Some(id) || self.fails() {
                    Err(failed())
                } else {
                    Ok(())
                };
                ended(OrderOutcome::Done(result))
            }
            Order::Task(_, NodeTask::Truncate { .. } | NodeTask::Amend { .. }) if self.fails() => {
                ended(OrderOutcome::Done(Err(failed())))
            }
            Order::Task(node, NodeTask::PermissionsPrepare { taken, shared }) => {
                if self.fails() {
                    self.promises(node).refuse_permissions();
                    return ended(OrderOutcome::Done(Err(failed())));
                }
                self.promises(node).prepare_permissions(taken, shared);
                done()
            }
            Order::Node(id, NodeOrder::PermissionsCommit) => {
                self.promises(id).commit_permissions();
                Vec::new()
            }
            Order::Node(id, NodeOrder::PermissionsAbort) => {
                self.promises(id).abort_permissions();
                Vec::new()
            }
            Order::Node(id, NodeOrder::ReopenAbort) => {
                self.promises(id).abort_reopen();
                Vec::new()
            }
            Order::Node(id, NodeOrder::Pending) => {
                let requests = (0..self.nodes[&id].in_flight).map(|_| PendingRequest {
                    operation: OperationKind::Write,
                    offset: 0,
                    len: 512,
                    age_ns: 1,
                    stands_at: String::new(),
                });
                ended(OrderOutcome::Pending(requests.collect()))
            }
            Order::Task(_, NodeTask::Commit { .. } | NodeTask::MakeEmpty) if self.fails() => {
                ended(OrderOutcome::Done(Err(failed())))
            }
            Order::Task(_, NodeTask::Commit { .. }) if self.hold_creates => {
                self.held.push(order_id);
                Vec::new()
            }
            Order::Task(_, NodeTask::ChangeBackingFile { .. }) if self.fails() => {
                ended(OrderOutcome::Done(Err(failed())))
            }
            Order::Task(node, NodeTask::ChangeBackingFile { link }) => {
                let image = &self.nodes[&node];
                if image.flags.is_read_only() {
                    let error = Error::new(ErrorKind::ReadOnly, "Image is read-only");
                    return ended(OrderOutcome::Done(Err(error)));
                }
                let file = &self.nodes[&image.edges[&0]];
                let name = file.filename.clone().expect("an image is in a file");
                match link {
                    Some(link) => self.links.insert(name, link),
                    None => self.links.remove(&name),
                };
                done()
            }
            Order::Task(node, NodeTask::ReadHead { .. }) => {
                let name = self.nodes[&node].filename.clone().unwrap_or_default();
                let head = self.heads.get(&name).cloned();
                ended(OrderOutcome::Head(Ok(head.unwrap_or_default())))
            }
            Order::Node(_, CopyOnRead { .. } | SetHistograms { .. } | SetWriteThreshold { .. }) => done(),
            Order::Node(_, NodeOrder::Bitmap { order, .. }) => ended(bitmaps::answer(&order)),
            Order::Task(_, NodeTask::MergeBitmap(_)) => ended(bitmaps::no_bits()),
            Order::Node(_, LeftOfMoment) => ended(bitmaps::no_bits()),
            Order::Iothread(IothreadOrder::Save(_)) => ended(OrderOutcome::Saved(Vec::new())),
            Order::Iothread(IothreadOrder::Statistics(nodes)) => {
                let nodes = nodes.into_iter().map(|node| (node, NodeStatistics::default()));
                ended(OrderOutcome::Statistics(nodes.collect()))
            }
            Order::Node(_, NodeOrder::Debug { .. }) => ended(OrderOutcome::Debugged(Ok(false))),
            Order::Task(node, NodeTask::ExchangePrepare { .. }) => {
                if self.fails() {
                    return ended(OrderOutcome::Done(Err(failed())));
                }
                self.exchanges.push(Exchanged::Left(node));
                done()
            }
            Order::Task(node, NodeTask::Exchange { slots }) => {
                if self.fails() {
                    return ended(OrderOutcome::Opened(Err(failed())));
                }
                let asked = if slots.is_empty() {
                    Exchanged::AskedAnew(node)
                } else {
                    Exchanged::Entered(node)
                };
                self.exchanges.push(asked);
                let facts = facts(&self.nodes[&node], None, self.sizes);
                ended(OrderOutcome::Opened(Ok(facts)))
            }
            Order::Node(node, NodeOrder::ExchangeCommit) => {
                self.exchanges.push(Exchanged::Kept(node));
                Vec::new()
            }
            Order::Node(node, NodeOrder::ExchangeAbort) => {
                self.exchanges.push(Exchanged::TakenBack(node));
                Vec::new()
            }
            Order::Task(id, NodeTask::Invalidate) => {
                if self.fails() {
                    return ended(OrderOutcome::Opened(Err(failed())));
                }
                self.invalidated.push(id);
                let facts = facts(&self.nodes[&id], None, self.sizes);
                ended(OrderOutcome::Opened(Ok(facts)))
            }
            Order::Iothread(IothreadOrder::NewTemporary) => {
                self.temporaries += 1;
                let name = format!("/var/tmp/{}", self.temporaries);
                ended(OrderOutcome::Named(if self.fails() {
                    Err(failed())
                } else {
                    Ok(name)
                }))
            }
            Order::Node(_, CancelInFlight | LimitMoment(_) | NodeOrder::Serialise { .. }) => done(),
            Order::Task(_, NodeTask::Check { .. } | NodeTask::DeleteFile) if self.fails() => {
                ended(match order {
                    Order::Task(_, NodeTask::Check { .. }) => OrderOutcome::Checked(Err(failed())),
                    _ => OrderOutcome::Done(Err(failed())),
                })
            }
            Order::Task(id, NodeTask::ChangeSnapshots(change)) => {
                let fails = self.fails();
                ended(snapshots::change(self.nodes.get_mut(&id), &change, fails))
            }
            Order::Task(_, NodeTask::LoadVmState { .. }) => ended(OrderOutcome::VmState(Ok(Vec::new()))),
            Order::Task(_, NodeTask::Check { .. }) => ended(OrderOutcome::Checked(Ok(Default::default()))),
            Order::Task(_, DeleteFile | ChangeMedium(_) | SendScsi(_)) => done(),
            Order::Task(_, MarkBitmaps | StoreAndLog | UnstoreBitmap { .. } | SaveVmState { .. }) => done(),
            Order::Iothread(IothreadOrder::RealPaths(paths)) => {
                let real = |path: String| Some(millpond_messages::path::path_clean(&path));
                ended(OrderOutcome::RealPaths(paths.into_iter().map(real).collect()))
            }
            Order::Iothread(IothreadOrder::Counters) => ended(OrderOutcome::Counters(Box::default())),
            Order::Task(id, NodeTask::Describe) if self.nodes[&id].snapshots.is_some() => {
                let fails = self.fails();
                ended(snapshots::describe(&self.nodes[&id], self.sizes, fails))
            }
            Order::Task(id, NodeTask::DescribeDevice) => ended(disk::device(&self.nodes[&id])),
            Order::Task(_, NodeTask::Describe) => ended(OrderOutcome::Described(Err(IoError::NoMedium))),
            Order::Iothread(IothreadOrder::DescribeMany(nodes)) => {
                let at_home = |id: &NodeId| self.homes.get(id).is_none_or(|of| *of == home);
                assert!(nodes.iter().all(at_home), "an order reaches its nodes");
                ended(OrderOutcome::DescribedMany(Vec::new()))
            }
            Order::Wiring(Wiring::Create { .. }) if self.hold_creates => {
                self.held.push(order_id);
                Vec::new()
            }
            Order::Task(_, NodeTask::Commit { .. } | NodeTask::MakeEmpty | NodeTask::Amend { .. }) => done(),
            Order::Task(
                _,
                NodeTask::Truncate {
                    size,
                    exact,
                    preallocation,
                    flags,
                    ..
                },
            ) => {
                self.truncated.push((size, exact, preallocation, flags));
                done()
            }
            Order::Task(_, NodeTask::PrepareAmend { .. }) | Order::Wiring(Wiring::Create { .. }) => done(),
        }
    }

    fn promises(&mut self, id: NodeId) -> &mut Promises {
        &mut self.nodes.get_mut(&id).unwrap().promises
    }
}
