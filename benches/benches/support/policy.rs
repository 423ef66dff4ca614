//! The graph's policy alone, without actor, threads or drivers: nodes do at once whatever they are told.

use std::time::Duration;

use millpond::graph::ImplicitOpens;
use millpond::node::{self, OpenFacts, OrderOutcome};
use millpond_drivers::api::Abilities;
use millpond_graph::{Effect, NodeOrder, Order, Policy, PolicyEvent, Reply, RequestId, Wiring};
use millpond_messages::graph::{
    AddNode, AttachRoot, DeleteNode, GraphReply, GraphRequest, Options, RootRequest, RootUser,
};
use millpond_messages::{IoThreadId, Limits, OpenFlags, Permissions, RootId};
use serde_json::Value;

/// The policy and its nodes.
pub struct Site {
    policy: Policy,
    last: u64,
}

impl Site {
    pub fn new() -> Self {
        let registry = millpond_drivers::builtin::builtin();
        Self {
            policy: Policy::new(registry, ImplicitOpens::Allow, IoThreadId(1), 0),
            last: 0,
        }
    }

    pub fn request(&mut self, request: impl Into<GraphRequest>) -> GraphReply<RootId> {
        self.last += 1;
        let mut effects = self.policy.request(RequestId(self.last), request, Duration::ZERO);
        let mut answer: Option<Reply> = None;
        while !effects.is_empty() {
            let mut events = Vec::new();
            for effect in effects.drain(..) {
                match effect {
                    Effect::Send { order_id, order, .. } => events.extend(obey(order_id, order)),
                    Effect::Reply { result, .. } => answer = Some(result),
                    _ => {}
                }
            }
            for event in events {
                effects.extend(self.policy.event(PolicyEvent::Node(event), Duration::ZERO));
            }
        }
        answer.expect("every request is answered").expect("none fails")
    }

    pub fn add(&mut self, options: Value) {
        self.request(AddNode(object(options)));
    }

    pub fn del(&mut self, name: &str) {
        let node_name = name.to_owned();
        self.request(DeleteNode { node_name });
    }

    /// So many nodes beside each other.
    pub fn fill(&mut self, nodes: usize) {
        for at in 0..nodes {
            self.add(serde_json::json!({"driver": "null-co", "node-name": format!("beside{at}")}));
        }
    }

    /// So many nodes on top of each other; the name of the topmost.
    pub fn chain(&mut self, nodes: u64) -> String {
        self.add(serde_json::json!({"driver": "null-co", "node-name": "n0"}));
        for at in 1..nodes {
            let file = format!("n{}", at - 1);
            self.add(serde_json::json!({"driver": "raw", "node-name": format!("n{at}"), "file": file}));
        }
        format!("n{}", nodes - 1)
    }

    /// A user of a node that writes.
    pub fn attach(&mut self, node: &str) -> RootId {
        let attached = self.request(AttachRoot(RootRequest::new(
            node,
            RootUser::Embedder("bench".to_owned()),
            Permissions::CONSISTENT_READ | Permissions::WRITE,
        )));
        let GraphReply::Root(root) = attached else {
            panic!("another answer")
        };
        root
    }
}

/// Options that are written as JSON.
pub fn object(options: Value) -> Options {
    let Value::Object(options) = options else {
        panic!("not an object: {options}")
    };
    options
}

/// How large a graph may be: where benches are only tried, not so large that it takes long to make.
pub fn sizes(sizes: &[usize]) -> Vec<usize> {
    let tried = std::env::args().any(|argument| argument == "--test");
    let most = if tried { 1_000 } else { usize::MAX };
    sizes.iter().copied().filter(|size| *size <= most).collect()
}

fn obey(order_id: node::OrderId, order: Order) -> Option<node::Event> {
    let outcome = match order {
        Order::Wiring(Wiring::Open(open)) => OrderOutcome::Opened(Ok(facts(open.flags | OpenFlags::RDWR))),
        Order::Node(_, NodeOrder::ReopenCommit) => OrderOutcome::Opened(Ok(facts(OpenFlags::RDWR))),
        Order::Node(node, NodeOrder::Quiesce { token, .. }) => {
            return Some(node::Event::Quiesced(node, token));
        }
        Order::Node(_, NodeOrder::Resume(..) | NodeOrder::PermissionsCommit) => return None,
        _ => OrderOutcome::Done(Ok(())),
    };
    Some(node::Event::Ended(order_id, outcome))
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
