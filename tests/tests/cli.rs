//! The command line, as programs that start a storage daemon use it, and what a person meets.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use millpond_tests::PATIENCE;
use millpond_tests::daemon::{Daemon, daemon, scratch, unused_loopback, wait_for};
use millpond_tests::image;
use millpond_tests::nbd::{Address, Connect};
use millpond_tests::program::under_test;
use millpond_tests::qmp::Qmp;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::{Value, json};

/// Runs the daemon until it returns: to its end, or to the end of `--daemonize`.
fn run(args: &[&str]) -> Output {
    let mut child = under_test()
        .command()
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the daemon can be run");
    wait_for(&mut child).unwrap_or_else(|| panic!("{args:?} did not return"));
    child.wait_with_output().expect("it has ended")
}

#[track_caller]
fn run_ok(args: &[&str]) -> String {
    let output = run(args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {}: {stderr}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs arguments that must be refused with status 1, and returns what was said on standard error.
#[track_caller]
fn run_refused(args: &[&str]) -> String {
    let output = run(args);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{args:?}: {stderr}");
    stderr
}

/// A daemon in the foreground; killed when dropped, if it still runs.
struct Foreground(Child);

impl Foreground {
    #[track_caller]
    fn start(command: &mut Command) -> Foreground {
        Foreground(command.spawn().expect("the daemon can be run"))
    }

    #[track_caller]
    fn expect_clean_exit(&mut self) {
        let status = wait_for(&mut self.0).expect("the daemon ends when it is asked to");
        assert!(status.success(), "{status}");
    }
}

impl Drop for Foreground {
    fn drop(&mut self) {
        // Both fail only when it has already ended, as it should have.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn connect(path: &Path) -> Qmp {
    Qmp::connect(path, || Ok(())).expect("a monitor")
}

/// The process that a pidfile names; killed when dropped, if it still runs.
struct Daemonized(Pid);

impl Daemonized {
    fn of(pidfile: &Path) -> Daemonized {
        let text = fs::read_to_string(pidfile).expect("the pidfile exists once --daemonize has returned");
        let pid: i32 = text.trim().parse().expect("a pidfile holds a number");
        Daemonized(Pid::from_raw(pid).expect("a process id"))
    }

    /// Waits until the process is gone. It is no child of ours, so this asks again every few milliseconds.
    #[track_caller]
    fn wait_gone(&self) {
        let deadline = Instant::now() + PATIENCE;
        while test_kill_process(self.0).is_ok() {
            assert!(Instant::now() < deadline, "the daemon does not end");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Daemonized {
    fn drop(&mut self) {
        // It fails when the process has already ended, as it should have.
        let _ = kill_process(self.0, Signal::KILL);
    }
}

#[test]
fn proxmox_starts_it_daemonized_with_a_control_monitor() {
    let dir = scratch();
    let (socket, pidfile) = (dir.path().join("qmp.sock"), dir.path().join("qsd.pid"));
    let chardev = format!("socket,id=qmp,path={},server=on,wait=off", socket.display());
    run_ok(&[
        "--daemonize",
        "--chardev",
        &chardev,
        "--monitor",
        "chardev=qmp,mode=control",
        "--pidfile",
        &pidfile.display().to_string(),
    ]);
    let process = Daemonized::of(&pidfile);
    let mut qmp = connect(&socket);
    let image = dir.path().join("state.qcow2");
    image::create(&image, "qcow2", "", 4 << 20);
    qmp.ok(
        "blockdev-add",
        json!({ "driver": "qcow2", "node-name": "state", "file": { "driver": "file", "filename": image } }),
    );
    let nodes = qmp.ok("query-named-block-nodes", json!({}));
    assert!(
        nodes
            .as_array()
            .expect("a list")
            .iter()
            .any(|node| node["node-name"] == "state")
    );
    assert_eq!(qmp.ok("query-block-jobs", json!({})), json!([]));
    qmp.ok("blockdev-del", json!({ "node-name": "state" }));
    qmp.quit();
    process.wait_gone();
    assert!(!pidfile.exists(), "the pidfile is removed at the end");
    image::assert_clean(&image);
}

#[test]
fn kubesan_keeps_it_beside_a_pod_and_connects_once_per_command() {
    let dir = scratch();
    let socket = dir.path().join("qmp.sock");
    let address = unused_loopback();
    let mut command = under_test().command();
    command
        .arg("--chardev")
        .arg(format!(
            "socket,id=qmp-sock,path={},server=on,wait=off",
            socket.display()
        ))
        .args(["--monitor", "chardev=qmp-sock", "--nbd-server"])
        .arg(format!(
            "addr.type=inet,addr.host={},addr.port={},max-connections=0",
            address.ip(),
            address.port()
        ))
        .stdin(Stdio::null());
    let mut running = Foreground::start(&mut command);
    let image = dir.path().join("disk.raw");
    image::create(&image, "raw", "", 1 << 20);
    let file =
        json!({ "driver": "file", "node-name": "volume", "filename": image, "cache": { "direct": false } });
    let export = json!({ "type": "nbd", "id": "volume", "node-name": "volume", "writable": true });
    let ask = |command: &str, arguments: Value| connect(&socket).execute(command, arguments);
    ask("blockdev-add", file.clone()).expect("a node");
    // These texts are what the program looks for.
    let error = ask("blockdev-add", file).expect_err("the name is taken");
    assert!(
        error.desc.contains("Duplicate nodes with node-name"),
        "{}",
        error.desc
    );
    ask("block-export-add", export.clone()).expect("an export");
    let error = ask("block-export-add", export).expect_err("the id is taken");
    assert!(error.desc.contains(" is already in use"), "{}", error.desc);
    let mut session = Connect::default().open(&Address::Tcp(address), "volume");
    session.write(0, &[1; 512]);
    let exports = ask("query-block-exports", json!({})).expect("a list");
    assert_eq!(exports[0]["id"], "volume");
    ask("block-export-del", json!({ "id": "volume", "mode": "hard" })).expect("an export to delete");
    session.stream().wait_closed().expect("the session is closed");
    // A program that keeps no monitor open gets no event, so it asks until the export has gone.
    let deadline = Instant::now() + PATIENCE;
    while ask("query-block-exports", json!({})).expect("a list") != json!([]) {
        assert!(Instant::now() < deadline, "the export does not go");
    }
    let error = ask("block-export-del", json!({ "id": "volume" })).expect_err("it is gone");
    assert!(error.desc.contains(" is not found"), "{}", error.desc);
    let error = ask("blockdev-del", json!({ "node-name": "nothing" })).expect_err("there is none");
    assert!(
        error.desc.contains("Failed to find node with node-name"),
        "{}",
        error.desc
    );
    connect(&socket).quit();
    running.expect_clean_exit();
}

#[test]
fn subprovisioner_gives_everything_on_the_command_line_and_ends_it_by_signal() {
    let dir = scratch();
    let path = |name: &str| dir.path().join(name).display().to_string();
    image::create(&dir.path().join("disk.qcow2"), "qcow2", "", 4 << 20);
    let args = |direct: &str| {
        vec![
            "--blockdev".to_owned(),
            format!(
                "driver=file,node-name=file,filename={},cache.direct={direct}",
                path("disk.qcow2")
            ),
            "--blockdev".into(),
            "driver=qcow2,node-name=qcow2,file=file".into(),
            "--nbd-server".into(),
            format!("addr.type=unix,addr.path={}", path("nbd.sock")),
            "--export".into(),
            "type=nbd,id=export,node-name=qcow2,name=disk,writable=on".into(),
            "--daemonize".into(),
            "--pidfile".into(),
            path("qsd.pid"),
        ]
    };
    // Not every file system can do without the page cache; a refusal is seen by its status and tried again without.
    let direct = args("on");
    if !run(&direct.iter().map(String::as_str).collect::<Vec<_>>())
        .status
        .success()
    {
        let buffered = args("off");
        run_ok(&buffered.iter().map(String::as_str).collect::<Vec<_>>());
    }
    let process = Daemonized::of(&dir.path().join("qsd.pid"));
    let mut session = Connect::default().open(&Address::Unix(dir.path().join("nbd.sock")), "disk");
    session.write(1 << 20, &[7; 65536]);
    kill_process(process.0, Signal::TERM).expect("it runs");
    process.wait_gone();
    assert!(
        !dir.path().join("qsd.pid").exists(),
        "the pidfile is removed at the end"
    );
    image::assert_clean(&dir.path().join("disk.qcow2"));
    let read = ["read -P 7 1M 64k"];
    millpond_tests::tool::qemu_io(&["-f", "qcow2", &path("disk.qcow2")], &read);
}

#[test]
fn csi_qsd_sends_single_quoted_strings() {
    let mut daemon = daemon().start();
    daemon
        .qmp
        .send_raw("{'execute': 'query-version', 'arguments': {}}\n");
    let version = daemon.qmp.answer().expect("an answer").expect("a version");
    assert!(version["qemu"]["major"].is_u64());
    // Several commands on one line, and one over several lines.
    daemon
        .qmp
        .send_raw("{'execute':'query-jobs','id':1} {'execute':\n\n'query-jobs' , 'id': \"2\"}\n");
    assert_eq!(daemon.qmp.answer().expect("an answer"), Ok(json!([])));
    assert_eq!(daemon.qmp.answer().expect("an answer"), Ok(json!([])));
}

#[test]
fn daemonize_reports_a_failing_option_by_its_status() {
    let dir = scratch();
    let pidfile = dir.path().join("qsd.pid");
    let said = run_refused(&[
        "--daemonize",
        "--pidfile",
        &pidfile.display().to_string(),
        "--blockdev",
        "driver=file,node-name=file,filename=/nonexistent/image",
    ]);
    assert!(
        said.contains("/nonexistent/image") && said.contains("No such file"),
        "{said}"
    );
    assert!(!pidfile.exists(), "a daemon that did not start leaves no pidfile");
}

#[test]
fn a_pidfile_in_use_is_refused() {
    let mut first = daemon();
    let pidfile = first.dir().join("qsd.pid").display().to_string();
    first = first.option("--pidfile", &pidfile);
    let first = first.start();
    let said = run_refused(&["--pidfile", &pidfile]);
    assert!(said.contains("PID file") || said.contains("pid file"), "{said}");
    first.quit();
    assert!(!Path::new(&pidfile).exists());
}

fn busy() -> Daemon {
    daemon()
        .nbd_unix()
        .blockdev(json!({ "driver": "null-co", "node-name": "disk", "size": 1 << 20, "read-zeroes": true }))
        .export("disk")
        .start()
}

#[test]
fn each_ending_signal_ends_it_cleanly_beside_a_client() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let mut daemon = busy();
        let mut session = daemon.session("disk");
        assert_eq!(session.read(0, 512), [0; 512]);
        daemon.signal(signal);
        daemon.expect_clean_exit();
        session.stream().wait_closed().expect("the session is closed");
    }
}

#[test]
fn options_are_processed_in_order() {
    let null = "driver=null-co,node-name=disk,size=1048576";
    let said = run_refused(&["--export", "nbd,id=disk,node-name=disk", "--blockdev", null]);
    assert!(said.contains("--export"), "the option is named: {said}");
    let said = run_refused(&["--blockdev", "raw,node-name=raw,file=disk", "--blockdev", null]);
    assert!(said.contains("disk"), "the missing node is named: {said}");
}

#[test]
fn blockdev_takes_an_implied_driver_dotted_keys_and_json() {
    let builder = daemon();
    let path = builder.dir().join("a,b.raw");
    fs::write(&path, [0; 4096]).expect("an image can be written");
    let doubled = path.display().to_string().replace(',', ",,");
    let mut daemon = builder
        .option("--blockdev", "null-co,node-name=implied,size=65536")
        .option(
            "--blockdev",
            format!("driver=raw,node-name=dotted,file.driver=file,file.filename={doubled}"),
        )
        .option(
            "--blockdev",
            "{'driver': 'raw', 'node-name': 'json', 'file': {'driver': 'null-co', 'size': 512}}",
        )
        .start();
    let nodes = daemon.qmp.ok("query-named-block-nodes", json!({}));
    let names: Vec<&str> = nodes
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|node| node["node-name"].as_str())
        .collect();
    for name in ["implied", "dotted", "json"] {
        assert!(names.contains(&name), "{name} in {names:?}");
    }
}

#[test]
fn nonsense_on_the_command_line_is_named() {
    for (args, expected) in [
        (&["--blockdev", "driver=nonsense,node-name=x"][..], "nonsense"),
        (
            &["--blockdev", "driver=null-co,node-name=x,size=1,colour=red"],
            "colour",
        ),
        (&["--blockdev", "driver=null-co,node-name=x,size=many"], "size"),
        (&["--blockdev", "{'driver': 'null-co', "], "--blockdev"),
        (&["--blockdev", "driver=raw,node-name=x"], "file"),
        (&["--export", "type=nonsense,id=x,node-name=y"], "nonsense"),
        (&["--export", "type=nbd,id=x,node-name=y"], "--export"),
        (&["--nbd-server", "addr.type=pigeon"], "pigeon"),
        (&["--monitor", "chardev=nothing"], "nothing"),
        (&["--object", "nonsense,id=x"], "nonsense"),
        (&["--object", "iothread"], "id"),
        (&["--chardev", "socket,id=x"], "--chardev"),
        (&["disk.qcow2"], "Unexpected argument"),
        (&["--nonsense"], "nonsense"),
    ] {
        let said = run_refused(args);
        assert!(said.contains(expected), "{args:?} should name {expected}: {said}");
    }
}

#[test]
fn help_and_version_are_printed() {
    for option in [
        "--blockdev",
        "--export",
        "--nbd-server",
        "--chardev",
        "--monitor",
        "--object",
        "--pidfile",
    ] {
        let help = run_ok(&["--help"]);
        assert!(help.contains(option), "--help tells of {option}");
    }
    assert!(run_ok(&["--version"]).contains("version") || !run_ok(&["-V"]).is_empty());
    assert!(run_ok(&["--object", "help"]).contains("iothread"));
    assert!(run_ok(&["--object", "iothread,help"]).contains("poll-max-ns"));
}

#[test]
fn a_monitor_on_standard_input_and_output() {
    let mut command = under_test().command();
    command
        .args(["--chardev", "stdio,id=stdio", "--monitor", "stdio"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut running = Foreground::start(&mut command);
    let mut input = running.0.stdin.take().expect("a pipe");
    let mut lines = BufReader::new(running.0.stdout.take().expect("a pipe")).lines();
    let mut next = || -> Value {
        let line = lines.next().expect("another line").expect("text");
        serde_json::from_str(&line).expect("JSON")
    };
    assert!(next()["QMP"].is_object());
    input
        .write_all(b"{'execute': 'qmp_capabilities'}{'execute': 'query-jobs'}{'execute': 'quit'}")
        .expect("it reads");
    assert_eq!(next()["return"], json!({}));
    assert_eq!(next()["return"], json!([]));
    assert_eq!(next()["return"], json!({}));
    running.expect_clean_exit();
}

#[test]
fn plain_millpond_makes_and_serves_an_image() {
    let dir = scratch();
    let image = dir.path().join("disk.qcow2");
    let mut command = Command::new(millpond_tests::program::millpond());
    command
        .arg(&image)
        .args(["--create", "64M"])
        // Another process may serve an image of the same name.
        .env("XDG_RUNTIME_DIR", dir.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut running = Foreground::start(&mut command);
    let mut lines = BufReader::new(running.0.stdout.take().expect("a pipe")).lines();
    let uri = lines.by_ref().map(|line| line.expect("text")).find_map(|line| {
        line.split_whitespace()
            .find(|word| word.starts_with("nbd"))
            .map(|word| word.trim_matches('\'').to_owned())
    });
    let uri = uri.expect("it prints the URI of what it serves");
    let info = millpond_tests::tool::run_json("nbdinfo", &["--json", &uri]);
    assert_eq!(info["exports"][0]["export-size"], 64 << 20);
    millpond_tests::tool::qemu_io(&["-f", "raw", &uri], &["write -P 9 1M 1M", "flush"]);
    kill_process(Pid::from_child(&running.0), Signal::INT).expect("it runs");
    running.expect_clean_exit();
    image::assert_clean(&image);
    millpond_tests::tool::qemu_io(
        &["-f", "qcow2", &image.display().to_string()],
        &["read -P 9 1M 1M"],
    );
}

/// Starts `millpond IMAGE` with these arguments; answers it with the URI that it prints.
fn serving(arguments: &[&str]) -> (Foreground, String) {
    let mut command = Command::new(millpond_tests::program::millpond());
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut running = Foreground::start(&mut command);
    let mut lines = BufReader::new(running.0.stdout.take().expect("a pipe")).lines();
    let uri = lines.by_ref().map(|line| line.expect("text")).find_map(|line| {
        line.split_whitespace()
            .find(|word| word.starts_with("nbd"))
            .map(|word| word.trim_matches('\'').to_owned())
    });
    (running, uri.expect("it prints the URI of what it serves"))
}

#[test]
fn plain_millpond_forgets_the_writes_to_a_snapshot() {
    let dir = scratch();
    let image = dir.path().join("disk");
    std::fs::write(&image, vec![1; 1 << 20]).expect("a file can be made");
    let (image, socket) = (
        image.display().to_string(),
        dir.path().join("s").display().to_string(),
    );
    let (mut running, uri) = serving(&[&image, "--snapshot", "--socket", &socket]);
    millpond_tests::tool::qemu_io(
        &["-f", "raw", &uri],
        &[
            "write -P 9 0 64k",
            "flush",
            "read -P 9 0 64k",
            "read -P 1 64k 64k",
        ],
    );
    kill_process(Pid::from_child(&running.0), Signal::INT).expect("it runs");
    running.expect_clean_exit();
    assert_eq!(std::fs::read(&image).expect("it is there"), vec![1; 1 << 20]);
}

#[test]
fn plain_millpond_takes_the_format_of_an_image_from_its_contents_or_asks() {
    let dir = scratch();
    let (raw, qcow2) = (dir.path().join("a:raw"), dir.path().join("b"));
    std::fs::write(&raw, vec![1; 1 << 20]).expect("a file can be made");
    image::create(&qcow2, "qcow2", "", 2 << 20);
    let mut command = Command::new(millpond_tests::program::millpond());
    let output = command.arg(&raw).output().expect("it runs");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && told.contains("--format raw"),
        "{told}"
    );
    let socket = dir.path().join("s").display().to_string();
    for (image, more, size) in [
        (&raw, &["--format", "raw"][..], 1 << 20),
        (&raw, &["--read-only"], 1 << 20),
        (&qcow2, &[], 2 << 20),
    ] {
        let image = image.display().to_string();
        let mut arguments = vec![image.as_str(), "--socket", &socket];
        arguments.extend(more);
        let (mut running, uri) = serving(&arguments);
        let info = millpond_tests::tool::run_json("nbdinfo", &["--json", &uri]);
        assert_eq!(info["exports"][0]["export-size"], size, "{image} {more:?}");
        assert_eq!(info["exports"][0]["is_read_only"], more == ["--read-only"]);
        kill_process(Pid::from_child(&running.0), Signal::INT).expect("it runs");
        running.expect_clean_exit();
    }
}
