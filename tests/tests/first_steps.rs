//! What a person meets first: help, texts for what is wrong, and the small QMP client.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use millpond_tests::daemon::{Daemon, daemon, monitor_path, scratch, wait_for};
use millpond_tests::image;
use millpond_tests::program::{millpond, oracle};
use millpond_tests::qmp::Qmp;
use serde_json::{Value, json};

fn run(args: &[&str]) -> Output {
    let mut command = Command::new("timeout");
    command.arg("30").arg(millpond()).args(args).stdin(Stdio::null());
    command.output().expect("it runs")
}

#[track_caller]
fn succeeds(args: &[&str]) -> String {
    let output = run(args);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {}: {said}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[track_caller]
fn refused(args: &[&str]) -> String {
    let output = run(args);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
    said
}

/// The path of a second monitor of a daemon that has two; nobody is connected to it.
fn free_monitor(daemon: &Daemon) -> String {
    monitor_path(daemon.dir(), 1).display().to_string()
}

fn client_talks_to(mut daemon: Daemon) {
    let monitor = free_monitor(&daemon);
    let ask = |args: &[&str]| succeeds(&[&["qmp", &monitor], args].concat());
    let json = |text: String| -> Value { serde_json::from_str(&text).expect("JSON") };
    assert_eq!(json(ask(&["query-jobs"])), json!([]));
    let added = ask(&[
        "blockdev-add",
        "driver=raw",
        "node-name=disk",
        "file.driver=null-co",
        "file.size=65536",
        "file.read-zeroes=true",
    ]);
    assert_eq!(json(added), json!({}));
    let nodes = json(ask(&["query-named-block-nodes", "flat=true"]));
    assert_eq!(nodes.as_array().expect("a list").len(), 2);
    assert_eq!(
        json(ask(&[
            "{'execute': 'blockdev-del', 'arguments': {'node-name': 'disk'}}"
        ])),
        json!({})
    );
    let said = refused(&["qmp", &monitor, "blockdev-del", "node-name=disk"]);
    assert_eq!(
        said,
        "millpond: blockdev-del: Failed to find node with node-name='disk'\n"
    );
    let said = refused(&["qmp", &monitor, "no-such-command"]);
    assert!(said.contains("CommandNotFound"), "{said}");
    // Events are printed from the moment the client is there until the daemon ends.
    let mut events = Command::new(millpond())
        .args(["qmp", "--events", &monitor, "query-jobs"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it runs");
    let mut lines = BufReader::new(events.stdout.take().expect("a pipe")).lines();
    assert_eq!(lines.next().expect("a line").expect("text"), "[]");
    let options = json!({ "driver": "file", "filename": daemon.path("made"), "size": 512 });
    daemon
        .qmp
        .ok("blockdev-create", json!({ "job-id": "make", "options": options }));
    let event = lines.next().expect("a line").expect("text");
    let event: Value = serde_json::from_str(&event).expect("JSON");
    assert_eq!(event["event"], "JOB_STATUS_CHANGE");
    assert_eq!(event["data"], json!({ "status": "created", "id": "make" }));
    daemon.quit();
    assert!(wait_for(&mut events).expect("it ends with the daemon").success());
}

#[test]
fn the_client_talks_to_millpond() {
    client_talks_to(daemon().monitors(2).start());
}

#[test]
fn the_client_talks_to_qemus_daemon() {
    client_talks_to(daemon().program(oracle()).monitors(2).start());
}

#[test]
fn the_client_says_what_it_cannot_reach() {
    let dir = scratch();
    let nothing = dir.path().join("nothing").display().to_string();
    let said = refused(&["qmp", &nothing, "query-jobs"]);
    assert!(
        said.contains("no daemon can be reached at") && said.contains(&nothing),
        "{said}"
    );
    let daemon = daemon().nbd_unix().start();
    let said = refused(&["qmp", &daemon.path("nbd.sock"), "query-jobs"]);
    assert!(said.contains("is not a QMP monitor"), "{said}");
    // The one monitor is taken by this test.
    let taken = monitor_path(daemon.dir(), 0).display().to_string();
    let said = refused(&["qmp", "--wait", "0.2", &taken, "query-jobs"]);
    assert!(said.contains("another client may be connected"), "{said}");
    daemon.quit();
    for args in [&["a"][..], &["=1"], &["a=1", "a=2"]] {
        let said = refused(&[&["qmp", &nothing, "x"], args].concat());
        assert!(said.contains("KEY=VALUE") || said.contains("twice"), "{said}");
    }
}

#[test]
fn the_client_waits_for_a_daemon_that_starts() {
    let dir = scratch();
    let socket = dir.path().join("qmp").display().to_string();
    let mut client = Command::new(millpond())
        .args(["qmp", "--wait", "30", &socket, "quit"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("it runs");
    let chardev = format!("socket,id=c,path={socket},server=on,wait=off");
    succeeds(&["serve", "--chardev", &chardev, "--monitor", "c"]);
    assert!(wait_for(&mut client).expect("it ends").success());
}

#[test]
fn help_names_everything_and_versions_have_one_text() {
    let help = succeeds(&["help"]);
    for name in ["serve", "qmp", "flight", "--create", "trace", "drivers"] {
        assert!(help.contains(name), "{name}: {help}");
    }
    for (topic, text) in [
        ("serve", "--blockdev"),
        ("qmp", "KEY=VALUE"),
        ("flight", "record"),
        ("trace", "millpond_engine::node"),
        ("drivers", "qcow2"),
    ] {
        let help = succeeds(&["help", topic]);
        assert!(help.contains(text), "{topic}: {help}");
    }
    assert!(succeeds(&["flight", "--help"]).contains("SIGUSR1"));
    let version = concat!("millpond version ", env!("CARGO_PKG_VERSION"), "\n");
    for args in [
        &["--version"][..],
        &["-V"],
        &["serve", "--version"],
        &["qmp", "-V"],
        &["flight", "-V"],
    ] {
        assert_eq!(succeeds(args), version, "{args:?}");
    }
    let said = refused(&["sreve", "--blockdev", "null-co,node-name=a"]);
    assert!(said.contains("did you mean 'serve'"), "{said}");
    // What QEMU's daemon refuses is answered: which drivers and exports there are, and what they take.
    assert!(succeeds(&["serve", "--blockdev", "help"]).contains("\n  qcow2\n"));
    let options = succeeds(&["serve", "--blockdev", "qcow2,help"]);
    assert!(options.contains("lazy-refcounts=<bool (on/off)>") && options.contains("(required)"));
    let kinds = "Export types:\n  nbd\n  vhost-user-blk\n  fuse\n  vduse-blk\n";
    assert_eq!(succeeds(&["serve", "--export", "help"]), kinds);
    assert!(succeeds(&["serve", "--export", "nbd,help"]).contains("allocation-depth"));
}

#[test]
fn images_that_cannot_be_served_are_told_apart() {
    let dir = scratch();
    let path = |name: &str| dir.path().join(name).display().to_string();
    for (format, name) in [
        ("vmdk", "VMDK"),
        ("vhdx", "VHDX"),
        ("vpc", "VHD"),
        ("qed", "QED"),
        ("qcow", "qcow version 1"),
        ("parallels", "Parallels"),
    ] {
        let image = path(format);
        image::create(Path::new(&image), format, "", 1 << 20);
        let held = fs::read(&image).expect("it is there");
        for more in [&[][..], &["--read-only"]] {
            let said = refused(&[&[image.as_str(), "--socket", &path("s")], more].concat());
            assert!(
                said.contains(&format!("looks like {name}, which is not supported")),
                "{format}: {said}"
            );
        }
        assert_eq!(fs::read(&image).expect("it is there"), held);
    }
    let said = refused(&[&path("x.vmdk"), "--create", "1M"]);
    assert!(said.contains("VMDK, which cannot be created"), "{said}");
    let said = refused(&[&path("x.raw"), "--create", "7E"]);
    assert!(
        said.contains("x.raw cannot be created with 7340032 TiB"),
        "{said}"
    );
    let said = refused(&[&path("x.raw"), "--create", "9E"]);
    assert!(said.contains("too large"), "{said}");
    let image = path("locked.qcow2");
    image::create(Path::new(&image), "qcow2", "", 1 << 20);
    let (first, _) = serving(&[&image, "--socket", &path("first")]);
    let said = refused(&[&image, "--socket", &path("second")]);
    assert!(
        said.contains("Failed to get \"write\" lock")
            && said.contains(&format!("Is another process using the image [{image}]?")),
        "{said}"
    );
    end(first);
}

/// A plain `millpond` that serves, and the URI that it prints.
fn serving(args: &[&str]) -> (Child, String) {
    let mut child = Command::new(millpond())
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it runs");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let uri = lines
        .by_ref()
        .map(|line| line.expect("text"))
        .find(|line| line.trim_start().starts_with("nbd"))
        .expect("it prints the URI");
    (child, uri.trim().to_owned())
}

#[track_caller]
fn end(mut child: Child) {
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it runs");
    assert!(wait_for(&mut child).expect("it ends").success());
}

#[test]
fn a_port_that_the_system_chooses_is_printed() {
    let dir = scratch();
    let image = dir.path().join("disk.qcow2").display().to_string();
    image::create(Path::new(&image), "qcow2", "", 1 << 20);
    let (child, uri) = serving(&[&image, "--port", "0"]);
    assert!(!uri.contains(":0/"), "{uri}");
    let size = millpond_tests::tool::run("nbdinfo", &["--size", &uri]);
    assert_eq!(size.trim(), "1048576");
    end(child);
}

#[test]
fn the_snapshot_that_the_greeting_shows_works() {
    let dir = scratch();
    let path = |name: &str| dir.path().join(name).display().to_string();
    image::create(Path::new(&path("disk.qcow2")), "qcow2", "", 1 << 20);
    let mut child = Command::new(millpond())
        .args([&path("disk.qcow2"), "--socket", &path("s"), "--qmp", &path("qmp")])
        .current_dir(dir.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it runs");
    let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let lines: Vec<String> = lines
        .map(|line| line.expect("text"))
        .take_while(|line| !line.starts_with("Ctrl-C"))
        .collect();
    let commands: Vec<&str> = lines
        .iter()
        .map(|line| line.trim())
        .filter(|line| line.starts_with("qemu-img create") || line.starts_with("millpond qmp"))
        .collect();
    assert_eq!(commands.len(), 3, "{lines:?}");
    let binary = millpond().display().to_string();
    let script = commands
        .join(" && ")
        .replace("millpond qmp", &format!("{binary} qmp"));
    let output = Command::new("bash")
        .args(["-c", &script])
        .current_dir(dir.path())
        .output()
        .expect("bash runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let mut qmp = Qmp::connect(Path::new(&path("qmp")), || Ok(())).expect("a monitor");
    let exports = qmp.ok("query-block-exports", json!({}));
    assert_eq!(exports[0]["node-name"], "overlay");
    qmp.quit();
    assert!(wait_for(&mut child).expect("it ends").success());
}

#[test]
fn filters_are_read_from_files_and_the_log_goes_to_one() {
    let dir = scratch();
    let path = |name: &str| dir.path().join(name).display().to_string();
    fs::write(path("events"), "# everything of the graph\nmillpond=trace\n").expect("a file can be made");
    fs::write(path("log"), "kept\n").expect("a file can be made");
    let filter = format!("events={},file={}", path("events"), path("log"));
    let daemon = daemon()
        .option("-T", filter)
        .blockdev(json!({ "driver": "null-co", "node-name": "traced", "size": 512 }))
        .start();
    daemon.quit();
    let log = fs::read_to_string(path("log")).expect("it is there");
    assert!(log.starts_with("kept\n") && log.len() > 100, "{log}");
    // A plain daemon takes the same.
    let said = refused(&[&path("absent"), "-T", "bar=1"]);
    assert_eq!(said, "millpond: -T bar=1: Invalid parameter 'bar'\n");
}
