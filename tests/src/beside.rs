//! The same to a daemon of ours and to QEMU's: both must give the same.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::daemon::{Daemon, daemon};
use crate::program::oracle;

/// A QMP command and its arguments.
pub type Command = (&'static str, Value);

/// The command whose answer is compared as a set of edges.
pub const GRAPH: &str = "x-debug-query-block-graph";

/// Runs a test on a daemon of ours and on QEMU's; both must give the same.
#[track_caller]
pub fn beside_qemu<T: PartialEq + std::fmt::Debug>(run: impl Fn(Daemon) -> T) {
    let theirs = run(daemon().program(oracle()).nbd_unix().start());
    let ours = run(daemon().nbd_unix().start());
    assert_eq!(ours, theirs, "left is ours, right is QEMU's");
}

/// Each command must be answered by both daemons alike.
#[track_caller]
pub fn same_answers(commands: &[Command]) {
    let mut theirs = daemon().program(oracle()).nbd_unix().start();
    let mut ours = daemon().nbd_unix().start();
    let pairs = answers(&mut ours, commands)
        .into_iter()
        .zip(answers(&mut theirs, commands));
    for (ours, theirs) in pairs {
        assert_eq!(ours, theirs, "left is ours, right is QEMU's");
    }
}

/// The graph as a set of sentences: how nodes are numbered and ordered is no one's business.
fn sentences(graph: &Value) -> BTreeSet<String> {
    let list = |key: &str| graph[key].as_array().expect("a list").clone();
    let name = |id: &Value| {
        let node = list("nodes")
            .into_iter()
            .find(|node| node["id"] == *id)
            .expect("an edge joins nodes");
        node["name"].as_str().expect("a name").to_owned()
    };
    let sorted = |names: &Value| {
        let names = names.as_array().expect("a list").iter().map(Value::to_string);
        names.collect::<BTreeSet<_>>()
    };
    let edges = list("edges").into_iter().map(|edge| {
        let (taken, shared) = (sorted(&edge["perm"]), sorted(&edge["shared-perm"]));
        format!(
            "{} --{}-> {}: takes {taken:?}, shares {shared:?}",
            name(&edge["parent"]),
            edge["name"],
            name(&edge["child"])
        )
    });
    edges.collect()
}

/// A reply as text, lists of nodes in the order of their names.
fn shown(mut reply: Value) -> String {
    if let Value::Array(nodes) = &mut reply {
        nodes.sort_by_key(|node| node["node-name"].to_string());
    }
    reply.to_string()
}

/// What a daemon answers, in a form that can be compared.
fn answers(daemon: &mut Daemon, commands: &[Command]) -> Vec<String> {
    let mut answers = Vec::new();
    for (command, arguments) in commands {
        let answer = match daemon.qmp.execute(command, arguments.clone()) {
            Ok(value) if *command == GRAPH => format!("{:#?}", sentences(&value)),
            Ok(value) => shown(value),
            Err(error) => error.desc,
        };
        answers.push(format!("{command} {arguments}: {answer}"));
    }
    answers
}
