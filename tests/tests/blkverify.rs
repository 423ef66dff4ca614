//! `blkverify` beside QEMU's own: the same graph and answers, and the same end where the children differ.

use std::fs;
use std::os::unix::fs::FileExt;

use millpond_tests::beside::{Command, GRAPH, beside_qemu, same_answers};
use millpond_tests::daemon::Daemon;
use millpond_tests::{image, tool};
use serde_json::{Value, json};

const SIZE: usize = 1 << 20;

fn verify(more: Value) -> Command {
    let mut options = json!({"driver": "blkverify", "node-name": "v"});
    for (name, value) in more.as_object().expect("an object") {
        options[name] = value.clone();
    }
    ("blockdev-add", options)
}

#[test]
fn it_is_opened_shown_and_refused_as_qemu_does_it() {
    let null = |name: &str, size: u64| {
        let options = json!({"driver": "null-co", "node-name": name, "size": size});
        ("blockdev-add", options)
    };
    let graph = || (GRAPH, json!({}));
    let shown = || ("query-named-block-nodes", json!({}));
    let commands = [
        null("a", 1 << 20),
        null("b", 1 << 19),
        verify(json!({})),
        verify(json!({"raw": "a"})),
        verify(json!({"test": "a"})),
        verify(json!({"raw": "a", "test": "b", "size": 1})),
        verify(json!({"raw": "a", "test": "missing"})),
        graph(),
        verify(json!({"raw": "a", "test": "b"})),
        graph(),
        shown(),
        ("x-blockdev-change", json!({"parent": "v", "child": "test"})),
        ("x-blockdev-change", json!({"parent": "v", "node": "a"})),
        (
            "blockdev-reopen",
            json!({"options": [
            {"driver": "blkverify", "node-name": "v", "raw": "a", "test": "b"}]}),
        ),
        (
            "block-export-add",
            json!({"type": "nbd", "id": "e", "node-name": "v", "writable": true}),
        ),
        graph(),
    ];
    same_answers(&commands);
}

/// Two files of the same bytes, one of them behind a `blkdebug` node with these rules, exported as one.
fn export(daemon: &mut Daemon, failing: &str, rules: Value) {
    for name in ["raw", "test"] {
        let path = daemon.path(name);
        fs::write(&path, vec![1; SIZE]).expect("a file can be made");
        let file = json!({"driver": "file", "filename": path});
        let mut options = json!({"driver": "blkdebug", "node-name": name, "image": file});
        if name == failing {
            options["inject-error"] = rules.clone();
        }
        daemon.qmp.ok("blockdev-add", options);
    }
    let (command, options) = verify(json!({"raw": "raw", "test": "test"}));
    daemon.qmp.ok(command, options);
    let export = json!({"type": "nbd", "id": "e", "node-name": "v", "writable": true});
    daemon.qmp.ok("block-export-add", export);
}

fn try_qemu_io(daemon: &Daemon, command: &str) -> bool {
    let run = tool::try_run("qemu-io", &["-f", "raw", &daemon.uri("v"), "-c", command]);
    run.code == Some(0)
}

/// How the daemon ended, and the last it said but for the log.
fn end(daemon: &mut Daemon) -> (Option<i32>, Option<String>) {
    let status = daemon.wait();
    let log = daemon.log();
    let last = log.lines().rfind(|line| !line.contains(" WARN "));
    (status.code(), last.map(str::to_owned))
}

#[test]
fn what_is_written_is_in_both_and_is_read_back() {
    beside_qemu(|mut daemon| {
        export(&mut daemon, "", json!([]));
        for command in ["write -P 2 4k 64k", "write -P 3 513 1", "discard 0 64k", "flush"] {
            assert!(try_qemu_io(&daemon, command), "{command}");
        }
        assert!(try_qemu_io(&daemon, "read -P 2 8k 60k"));
        let map = image::map("raw", &daemon.uri("v"));
        daemon.qmp.quit();
        daemon.expect_clean_exit();
        let [raw, test] = ["raw", "test"].map(|name| fs::read(daemon.path(name)).expect("the file is there"));
        assert!(raw == test && raw[513] == 3 && raw[8191] == 2 && raw[69632] == 1);
        map
    });
}

/// QEMU 10.0 dies of an assertion of its own, so this is asked of ours alone.
#[test]
fn zeroes_are_written_to_both() {
    let mut daemon = millpond_tests::daemon::daemon().nbd_unix().start();
    export(&mut daemon, "", json!([]));
    assert!(try_qemu_io(&daemon, "write -z 8k 4k") && try_qemu_io(&daemon, "read -P 0 8k 4k"));
    daemon.qmp.quit();
    daemon.expect_clean_exit();
    for name in ["raw", "test"] {
        let bytes = fs::read(daemon.path(name)).expect("the file is there");
        assert_eq!(
            (bytes[8191], bytes[8192], bytes[12287], bytes[12288]),
            (1, 0, 0, 1),
            "{name}"
        );
    }
}

#[test]
fn different_contents_end_the_daemon_as_they_end_qemus() {
    beside_qemu(|mut daemon| {
        export(&mut daemon, "", json!([]));
        let file = fs::OpenOptions::new()
            .write(true)
            .open(daemon.path("test"))
            .expect("the file is there");
        file.write_all_at(&[7], 5000).expect("the file can be written");
        assert!(try_qemu_io(&daemon, "read -P 1 0 4k"), "there they are the same");
        assert!(!try_qemu_io(&daemon, "read 4k 1k"));
        end(&mut daemon)
    });
}

#[test]
fn different_results_end_the_daemon_as_they_end_qemus() {
    let rules = |kind: &str| json!([{"event": "none", "iotype": kind, "errno": 28, "once": false, "immediately": true}]);
    for (failing, kind, command) in [
        ("raw", "read", "read 4k 1k"),
        ("test", "write", "write -P 2 512 1k"),
    ] {
        beside_qemu(|mut daemon| {
            export(&mut daemon, failing, rules(kind));
            assert!(!try_qemu_io(&daemon, command));
            end(&mut daemon)
        });
    }
}
