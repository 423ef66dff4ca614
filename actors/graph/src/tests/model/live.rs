//! The policy and its world, driven one step at a time.

use std::cell::RefCell;
use std::time::Duration;

use millpond_messages::graph::{
    AddIothread, ChildOf, DrainBegin, DrainEnd, DrainScope, GraphReply, GraphRequest, IothreadOptions,
    Mutation,
};
use millpond_messages::{IoThreadId, NodeId, RootId, Token};
use serde_json::json;

use super::super::kinds::registry;
use super::requests::Stage;
use super::site::{Mail, Site};
use super::{Breach, print};
use crate::{Effect, ImplicitOpens, Policy, PolicyEvent, Reply, RequestId};
use millpond_engine::node::OrderId;

/// Requests of the setup have ids from here on.
const SETUP: u64 = 1 << 32;

/// One step of the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// A user does the next thing of its script.
    User(usize),
    /// A client sends a request over the root edge of this number.
    Arrive(usize),
    /// A driver begins a piece of background work.
    Work(NodeId),
    /// It ends.
    WorkEnds(NodeId),
    /// What waits for a driver's background work to stop finds nothing under way.
    Idle(NodeId),
    /// It says so.
    Stopped(NodeId),
    /// An iothread takes its next mail.
    Mail(IoThreadId),
    /// It does, and refuses.
    MailFails(IoThreadId),
    /// An order that takes time ends.
    Task(IoThreadId, usize),
    /// It fails.
    TaskFails(IoThreadId, usize),
    /// The policy takes an iothread's next event.
    Event(IoThreadId),
    /// A parked request's task runs.
    Look(usize),
    /// Part of a request goes to a child.
    Down(usize, NodeId),
    /// A request ends.
    End(usize),
}

impl Action {
    /// Whether somebody outside decides when it happens, if ever. All else happens in the end.
    pub fn is_external(self) -> bool {
        matches!(self, Self::User(_) | Self::Arrive(_) | Self::Work(_))
    }
}

/// What a user does.
#[derive(Clone)]
pub enum Do {
    /// Begins a section, and waits until it is still.
    Drain(DrainScope),
    /// Ends it.
    End,
    /// Goes away, whether it waits for a section or holds it.
    Die,
    /// Changes the graph. It is given the root edges there are.
    Change(fn(&[RootId]) -> Mutation),
}

/// What is explored.
#[derive(Clone)]
pub struct Scenario {
    pub name: &'static str,
    /// Builds the graph.
    pub setup: fn(&mut Live),
    /// What users do, side by side.
    pub users: Vec<Vec<Do>>,
    /// How many requests come over each root edge.
    pub requests: Vec<u8>,
    /// Nodes with background work, and how many pieces of it.
    pub background: Vec<(&'static str, u8)>,
    /// How many orders fail.
    pub failures: u8,
    /// Whether root edges end while requests are parked there.
    pub may_refuse: bool,
}

/// How far a user is.
pub struct User {
    pub at: usize,
    pub waits_for: Option<RequestId>,
    /// The sections it holds.
    pub holds: Vec<Held>,
    begun: Option<(DrainScope, Option<NodeId>)>,
    /// The graph before its change, if no other was under way.
    before: Option<u64>,
}

/// A section that a user was told is still.
pub struct Held {
    pub token: Token,
    pub scope: DrainScope,
    /// The node it was begun on.
    pub node: Option<NodeId>,
}

/// The policy in its world.
pub struct Live {
    pub policy: Policy,
    pub site: Site,
    pub users: Vec<User>,
    /// Requests that are still to come, by root edge.
    pub left: Vec<u8>,
    pub failures: u8,
    /// What procedures have asked and heard since there was none, and the graph at that time.
    pub past: u64,
    pub roots: Vec<RootId>,
    scenario: Scenario,
    replies: Vec<Reply>,
    threads: u32,
    asked: u64,
}

thread_local! {
    /// The world after the last trace: where the search goes deeper, nothing need be replayed.
    static LAST: RefCell<Option<(&'static str, Vec<Action>, Live)>> = const { RefCell::new(None) };
}

/// The world after a trace.
pub fn replayed(scenario: &Scenario, trace: &[Action]) -> Live {
    let last = LAST
        .take()
        .filter(|(name, last, _)| *name == scenario.name && last == trace);
    if let Some((_, _, live)) = last {
        return live;
    }
    let mut live = Live::new(scenario);
    for action in trace {
        live.apply(*action);
    }
    live
}

/// Keeps the world after a trace.
pub fn keep(live: Live, trace: &[Action]) {
    LAST.set(Some((live.scenario.name, trace.to_vec(), live)));
}

impl Live {
    /// The world as the scenario's setup leaves it.
    pub fn new(scenario: &Scenario) -> Self {
        let users = scenario.users.iter().map(|_| User {
            at: 0,
            waits_for: None,
            holds: Vec::new(),
            begun: None,
            before: None,
        });
        let mut live = Self {
            policy: Policy::new(registry(), ImplicitOpens::Allow, IoThreadId(1), 0),
            site: Site::default(),
            users: users.collect(),
            left: scenario.requests.clone(),
            failures: 0,
            past: 0,
            roots: Vec::new(),
            scenario: scenario.clone(),
            replies: Vec::new(),
            threads: 1,
            asked: SETUP,
        };
        (scenario.setup)(&mut live);
        for (name, pieces) in &scenario.background {
            if let Some(id) = live.named(name)
                && let Some(cell) = live.site.cells.get_mut(&id)
            {
                cell.background.left = *pieces;
                live.site.slow.insert(id);
            }
        }
        live.failures = scenario.failures;
        live.site.may_refuse = scenario.may_refuse;
        assert_eq!(live.site.breaches, 0, "the setup keeps what must hold");
        live
    }

    fn named(&self, name: &str) -> Option<NodeId> {
        self.policy
            .world
            .graph(|graph| graph.named(name).map(|node| node.id))
    }

    /// Does something before the scenario begins, whole.
    pub fn ok(&mut self, request: impl Into<GraphRequest>) -> GraphReply<RootId> {
        self.asked += 1;
        let id = RequestId(self.asked);
        self.call(true, |policy| policy.request(id, request, Duration::ZERO));
        while let Some(action) = self.actions().into_iter().find(|action| !action.is_external()) {
            self.step(action);
        }
        self.replies
            .pop()
            .expect("the setup's request is answered")
            .expect("the setup succeeds")
    }

    /// Starts iothreads `io0` and `io1`.
    pub fn iothreads(&mut self) {
        for id in ["io0", "io1"] {
            let options: IothreadOptions = serde_json::from_value(json!({"id": id})).unwrap();
            self.ok(AddIothread(options));
        }
    }

    /// Attaches a root edge.
    pub fn root(&mut self, request: impl Into<GraphRequest>) {
        let GraphReply::Root(root) = self.ok(request) else {
            panic!("no root")
        };
        self.roots.push(root);
    }

    /// Whether no procedure is under way.
    fn is_idle(&self) -> bool {
        self.policy.running.is_none() && self.policy.questions.is_empty()
    }

    /// Has the policy do something, and carries its effects out. `begins` if that can begin a procedure.
    fn call(&mut self, begins: bool, act: impl FnOnce(&mut Policy) -> Vec<Effect>) {
        if begins && self.is_idle() {
            self.past = print::graph(self);
        }
        let effects = act(&mut self.policy);
        let past = self.policy.world.with(|state| std::mem::take(&mut state.past));
        if self.is_idle() {
            self.past = 0;
        } else {
            self.past = print::chain(self.past, &past);
        }
        for effect in effects {
            match effect {
                Effect::Send {
                    iothread,
                    order_id,
                    order,
                } => self.site.post(iothread, order_id, order),
                Effect::Reply { id, result } => self.reply(id, result),
                Effect::StartIothread { order_id, .. } => self.start(order_id),
                Effect::Announce(_)
                | Effect::RootPermissions { .. }
                | Effect::RootGone(_)
                | Effect::NodeFound { .. }
                | Effect::NodeGone(_)
                | Effect::RootServes { .. }
                | Effect::TuneIothread { .. }
                | Effect::Alarm(_)
                | Effect::StopIothread(_) => {}
            }
        }
    }

    fn start(&mut self, order_id: OrderId) {
        self.threads += 1;
        let started = PolicyEvent::Started(order_id, Ok((IoThreadId(self.threads), 0)));
        self.call(false, |policy| policy.event(started, Duration::ZERO));
    }

    fn reply(&mut self, id: RequestId, result: Reply) {
        if id.0 >= SETUP {
            self.replies.push(result);
            return;
        }
        let user = usize::try_from(id.0 >> 8)
            .ok()
            .and_then(|at| self.users.get_mut(at));
        let Some(user) = user.filter(|user| user.waits_for == Some(id)) else {
            self.site.breach(Breach::Loss);
            return;
        };
        user.waits_for = None;
        let before = user.before.take();
        match result {
            Ok(GraphReply::Still(token)) => {
                if let Some((scope, node)) = user.begun.take() {
                    user.holds.push(Held { token, scope, node });
                }
            }
            Ok(GraphReply::Root(root)) => self.roots.push(root),
            Ok(_) => {}
            Err(_) => {
                if before.is_some_and(|before| before != print::graph(self)) {
                    self.site.breach(Breach::Restoration);
                }
            }
        }
    }

    /// Everything that can happen next.
    pub fn actions(&self) -> Vec<Action> {
        let mut actions = Vec::new();
        for (at, user) in self.users.iter().enumerate() {
            if let Some(next) = self.scenario.users[at].get(user.at)
                && (user.waits_for.is_none() || matches!(next, Do::Die))
            {
                actions.push(Action::User(at));
            }
        }
        let roots = self.left.iter().take(self.roots.len()).enumerate();
        let roots = roots.filter(|(_, left)| **left > 0);
        actions.extend(roots.map(|(root, _)| Action::Arrive(root)));
        for (id, cell) in &self.site.cells {
            if cell.background.at.is_some() {
                actions.push(Action::WorkEnds(*id));
            } else if cell.background.left > 0 && !cell.is_stopped() {
                actions.push(Action::Work(*id));
            }
            if cell.background.at.is_none() && cell.background.stopping > 0 {
                actions.push(Action::Idle(*id));
            }
            if cell.background.idle > 0 {
                actions.push(Action::Stopped(*id));
            }
        }
        self.thread_actions(&mut actions);
        for (at, request) in self.site.requests.iter().enumerate() {
            if let Stage::Admitted { .. } = request.stage {
                actions.push(Action::End(at));
                actions.extend(
                    self.site
                        .ways_down(at)
                        .into_iter()
                        .map(|child| Action::Down(at, child)),
                );
            }
        }
        for root in self.site.roots.values() {
            let woken = root.waiting.iter().filter(|waiting| waiting.is_woken());
            actions.extend(woken.map(|waiting| Action::Look(waiting.request)));
        }
        actions
    }

    fn thread_actions(&self, actions: &mut Vec<Action>) {
        for (id, thread) in &self.site.threads {
            for (at, (_, order)) in thread.tasks.iter().enumerate() {
                if self.site.may_end(order) {
                    actions.push(Action::Task(*id, at));
                }
                if self.failures > 0 && Site::can_fail(order) {
                    actions.push(Action::TaskFails(*id, at));
                }
            }
            if let Some(mail) = thread.inbox.front() {
                actions.push(Action::Mail(*id));
                if self.failures > 0
                    && matches!(mail, Mail::Order(_, order) if Site::can_fail(order) && !Site::takes_time(order))
                {
                    actions.push(Action::MailFails(*id));
                }
            }
            if !thread.outbox.is_empty() {
                actions.push(Action::Event(*id));
            }
        }
    }

    /// Takes a step, and looks whether everything holds that must.
    pub fn apply(&mut self, action: Action) {
        self.step(action);
        self.check_stillness();
        if self.actions().iter().all(|action| action.is_external()) {
            self.check_settled();
        }
    }

    fn step(&mut self, action: Action) {
        let sections = self
            .policy
            .world
            .with(|state| state.sections.iter().map(|(token, _)| token).collect());
        self.site.in_force = sections;
        match action {
            Action::User(at) => self.user(at),
            Action::Arrive(at) => {
                self.left[at] -= 1;
                self.site.arrive(self.roots[at]);
            }
            Action::Work(id) => self.site.begin_background(id),
            Action::WorkEnds(id) => self.site.end_background(id),
            Action::Idle(id) => self.site.idle(id),
            Action::Stopped(id) => self.site.stopped(id),
            Action::Mail(home) => self.site.take_mail(home, false),
            Action::MailFails(home) => {
                self.failures -= 1;
                self.site.take_mail(home, true);
            }
            Action::Task(home, at) => self.site.end_task(home, at, false),
            Action::TaskFails(home, at) => {
                self.failures -= 1;
                self.site.end_task(home, at, true);
            }
            Action::Event(home) => {
                let thread = self.site.threads.get_mut(&home);
                if let Some(event) = thread.and_then(|thread| thread.outbox.pop_front()) {
                    self.call(false, |policy| {
                        policy.event(PolicyEvent::Node(event), Duration::ZERO)
                    });
                }
            }
            Action::Look(request) => self.site.look(self.site.requests[request].root, request),
            Action::Down(request, child) => self.site.pass_down(request, child),
            Action::End(request) => self.site.complete(request),
        }
    }

    fn user(&mut self, at: usize) {
        let step = self.users[at].at;
        self.users[at].at += 1;
        let id = RequestId((at as u64) << 8 | step as u64);
        match self.scenario.users[at][step].clone() {
            Do::Drain(scope) => {
                let node = match &scope {
                    // No scenario holds a user's edge.
                    DrainScope::All | DrainScope::Parent(ChildOf::Root(_)) => None,
                    DrainScope::Node(name)
                    | DrainScope::Subtree(name)
                    | DrainScope::Parent(ChildOf::Node { node_name: name, .. }) => self.named(name),
                };
                self.users[at].begun = Some((scope.clone(), node));
                self.users[at].waits_for = Some(id);
                let request = DrainBegin {
                    scope,
                    user: at.to_string(),
                };
                self.call(false, |policy| policy.request(id, request, Duration::ZERO));
            }
            Do::Change(make) => {
                let request = make(&self.roots);
                let alone = self.is_idle() && self.policy.queue.is_empty();
                let before = alone.then(|| print::graph(self));
                for user in &mut self.users {
                    user.before = None;
                }
                self.users[at].before = before;
                self.users[at].waits_for = Some(id);
                self.call(true, |policy| policy.request(id, request, Duration::ZERO));
            }
            Do::End | Do::Die => {
                if let Some(Held { token, .. }) = self.users[at].holds.pop() {
                    self.users[at].waits_for = Some(id);
                    let request = DrainEnd(token);
                    self.call(false, |policy| policy.request(id, request, Duration::ZERO));
                } else if let Some(begun) = self.users[at].waits_for {
                    self.call(false, |policy| policy.abandon(begun, Duration::ZERO));
                }
            }
        }
    }
}
