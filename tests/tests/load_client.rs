//! `millpond-bench load`, as a person uses it: against a daemon and against nodes of its own process.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use millpond_tests::daemon::{Daemon, daemon, monitor_path, scratch, wait_for};
use millpond_tests::image;
use millpond_tests::nbd::Connect;
use millpond_tests::program;
use rustix::process::Signal;
use serde_json::{Value, json};

const SIZE: u64 = 8 << 20;
const ALL_KINDS: &str = "read:50,write:30,zero:8,trim:7,flush:5";

/// A load that has ended.
struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Ended {
    #[track_caller]
    fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{}", self.stderr);
        self.stdout
    }

    #[track_caller]
    fn json(self) -> Value {
        let text = self.ok();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    #[track_caller]
    fn refused(self) -> String {
        assert_eq!(self.code, Some(1), "{}", self.stdout);
        self.stderr
    }
}

fn start(target: &str, args: &[&str]) -> Child {
    Command::new(program::bench())
        .args(["load", target, "--warm-up", "0"])
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the load client can be run")
}

fn end(child: Child) -> Ended {
    let output = child.wait_with_output().expect("it ends");
    Ended {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

fn load(target: &str, args: &[&str]) -> Ended {
    end(start(target, args))
}

/// A daemon with an empty qcow2 disk.
fn qcow2() -> Daemon {
    let builder = daemon().monitors(2).nbd_unix();
    let path = builder.dir().join("disk.qcow2");
    image::create(&path, "qcow2", "", SIZE);
    builder
        .option("--object", "iothread,id=io")
        .blockdev(image::file("file", &path))
        .blockdev(image::over("qcow2", "disk", "file"))
        .export("disk")
        .start()
}

#[test]
fn every_byte_is_checked_while_snapshots_are_taken() {
    let mut daemon = qcow2();
    let plot = daemon.path("run.svg");
    for overlay in ["one", "two"] {
        let path = daemon.dir().join(format!("{overlay}.qcow2"));
        image::create(&path, "qcow2", "", SIZE);
        let file = format!("{overlay}-file");
        daemon.qmp.ok("blockdev-add", image::file(&file, &path));
        let mut options = image::over("qcow2", overlay, &file);
        options["backing"] = Value::Null;
        daemon.qmp.ok("blockdev-add", options);
    }
    let snapshot = |at: &str, node: &str, overlay: &str| {
        let arguments = json!({ "node": node, "overlay": overlay });
        format!(
            "{at}:{}",
            json!({ "execute": "blockdev-snapshot", "arguments": arguments })
        )
    };
    let (first, second) = (snapshot("0.3", "disk", "one"), snapshot("0.7", "one", "two"));
    let pid = daemon.pid().to_string();
    // A monitor serves one client, and the first is the test's own.
    let socket = monitor_path(daemon.dir(), 1).display().to_string();
    let report = load(
        &daemon.uri("disk"),
        &[
            "--mix",
            ALL_KINDS,
            "--sizes",
            "4k:4,512:1,64k:1",
            "--connections",
            "2",
            "--depth",
            "16",
            "--verify",
            "--structured",
            "--seconds",
            "1.2",
            "--format",
            "json",
            "--plot",
            &plot,
            "--pid",
            &pid,
            "--qmp",
            &socket,
            "--at",
            &first,
            "--at",
            &second,
        ],
    )
    .json();
    for kind in ["read", "write", "zero", "trim", "flush"] {
        assert!(
            report["kinds"][kind]["requests"].as_u64() > Some(0),
            "{kind}: {report:#}"
        );
    }
    assert!(report["verified"]["bytes"].as_u64() > report["verified"]["read-back-bytes"].as_u64());
    assert!(
        report["verified"]["read-back-bytes"].as_u64() > Some(SIZE / 4),
        "{}",
        report["verified"]
    );
    let marks = report["marks"].as_array().expect("a list");
    assert_eq!(marks.len(), 2);
    for mark in marks {
        assert_eq!(mark["label"], "blockdev-snapshot");
        assert!(mark["until"].as_f64() > mark["from"].as_f64());
        assert!(mark["longest-delay-us"].as_f64() > Some(0.0), "{mark}");
    }
    assert!(
        report["server"]["cpu-seconds"].as_f64() > Some(0.0),
        "{}",
        report["server"]
    );
    let picture = std::fs::read_to_string(&plot).expect("the plot was written");
    assert!(picture.starts_with("<svg"), "{}", &picture[..100]);
    assert_eq!(picture.matches("blockdev-snapshot").count(), 2);
}

#[test]
fn a_byte_that_somebody_else_writes_is_found() {
    let daemon = qcow2();
    let at = 5 * 4096 + 1234_u64;
    let args = [
        "--mix",
        "read,write",
        "--span",
        "64k",
        "--verify",
        "--seconds",
        "30",
    ];
    let mut child = start(&daemon.uri("disk"), &args);
    let mut session = Connect::default().open(&daemon.address(), "disk");
    // The client writes the place again and again, but reads it as often.
    while matches!(child.try_wait(), Ok(None)) {
        session.write(at, &[0xab]);
    }
    let said = end(child).refused();
    assert!(
        said.contains(&format!("verification failed at offset {at}: ")),
        "{said}"
    );
    assert!(said.contains(" (ab "), "{said}");
}

#[test]
fn a_stall_is_not_hidden_by_an_open_loop() {
    let daemon = daemon()
        .nbd_tcp()
        .blockdev(json!({ "driver": "null-co", "node-name": "disk", "size": SIZE }))
        .export("disk")
        .start();
    let args = [
        "--rate",
        "500",
        "--seconds",
        "3",
        "--format",
        "json",
        "--progress",
    ];
    let mut child = start(&daemon.uri("disk"), &args);
    let mut lines = BufReader::new(child.stderr.take().expect("it is piped")).lines();
    let first = lines.next().expect("a line each second").expect("it is text");
    assert!(first.contains("requests/s"), "{first}");
    daemon.signal(Signal::STOP);
    std::thread::sleep(Duration::from_millis(500));
    daemon.signal(Signal::CONT);
    lines.for_each(drop);
    let report = end(child).json();
    // A sixth of the requests was due while the daemon stood still. A closed loop would have had few of them in flight.
    assert!(
        report["all"]["latency-us"]["p90"].as_f64() > Some(50_000.0),
        "{}",
        report["all"]
    );
    assert!(
        report["all"]["latency-us"]["p50"].as_f64() < Some(50_000.0),
        "{}",
        report["all"]
    );
    let requests = report["all"]["requests"].as_u64().expect("a number");
    assert!((1400..=1502).contains(&requests), "{requests}");
}

#[test]
fn nodes_of_the_same_process_are_loaded_from_threads_and_from_their_iothread() {
    let dir = scratch();
    let path = dir.path().join("disk.qcow2");
    image::create(&path, "qcow2", "", SIZE);
    let target = format!("qcow2:{}", path.display());
    for more in [
        &["--connections", "2"][..],
        &["--home"],
        &["--home", "--rate", "2000"],
    ] {
        let args = [
            "--mix",
            ALL_KINDS,
            "--sizes",
            "4k,16k",
            "--verify",
            "--seconds",
            "0.4",
            "--format",
            "json",
        ];
        let report = load(&target, &[&args[..], more].concat()).json();
        assert!(
            report["kinds"]["write"]["requests"].as_u64() > Some(10),
            "{more:?}: {report:#}"
        );
        assert!(
            report["verified"]["read-back-bytes"].as_u64() > Some(0),
            "{more:?}"
        );
        assert!(report["client"]["cpu-seconds"].as_f64() > Some(0.0), "{more:?}");
        image::assert_clean(&path);
    }
}

#[test]
fn what_cannot_be_done_is_said_before_anything_is_sent() {
    let daemon = daemon()
        .nbd_unix()
        .blockdev(json!({ "driver": "null-co", "node-name": "disk", "size": 1 << 20 }))
        .export_read_only("disk")
        .start();
    let uri = daemon.uri("disk");
    let refused = |args: &[&str]| load(&uri, args).refused();
    assert!(refused(&["--mix", "write"]).contains("read-only"));
    assert!(refused(&["--sizes", "2M"]).contains("no room for requests of 2097152 bytes"));
    assert!(refused(&["--verify", "--sizes", "100"]).contains("multiples of 512"));
    let missing = load("nbd+unix:///x?socket=/nonexistent", &[]).refused();
    assert!(
        missing.contains("/nonexistent: No such file or directory"),
        "{missing}"
    );
    // Above the kernel's bound for process ids.
    assert!(refused(&["--pid", "8388608", "--seconds", "600"]).contains("process 8388608"));
    let unknown = load(&daemon.uri("other"), &[]).refused();
    assert!(unknown.contains("export \"other\""), "{unknown}");
}

#[test]
fn the_bare_responder_answers_on_both_engines() {
    let dir = scratch();
    for engine in ["ring", "plain"] {
        let socket = dir.path().join(engine);
        let mut responder = Command::new(program::bench())
            .args(["ceiling", "--engine", engine])
            .arg(&socket)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the responder can be run");
        let output = responder.stdout.take().expect("it is piped");
        let uri = BufReader::new(output)
            .lines()
            .next()
            .expect("a line")
            .expect("it is text");
        for more in [
            &["--depth", "128"][..],
            &["--structured", "--mix", ALL_KINDS, "--sizes", "4k,1M"],
        ] {
            let args = ["--connections", "3", "--seconds", "0.2", "--format", "csv"];
            let table = load(&uri, &[&args[..], more].concat()).ok();
            let all = table
                .lines()
                .find(|line| line.starts_with("all,"))
                .expect("a line for all");
            let requests: u64 = all
                .split(',')
                .nth(1)
                .and_then(|field| field.parse().ok())
                .expect("a number");
            // How many is a matter of the machine.
            assert!(requests > 0, "{engine}: {table}");
        }
        responder.kill().expect("it still runs");
        wait_for(&mut responder).expect("it can be reaped");
    }
}
