//! Dirty bitmaps in tests: the commands, and what a daemon shows of them.

use serde_json::{Value, json};

use crate::beside::Command;
use crate::daemon::Daemon;
use crate::image;

/// What names a bitmap in a command.
pub fn named(node: &str, name: &str) -> Value {
    json!({"node": node, "name": name})
}

/// Adds a bitmap whose bits stand for so many bytes.
pub fn add(node: &str, name: &str, granularity: u64) -> Command {
    let arguments = json!({"node": node, "name": name, "granularity": granularity});
    ("block-dirty-bitmap-add", arguments)
}

/// Removes a bitmap from its node.
pub fn remove(node: &str, name: &str) -> Command {
    ("block-dirty-bitmap-remove", named(node, name))
}

/// Has a bitmap say that nothing is dirty.
pub fn clear(node: &str, name: &str) -> Command {
    ("block-dirty-bitmap-clear", named(node, name))
}

/// Has a bitmap record writes again.
pub fn enable(node: &str, name: &str) -> Command {
    ("block-dirty-bitmap-enable", named(node, name))
}

/// Has a bitmap record no more writes.
pub fn disable(node: &str, name: &str) -> Command {
    ("block-dirty-bitmap-disable", named(node, name))
}

/// Merges other bitmaps into a target.
pub fn merge(node: &str, target: &str, sources: Value) -> Command {
    let arguments = json!({"node": node, "target": target, "bitmaps": sources});
    ("block-dirty-bitmap-merge", arguments)
}

/// Commands as one transaction, all or none.
pub fn together(commands: &[Command]) -> Command {
    let action = |(kind, data): &Command| json!({"type": kind, "data": data});
    let actions: Vec<Value> = commands.iter().map(action).collect();
    ("transaction", json!({ "actions": actions }))
}

/// All bitmaps as they are shown, by the names of their nodes, and the hash of each.
pub fn shown(daemon: &mut Daemon) -> Vec<String> {
    let nodes = daemon.qmp.ok("query-named-block-nodes", json!({"flat": true}));
    let mut nodes: Vec<Value> = nodes.as_array().expect("a list of nodes").clone();
    nodes.sort_by_key(|node| node["node-name"].to_string());
    let mut shown = Vec::new();
    for node in nodes {
        let name = node["node-name"].as_str().expect("nodes have names");
        // QEMU's jobs and filters have bitmaps too, which have no names.
        let bitmaps = node["dirty-bitmaps"].as_array().into_iter().flatten();
        let bitmaps: Vec<&Value> = bitmaps.filter(|bitmap| bitmap["name"].is_string()).collect();
        let all = match bitmaps.is_empty() {
            true => Value::Null,
            false => json!(bitmaps),
        };
        shown.push(format!("{name}: {all}"));
        for bitmap in bitmaps {
            let bitmap = bitmap["name"].as_str().unwrap_or_default();
            let hash = daemon
                .qmp
                .ok("x-debug-block-dirty-bitmap-sha256", named(name, bitmap));
            shown.push(hash.to_string());
        }
    }
    shown
}

/// A command's answer, and what the bitmaps are after it.
pub fn answer(daemon: &mut Daemon, (command, arguments): &Command) -> Vec<String> {
    let answer = match daemon.qmp.execute(command, arguments.clone()) {
        Ok(value) => value.to_string(),
        Err(error) => format!("{}: {}", error.class, error.desc),
    };
    let mut answers = vec![format!("{command} {arguments}: {answer}")];
    answers.extend(shown(daemon));
    answers
}

/// Opens an image of a format, with its file, and exports it; what is discarded below is given back.
pub fn open(daemon: &mut Daemon, format: &str, name: &str, size: u64) {
    let path = daemon.dir().join(name);
    image::create(&path, format, "", size);
    let mut file = image::file(&format!("{name}-file"), &path);
    let mut node = image::over(format, name, &format!("{name}-file"));
    for options in [&mut file, &mut node] {
        options["discard"] = json!("unmap");
        daemon.qmp.ok("blockdev-add", options.take());
    }
    export(daemon, name);
}

/// Exports a node over NBD under its own name.
pub fn export(daemon: &mut Daemon, node: &str) {
    let export = json!({"type": "nbd", "id": node, "node-name": node, "writable": true});
    daemon.qmp.ok("block-export-add", export);
}

/// Ends the export of a node, and waits for that.
pub fn unexport(daemon: &mut Daemon, node: &str) {
    daemon
        .qmp
        .ok("block-export-del", json!({"id": node, "mode": "hard"}));
    daemon
        .qmp
        .wait_event_where("BLOCK_EXPORT_DELETED", |data| data["id"] == node);
}

/// Carries out a command that must succeed.
pub fn ok(daemon: &mut Daemon, (command, arguments): Command) {
    daemon.qmp.ok(command, arguments);
}
