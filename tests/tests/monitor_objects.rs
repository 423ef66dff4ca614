//! Monitors that are objects: `monitor-qmp`, made and removed while the daemon runs.

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;

use millpond_tests::daemon::{Daemon, daemon};
use millpond_tests::qmp::Qmp;
use serde_json::{Value, json};

/// Makes a character device that listens on a socket of its name.
fn listen(daemon: &mut Daemon, id: &str) {
    let address = json!({"type": "unix", "data": {"path": daemon.path(id)}});
    let socket = json!({"addr": address, "server": true, "wait": false});
    let backend = json!({"type": "socket", "data": socket});
    daemon
        .qmp
        .ok("chardev-add", json!({"id": id, "backend": backend}));
}

fn client(daemon: &Daemon, id: &str) -> Qmp {
    let path = daemon.path(id);
    Qmp::connect(path.as_ref(), || Ok(())).expect("the monitor greets")
}

fn monitor(more: Value) -> Value {
    let mut options = json!({"qom-type": "monitor-qmp", "id": "m", "chardev": "c"});
    for (name, value) in more.as_object().expect("an object") {
        options[name] = value.clone();
    }
    options
}

#[test]
fn a_monitor_is_made_and_removed_and_its_client_goes_with_it() {
    let mut daemon = daemon().start();
    listen(&mut daemon, "c");
    daemon.qmp.ok("object-add", monitor(json!({})));
    for _ in 0..2 {
        // One client after the other.
        let mut other = client(&daemon, "c");
        other.ok("query-version", json!({}));
        drop(other);
    }
    let mut other = client(&daemon, "c");
    let objects = other.ok("qom-list", json!({"path": "/objects"})).to_string();
    assert!(objects.contains("child<monitor-qmp>"), "{objects}");
    let action = json!({"path": "/objects/m", "property": "close-action"});
    assert_eq!(other.ok("qom-get", action), "none");
    let busy = daemon.qmp.refused("chardev-remove", json!({"id": "c"}));
    assert_eq!(busy.desc, "Chardev 'c' is busy");
    daemon.qmp.ok("object-del", json!({"id": "m"}));
    assert!(other.receive_line().is_err(), "the client is disconnected");
    // The device is free at once, for another monitor too.
    daemon.qmp.ok("object-add", monitor(json!({"id": "n"})));
    let mut other = client(&daemon, "c");
    // By a monitor that removes itself its client is answered.
    other.ok("object-del", json!({"id": "n"}));
    assert!(other.receive_line().is_err(), "the client is disconnected");
    daemon.qmp.quit();
    daemon.expect_clean_exit();
}

#[test]
fn a_monitor_for_one_client_goes_with_it() {
    let mut daemon = daemon().start();
    listen(&mut daemon, "c");
    daemon
        .qmp
        .ok("object-add", monitor(json!({"close-action": "delete"})));
    let mut other = client(&daemon, "c");
    other.ok("query-version", json!({}));
    daemon.qmp.refused("object-add", monitor(json!({"id": "n"})));
    drop(other);
    let deadline = std::time::Instant::now() + millpond_tests::PATIENCE;
    while daemon
        .qmp
        .ok("qom-list", json!({"path": "/objects"}))
        .to_string()
        .contains("monitor-qmp")
    {
        assert!(std::time::Instant::now() < deadline, "the object stays");
    }
    daemon.qmp.quit();
    daemon.expect_clean_exit();
}

#[test]
fn what_cannot_be_a_monitor_is_refused() {
    let mut daemon = daemon().start();
    listen(&mut daemon, "c");
    daemon.qmp.ok("object-add", monitor(json!({})));
    let mut refused = |more: Value| daemon.qmp.refused("object-add", monitor(more)).desc;
    assert_eq!(
        refused(json!({"id": "n", "chardev": "missing"})),
        "chardev \"missing\" not found"
    );
    assert_eq!(refused(json!({"id": "n"})), "chardev 'c' is already in use");
    assert_eq!(
        refused(json!({"id": "n", "close-action": "stay"})),
        "Parameter 'close-action' does not accept value 'stay'"
    );
    let names = daemon.qmp.ok("qom-list", json!({"path": "/objects"})).to_string();
    assert!(!names.contains("\"n\""), "{names}");
    daemon.qmp.quit();
    daemon.expect_clean_exit();
}

/// On the command line, where it greets nobody before all of that is made.
#[test]
fn the_command_line_makes_such_a_monitor() {
    let builder = daemon();
    let path = builder.dir().join("c").display().to_string();
    let mut daemon = builder
        .option("--chardev", format!("socket,id=c,path={path},server=on,wait=off"))
        .option("--object", "monitor-qmp,id=m,chardev=c,pretty=on")
        .start();
    let mut lines = BufReader::new(UnixStream::connect(daemon.path("c")).expect("it listens")).lines();
    let mut line = || lines.next().expect("a line").expect("text");
    // Of an answer that is shown prettily each member has a line.
    assert_eq!((line(), line()), ("{".to_owned(), "    \"QMP\": {".to_owned()));
    drop(lines);
    daemon.qmp.quit();
    daemon.expect_clean_exit();
}
