//! How the fake nodes of a test are quiesced: those of an iothread in turn, parents first, as the engine does it.

use millpond_engine::node::Event;
use millpond_messages::graph::GraphRequest;
use millpond_messages::{NodeId, Token};
use serde_json::json;

use super::chains::image;
use super::world::FakeWorld;
use super::{add, drain_all, drain_node, reopen, snapshot};
use crate::sections::Section;
use crate::state::PolicyState;
use crate::{NodeOrder, NodeTask, Order};

impl FakeWorld {
    /// Whether an order fails that only a lost iothread makes fail. Then there is no way back either, so it does not as
    /// something is undone.
    pub fn fails_ahead(&mut self) -> bool {
        self.policy.world.with(|state| state.undoing == 0) && self.fails()
    }

    /// Quiesces a node after its parents; answers what is told at once.
    pub fn in_turn(&mut self, id: NodeId, token: Token, after: Vec<NodeId>) -> Vec<Event> {
        let home = |node: &NodeId| self.homes.get(node);
        let is_beside = |parent: &NodeId| home(parent).is_none() || home(parent) == home(&id);
        assert!(
            after.iter().all(is_beside),
            "an iothread knows its own nodes alone"
        );
        let nodes = &self.nodes;
        let is_quiet = |parent: NodeId| {
            nodes
                .get(&parent)
                .is_none_or(|node| !node.unanswered.contains(&token))
        };
        match self.turns.add(id, token, after, is_quiet) {
            true => self.quiesce(id, token),
            false => Vec::new(),
        }
    }

    fn quiesce(&mut self, id: NodeId, token: Token) -> Vec<Event> {
        self.asked.push(id);
        let node = self.nodes.get_mut(&id).unwrap();
        node.stops += u32::from(node.tokens.is_empty());
        assert!(node.tokens.insert(token), "a node is asked once a token");
        if node.in_flight > 0 {
            node.unanswered.push(token);
            return Vec::new();
        }
        let mut events = vec![Event::Quiesced(id, token)];
        events.extend(self.passed(id, token));
        events
    }

    /// A node is quiet for a section, or has left it; answers what those behind it tell.
    pub fn passed(&mut self, id: NodeId, token: Token) -> Vec<Event> {
        let nodes = &self.nodes;
        let is_quiet = |parent: NodeId| {
            nodes
                .get(&parent)
                .is_none_or(|node| !node.unanswered.contains(&token))
        };
        let due = self.turns.passed(id, token, is_quiet);
        due.into_iter()
            .flat_map(|node| match self.turns.leave(node, token) {
                true => self.quiesce(node, token),
                false => Vec::new(),
            })
            .collect()
    }

    /// Whether an order to quiesce a node is on its way, or is kept for it until it has arrived in another iothread.
    pub fn is_asked(&self, id: NodeId, token: Token) -> bool {
        let is_it = |order: &Order| match order {
            Order::Node(node, NodeOrder::Quiesce { token: asked, .. }) => *node == id && *asked == token,
            _ => false,
        };
        let mut mail = self.mailboxes.values().flatten();
        let is_kept = |state: &mut PolicyState| {
            let node = state.graph.node(id);
            node.is_some_and(|node| node.deferred.iter().any(|(_, order)| is_it(order)))
        };
        mail.any(|(_, order)| is_it(order)) || self.policy.world.with(is_kept)
    }

    /// Ends a section for a node.
    pub fn resume(&mut self, id: NodeId, token: Token) -> Vec<Event> {
        if !self.turns.leave(id, token) {
            let node = self.nodes.get_mut(&id).unwrap();
            assert!(node.tokens.remove(&token), "a token is given back once");
            node.unanswered.retain(|other| *other != token);
            node.resumes += u32::from(node.tokens.is_empty());
        }
        self.passed(id, token)
    }

    /// A node is gone.
    pub fn gone(&mut self, id: NodeId) -> Vec<Event> {
        let sections = self.turns.gone(id);
        sections
            .into_iter()
            .flat_map(|token| self.passed(id, token))
            .collect()
    }

    /// Has everything carried out that is under way before any answer is heard: one round trip.
    pub fn round(&mut self) {
        let mail = std::mem::take(&mut self.mailboxes);
        assert!(mail.values().any(|mail| !mail.is_empty()), "nobody is waited for");
        let mut events = Vec::new();
        for (home, mail) in mail {
            for (order_id, order) in mail {
                events.extend(self.obey(home, order_id, order));
            }
        }
        for event in events {
            self.tell(event);
        }
    }

    /// How many round trips a request waits for from the beginning of the first drained section to its end.
    pub fn rounds_of_first_section(&mut self, request: impl Into<GraphRequest>) -> u32 {
        let last = self.policy.world.with(|state| state.sections.last());
        let first = Token(last + 1);
        let id = self.send(request);
        let mut rounds = 0;
        while !self.replies.contains_key(&id) {
            let in_force = |state: &mut PolicyState| state.sections.get(first).is_some();
            rounds += u32::from(self.policy.world.with(in_force));
            self.round();
        }
        self.run();
        rounds
    }
}

/// The thread takes a chain in turn, and a chain that another section holds is not waited for.
#[test]
fn a_chain_is_drained_in_one_round_and_once_more_in_none() {
    let mut world = FakeWorld::new();
    for at in 0..50_u32 {
        let backing = at.checked_sub(1).map(|below| format!("n{below}"));
        image(&mut world, &format!("n{at}"), backing.as_deref());
    }
    world.asked.clear();
    assert_eq!(world.rounds_of_first_section(drain_all()), 1);
    let place = |world: &mut FakeWorld, name: &str| {
        let id = world.id(name);
        world.asked.iter().position(|asked| *asked == id)
    };
    for at in 1..50 {
        let [above, below] = [at, at - 1].map(|at| place(&mut world, &format!("n{at}")));
        assert!(above < below, "parents first");
    }
    let id = world.send(drain_node("n0"));
    assert!(world.replies.contains_key(&id), "all is quiet already");
    world.run();
    assert!(world.nodes.values().all(|node| !node.tokens.is_empty()));
}

/// What is below a busy node is quiesced when that has become quiet, and not before.
#[test]
fn a_busy_parent_holds_up_what_is_below_it() {
    let mut world = FakeWorld::new();
    image(&mut world, "base", None);
    image(&mut world, "top", Some("base"));
    let (top, base) = (world.id("top"), world.id("base"));
    world.enter(top);
    let id = world.send(drain_all());
    world.run();
    assert_eq!(world.nodes[&base].tokens.len(), 0);
    assert!(!world.replies.contains_key(&id));
    world.leave(top);
    world.run();
    assert_eq!(world.nodes[&base].tokens.len(), 1);
    assert!(world.replies.contains_key(&id));
}

/// What was acknowledged after the flush that comes ahead of the section is flushed once nothing more can come.
#[test]
fn a_snapshot_flushes_its_node_once_that_is_still() {
    let mut world = FakeWorld::new();
    for name in ["n", "overlay"] {
        image(&mut world, name, None);
    }
    let node = world.id("n");
    let section = Token(world.policy.world.with(|state| state.sections.last()) + 1);
    let id = world.send(snapshot("n", "overlay"));
    let mut flushed = false;
    while !world.replies.contains_key(&id) {
        let section = |state: &mut PolicyState| state.sections.get(section).is_some_and(Section::is_still);
        let mut sent = world.mailboxes.values().flatten();
        let flush = sent.any(|(_, order)| matches!(order, Order::Task(to, NodeTask::Flush) if *to == node));
        flushed |= flush && world.policy.world.with(section);
        world.round();
    }
    world.run();
    assert!(flushed);
}

/// What is new in a node's options is readied while its clients go on, and so is a filter that comes below it or goes; what has
/// to be still for that, in the section. Nobody is kept until a node has said that it does what it was told.
#[test]
fn new_options_are_readied_before_the_section() {
    let mut world = FakeWorld::new();
    for name in ["below", "others"] {
        let filename = format!("/i/{name}");
        world.ok(add(
            json!({"driver": "file", "node-name": name, "filename": filename}),
        ));
    }
    world.ok(add(json!({"driver": "fmt", "node-name": "n", "file": "below"})));
    world.ok(add(
        json!({"driver": "filter", "node-name": "f", "file": "below"}),
    ));
    let options = |file: &str, read_only: bool| {
        reopen(
            json!({"driver": "fmt", "node-name": "n", "file": file, "backing": null, "discard": "unmap",
            "read-only": read_only}),
        )
    };
    let mut rounds = |file: &str, read_only| world.rounds_of_first_section(options(file, read_only));
    assert_eq!(rounds("below", false), 1, "to be still");
    assert_eq!(rounds("f", false), 2, "to be still, and to have the edge follow");
    assert_eq!(rounds("below", false), 2, "the same when the filter goes");
    assert!(rounds("others", false) > 2, "other data is read");
    assert!(rounds("others", true) > 1);
}
