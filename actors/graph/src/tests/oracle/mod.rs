//! Random changes, drains and requests, each compared with a plain oracle of the graph: whether it is accepted, what the
//! graph is afterwards, what every edge takes and shares, and what every section covers.
//!
//! `MILLPOND_ROUNDS` sets the number of runs, `MILLPOND_SEED` the first run's seed.

mod plain;

use std::collections::{BTreeMap, BTreeSet};

use millpond_messages::graph::{
    AddIothread, Append, AttachChild, ChildOf, DetachChild, DetachRoot, DrainBegin, DrainEnd, DrainScope,
    DropFilter, EdgeParent, GraphReply, InsertNode, IothreadOptions, Mutation, ReplaceChild, ReplaceNode,
    SetBacking, SetIothread, SetRootPermissions,
};
use millpond_messages::{ErrorKind, IoThreadId, NodeId, Permissions, RootId, Token};
use serde_json::json;

use super::random::{Rng, number};
use super::*;
use plain::{Changed, Holder, Plain, PlainRoot, Refusal};

const STEPS: usize = 60;
const IOTHREADS: [Option<&str>; 3] = [None, Some("io0"), Some("io1")];

fn refusal(kind: ErrorKind) -> Option<Refusal> {
    match kind {
        ErrorKind::InvalidArgument => Some(Refusal::Invalid),
        ErrorKind::NotFound => Some(Refusal::NotFound),
        ErrorKind::Exists => Some(Refusal::Exists),
        ErrorKind::InUse => Some(Refusal::InUse),
        ErrorKind::Permission => Some(Refusal::Permission),
        ErrorKind::ReadOnly => Some(Refusal::ReadOnly),
        ErrorKind::Unsupported => Some(Refusal::Unsupported),
        _ => None,
    }
}

/// A change that is about to be made, with what should come of it.
struct Step {
    request: Mutation,
    expected: Changed,
    /// The nodes may be made to refuse a part of it.
    can_fail: bool,
}

struct Run {
    world: FakeWorld,
    rng: Rng,
    plain: Plain,
    sections: BTreeMap<Token, DrainScope>,
    last: u32,
    /// How many changes were accepted, and how many refused.
    counts: (u32, u32),
}

impl Run {
    fn new(seed: u64) -> Self {
        let mut world = FakeWorld::new();
        for id in IOTHREADS.into_iter().flatten() {
            let options: IothreadOptions = serde_json::from_value(json!({"id": id})).unwrap();
            world.ok(AddIothread(options));
        }
        Self {
            world,
            rng: Rng(seed),
            plain: Plain::default(),
            sections: BTreeMap::new(),
            last: 0,
            counts: (0, 0),
        }
    }

    fn chance(&mut self, one_in: usize) -> bool {
        self.rng.below(one_in) == 0
    }

    /// A node's name; `all` are also those of nodes that were opened as part of a format.
    fn name(&mut self, all: bool) -> String {
        let names: Vec<&String> = self
            .plain
            .nodes
            .keys()
            .filter(|name| all || !name.ends_with(['f', 'b']))
            .collect();
        match names.get(self.rng.below(names.len() + 1)) {
            Some(name) => (*name).clone(),
            None => "nobody".to_owned(),
        }
    }

    /// A name for a new node, now and then one that is taken. Names of nodes that are gone are not used again: a section
    /// begun on a node does not cover another of its name.
    fn new_name(&mut self) -> String {
        let taken = self.name(true);
        if self.plain.nodes.contains_key(&taken) && self.chance(12) {
            return taken;
        }
        self.last += 1;
        format!("n{}", self.last)
    }

    fn maybe(&mut self) -> Option<bool> {
        [None, None, None, Some(false), Some(true)][self.rng.below(5)]
    }

    fn some_permissions(&mut self) -> (Permissions, Permissions) {
        let rng = &mut self.rng;
        let mut pick = |common: Permissions| {
            if rng.below(3) > 0 {
                common
            } else {
                Permissions::from_bits_truncate(rng.next() as u8)
            }
        };
        (pick(READ_WRITE), pick(ALL))
    }

    fn root_id(&mut self) -> RootId {
        let roots: Vec<RootId> = self.plain.roots.keys().copied().collect();
        roots
            .get(self.rng.below(roots.len() + 1))
            .copied()
            .unwrap_or(RootId(u64::MAX))
    }

    fn add(&mut self) -> Step {
        let (name, read_only, child) = (self.new_name(), self.maybe(), self.name(false));
        let (expected, mut json) = match self.rng.below(5) {
            0 => (
                self.plain.add_leaf(&name, read_only),
                json!({"driver": "file", "filename": name}),
            ),
            1 => (
                self.plain.add_filter(&name, &child, read_only),
                json!({"driver": "filter", "file": child}),
            ),
            at => {
                let own = |suffix| json!({"driver": "file", "filename": name, "node-name": format!("{name}{suffix}")});
                let (expected, backing) = match at {
                    2 => (
                        self.plain.add_format(&name, Some(&child), read_only),
                        json!(child),
                    ),
                    3 => (self.plain.add_overlay(&name, read_only), own("b")),
                    _ => (self.plain.add_format(&name, None, read_only), json!(null)),
                };
                let json = json!({"driver": "fmt", "file": own("f"), "backing": backing});
                (expected, json)
            }
        };
        json["node-name"] = json!(name);
        if let Some(read_only) = read_only {
            json["read-only"] = json!(read_only);
        }
        Step {
            request: add(json).into(),
            expected,
            can_fail: true,
        }
    }

    fn reopen(&mut self) -> Step {
        let (name, read_only) = (self.name(false), self.maybe());
        let other = self.chance(10);
        let node = self.plain.nodes.get(&name).filter(|_| !other);
        let driver = node.map_or("filter", |node| node.driver);
        let mut json = json!({"driver": driver, "node-name": name});
        if driver == "file" {
            json["filename"] = json!(name);
        }
        let mut children = BTreeMap::new();
        for slot in plain::slots(driver) {
            let child = match self.rng.below(5) {
                0 => continue,
                1 => None,
                2 => Some(self.name(false)),
                _ => match self
                    .plain
                    .nodes
                    .get(&name)
                    .and_then(|node| node.children.get(slot))
                {
                    Some(child) => Some(child.clone()),
                    None => continue,
                },
            };
            json[*slot] = json!(child);
            children.insert(*slot, child);
        }
        if let Some(read_only) = read_only {
            json["read-only"] = json!(read_only);
        }
        let expected = self.plain.reopen(&name, driver, read_only, &children);
        Step {
            request: super::reopen(json).into(),
            expected,
            can_fail: false,
        }
    }

    fn edit(&mut self) -> Step {
        let (one, two) = (self.name(false), self.name(false));
        let slot = ["file", "backing"][self.rng.below(2)];
        // What closes a node afterwards is not undone if giving permissions up fails.
        let mut can_fail = false;
        let (request, expected): (Mutation, _) = match self.rng.below(9) {
            0 => (snapshot(&one, &two).into(), self.plain.snapshot(&one, &two)),
            1 => {
                can_fail = true;
                let expected = self.plain.append(&one, &two);
                (Append { node: one, new: two }.into(), expected)
            }
            2 => {
                let expected = self.plain.replace(&one, &two);
                (ReplaceNode { from: one, to: two }.into(), expected)
            }
            3 => {
                let expected = self.plain.replace_child(&one, slot, &two);
                let (node_name, child) = (one, slot.to_owned());
                let of = ChildOf::Node { node_name, child };
                (ReplaceChild { of, node: two }.into(), expected)
            }
            4 => {
                let backing = (!self.chance(3)).then_some(two);
                let expected = self.plain.set_backing(&one, backing.as_deref());
                let node_name = one;
                (SetBacking { node_name, backing }.into(), expected)
            }
            5 => {
                can_fail = true;
                let expected = self.plain.attach_child(&one, slot, &two);
                let (parent, child, node) = (one, slot.to_owned(), two);
                (AttachChild { parent, child, node }.into(), expected)
            }
            6 => {
                let expected = self.plain.detach_child(&one, slot);
                let (parent, child) = (one, slot.to_owned());
                (DetachChild { parent, child }.into(), expected)
            }
            7 => {
                can_fail = true;
                let filter = self.new_name();
                let expected = self.plain.insert(&one, &filter);
                let options = options(json!({"driver": "filter", "node-name": filter, "file": one}));
                (InsertNode { node: one, options }.into(), expected)
            }
            _ => {
                let expected = self.plain.drop_filter(&one);
                (DropFilter { node_name: one }.into(), expected)
            }
        };
        Step {
            request,
            expected,
            can_fail,
        }
    }

    fn change(&mut self) -> Step {
        let certain = |request: Mutation, expected| Step {
            request,
            expected,
            can_fail: false,
        };
        let crowded = self.plain.nodes.len() > 12;
        match self.rng.below(14) {
            0..=2 if !crowded => self.add(),
            3 | 4 => self.reopen(),
            5..=8 => self.edit(),
            9 => {
                let (name, home) = (self.name(true), self.rng.below(3));
                let request = SetIothread {
                    node_name: name.clone(),
                    iothread: IOTHREADS[home].map(str::to_owned),
                    force: true,
                };
                certain(request.into(), self.plain.set_iothread(&name, home))
            }
            10 if self.plain.roots.len() < 4 => {
                let (node, (taken, shared)) = (self.name(true), self.some_permissions());
                let root = PlainRoot {
                    node: node.clone(),
                    taken,
                    shared,
                };
                // Its id is not known yet.
                let expected = self.plain.attach(RootId(0), root);
                Step {
                    can_fail: true,
                    ..certain(attach(&node, taken, shared).into(), expected)
                }
            }
            10 | 11 => {
                let (root, (permissions, shared)) = (self.root_id(), self.some_permissions());
                let expected = self.plain.set_permissions(root, permissions, shared);
                let request = SetRootPermissions {
                    root,
                    permissions,
                    shared,
                };
                Step {
                    can_fail: true,
                    ..certain(request.into(), expected)
                }
            }
            12 => {
                let root = self.root_id();
                certain(DetachRoot(root).into(), self.plain.detach(root))
            }
            _ => {
                let name = self.name(true);
                certain(del(&name).into(), self.plain.del(&name))
            }
        }
    }

    /// Makes a change with requests in flight, and compares what comes of it.
    fn make_change(&mut self) {
        let in_flight = self.enter();
        let Step {
            request,
            expected,
            can_fail,
        } = self.change();
        let what = format!("{request:?}");
        self.world.fail_after = (can_fail && self.chance(4)).then(|| self.rng.below(8) as u32);
        let id = self.world.send(request);
        self.world.run();
        for node in in_flight {
            self.world.leave(node);
        }
        self.world.run();
        let failed = self.world.fail_after.take().is_none() && can_fail;
        let reply = self
            .world
            .replies
            .remove(&id)
            .expect("everything in flight has ended");
        match (reply, expected) {
            (Ok(reply), Ok(mut after)) => {
                if let GraphReply::Root(id) = reply {
                    let root = after.roots.remove(&RootId(0)).expect("a root was attached");
                    after.roots.insert(id, root);
                }
                self.plain = after;
                self.counts.0 += 1;
            }
            (Err(error), Err(kinds)) if refusal(error.kind()).is_some_and(|kind| kinds.contains(&kind)) => {
                self.counts.1 += 1;
            }
            (Err(error), _) if failed && matches!(error.kind(), ErrorKind::Io(_)) => {}
            (reply, expected) => panic!(
                "{what}: {reply:?}, but the oracle says {expected:?} of {:#?}",
                self.plain
            ),
        }
        self.compare(&what);
    }

    /// Requests come over root edges: they are let in where no section covers the node.
    fn enter(&mut self) -> Vec<NodeId> {
        let mut entered = Vec::new();
        for _ in 0..self.rng.below(3) {
            let root = self.root_id();
            let Some(name) = self.plain.roots.get(&root).map(|root| root.node.clone()) else {
                continue;
            };
            let node = self.world.id(&name);
            let open = self.world.enter(node);
            assert_eq!(open, self.tokens(&name).is_empty(), "requests at {name}");
            entered.extend(open.then_some(node));
        }
        entered
    }

    fn drain(&mut self) {
        let tokens: Vec<Token> = self.sections.keys().copied().collect();
        if self.sections.len() > 2 || (self.chance(2) && !tokens.is_empty()) {
            let token = tokens[self.rng.below(tokens.len())];
            self.sections.remove(&token);
            self.world.ok(DrainEnd(token));
        } else {
            let name = self.name(true);
            let scope = match self.rng.below(3) {
                0 => DrainScope::All,
                1 => DrainScope::Node(name.clone()),
                _ => DrainScope::Subtree(name.clone()),
            };
            let known = scope == DrainScope::All || self.plain.nodes.contains_key(&name);
            let in_flight = self.enter();
            let id = self.world.send(DrainBegin {
                scope: scope.clone(),
                user: String::new(),
            });
            self.world.run();
            for node in in_flight {
                self.world.leave(node);
            }
            self.world.run();
            match self.world.replies.remove(&id) {
                Some(Ok(GraphReply::Still(token))) if known => drop(self.sections.insert(token, scope)),
                Some(Err(_)) if !known => {}
                other => panic!("a section of {name} gave {other:?}"),
            }
        }
        self.compare("a drain");
    }

    /// The sections that cover a node.
    fn tokens(&self, name: &str) -> BTreeSet<Token> {
        let covers = |scope: &DrainScope| match scope {
            DrainScope::All => true,
            DrainScope::Node(node) | DrainScope::Parent(ChildOf::Node { node_name: node, .. }) => {
                self.plain.above(node).contains(name)
            }
            // None is begun here.
            DrainScope::Parent(ChildOf::Root(_)) => false,
            DrainScope::Subtree(node) => {
                let below = self.plain.below(node);
                below.iter().any(|node| self.plain.above(node).contains(name))
            }
        };
        let covering = self.sections.iter().filter(|(_, scope)| covers(scope));
        covering.map(|(token, _)| *token).collect()
    }

    fn compare(&mut self, what: &str) {
        let facts = self.world.facts();
        let names: BTreeMap<NodeId, String> = facts
            .nodes
            .iter()
            .map(|node| (node.id, node.name.clone()))
            .collect();
        let nodes: BTreeMap<String, (String, bool, IoThreadId)> = facts
            .nodes
            .iter()
            .map(|node| {
                (
                    node.name.clone(),
                    (node.driver.clone(), node.read_only, node.iothread),
                )
            })
            .collect();
        let plain = self.plain.nodes.iter().map(|(name, node)| {
            // The main iothread is the first, the others were added after it.
            let home = IoThreadId(node.home as u32 + 1);
            (name.clone(), (node.driver.to_owned(), node.read_only, home))
        });
        assert_eq!(nodes, plain.collect(), "the nodes after {what}");
        let edges: BTreeSet<String> = facts
            .edges
            .iter()
            .map(|edge| {
                let holder = match &edge.parent {
                    EdgeParent::Node(node) => format!("{}.{}", names[node], edge.name),
                    EdgeParent::Root(root, _) => root.to_string(),
                };
                print_edge(&holder, &names[&edge.child], edge.permissions, edge.shared)
            })
            .collect();
        let plain = self.plain.permissions().expect("what was accepted can be");
        let plain = plain.iter().map(|edge| {
            let holder = match &edge.holder {
                Holder::Node(node, slot) => format!("{node}.{slot}"),
                Holder::Root(root) => root.to_string(),
            };
            print_edge(&holder, &edge.child, edge.taken, edge.shared)
        });
        assert_eq!(edges, plain.collect(), "the edges after {what}");
        for (id, name) in &names {
            let held = &self.world.nodes[id];
            assert_eq!(
                held.tokens,
                self.tokens(name),
                "the sections that hold {name} after {what}"
            );
            assert_eq!(held.in_flight, 0);
            assert_eq!(
                held.stops - held.resumes,
                u32::from(!held.tokens.is_empty()),
                "{name} after {what}"
            );
        }
        let sections: Vec<Token> = self.sections.keys().copied().collect();
        self.world.assert_settled(&sections);
    }
}

fn print_edge(holder: &str, child: &str, taken: Permissions, shared: Permissions) -> String {
    format!("{holder} -> {child}: {} / {}", taken.names(), shared.names())
}

#[test]
fn changes_do_what_a_plain_oracle_says() {
    let first = number("MILLPOND_SEED", 0);
    let mut counts = (0, 0);
    for seed in first..first + number("MILLPOND_ROUNDS", 100) {
        // On failure the test's output names the seed.
        println!("MILLPOND_SEED={seed}");
        let mut run = Run::new(seed);
        for _ in 0..STEPS {
            if run.chance(6) {
                run.drain();
            } else {
                run.make_change();
            }
        }
        counts = (counts.0 + run.counts.0, counts.1 + run.counts.1);
    }
    println!("{} changes accepted, {} refused", counts.0, counts.1);
    assert!(
        counts.0 > counts.1 / 4 && counts.1 > counts.0 / 4,
        "both are tried: {counts:?}"
    );
}
