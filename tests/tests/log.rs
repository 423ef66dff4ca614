//! What the log tells whoever runs the daemon, where it goes, and that it stays there.

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::{Duration, Instant};

use millpond_tests::daemon::{Builder, Daemon, daemon, monitor_path, scratch};
use millpond_tests::nbd::wire::{OPT_GO, REP_ERR_UNKNOWN};
use millpond_tests::nbd::{Handshake, Request, go_data};
use millpond_tests::program::under_test;
use millpond_tests::qmp::Qmp;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(20);

/// Ends the daemon; everything that it logged is written then.
fn end(daemon: &mut Daemon) -> String {
    daemon.qmp.quit();
    daemon.wait();
    daemon.log()
}

/// Waits until a file holds something; it is written by a thread that nobody waits for.
#[track_caller]
fn wait_for(path: &Path, wanted: &str) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let text = fs::read_to_string(path).unwrap_or_default();
        if text.contains(wanted) {
            return text;
        }
        assert!(
            Instant::now() < deadline,
            "'{wanted}' is not in {}: {text}",
            path.display()
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until a running daemon has logged something to standard error.
#[track_caller]
fn wait_told(daemon: &Daemon, wanted: &str) {
    let deadline = Instant::now() + PATIENCE;
    while !daemon.log().contains(wanted) {
        assert!(
            Instant::now() < deadline,
            "'{wanted}' is not in the log: {}",
            daemon.log()
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A daemon with an export of 1 MiB that nothing fails.
fn serving(builder: Builder) -> Daemon {
    builder
        .blockdev(json!({"driver": "null-co", "node-name": "disk", "size": 1 << 20, "read-zeroes": true}))
        .nbd_unix()
        .export("disk")
        .start()
}

#[track_caller]
fn assert_told(log: &str, parts: &[&str]) {
    let told = log
        .lines()
        .any(|line| parts.iter().all(|part| line.contains(part)));
    assert!(told, "no line with {parts:?} in:\n{log}");
}

#[test]
fn a_client_that_is_refused_or_breaks_is_told_of_at_the_default_level() {
    let mut daemon = serving(daemon());
    let mut client = Handshake::start(&daemon.address()).expect("the server greets");
    let refused = client
        .outcome(OPT_GO, &go_data("nothing", &[]))
        .expect("an answer");
    assert_eq!(refused.kind, REP_ERR_UNKNOWN);
    drop(client);
    wait_told(&daemon, "export 'nothing' not present");
    let mut client = Handshake::start(&daemon.address()).expect("the server greets");
    client.stream.write_all(&[7; 16]).expect("the server listens");
    client.stream.wait_closed().expect("nonsense ends the connection");
    wait_told(&daemon, "Bad magic received");
    let mut session = daemon.session("disk");
    session.send_bytes(vec![9; 28]).expect("the server listens");
    session
        .stream()
        .wait_closed()
        .expect("nonsense ends the connection");
    let mut session = daemon.session("disk");
    session
        .send_bytes(Request::write(0, vec![1; 4096]).encode(1, false)[..100].to_vec())
        .expect("the server listens");
    drop(session);
    wait_told(&daemon, "unexpected end-of-file in a request");
    // Nothing is wrong with this one.
    daemon.session("disk").disconnect().expect("it says goodbye");
    let pid = format!("process {}", std::process::id());
    let log = end(&mut daemon);
    assert_told(&log, &["WARN", "refused", &pid, "export 'nothing' not present"]);
    assert_told(&log, &["WARN", "refused", &pid, "Bad magic received"]);
    assert_told(
        &log,
        &[
            "WARN",
            "broke",
            "export=\"disk\"",
            &pid,
            "invalid magic (got 0x9090909)",
        ],
    );
    assert_told(
        &log,
        &[
            "WARN",
            "broke",
            "export=\"disk\"",
            "unexpected end-of-file in a request",
        ],
    );
    assert_eq!(
        log.lines().filter(|line| line.contains("WARN")).count(),
        4,
        "{log}"
    );
}

#[test]
fn an_error_that_a_client_gets_is_told_with_its_place_and_a_flood_by_its_size() {
    let rule = json!({"event": "none", "iotype": "read", "errno": 5, "sector": 8});
    let flush = json!({"event": "none", "iotype": "flush", "errno": 5});
    let mut daemon = daemon()
        .blockdev(json!({"driver": "null-co", "node-name": "null", "size": 1 << 20}))
        .blockdev(
            json!({"driver": "blkdebug", "node-name": "bad", "image": "null", "inject-error": [rule, flush]}),
        )
        .nbd_unix()
        .export("bad")
        .start();
    let mut session = daemon.session("bad");
    for _ in 0..50 {
        session.refused(&Request::read(4096, 512));
    }
    session.ok(&Request::write(8192, vec![1; 512]));
    for _ in 0..2 {
        session.refused(&Request::flush());
    }
    // What the client did wrong itself is no error of the storage.
    session.refused(&Request::read(1 << 20, 512));
    session.disconnect().expect("it says goodbye");
    let log = end(&mut daemon);
    let told = [
        "WARN",
        "reading from file failed",
        "node=\"bad\"",
        "export=\"bad\"",
        "offset=4096",
        "Input/output error",
    ];
    assert_told(&log, &told);
    let lines = log
        .lines()
        .filter(|line| line.contains("reading from file failed"))
        .count();
    assert_eq!(lines, 5, "the first of a flood: {log}");
    assert_told(
        &log,
        &["ERROR", "a flush failed", "node=\"bad\"", "Input/output error"],
    );
    assert_eq!(log.matches("a flush failed").count(), 1, "once: {log}");
}

#[test]
fn at_info_what_comes_goes_and_changes_is_told() {
    let mut daemon = serving(daemon().option("--trace", "info"));
    daemon
        .qmp
        .ok("object-add", json!({"qom-type": "iothread", "id": "io"}));
    daemon
        .qmp
        .ok("blockdev-add", json!({"driver": "null-co", "node-name": "more"}));
    let moved = json!({"node-name": "more", "iothread": "io"});
    daemon.qmp.ok("x-blockdev-set-iothread", moved);
    daemon.qmp.ok("blockdev-del", json!({"node-name": "more"}));
    daemon.qmp.refused("blockdev-del", json!({"node-name": "disk"}));
    daemon.session("disk").disconnect().expect("it says goodbye");
    wait_told(&daemon, "the client disconnected");
    daemon.qmp.ok("block-export-del", json!({"id": "exp-disk"}));
    let log = end(&mut daemon);
    for parts in [
        &["INFO", "changed the graph: start iothread 'io'"][..],
        &["INFO", "changed the graph: add null-co node 'more'"],
        &["INFO", "changed the graph: move node 'more'", "iothread 'io'"],
        &["INFO", "changed the graph: delete node 'more'"],
        &[
            "INFO",
            "refused to change the graph: delete node 'disk'",
            "is in use",
        ],
        &["INFO", "an NBD client is connected"],
        &["INFO", "an NBD client is gone", "the client disconnected"],
        &["INFO", "an export was added"],
        &["INFO", "an export was removed"],
        &["INFO", "a monitor's client is connected"],
    ] {
        assert_told(&log, parts);
    }
}

#[test]
fn a_log_of_json_goes_to_a_file_that_can_be_opened_anew() {
    let dir = scratch();
    let (path, old) = (dir.path().join("log"), dir.path().join("log.1"));
    let option = format!("file={},format=json", path.display());
    let mut daemon = serving(daemon().option("--trace", "info").option("--log", option));
    daemon
        .qmp
        .ok("blockdev-add", json!({"driver": "null-co", "node-name": "one"}));
    wait_for(&path, "node 'one'");
    fs::rename(&path, &old).expect("the folder can be written");
    daemon
        .qmp
        .ok("blockdev-add", json!({"driver": "null-co", "node-name": "two"}));
    wait_for(&old, "node 'two'");
    daemon.qmp.ok("x-millpond-log-reopen", json!({}));
    daemon
        .qmp
        .ok("blockdev-add", json!({"driver": "null-co", "node-name": "three"}));
    assert_eq!(end(&mut daemon), "", "nothing of it goes elsewhere");
    let new = fs::read_to_string(&path).expect("the file was made again");
    assert!(
        new.contains("node 'three'") && !new.contains("node 'two'"),
        "{new}"
    );
    for line in new.lines() {
        let entry: Value = serde_json::from_str(line).expect("a line is an object");
        assert_eq!(entry["level"], "INFO", "{entry}");
        assert!(
            entry["timestamp"].is_string() && entry["message"].is_string(),
            "{entry}"
        );
    }
}

#[test]
fn only_a_file_can_be_opened_anew() {
    let mut other = serving(daemon());
    let refused = other.qmp.refused("x-millpond-log-reopen", json!({}));
    assert_eq!(refused.desc, "The log does not go to a file");
    let dir = scratch();
    let folder = dir.path().join("folder");
    fs::create_dir(&folder).expect("room");
    let path = folder.join("log");
    let mut daemon = serving(daemon().option("--log", format!("file={}", path.display())));
    fs::remove_dir_all(&folder).expect("it is ours");
    let refused = daemon.qmp.refused("x-millpond-log-reopen", json!({}));
    assert_eq!(
        refused.desc,
        format!("Could not open '{}': No such file or directory", path.display())
    );
    daemon.qmp.ok("query-version", json!({}));
}

#[test]
fn the_log_outlives_the_way_to_the_background() {
    let dir = scratch();
    let (log, pidfile) = (dir.path().join("log"), dir.path().join("pid"));
    let monitor = monitor_path(dir.path(), 0);
    let status = under_test()
        .command()
        .current_dir(dir.path())
        .args(["--daemonize", "--log", "file=log", "-T", "info", "--pidfile"])
        .arg(&pidfile)
        .arg("--chardev")
        .arg(format!(
            "socket,id=m,path={},server=on,wait=off",
            monitor.display()
        ))
        .args(["--monitor", "chardev=m"])
        .status()
        .expect("the daemon can be run");
    assert!(status.success());
    let mut qmp = Qmp::connect(&monitor, || Ok(())).expect("a monitor");
    qmp.ok("blockdev-add", json!({"driver": "null-co", "node-name": "late"}));
    wait_for(&log, "node 'late'");
    fs::remove_file(&log).expect("it is there");
    qmp.ok("x-millpond-log-reopen", json!({}));
    qmp.ok("blockdev-add", json!({"driver": "null-co", "node-name": "later"}));
    wait_for(&log, "node 'later'");
    qmp.quit();
}

/// A service that takes messages, and what it got.
fn service(path: &Path) -> UnixDatagram {
    let socket = UnixDatagram::bind(path).expect("the folder can be written");
    socket.set_read_timeout(Some(PATIENCE)).expect("a time");
    socket
}

fn message(socket: &UnixDatagram, wanted: &str) -> String {
    let mut bytes = vec![0; 1 << 16];
    loop {
        let len = socket.recv(&mut bytes).expect("a message comes");
        let text = String::from_utf8_lossy(&bytes[..len]).into_owned();
        if text.contains(wanted) {
            return text;
        }
    }
}

#[test]
fn the_systems_log_and_the_journal_get_messages_with_their_priority() {
    let dir = scratch();
    let path = dir.path().join("service");
    let socket = service(&path);
    let option = format!("syslog,socket={}", path.display());
    let mut daemon = serving(daemon().option("--trace", "info").option("--log", option));
    daemon
        .qmp
        .ok("blockdev-add", json!({"driver": "null-co", "node-name": "told"}));
    let text = message(&socket, "node 'told'");
    let program = under_test()
        .path()
        .file_name()
        .expect("a program's path")
        .display()
        .to_string();
    let begin = format!("<30>{program}[{}]: ", daemon.pid());
    assert!(text.starts_with(&begin), "{text} does not begin with {begin}");
    assert_eq!(end(&mut daemon), "");
    fs::remove_file(&path).expect("it is ours");

    let socket = service(&path);
    let option = format!("journald,socket={},format=json", path.display());
    let mut daemon = serving(
        millpond_tests::daemon::daemon()
            .option("--trace", "info")
            .option("--log", option),
    );
    daemon
        .qmp
        .ok("blockdev-add", json!({"driver": "null-co", "node-name": "told"}));
    let text = message(&socket, "node 'told'");
    assert!(
        text.starts_with("PRIORITY\n\u{1}\0\0\0\0\0\0\u{0}6\n"),
        "{text:?}"
    );
    assert!(
        text.contains("MESSAGE\n") && text.contains("{\"timestamp\""),
        "{text:?}"
    );
    assert_eq!(end(&mut daemon), "");
}

/// A service that takes nothing any more holds nobody up.
#[test]
fn a_service_that_does_not_read_holds_up_neither_monitor_nor_client() {
    let dir = scratch();
    let path = dir.path().join("service");
    let socket = service(&path);
    let option = format!("syslog,socket={}", path.display());
    let mut daemon = serving(daemon().option("--trace", "debug").option("--log", option));
    for round in 0..300 {
        let name = format!("node{round}");
        daemon
            .qmp
            .ok("blockdev-add", json!({"driver": "null-co", "node-name": name}));
    }
    daemon.session("disk").disconnect().expect("it is served");
    drop(socket);
    daemon.qmp.quit();
    assert!(daemon.wait().success());
}

#[test]
fn what_a_client_chose_moves_no_cursor_and_begins_no_line() {
    let mut daemon = serving(daemon());
    let name = "\u{1b}[31mred\nWARN forged\r\u{7}";
    let mut client = Handshake::start(&daemon.address()).expect("the server greets");
    let refused = client.outcome(OPT_GO, &go_data(name, &[])).expect("an answer");
    assert_eq!(refused.kind, REP_ERR_UNKNOWN);
    drop(client);
    wait_told(&daemon, "forged");
    let log = end(&mut daemon);
    assert_told(&log, &["refused", "red", "forged"]);
    assert!(!log.contains(['\u{1b}', '\r', '\u{7}']), "{log:?}");
    assert!(!log.lines().any(|line| line.starts_with("WARN")), "{log}");
}

#[test]
fn what_cannot_be_a_log_is_refused() {
    let dir = scratch();
    let image = dir.path().join("disk.raw");
    fs::write(&image, [0; 512]).expect("room");
    let told = daemon()
        .option("--log", format!("file={}", image.display()))
        .refused();
    assert!(told.contains("the file exists and is no text"), "{told}");
    assert_eq!(fs::read(&image).expect("it is there"), [0; 512]);
    for (option, text) in [
        (
            "kafka",
            "A log goes to stderr, syslog, journald or file=PATH, not to 'kafka'",
        ),
        ("file=/nowhere/log", "/nowhere/log: No such file or directory"),
        ("syslog,socket=/nowhere", "/nowhere: No such file or directory"),
    ] {
        let told = daemon().option("--log", option).refused();
        assert!(told.contains(text), "{told}");
    }
}
