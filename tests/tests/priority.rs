//! The scheduler prefers the thread that carries out commands, and no other; where the daemon may have that.

use std::fs;
use std::process::Command;

use millpond_tests::daemon::{Daemon, daemon};
use millpond_tests::program::millpond;
use serde_json::json;

/// Niceness and policy of a thread, and the number of those of other threads, all the same.
fn scheduled(daemon: &Daemon) -> ((i32, u32), Vec<(i32, u32)>) {
    let pid = daemon.pid().to_string();
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    let mut control = None;
    let mut others = Vec::new();
    for thread in threads {
        let thread = thread.expect("it runs").path();
        let stat = fs::read_to_string(thread.join("stat")).expect("it runs");
        // The name is in parentheses, and may have blanks.
        let (_, fields) = stat.rsplit_once(") ").expect("a thread has a name");
        let fields: Vec<&str> = fields.split(' ').collect();
        let found = (
            fields[16].parse().expect("a niceness"),
            fields[38].parse().expect("a policy"),
        );
        match thread.ends_with(&pid) {
            true => control = Some(found),
            false => others.push(found),
        }
    }
    (control.expect("a process has a first thread"), others)
}

const OTHER: u32 = 0;
const FIFO: u32 = 1;

/// Starts a daemon with an iothread.
fn started(priority: Option<&str>) -> Daemon {
    let mut builder = daemon();
    if let Some(priority) = priority {
        builder = builder.option("--x-millpond-control-priority", priority);
    }
    let mut daemon = builder.start();
    daemon
        .qmp
        .ok("object-add", json!({"qom-type": "iothread", "id": "io"}));
    daemon
}

/// Whether this process may have a thread preferred.
fn may_prefer() -> bool {
    let preferred = Command::new("nice").args(["-n", "-10", "nice"]).output();
    let preferred = preferred.expect("cannot run nice: install coreutils");
    String::from_utf8_lossy(&preferred.stdout).trim() == "-10"
}

#[test]
fn the_control_thread_alone_is_preferred_as_the_user_says() {
    let default = if may_prefer() { -10 } else { 0 };
    let mut expected = vec![(None, (default, OTHER)), (Some("normal"), (0, OTHER))];
    if may_prefer() {
        expected.push((Some("nice"), (-10, OTHER)));
        expected.push((Some("realtime"), (0, FIFO)));
    }
    for (priority, control) in expected {
        let daemon = started(priority);
        let (found, others) = scheduled(&daemon);
        assert_eq!(found, control, "{priority:?}");
        assert!(!others.is_empty());
        assert!(
            others.iter().all(|other| *other == (0, OTHER)),
            "{priority:?}: {others:?}"
        );
        daemon.quit();
    }
}

/// Who may not have it has a daemon all the same, unless it was asked for.
#[test]
fn a_priority_that_may_not_be_had_is_told_to_who_asks_for_it() {
    // As root, without what root may do with its threads.
    let without = ["--bounding-set", "-sys_nice", "--inh-caps", "-sys_nice"];
    let output = |priority: &[&str]| {
        let mut command = match may_prefer() {
            true => Command::new("setpriv"),
            false => Command::new(millpond()),
        };
        if may_prefer() {
            command.args(without).arg(millpond());
        }
        command.args(["serve", "--blockdev", "help"]).args(priority);
        command.output().expect("cannot run setpriv: install util-linux")
    };
    let quiet = output(&[]);
    assert!(quiet.status.success(), "{quiet:?}");
    assert!(quiet.stderr.is_empty(), "{quiet:?}");
    let refused = output(&["--x-millpond-control-priority", "realtime"]);
    let text = String::from_utf8_lossy(&refused.stderr);
    assert!(
        text.contains("the control thread cannot have that priority"),
        "{text}"
    );
    let refused = daemon().option("--x-millpond-control-priority", "high").refused();
    assert!(refused.contains("not normal, nice or realtime"), "{refused}");
}
