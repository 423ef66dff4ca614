//! What a daemon bears: a log that nobody reads, a monitor's client that reads late, clients that leave.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use millpond_tests::daemon::{Builder, Daemon, daemon, scratch};
use millpond_tests::nbd::{Request, Session};
use millpond_tests::program::millpond;
use millpond_tests::tool::hint;
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};
use serde_json::json;

/// A pipe that holds a page, and of which nothing is read unless the test does.
fn small_pipe() -> (File, OwnedFd) {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).expect("a pipe can be made");
    fcntl_setpipe_size(&writer, 4096).expect("a pipe can be made small");
    (File::from(reader), writer)
}

#[test]
fn a_log_that_nobody_reads_stops_nobody_and_says_what_it_lacks() {
    let (mut log, errors) = small_pipe();
    // Each line about a client names its export: some thousands of requests log more than may wait.
    let name = "e".repeat(3000);
    let mut daemon = daemon()
        .errors_to(errors)
        .option("--trace", "trace")
        .option("--object", "iothread,id=t0")
        .nbd_unix()
        .blockdev(json!({ "driver": "null-co", "node-name": "disk", "size": 1 << 20 }))
        .option(
            "--export",
            format!("nbd,id=e,node-name=disk,name={name},iothread=t0"),
        )
        .start();
    let mut session = daemon.session(&name);
    for _ in 0..3000 {
        session.ok(&Request::read(0, 512));
    }
    daemon.qmp.ok("query-block-exports", json!({}));
    let read = std::thread::spawn(move || {
        let mut text = String::new();
        log.read_to_string(&mut text).expect("the log is text");
        text
    });
    drop(session);
    daemon.quit();
    let text = read.join().expect("the log was read");
    assert!(text.contains(" lines of this log were dropped"), "{}", text.len());
    assert!(text.len() < 16 << 20, "what waits is bounded: {}", text.len());
}

#[test]
fn errors_that_nobody_reads_do_not_keep_a_daemon_from_ending() {
    let (log, errors) = small_pipe();
    let mut errors = File::from(errors);
    errors.write_all(&[b'x'; 4096]).expect("the pipe is filled");
    let begun = Instant::now();
    daemon()
        .errors_to(errors)
        .blockdev(json!({ "driver": "file", "node-name": "disk", "filename": "/nonexistent" }))
        .refused();
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    drop(log);
}

#[test]
fn a_client_that_reads_late_gets_every_event_behind_large_answers() {
    const ANSWERS: usize = 64;
    const EVENTS: usize = 200;
    let mut daemon = daemon()
        .monitors(2)
        .nbd_unix()
        .blockdev(json!({ "driver": "null-co", "node-name": "disk" }))
        .start();
    let mut late = daemon.monitor(1);
    for _ in 0..ANSWERS {
        late.send_raw("{\"execute\": \"query-qmp-schema\"}\n");
    }
    let ids: Vec<String> = (0..EVENTS).map(|i| format!("e{i}")).collect();
    for id in &ids {
        daemon.qmp.ok(
            "block-export-add",
            json!({ "type": "nbd", "id": id, "node-name": "disk" }),
        );
        daemon.qmp.ok("block-export-del", json!({ "id": id }));
    }
    for _ in 0..ANSWERS {
        let schema = late.answer().expect("an answer").expect("a schema");
        assert!(schema.as_array().is_some_and(|types| types.len() > 100));
    }
    // What was told before this answer comes before it.
    late.ok("query-version", json!({}));
    let told: Vec<String> = late
        .take_events()
        .iter()
        .filter(|event| event["event"] == "BLOCK_EXPORT_DELETED")
        .map(|event| event["data"]["id"].as_str().expect("an id").to_owned())
        .collect();
    assert_eq!(told, ids);
    daemon.quit();
}

/// As good as never.
const HOUR_NS: u64 = 3_600_000_000_000;

/// Sends a request that will have to wait, and waits until it has begun: what is wrong in itself is answered at once.
fn begin(session: &mut Session, request: &Request) {
    session.submit(request).expect("the request is sent");
    let wrong = session
        .submit(&Request::trim(1 << 40, 512))
        .expect("the trim is sent");
    assert_eq!(session.complete().expect("the trim is answered").cookie, wrong);
}

/// A disk whose writes wait for hours, from the second on; and its file.
fn throttled(more: &str) -> (Daemon, String) {
    let builder = daemon().nbd_unix_with(more);
    let path = builder.dir().join("disk.raw");
    File::create(&path)
        .and_then(|file| file.set_len(1 << 20))
        .expect("a disk can be made");
    let path = path.display().to_string();
    let daemon = builder
        .option(
            "--object",
            json!({ "qom-type": "throttle-group", "id": "g", "limits": { "bps-write": 1 } }).to_string(),
        )
        .blockdev(json!({ "driver": "file", "node-name": "file", "filename": path }))
        .blockdev(json!({
            "driver": "throttle", "node-name": "disk", "file": "file", "throttle-group": "g",
        }))
        .export("disk")
        .start();
    (daemon, path)
}

/// One write that goes at once, and one that waits.
fn write_twice(daemon: &Daemon) -> Session {
    let mut session = daemon.session("disk").pipelined();
    session
        .submit(&Request::write(0, vec![1; 4096]))
        .expect("the first write is sent");
    session.complete().expect("the first write is answered");
    begin(&mut session, &Request::write(4096, vec![2; 4096]));
    session
}

#[test]
fn a_client_that_leaves_gives_its_slot_back_and_takes_along_what_waits() {
    let (mut daemon, path) = throttled(",max-connections=1");
    drop(write_twice(&daemon));
    // The only slot: this waits until it is free.
    let mut next = daemon.session("disk");
    assert_eq!(next.read(4096, 4096), vec![0; 4096]);
    // Now the write would go, if it was still there.
    daemon.qmp.ok(
        "qom-set",
        json!({ "path": "g", "property": "limits", "value": {} }),
    );
    next.write(8192, &[3; 4096]);
    assert_eq!(next.read(4096, 4096), vec![0; 4096]);
    next.disconnect().expect("a goodbye closes the connection");
    daemon.qmp.quit();
    daemon.expect_clean_exit();
    let disk = std::fs::read(path).expect("the disk can be read");
    assert_eq!((disk[0], disk[4096], disk[8192]), (1, 0, 3));
}

#[test]
fn a_client_that_leaves_a_disk_that_does_not_answer_gives_its_slot_back() {
    let mut daemon = daemon()
        .nbd_unix_with(",max-connections=1")
        .option("--x-millpond-shutdown-grace", "1")
        .blockdev(json!({ "driver": "null-co", "node-name": "disk", "latency-ns": HOUR_NS }))
        .export("disk")
        .start();
    for _ in 0..5 {
        let mut session = daemon.session("disk").pipelined();
        // So many that no more is received.
        for _ in 0..200 {
            session.submit(&Request::read(0, 4096)).expect("the read is sent");
        }
        drop(session);
    }
    drop(daemon.session("disk"));
    daemon.qmp.quit();
    assert!(!daemon.wait().success(), "the disk never answered");
}

#[test]
fn what_waits_in_a_throttle_group_does_not_hold_up_the_removal_of_an_export_or_the_end() {
    let (mut daemon, _) = throttled("");
    let begun = Instant::now();
    let session = write_twice(&daemon);
    daemon
        .qmp
        .ok("block-export-del", json!({ "id": "exp-disk", "mode": "hard" }));
    daemon.qmp.wait_event("BLOCK_EXPORT_DELETED");
    drop(session);
    daemon.qmp.ok(
        "block-export-add",
        json!({ "type": "nbd", "id": "again", "node-name": "disk", "name": "disk", "writable": true }),
    );
    let mut session = daemon.session("disk").pipelined();
    begin(&mut session, &Request::write(4096, vec![3; 4096]));
    daemon.quit();
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

#[test]
fn the_end_says_what_it_waits_for_and_a_second_signal_does_not_wait() {
    let mut daemon = daemon()
        .nbd_unix()
        .blockdev(json!({ "driver": "null-co", "node-name": "dead", "latency-ns": HOUR_NS }))
        .blockdev(json!({ "driver": "raw", "node-name": "disk", "file": "dead" }))
        .export("disk")
        .start();
    let mut session = daemon.session("disk").pipelined();
    begin(&mut session, &Request::read(4096, 512));
    let begun = Instant::now();
    daemon.signal(Signal::TERM);
    let what = "node 'disk', a read of 512 bytes at 4096 that has stood at 'dead' for";
    while !daemon.log().contains(what) {
        assert!(begun.elapsed() < Duration::from_secs(10), "{}", daemon.log());
        daemon.assert_running();
        std::thread::sleep(Duration::from_millis(20));
    }
    daemon.signal(Signal::INT);
    assert_eq!(daemon.wait().code(), Some(1));
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    let log = daemon.log();
    assert!(log.contains("Ended at once by a second signal"), "{log}");
}

#[test]
fn a_limit_for_files_sizes_fails_the_one_request() {
    let builder = daemon().nbd_unix();
    let file = |node: &str, aio: &str| {
        let path = builder.dir().join(node);
        File::create(&path)
            .and_then(|file| file.set_len(1 << 20))
            .expect("a disk can be made");
        json!({ "driver": "file", "node-name": node, "filename": path, "aio": aio })
    };
    let nodes = [
        file("ring", "io_uring"),
        file("pool", "threads"),
        file("free", "threads"),
    ];
    let builder = nodes.into_iter().fold(builder, Builder::blockdev);
    let mut daemon = builder.export("ring").export("pool").start();
    let pid = Pid::from_raw(i32::try_from(daemon.pid()).expect("a pid")).expect("a pid");
    let limit = Rlimit {
        current: Some(512 << 10),
        maximum: Some(512 << 10),
    };
    prlimit(Some(pid), Resource::Fsize, limit).expect("the daemon can be limited");
    for node in ["ring", "pool"] {
        let mut session = daemon.session(node);
        let beyond = Request::write(768 << 10, vec![1; 4096]);
        assert_eq!(session.refused(&beyond), ENOSPC, "{node}");
        session.write(0, &[2; 4096]);
        assert_eq!(session.read(0, 8192)[4095..4097], [2, 0]);
    }
    let grow = json!({ "node-name": "free", "size": 2 << 20 });
    let refused = daemon.qmp.refused("block_resize", grow);
    assert!(refused.desc.contains("File too large"), "{}", refused.desc);
    daemon.quit();
}

/// NBD's error for a disk that is full.
const ENOSPC: u32 = 28;

/// What came of a program that may have so many descriptors.
fn with_descriptors(count: u32, arguments: &[&str]) -> Output {
    Command::new("sh")
        .args(["-c", "ulimit -n \"$0\" && exec \"$@\"", &count.to_string()])
        .arg(millpond())
        .args(arguments)
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .output()
        .expect("a shell can be run")
}

#[test]
fn too_few_descriptors_are_an_error_and_no_panic() {
    let dir = scratch();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let image = path("disk.raw");
    std::fs::write(&image, [0; 4096]).expect("an image can be written");
    let (nowhere, socket) = (path("none/sock"), path("qmp.sock"));
    let chardev = format!("socket,id=c,path={socket},server=on,wait=off");
    let blockdev = format!("file,node-name=n,filename={image}");
    // Each ends with an error, however many descriptors there are.
    let ways: [&[&str]; 4] = [
        &[&image, "--format", "raw", "--socket", &nowhere],
        &[
            "serve",
            "--object",
            "iothread,id=t",
            "--blockdev",
            &blockdev,
            "--chardev",
            &chardev,
            "--monitor",
            "c",
            "--export",
            "nbd,id=e,node-name=n",
        ],
        &[
            "serve",
            "--daemonize",
            "--blockdev",
            &blockdev,
            "--export",
            "nbd,id=e,node-name=n",
        ],
        &["flight", &image],
    ];
    // With fewer the program's own libraries cannot be loaded.
    for count in (4..=20).chain([24, 32]) {
        for arguments in ways {
            let output = with_descriptors(count, arguments);
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{count} {arguments:?}: {said}");
            assert!(
                !said.is_empty() && !said.contains("panicked"),
                "{count} {arguments:?}: {said}"
            );
        }
        for arguments in [&["--help"][..], &["serve", "--version"]] {
            let output = with_descriptors(count, arguments);
            assert!(output.status.success(), "{count} {arguments:?}");
        }
    }
}

#[test]
fn a_ring_that_there_is_no_room_for_is_replaced_by_threads() {
    for error in ["EPERM", "ENOMEM", "EMFILE", "ENFILE"] {
        let inject = format!("inject=io_uring_setup:error={error}");
        let output = Command::new("strace")
            .args([
                "-f",
                "-qq",
                "-o",
                "/dev/null",
                "-e",
                "trace=io_uring_setup",
                "-e",
                &inject,
            ])
            .arg(millpond())
            .args([
                "serve",
                "--blockdev",
                "null-co,node-name=n",
                "--export",
                "nbd,id=e,node-name=n",
            ])
            .output()
            .unwrap_or_else(|error| panic!("cannot run strace: {error}{}", hint("strace")));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("using epoll and threads"), "{error}: {said}");
        assert!(
            said.contains("NBD server not running"),
            "it started: {error}: {said}"
        );
    }
}
