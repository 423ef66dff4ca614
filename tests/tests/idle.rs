//! What is open and idle costs nothing: no processor time, no system call, and nothing of those who are not idle.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use millpond_tests::PATIENCE;
use millpond_tests::crowd::{Size, begun_write, gather};
use millpond_tests::daemon::{Builder, Daemon, daemon};
use millpond_tests::exported::KINDS;
use millpond_tests::nbd::{Request, Session};
use serde_json::{Value, json};

/// For how long a daemon must not have run at all.
const WATCHED: Duration = Duration::from_secs(2);

/// How often that is tried: what was begun by making the daemon, and the warning about a drain that takes long, come to
/// their end meanwhile. What goes on for ever never leaves such a time free.
const TRIES: usize = 8;

const CROWD: Size = Size {
    nodes: 2000,
    exports: 200,
    connections: 300,
    in_iothread: true,
};

/// An hour.
const LATENCY_NS: u64 = 3_600_000_000_000;

/// How long each thread of a process has run, in nanoseconds, and how often it began to. A thread that makes a system call
/// runs.
fn ran(daemon: &Daemon) -> BTreeMap<String, String> {
    let tasks = format!("/proc/{}/task", daemon.pid());
    let threads = std::fs::read_dir(&tasks).expect("the daemon runs");
    let all = threads.map(|thread| {
        let path = thread.expect("a thread").path();
        let read = |name: &str| std::fs::read_to_string(path.join(name)).unwrap_or_default();
        let status = read("status");
        let switches: Vec<&str> = status
            .lines()
            .filter(|line| line.contains("ctxt_switches"))
            .collect();
        let name = format!("{} {}", path.display(), read("comm").trim());
        (name, format!("{} {switches:?}", read("schedstat").trim()))
    });
    all.collect()
}

#[track_caller]
fn assert_idle(daemon: &Daemon) {
    let mut before = ran(daemon);
    for _ in 0..TRIES {
        // Not a wait for anything: the time that is watched.
        thread::sleep(WATCHED);
        let after = ran(daemon);
        if before == after {
            return;
        }
        before = after;
    }
    panic!(
        "a thread runs again and again: {before:#?}, and then {:#?}",
        ran(daemon)
    );
}

fn builder() -> Builder {
    daemon()
        .monitors(2)
        .nbd_unix_with(",max-connections=0")
        .option("--object", "iothread,id=io,poll-max-ns=0")
        .blockdev(json!({ "driver": "null-co", "node-name": "disk", "size": 1 << 20, "read-zeroes": true }))
        .option(
            "--export",
            "nbd,id=e,node-name=disk,name=disk,writable=on,iothread=io",
        )
}

/// Connections in every state in which they may wait for their client.
fn leave_in_the_middle(sessions: &mut [Session]) {
    for (number, session) in sessions.iter_mut().enumerate() {
        match number % 4 {
            // Nothing was ever asked.
            0 => {}
            1 => drop(session.read(0, 4096)),
            2 => session
                .send_bytes(begun_write(10))
                .expect("a part of a header is sent"),
            _ => session
                .send_bytes(begun_write(2000))
                .expect("a part of a payload is sent"),
        }
    }
}

#[test]
fn a_daemon_with_hundreds_of_idle_connections_and_thousands_of_nodes_never_runs() {
    let mut daemon = builder()
        .blockdev(json!({ "driver": "null-co", "node-name": "slow", "latency-ns": LATENCY_NS }))
        .option("--export", "nbd,id=slow,node-name=slow,name=slow,iothread=io")
        .start();
    let mut crowd = gather(&mut daemon, CROWD);
    leave_in_the_middle(&mut crowd.sessions);
    assert_idle(&daemon);

    let mut slow = [daemon.session("slow"), daemon.session("slow")];
    let before = counters(&mut daemon)["requests"].as_u64();
    slow[0].submit(&Request::read(0, 512)).expect("a read is sent");
    entered(&mut daemon, before);
    let mut changing = daemon.monitor(1);
    let change = json!({ "execute": "x-blockdev-set-iothread", "arguments":
        { "node-name": "slow", "iothread": null, "force": true } });
    changing.send_raw(&change.to_string());
    let deadline = Instant::now() + PATIENCE;
    while daemon.qmp.ok("x-millpond-query-drains", json!({})) == json!([]) {
        assert!(Instant::now() < deadline, "the section never begins");
    }
    slow[1]
        .submit(&Request::read(0, 512))
        .expect("a read is sent, to be parked");
    assert_idle(&daemon);
    let waits = daemon.qmp.ok("x-millpond-query-drains", json!({}));
    assert_eq!(waits[0]["waiting-for"][0]["node-name"], "slow", "{waits}");

    let mut session = daemon.session("disk");
    assert_eq!(session.read(0, 512), [0; 512], "whoever is not idle is served");
    crowd.sessions[2]
        .send_bytes(begun_write(28 + 4096)[10..].to_vec())
        .expect("the rest is sent");
}

/// Waits until more requests have entered the graph in the iothread than had before.
fn entered(daemon: &mut Daemon, before: Option<u64>) {
    let deadline = Instant::now() + PATIENCE;
    while counters(daemon)["requests"].as_u64() <= before {
        assert!(Instant::now() < deadline, "no request arrives");
    }
}

/// What the iothread has done.
fn counters(daemon: &mut Daemon) -> Value {
    let reports = daemon.qmp.ok("x-millpond-query-iothreads", json!({}));
    let reports = reports.as_array().expect("a list");
    let io = reports.iter().find(|report| report["id"] == "io");
    io.expect("it is there").clone()
}

/// What the iothread does for so many reads, one after the other.
fn price(daemon: &mut Daemon, session: &mut Session, reads: u64) -> BTreeMap<&'static str, u64> {
    let before = counters(daemon);
    for _ in 0..reads {
        session.read(0, 512);
    }
    let after = counters(daemon);
    let count = |counters: &Value, name: &str| counters[name].as_u64().expect("a number");
    let spent = |name| (name, count(&after, name) - count(&before, name));
    ["system-calls", "operations", "task-runs", "messages"]
        .map(spent)
        .into()
}

#[test]
fn a_request_takes_as_many_system_calls_and_turns_of_tasks_beside_a_crowd_as_alone() {
    const READS: u64 = 500;
    let mut daemon = builder().start();
    let mut session = daemon.session("disk");
    price(&mut daemon, &mut session, READS);
    let alone = price(&mut daemon, &mut session, READS);
    let mut crowd = gather(&mut daemon, CROWD);
    leave_in_the_middle(&mut crowd.sessions);
    // What the last of them sent may still be on its way.
    price(&mut daemon, &mut session, READS);
    let beside = price(&mut daemon, &mut session, READS);
    for (name, alone) in alone {
        // Whether the last read's end, and the question itself, count before or after an answer is a matter of moments.
        assert!(
            alone.abs_diff(beside[name]) <= READS / 50,
            "{name}: {alone} alone, {} beside",
            beside[name]
        );
    }
}

/// What a thousand exports may take of the memory, in KiB.
const MOST_KIB: u64 = 64 << 10;

#[test]
fn a_thousand_idle_exports_of_each_kind_take_little_memory_and_no_time() {
    for kind in KINDS {
        println!("{kind:?}");
        let mut daemon = builder().start();
        let before = daemon.resident_kib();
        let exports: Vec<_> = (0..1000)
            .map(|number| kind.export_as(&mut daemon, &format!("exp{number}"), "disk", &json!({})))
            .collect();
        assert_idle(&daemon);
        let took = daemon.resident_kib().saturating_sub(before);
        println!("{took} KiB");
        assert!(took < MOST_KIB, "they take {took} KiB");
        daemon.quit();
        drop(exports);
    }
}
