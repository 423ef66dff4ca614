//! The flight recorder: what a hang was waiting for is visible after the fact.

use std::path::Path;
use std::process::{Command, Output};
use std::time::Instant;

use millpond_tests::PATIENCE;
use millpond_tests::daemon::{Daemon, daemon, daemon_in, scratch};
use millpond_tests::nbd::{Connect, Request, Session};
use millpond_tests::program::millpond;
use serde_json::json;

const HELD_REPLIES: &str = "chaos,id=c0,rules.0.kind=reply,rules.0.delay=fixed:3600s";

fn hanging(dir: &Path, chaos: &str) -> (Daemon, Session) {
    let mut daemon = daemon_in(dir)
        .nbd_unix()
        .blockdev(json!({ "driver": "null-co", "node-name": "disk", "size": 1 << 20, "read-zeroes": true }))
        .export("disk")
        .option("--object", chaos)
        .start();
    let mut session = Connect::default().open(&daemon.address(), "disk");
    session
        .submit(&Request::read(8192, 4096))
        .expect("a request can be sent");
    let end = Instant::now() + PATIENCE;
    let held = json!({ "path": "c0", "property": "held" });
    while daemon.qmp.ok("qom-get", held.clone()) == 0 {
        assert!(Instant::now() < end, "nothing is held");
    }
    (daemon, session)
}

fn print(path: &Path) -> Output {
    Command::new(millpond())
        .arg("flight")
        .arg(path)
        .output()
        .expect("the program runs")
}

fn printed(path: &Path) -> String {
    let output = print(path);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("text")
}

/// The part that says what was unanswered.
fn unanswered(text: &str) -> &str {
    let (_, rest) = text
        .split_once("Unanswered")
        .expect("it says what was unanswered");
    rest.split_once("\nMessages").expect("messages follow").0
}

/// The seconds that the line with `what` says it was unanswered for.
fn age(unanswered: &str, what: &str) -> f64 {
    let line = unanswered.lines().find(|line| line.contains(what));
    let line = line.unwrap_or_else(|| panic!("'{what}' is not in {unanswered}"));
    let (_, rest) = line.split_once("for").expect("it says for how long");
    rest.split_whitespace()
        .next()
        .expect("a number")
        .parse()
        .expect("a number")
}

fn dump(daemon: &mut Daemon, path: &Path) {
    let filename = path.to_str().expect("plain");
    daemon
        .qmp
        .ok("x-millpond-flight-record", json!({ "filename": filename }));
}

#[test]
fn a_request_in_flight_is_shown_by_node_range_and_age() {
    let dir = scratch();
    let begun = Instant::now();
    let (mut daemon, _session) = hanging(dir.path(), HELD_REPLIES);
    let path = dir.path().join("flight");
    dump(&mut daemon, &path);
    let text = printed(&path);
    let open = unanswered(&text);
    let age = age(open, "read of 4096 bytes at 8192 of 'disk', stands at 'disk'");
    assert!(age > 0.0 && age < begun.elapsed().as_secs_f64(), "{age}");
    assert!(
        open.contains("reply for 'disk', held back on its way from node to client"),
        "{open}"
    );
    assert!(text.contains("asked by x-millpond-flight-record"), "{text}");
    daemon.kill();
}

#[test]
fn a_message_that_has_not_arrived_is_shown() {
    let dir = scratch();
    let (mut daemon, _session) = hanging(
        dir.path(),
        "chaos,id=c0,rules.0.kind=read,rules.0.delay=fixed:3600s",
    );
    let path = dir.path().join("flight");
    dump(&mut daemon, &path);
    let text = printed(&path);
    age(
        unanswered(&text),
        "read for 'disk', held back on its way from client to node",
    );
    daemon.kill();
}

#[test]
fn requests_that_were_answered_are_listed_and_not_unanswered() {
    let dir = scratch();
    let mut daemon = daemon()
        .nbd_unix()
        .blockdev(json!({ "driver": "null-co", "node-name": "disk", "size": 1 << 20, "read-zeroes": true }))
        .export("disk")
        .start();
    let mut session = Connect::default().open(&daemon.address(), "disk");
    session.read(8192, 4096);
    session.disconnect().expect("a goodbye closes the connection");
    let path = dir.path().join("flight");
    dump(&mut daemon, &path);
    let text = printed(&path);
    assert!(!unanswered(&text).contains("'disk'"), "{text}");
    assert!(
        text.contains("read of 4096 bytes at 8192 of 'disk' from client"),
        "{text}"
    );
    assert!(text.contains("order open to"), "{text}");
    daemon.quit();
}

#[test]
fn a_signal_writes_the_record_too() {
    let dir = scratch();
    let (mut daemon, _session) = hanging(dir.path(), HELD_REPLIES);
    daemon.signal(rustix::process::Signal::USR1);
    let end = Instant::now() + PATIENCE;
    let path = loop {
        let log = daemon.log();
        if let Some((_, rest)) = log.split_once("the flight record was written path=") {
            break rest.split_whitespace().next().expect("a path").to_owned();
        }
        assert!(Instant::now() < end, "{log}");
        daemon.assert_running();
    };
    let text = printed(Path::new(&path));
    std::fs::remove_file(&path).expect("it is there");
    assert!(text.contains("SIGUSR1"), "{text}");
    age(unanswered(&text), "read of 4096 bytes at 8192 of 'disk'");
    daemon.kill();
}

#[test]
fn what_is_no_record_is_refused_with_a_clear_error() {
    let dir = scratch();
    let path = dir.path().join("flight");
    let said = |bytes: &[u8]| {
        std::fs::write(&path, bytes).expect("a file can be written");
        let output = print(&path);
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(said(b"").contains("this is no flight record"));
    assert!(said(b"millpond flight2").contains("this is no flight record"));
    assert!(said(b"millpond flight1").contains("damaged at byte 16: the frame is cut short"));
    let missing = print(&dir.path().join("missing"));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("No such file"));
}
