//! Anything in any order: changes, drains and requests, with every message delayed as chance has it.

use std::collections::BTreeSet;

use millpond_messages::graph::{
    AddIothread, AddNode, Append, AttachChild, ChildOf, DetachChild, DetachRoot, DrainEnd, DropFilter,
    GraphReply, InsertNode, InvalidateCache, IothreadOptions, MakeImage, Mutation, Reopen, ReopenKeeping,
    ReplaceChild, ReplaceNode, Resize, SetActive, SetBacking, SetIothread, SetReadOnly,
};
use millpond_messages::{NodeId, RootId, Token};
use serde_json::json;

use super::*;
use crate::RequestId;

/// splitmix64: small, and the same everywhere for the same seed.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }
}

/// A number from the environment.
pub fn number(name: &str, default: u64) -> u64 {
    let given = std::env::var(name).ok();
    given.and_then(|text| text.parse().ok()).unwrap_or(default)
}

struct Run {
    world: FakeWorld,
    rng: Rng,
    asked: Vec<RequestId>,
    sections: BTreeSet<Token>,
    roots: Vec<RootId>,
    in_flight: Vec<NodeId>,
    names: Vec<String>,
    last: u32,
}

impl Run {
    fn new(seed: u64) -> Self {
        let mut world = FakeWorld::new();
        for id in ["io0", "io1"] {
            let options: IothreadOptions = serde_json::from_value(json!({"id": id})).unwrap();
            world.ok(AddIothread(options));
        }
        Self {
            world,
            rng: Rng(seed),
            asked: Vec::new(),
            sections: BTreeSet::new(),
            roots: Vec::new(),
            in_flight: Vec::new(),
            names: vec!["nobody".to_owned()],
            last: 0,
        }
    }

    fn name(&mut self) -> String {
        let at = self.rng.below(self.names.len());
        self.names[at].clone()
    }

    fn step(&mut self) {
        match self.rng.below(10) {
            0..4 => {
                let rng = &mut self.rng;
                self.world.deliver(|limit| rng.below(limit));
            }
            4 => self.enter(),
            5 => self.leave(),
            6 => self.drain(),
            _ => self.change(),
        }
        self.collect();
    }

    /// A request comes over a root edge, if its node's gate is open.
    fn enter(&mut self) {
        if self.world.roots.is_empty() {
            return;
        }
        let at = self.rng.below(self.world.roots.len());
        let Some(node) = self.world.roots.values().nth(at).copied() else {
            return;
        };
        if self.world.nodes.contains_key(&node) && self.world.enter(node) {
            self.in_flight.push(node);
        }
    }

    fn leave(&mut self) {
        if !self.in_flight.is_empty() {
            let at = self.rng.below(self.in_flight.len());
            let node = self.in_flight.swap_remove(at);
            self.world.leave(node);
        }
    }

    fn drain(&mut self) {
        if self.rng.below(2) == 0 && !self.sections.is_empty() {
            let at = self.rng.below(self.sections.len());
            let token = *self.sections.iter().nth(at).unwrap();
            self.sections.remove(&token);
            self.asked.push(self.world.send(DrainEnd(token)));
        } else if self.sections.len() < 3 {
            let request = if self.rng.below(3) == 0 {
                drain_all()
            } else {
                drain_node(&self.name())
            };
            self.asked.push(self.world.send(request));
        }
    }

    fn change(&mut self) {
        let (one, two) = (self.name(), self.name());
        let request: Mutation = match self.rng.below(16) {
            0 | 1 => {
                self.last += 1;
                let name = format!("n{}", self.last);
                self.names.push(name.clone());
                let backing = if self.rng.below(2) == 0 {
                    json!(one)
                } else {
                    json!(null)
                };
                add(json!({"driver": "fmt", "node-name": name, "backing": backing,
                    "file": {"driver": "file", "filename": name, "node-name": format!("{name}f")}}))
                .into()
            }
            2 => {
                self.last += 1;
                let name = format!("r{}", self.last);
                self.names.push(name.clone());
                add(json!({"driver": "filter", "node-name": name, "file": one})).into()
            }
            3 => del(&one).into(),
            4 => snapshot(&one, &two).into(),
            5 => reopen(
                json!({"driver": "fmt", "node-name": one, "file": format!("{one}f"),
                "backing": if self.rng.below(2) == 0 { json!(two) } else { json!(null) }}),
            )
            .into(),
            6 => SetIothread {
                node_name: one,
                iothread: [None, Some("io0".to_owned()), Some("io1".to_owned())][self.rng.below(3)].clone(),
                force: true,
            }
            .into(),
            7 if self.roots.len() > 2 => {
                let at = self.rng.below(self.roots.len());
                DetachRoot(self.roots.swap_remove(at)).into()
            }
            7 => attach(&one, READ_WRITE, ALL).into(),
            8..=11 => self.edit(one, two),
            12 => {
                self.last += 1;
                let name = format!("m{}", self.last);
                self.names.push(name.clone());
                let own = json!({"driver": "file", "filename": name, "node-name": format!("{name}f")});
                add(json!({"driver": "many", "node-name": name, "children": [own, one]})).into()
            }
            13 => add_child(&one, &two).into(),
            14 => del_child(&one, &format!("children.{}", self.rng.below(4))).into(),
            _ => reopen(json!({"driver": "filter", "node-name": one, "file": two})).into(),
        };
        if self.rng.below(4) == 0 {
            self.world.fail_after = Some(self.rng.below(8) as u32);
        }
        self.asked.push(self.world.send(request));
    }

    /// A change of edges or states that are there.
    fn edit(&mut self, one: String, two: String) -> Mutation {
        let slot = ["file", "backing"][self.rng.below(2)].to_owned();
        let coin = self.rng.below(2) == 0;
        match self.rng.below(13) {
            0 => Append { node: one, new: two }.into(),
            1 => ReplaceNode { from: one, to: two }.into(),
            2 => ReplaceChild {
                of: ChildOf::Node {
                    node_name: one,
                    child: slot,
                },
                node: two,
            }
            .into(),
            3 => {
                self.last += 1;
                let name = format!("i{}", self.last);
                self.names.push(name.clone());
                let options = options(json!({"driver": "filter", "node-name": name, "file": one}));
                InsertNode { node: one, options }.into()
            }
            4 => DropFilter { node_name: one }.into(),
            5 => SetBacking {
                node_name: one,
                backing: coin.then_some(two),
            }
            .into(),
            6 => AttachChild {
                parent: one,
                child: slot,
                node: two,
            }
            .into(),
            7 => DetachChild {
                parent: one,
                child: slot,
            }
            .into(),
            8 => SetReadOnly {
                node_name: one,
                read_only: coin,
            }
            .into(),
            9 => SetActive {
                node_name: coin.then_some(one),
                active: self.rng.below(3) > 0,
            }
            .into(),
            10 => ReopenKeeping(vec![
                options(json!({"node-name": one, "read-only": coin})),
                options(json!({"node-name": two, "backing": null})),
            ])
            .into(),
            11 => Resize {
                node_name: one,
                size: 1 << 20,
            }
            .into(),
            _ => InvalidateCache { node_name: one }.into(),
        }
    }

    /// Takes the replies that came, and looks whether what was called still is.
    fn collect(&mut self) {
        let replies = &mut self.world.replies;
        let mut still = Vec::new();
        self.asked.retain(|id| match replies.remove(id) {
            None => true,
            Some(Ok(GraphReply::Still(token))) => {
                still.push(token);
                false
            }
            Some(Ok(GraphReply::Root(root))) => {
                self.roots.push(root);
                false
            }
            Some(_) => false,
        });
        self.sections.extend(still);
        // Requests enter only where no gate is closed, so a node of a still section that has some was not waited for.
        let sections = &self.sections;
        for (id, node) in &self.world.nodes {
            let held = node.tokens.iter().any(|token| sections.contains(token));
            assert!(
                !held || node.in_flight == 0,
                "node {id} is busy inside a still section"
            );
        }
        self.assert_covered();
    }

    /// Every parent of a node that a still section holds is held as well, or is held by another section and about to be.
    fn assert_covered(&mut self) {
        let facts = self.world.facts();
        for edge in &facts.edges {
            let millpond_messages::graph::EdgeParent::Node(parent_id) = &edge.parent else {
                continue;
            };
            let (Some(parent), Some(child)) =
                (self.world.nodes.get(parent_id), self.world.nodes.get(&edge.child))
            else {
                continue;
            };
            for token in child.tokens.intersection(&self.sections) {
                let is_asked = || !parent.tokens.is_empty() && self.world.is_asked(*parent_id, *token);
                assert!(
                    parent.tokens.contains(token) || is_asked(),
                    "a parent of a still node may send to it"
                );
            }
        }
    }

    /// Lets all requests end and ends all sections: everything asked must be answered.
    fn finish(&mut self) {
        for _ in 0..1000 {
            while !self.in_flight.is_empty() {
                self.leave();
            }
            self.world.fail_after = None;
            self.world.run();
            self.collect();
            for token in std::mem::take(&mut self.sections) {
                self.asked.push(self.world.send(DrainEnd(token)));
            }
            if self.asked.is_empty() && self.world.mailboxes.is_empty() {
                break;
            }
        }
        assert!(
            self.asked.is_empty(),
            "{} requests were never answered",
            self.asked.len()
        );
        self.world.run();
        self.world.assert_settled(&[]);
        assert!(self.world.nodes.values().all(|node| node.tokens.is_empty()));
    }
}

#[test]
fn anything_in_any_order() {
    let first = number("MILLPOND_SEED", 0);
    for seed in first..first + number("MILLPOND_ROUNDS", 300) {
        // On failure the test's output names the seed.
        println!("MILLPOND_SEED={seed}");
        let mut run = Run::new(seed);
        for _ in 0..400 {
            run.step();
        }
        run.finish();
    }
}

/// Options of any shape, made of words that mean something and values of every type.
fn nonsense(rng: &mut Rng, depth: usize) -> serde_json::Value {
    const KEYS: [&str; 18] = [
        "driver",
        "node-name",
        "file",
        "backing",
        "other",
        "filename",
        "read-only",
        "cache",
        "discard",
        "active",
        "detect-zeroes",
        "force-share",
        "auto-read-only",
        "cache.direct",
        "file.driver",
        "children",
        "children.0",
        "",
    ];
    const WORDS: [&str; 13] = [
        "file",
        "many",
        "fmt",
        "filter",
        "two",
        "raw",
        "a",
        "b",
        "on",
        "unmap",
        "",
        "#block001",
        "json:{}",
    ];
    match rng.below(if depth == 0 { 6 } else { 10 }) {
        0 => json!(null),
        1 => json!(rng.next().is_multiple_of(2)),
        2 => json!(rng.next()),
        3..6 => json!(WORDS[rng.below(WORDS.len())]),
        6 => json!([nonsense(rng, depth - 1)]),
        _ => {
            let mut options = Options::new();
            for _ in 0..rng.below(6) {
                options.insert(KEYS[rng.below(KEYS.len())].to_owned(), nonsense(rng, depth - 1));
            }
            // Often enough it gets further than the first check.
            for key in ["driver", "node-name", "file"] {
                if rng.below(3) > 0 {
                    let value = if key == "file" {
                        nonsense(rng, depth - 1)
                    } else {
                        json!(WORDS[rng.below(9)])
                    };
                    options.insert(key.to_owned(), value);
                }
            }
            json!(options)
        }
    }
}

#[test]
fn nonsense_is_answered_and_leaves_nothing_behind() {
    let mut rng = Rng(7);
    let mut world = FakeWorld::new();
    let mut added = 0;
    for _ in 0..20_000 {
        let serde_json::Value::Object(options) = nonsense(&mut rng, 4) else {
            continue;
        };
        let request: Mutation = match rng.below(4) {
            0 => Reopen(vec![options]).into(),
            1 => MakeImage(options).into(),
            2 => del(if rng.below(2) == 0 { "a" } else { "b" }).into(),
            _ => AddNode(options).into(),
        };
        added += u32::from(world.request(request).is_ok());
        world.assert_settled(&[]);
    }
    assert!(added > 50, "some of it makes sense: {added}");
}
