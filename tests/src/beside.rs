//! The same to a daemon of ours and to QEMU's: both must give the same.

use std::path::Path;

use serde_json::Value;

use crate::daemon::{Daemon, daemon, daemon_in};
use crate::nbd::Request;
use crate::program::{Program, oracle};

/// A QMP command and its arguments.
pub type Command = (&'static str, Value);

/// The command that shows the graph.
pub const GRAPH: &str = "x-debug-query-block-graph";

/// Runs a test on a daemon of ours and on QEMU's; both must give the same.
#[track_caller]
pub fn beside_qemu<T: PartialEq + std::fmt::Debug>(run: impl Fn(Daemon) -> T) {
    let theirs = run(daemon().program(oracle()).nbd_unix().start());
    let ours = run(daemon().nbd_unix().start());
    assert_eq!(ours, theirs, "left is ours, right is QEMU's");
}

/// Each command must be answered by both daemons alike: by QEMU's first, which has ended and left its images as ours
/// begins.
#[track_caller]
pub fn same_answers(commands: &[Command]) {
    let of = |mut daemon: Daemon| {
        let answers = answers(&mut daemon, commands);
        daemon.quit();
        answers
    };
    let theirs = of(daemon().program(oracle()).nbd_unix().start());
    let ours = of(daemon().nbd_unix().start());
    for (ours, theirs) in ours.into_iter().zip(theirs) {
        assert_eq!(ours, theirs, "left is ours, right is QEMU's");
    }
}

/// Has a daemon of `program` with these nodes do requests to the one called `disk`, make them durable, and end; answers each
/// request's error, 0 where there is none.
#[track_caller]
pub fn errors_of(program: Program, dir: &Path, nodes: Vec<Value>, requests: &[Request]) -> Vec<u32> {
    let mut builder = daemon_in(dir).program(program).nbd_unix();
    for node in nodes {
        builder = builder.blockdev(node);
    }
    let daemon = builder.export("disk").start();
    let mut session = daemon.session("disk");
    let answers = requests.iter().map(|request| session.call(request));
    let errors = answers.map(|answer| answer.expect("an answer").error).collect();
    session.flush();
    session.disconnect().expect("a goodbye closes the connection");
    daemon.quit();
    errors
}

/// A reply as text, lists of nodes in the order of their names; names that a daemon makes up are no part of it.
fn shown(mut reply: Value) -> String {
    if let Value::Array(nodes) = &mut reply {
        nodes.sort_by_key(|node| node["node-name"].to_string());
    }
    let text = reply.to_string();
    let mut parts = text.split("#block");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| {
        text + "#block" + part.trim_start_matches(|digit: char| digit.is_ascii_digit())
    })
}

/// What a daemon answers, in a form that can be compared.
fn answers(daemon: &mut Daemon, commands: &[Command]) -> Vec<String> {
    let mut answers = Vec::new();
    for (command, arguments) in commands {
        let answer = match daemon.qmp.execute(command, arguments.clone()) {
            Ok(value) => shown(value),
            Err(error) => error.desc,
        };
        answers.push(format!("{command} {arguments}: {answer}"));
    }
    answers
}
