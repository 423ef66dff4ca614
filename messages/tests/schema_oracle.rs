//! Our introspection next to `qemu-storage-daemon`'s: what we list, it lists in the same form.
//!
//! QEMU's is recorded in `schema/qemu.json`, one entry a line; `MILLPOND_RECORD=1` records it anew. What QEMU lists and we do
//! not is named in `schema/lacking.txt`, which only shrinks.
#![allow(
    clippy::unwrap_used,
    reason = "a test ends at the first thing that is not as it must be"
)]

use millpond_messages::qapi::schema::COMMANDS;
use millpond_messages::qapi::{introspect, parse_json};
use serde_json::Value;
use std::collections::{BTreeMap, HashSet};
use std::io::Write;
use std::process::{Command, Stdio};

const RECORDED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/schema/qemu.json");
const LACKING: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/schema/lacking.txt");

type Schema = BTreeMap<String, Value>;

fn by_name(listing: &Value) -> Schema {
    let entries = listing.as_array().unwrap().iter();
    entries
        .map(|entry| (entry["name"].as_str().unwrap().to_owned(), entry.clone()))
        .collect()
}

/// The schema that was recorded.
fn recorded() -> Schema {
    let text = std::fs::read_to_string(RECORDED).unwrap();
    let entries = text.lines().map(|line| parse_json(line).unwrap());
    by_name(&entries.collect())
}

/// The schema of the daemon that is installed.
fn oracle() -> Schema {
    let mut child = Command::new("qemu-storage-daemon")
        .args(["--chardev", "stdio,id=c", "--monitor", "chardev=c"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("qemu-storage-daemon must be installed: package qemu-utils");
    let input = b"{'execute':'qmp_capabilities'}{'execute':'query-qmp-schema'}{'execute':'quit'}";
    // Kept open: at its end the oracle forgets what it has not yet looked at.
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    drop(stdin);
    let text = String::from_utf8(output.stdout).unwrap();
    let replies: Vec<Value> = text.lines().map(|line| parse_json(line).unwrap()).collect();
    by_name(&replies[2]["return"])
}

struct Comparison {
    ours: Schema,
    theirs: Schema,
    done: HashSet<(String, String)>,
}

impl Comparison {
    fn types(&mut self, ours: &Value, theirs: &Value, path: &str) {
        let (ours, theirs) = (ours.as_str().unwrap(), theirs.as_str().unwrap());
        if !self.done.insert((ours.into(), theirs.into())) {
            return;
        }
        let ours = self.ours[ours].clone();
        let theirs = self.theirs[theirs].clone();
        for key in ["meta-type", "json-type", "tag", "features"] {
            assert_eq!(ours.get(key), theirs.get(key), "{path}: {key}");
        }
        match ours["meta-type"].as_str().unwrap() {
            "object" => self.objects(&ours, &theirs, path),
            "array" => self.types(&ours["element-type"], &theirs["element-type"], path),
            "enum" => enums(&ours, &theirs, path),
            "alternate" => {
                let (ours, theirs) = (list(&ours, "members"), list(&theirs, "members"));
                assert_eq!(ours.len(), theirs.len(), "{path}");
                for (ours, theirs) in ours.iter().zip(&theirs) {
                    self.types(&ours["type"], &theirs["type"], path);
                }
            }
            "builtin" => assert_eq!(ours, theirs, "{path}"),
            other => panic!("{path}: {other}"),
        }
    }

    fn objects(&mut self, ours: &Value, theirs: &Value, path: &str) {
        let mut ours_listed = list(ours, "members");
        let theirs_listed = list(theirs, "members");
        // What QEMU does not have says so by its name.
        ours_listed.retain(|member| {
            let name = member["name"].as_str().unwrap();
            let is_known = theirs_listed.iter().any(|theirs| theirs["name"] == name);
            is_known || !(name.starts_with("x-millpond-") || NEWER.contains(&name))
        });
        let names = |members: &[Value]| members.iter().map(|m| m["name"].clone()).collect::<Vec<_>>();
        assert_eq!(names(&ours_listed), names(&theirs_listed), "{path}");
        for (ours, theirs) in ours_listed.iter().zip(&theirs_listed) {
            let path = format!("{path}.{}", ours["name"].as_str().unwrap());
            assert_eq!(ours.get("default"), theirs.get("default"), "{path}");
            assert_eq!(ours.get("features"), theirs.get("features"), "{path}");
            if WIDER.contains(&path.as_str()) {
                continue;
            }
            self.types(&ours["type"], &theirs["type"], &path);
        }
        let variants = list(theirs, "variants");
        for ours in list(ours, "variants") {
            if is_own(&ours["case"]) {
                continue;
            }
            let path = format!("{path}/{}", ours["case"].as_str().unwrap());
            let theirs = variants
                .iter()
                .find(|theirs| theirs["case"] == ours["case"])
                .expect(&path);
            self.types(&ours["type"], &theirs["type"], &path);
        }
    }
}

/// Types of objects that QEMU does not have, or has since a later version than the recorded one.
const OWN: &[&str] = &["authz-list-file", "chaos", "monitor-qmp"];

/// Commands and members that QEMU has since a later version than the recorded one.
const NEWER: &[&str] = &[
    "qom-list-get",
    "target-is-zero",
    "on-cbw-error",
    "keep-alive-count",
    "keep-alive-idle",
    "keep-alive-interval",
];

/// Members that are of more types since a later version than the recorded one.
const WIDER: &[&str] = &["block-export-add arg-type.iothread"];

fn is_own(word: &Value) -> bool {
    word.as_str().is_some_and(|word| OWN.contains(&word))
}

fn list(entry: &Value, key: &str) -> Vec<Value> {
    entry
        .get(key)
        .map(|list| list.as_array().unwrap().clone())
        .unwrap_or_default()
}

/// We may know fewer words, in the same order.
fn enums(ours: &Value, theirs: &Value, path: &str) {
    for key in ["values", "members"] {
        let mut theirs = list(theirs, key).into_iter();
        for word in list(ours, key) {
            if is_own(word.get("name").unwrap_or(&word)) {
                continue;
            }
            assert!(theirs.any(|theirs| theirs == word), "{path}: {word}");
        }
    }
}

#[test]
fn commands_events_and_types_have_the_oracles_form() {
    let names: Vec<&str> = COMMANDS.iter().map(|command| command.name).collect();
    let ours = by_name(&introspect(&names));
    let theirs = recorded();
    let mut comparison = Comparison {
        ours: ours.clone(),
        theirs: theirs.clone(),
        done: HashSet::new(),
    };
    let mut compared = 0;
    for (name, entry) in &ours {
        if !matches!(entry["meta-type"].as_str(), Some("command" | "event")) {
            continue;
        }
        // What QEMU has no command for says so by its name.
        if name.starts_with("x-millpond-") || name == "BLOCK_NODE_BROKEN" {
            assert!(!theirs.contains_key(name));
            continue;
        }
        if NEWER.contains(&name.as_str()) && !theirs.contains_key(name) {
            continue;
        }
        let oracle = theirs.get(name).unwrap_or_else(|| panic!("{name} is not QEMU's"));
        assert_eq!(entry.get("meta-type"), oracle.get("meta-type"), "{name}");
        assert_eq!(entry.get("features"), oracle.get("features"), "{name}");
        for key in ["arg-type", "ret-type"] {
            if let Some(of) = entry.get(key) {
                comparison.types(of, &oracle[key], &format!("{name} {key}"));
            }
        }
        compared += 1;
    }
    assert!(compared >= 50, "{compared}");
}

#[test]
fn what_is_recorded_is_what_the_installed_daemon_says() {
    let live = oracle();
    if std::env::var_os("MILLPOND_RECORD").is_some() {
        let lines: String = live.values().map(|entry| format!("{entry}\n")).collect();
        std::fs::write(RECORDED, lines).unwrap();
    }
    assert!(recorded() == live, "MILLPOND_RECORD=1 records the schema anew");
}

#[test]
fn what_qemu_has_and_we_lack_is_listed() {
    let names: Vec<&str> = COMMANDS.iter().map(|command| command.name).collect();
    let ours = by_name(&introspect(&names));
    let is_visible = |entry: &Value| matches!(entry["meta-type"].as_str(), Some("command" | "event"));
    let theirs = recorded().into_values().filter(is_visible);
    let names = theirs.map(|entry| entry["name"].as_str().unwrap().to_owned());
    let lacking: Vec<String> = names.filter(|name| !ours.contains_key(name)).collect();
    let listed = std::fs::read_to_string(LACKING).unwrap();
    let listed = listed.lines().filter(|line| !line.starts_with('#'));
    let listed: Vec<&str> = listed.filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(
        listed, lacking,
        "a name that we have goes from the list, and none comes to it"
    );
}

#[test]
fn every_type_named_is_described_once() {
    let listing = introspect(&["blockdev-add", "query-named-block-nodes"]);
    let entries = listing.as_array().unwrap();
    assert_eq!(by_name(&listing).len(), entries.len());
    let named = by_name(&listing);
    for entry in entries {
        for member in list(entry, "members") {
            if let Some(of) = member.get("type") {
                assert!(named.contains_key(of.as_str().unwrap()), "{entry}");
            }
        }
    }
    assert!(!named.contains_key("blockdev-del"));
}
