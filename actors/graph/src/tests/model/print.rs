//! The fingerprint of a state: everything that can matter for what happens next, with names that depend on history alone
//! taken out.

use std::collections::BTreeSet;
use std::fmt::{self, Write};
use std::hash::{DefaultHasher, Hash, Hasher};

use millpond_messages::Token;

use super::live::Live;
use super::requests::Stage;
use super::site::{Mail, Thread};
use crate::order::{NodeOrder, NodeTask, Order, Wiring};
use millpond_engine::node::{self, OrderId, OrderOutcome};

/// Hashes what is written to it.
struct Feed(DefaultHasher);

impl Write for Feed {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.write(text.as_bytes());
        Ok(())
    }
}

macro_rules! feed {
    ($feed:expr, $($value:expr),+ $(,)?) => {{
        $($feed.debug(&$value);)+
    }};
}

impl Feed {
    fn debug(&mut self, value: &dyn fmt::Debug) {
        // Writing to a hasher does not fail.
        let _ = write!(self, "{value:?};");
    }
}

/// Numbers by rank among those in use: what only grows with history is taken out, the order is kept.
struct Ranks<T>(Vec<T>);

impl<T: Ord + Copy> Ranks<T> {
    fn new(used: BTreeSet<T>) -> Self {
        Self(used.into_iter().collect())
    }

    fn of(&self, value: T) -> usize {
        self.0.binary_search(&value).unwrap_or(usize::MAX)
    }

    fn all(&self, values: &[T]) -> Vec<usize> {
        values.iter().map(|value| self.of(*value)).collect()
    }
}

/// The fingerprint of everything.
pub fn print(live: &Live) -> u64 {
    let mut feed = Feed(DefaultHasher::new());
    let tokens = Ranks::new(tokens(live));
    let order_ids = Ranks::new(order_ids(live));
    live.past.hash(&mut feed.0);
    feed_graph(&mut feed, live, &tokens, &order_ids);
    feed_policy(&mut feed, live, &tokens, &order_ids);
    for (id, thread) in &live.site.threads {
        id.hash(&mut feed.0);
        feed_thread(&mut feed, thread, &tokens, &order_ids);
    }
    feed_cells(&mut feed, live, &tokens);
    for user in &live.users {
        let holds: Vec<usize> = user.holds.iter().map(|held| tokens.of(held.token)).collect();
        (user.at, user.waits_for, holds).hash(&mut feed.0);
    }
    (&live.left, live.failures, live.site.breaches).hash(&mut feed.0);
    feed.0.finish()
}

/// The fingerprint of what procedures can look at as they begin.
pub fn graph(live: &Live) -> u64 {
    let mut feed = Feed(DefaultHasher::new());
    feed_graph(&mut feed, live, &Ranks(Vec::new()), &Ranks(Vec::new()));
    feed.0.finish()
}

/// A fingerprint with more behind it.
pub fn chain(before: u64, more: &[String]) -> u64 {
    more.iter().fold(before, |before, more| {
        let mut hasher = DefaultHasher::new();
        (before, more).hash(&mut hasher);
        hasher.finish()
    })
}

fn order_token(order: &Order) -> Option<Token> {
    match order {
        Order::Node(_, NodeOrder::Quiesce { token, .. } | NodeOrder::Resume(token)) => Some(*token),
        _ => None,
    }
}

fn tokens(live: &Live) -> BTreeSet<Token> {
    let mut used: BTreeSet<Token> = live.policy.waiting.keys().copied().collect();
    live.policy.world.with(|state| {
        used.extend(state.sections.iter().map(|(token, _)| token));
        let deferred = state.graph.nodes().flat_map(|node| &node.deferred);
        used.extend(deferred.filter_map(|(_, order)| order_token(order)));
    });
    for cell in live.site.cells.values() {
        let (holds, unanswered, ..) = cell.gate.parts();
        used.extend(holds);
        used.extend(unanswered);
    }
    for thread in live.site.threads.values() {
        for mail in &thread.inbox {
            match mail {
                Mail::Order(_, order) => used.extend(order_token(order)),
                Mail::Arrive(_, _, cell, _) => used.extend(cell.gate.holds()),
                Mail::ArriveRoot(..) | Mail::Request(..) => {}
            }
        }
        for event in &thread.outbox {
            if let node::Event::Quiesced(_, token) = event {
                used.insert(*token);
            }
        }
    }
    used.extend(
        live.users
            .iter()
            .flat_map(|user| &user.holds)
            .map(|held| held.token),
    );
    used
}

fn order_ids(live: &Live) -> BTreeSet<OrderId> {
    // Only an awaited order makes a difference.
    let awaited = live.policy.world.with(|state| state.awaited());
    awaited.into_iter().map(|(order_id, _)| order_id).collect()
}

fn feed_graph(feed: &mut Feed, live: &Live, tokens: &Ranks<Token>, order_ids: &Ranks<OrderId>) {
    live.policy.world.with(|state| {
        for node in state.graph.nodes() {
            (
                node.id,
                &node.name,
                node.iothread,
                node.inherits_from,
                node.implicit_backing,
            )
                .hash(&mut feed.0);
            (node.owned, node.live, node.internal_io, node.closing, node.moving).hash(&mut feed.0);
            (&node.children, &node.parents, node.facts.is_some()).hash(&mut feed.0);
            feed!(
                feed,
                node.flags,
                node.granted,
                node.options,
                node.common,
                node.given
            );
            for (order_id, order) in &node.deferred {
                feed_order(feed, *order_id, order, tokens, order_ids);
            }
        }
        let mut edges: Vec<_> = state.graph.edges().collect();
        edges.sort_unstable_by_key(|edge| edge.id);
        for edge in edges {
            (edge.id, edge.parent, edge.child, &edge.name).hash(&mut feed.0);
            feed!(feed, edge.role, edge.taken, edge.shared, edge.frozen);
        }
        for (id, root) in state.graph.roots() {
            (id, root.edge, root.wants, root.pinned, root.has_cell).hash(&mut feed.0);
        }
        state.closed.hash(&mut feed.0);
        for id in state.iothreads.keys() {
            id.hash(&mut feed.0);
        }
    });
}

fn feed_policy(feed: &mut Feed, live: &Live, tokens: &Ranks<Token>, order_ids: &Ranks<OrderId>) {
    let policy = &live.policy;
    policy.world.with(|state| {
        for (token, section) in state.sections.iter() {
            tokens.of(token).hash(&mut feed.0);
            feed!(feed, section);
        }
        for (order_id, answer) in state.awaited() {
            (order_ids.of(order_id), answer).hash(&mut feed.0);
        }
    });
    let mut waiting: Vec<_> = policy
        .waiting
        .iter()
        .map(|(token, id)| (tokens.of(*token), *id))
        .collect();
    waiting.sort_unstable();
    waiting.hash(&mut feed.0);
    for (id, _) in &policy.queue {
        id.hash(&mut feed.0);
    }
    policy.running.as_ref().map(|(id, _)| *id).hash(&mut feed.0);
    for (id, _) in &policy.questions {
        id.hash(&mut feed.0);
    }
}

fn feed_thread(feed: &mut Feed, thread: &Thread, tokens: &Ranks<Token>, order_ids: &Ranks<OrderId>) {
    (thread.inbox.len(), thread.outbox.len(), thread.tasks.len()).hash(&mut feed.0);
    for mail in &thread.inbox {
        match mail {
            Mail::Order(order_id, order) => feed_order(feed, *order_id, order, tokens, order_ids),
            Mail::Arrive(order_id, node, cell, roots) => {
                (order_ids.of(*order_id), node, tokens.all(&cell.gate.holds())).hash(&mut feed.0);
                (cell.stops, cell.resumes, cell.background).hash(&mut feed.0);
                feed!(feed, cell.flags, cell.granted, cell.prepared, cell.reopening);
                for luggage in roots {
                    (luggage.root, luggage.node, &luggage.parked).hash(&mut feed.0);
                }
            }
            Mail::ArriveRoot(order_id, luggage) => {
                (
                    order_ids.of(*order_id),
                    luggage.root,
                    luggage.node,
                    &luggage.parked,
                )
                    .hash(&mut feed.0);
            }
            Mail::Request(root, request) => (root, request).hash(&mut feed.0),
        }
    }
    for event in &thread.outbox {
        match event {
            // No driver here has anything to tell.
            node::Event::Noticed(id, _) | node::Event::Serialises(id, _) => ("noticed", id).hash(&mut feed.0),
            node::Event::Quiesced(id, token) => ("quiesced", id, tokens.of(*token)).hash(&mut feed.0),
            node::Event::Ended(order_id, outcome) => {
                order_ids.of(*order_id).hash(&mut feed.0);
                let failed = match outcome {
                    OrderOutcome::Done(result) => result.is_err(),
                    OrderOutcome::Opened(result) => result.is_err(),
                    OrderOutcome::Debugged(result) => result.is_err(),
                    OrderOutcome::Named(result) => result.is_err(),
                    OrderOutcome::Checked(result) => result.is_err(),
                    OrderOutcome::Snapshot(result) => result.is_err(),
                    OrderOutcome::VmState(result) => result.is_err(),
                    OrderOutcome::Bits(result) => result.is_err(),
                    OrderOutcome::DirtyRuns(result) => result.is_err(),
                    OrderOutcome::Described(_)
                    | OrderOutcome::DescribedMany(_)
                    | OrderOutcome::Pending(_)
                    | OrderOutcome::Head(_)
                    | OrderOutcome::Device(_)
                    | OrderOutcome::Scsi(_)
                    | OrderOutcome::Statistics(_)
                    | OrderOutcome::Saved(_)
                    | OrderOutcome::RealPaths(_)
                    | OrderOutcome::Counters(_) => false,
                };
                failed.hash(&mut feed.0);
            }
        }
    }
    for (order_id, order) in &thread.tasks {
        feed_order(feed, *order_id, order, tokens, order_ids);
    }
}

fn feed_order(
    feed: &mut Feed,
    order_id: OrderId,
    order: &Order,
    tokens: &Ranks<Token>,
    order_ids: &Ranks<OrderId>,
) {
    std::mem::discriminant(order).hash(&mut feed.0);
    match order {
        Order::Node(_, order) => std::mem::discriminant(order).hash(&mut feed.0),
        Order::Task(_, task) => std::mem::discriminant(task).hash(&mut feed.0),
        Order::Iothread(order) => std::mem::discriminant(order).hash(&mut feed.0),
        Order::Wiring(wiring) => std::mem::discriminant(wiring).hash(&mut feed.0),
    }
    order_ids.of(order_id).hash(&mut feed.0);
    match order {
        Order::Node(id, NodeOrder::Quiesce { token, .. } | NodeOrder::Resume(token)) => {
            (id, tokens.of(*token)).hash(&mut feed.0)
        }
        Order::Wiring(Wiring::Connect { parent, slot, target }) => {
            (parent, slot, target.map(|target| (target.node, target.iothread))).hash(&mut feed.0);
        }
        Order::Wiring(Wiring::AttachRoot { root, node, .. }) => (root.root, node).hash(&mut feed.0),
        Order::Wiring(Wiring::MoveRoot { root, target }) => {
            (root, target.node, target.iothread).hash(&mut feed.0)
        }
        Order::Wiring(Wiring::DetachRoot(root)) => root.hash(&mut feed.0),
        Order::Task(node, NodeTask::PermissionsPrepare { taken, shared }) => feed!(feed, node, taken, shared),
        Order::Task(node, NodeTask::Exchange { slots } | NodeTask::ExchangePrepare { slots }) => {
            feed!(feed, node, slots)
        }
        Order::Task(node, NodeTask::ReopenPrepare { request, .. }) => {
            feed!(feed, node, request.flags, request.options)
        }
        Order::Wiring(Wiring::Depart { node, to }) => (node, to).hash(&mut feed.0),
        Order::Wiring(Wiring::Open(open)) => {
            open.node.hash(&mut feed.0);
            feed!(feed, open.children, open.flags);
        }
        Order::Wiring(Wiring::Create { file, .. }) => feed!(feed, file),
        other => super::super::subject::subject(other).hash(&mut feed.0),
    }
}

fn feed_cells(feed: &mut Feed, live: &Live, tokens: &Ranks<Token>) {
    for ((parent, token), behind) in live.site.turns.parts() {
        (parent, tokens.of(token), behind).hash(&mut feed.0);
    }
    for (id, cell) in &live.site.cells {
        let (holds, unanswered, count, stopping) = cell.gate.parts();
        (
            id,
            cell.home,
            tokens.all(&holds),
            tokens.all(&unanswered),
            count,
            stopping,
        )
            .hash(&mut feed.0);
        (
            &cell.edges,
            i64::from(cell.stops) - i64::from(cell.resumes),
            cell.background,
            cell.creating,
        )
            .hash(&mut feed.0);
        feed!(feed, cell.flags, cell.granted, cell.prepared, cell.reopening);
    }
    for (id, root) in &live.site.roots {
        (id, root.node, root.ended).hash(&mut feed.0);
        for waiting in &root.waiting {
            (waiting.request, waiting.is_woken()).hash(&mut feed.0);
        }
    }
    for request in &live.site.requests {
        std::mem::discriminant(&request.stage).hash(&mut feed.0);
        request.root.hash(&mut feed.0);
        if let Stage::Admitted { node, pieces, .. } = &request.stage {
            (node, pieces).hash(&mut feed.0);
        }
    }
}
