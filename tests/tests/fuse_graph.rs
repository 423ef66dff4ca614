//! The graph changes under a FUSE export while its users work: each sees its own bytes, and no call is forgotten.
//!
//! `MILLPOND_ROUNDS` sets the number of rounds: 10,000 in a full run.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Command;

use millpond_tests::daemon::{Daemon, daemon_in, monitor_path, scratch};
use millpond_tests::fuse::{self, Mount, Users, is_mounted};
use millpond_tests::program::millpond;
use millpond_tests::qmp::Qmp;
use millpond_tests::workload::seeded;
use millpond_tests::{PATIENCE, image, tool};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 4 * MIB;

fn rounds(default: u32) -> u32 {
    let given = std::env::var("MILLPOND_ROUNDS").ok();
    given.and_then(|rounds| rounds.parse().ok()).unwrap_or(default)
}

/// A daemon with two iothreads, and a qcow2 image that is mounted.
fn mounted(folder: &Path) -> (Daemon, Mount) {
    mounted_with(folder, &json!({}))
}

/// The same, with more options of the export.
fn mounted_with(folder: &Path, more: &Value) -> (Daemon, Mount) {
    fuse::require();
    let builder = daemon_in(folder);
    let path = folder.join("image");
    image::create(&path, "qcow2", "", SIZE);
    let builder = builder
        .option("--object", "iothread,id=io0")
        .option("--object", "iothread,id=io1")
        .blockdev(image::file("file", &path));
    let mut daemon = builder.blockdev(image::over("qcow2", "disk", "file")).start();
    let more = image::with(json!({"writable": true}), more);
    let path = fuse::mount(&mut daemon, "disk", &more);
    (daemon, path)
}

/// Puts a new image over a node.
#[track_caller]
fn snapshot(qmp: &mut Qmp, node: &str, overlay: &str, path: &Path) {
    image::create(path, "qcow2", "", SIZE);
    let file = json!({"driver": "file", "filename": path});
    qmp.ok(
        "blockdev-add",
        json!({"driver": "qcow2", "node-name": overlay, "backing": null, "file": file}),
    );
    qmp.ok("blockdev-snapshot", json!({"node": node, "overlay": overlay}));
}

/// Ends a load, and checks the file against what its users know, also after it was mounted anew.
#[track_caller]
fn check(daemon: &mut Daemon, path: &Path, users: Users, node: &str) {
    let expected = users.finish();
    assert!(fs::read(path).expect("the export can be read") == expected);
    daemon.qmp.ok("block-export-del", json!({"id": "fuse"}));
    let path = fuse::mount(daemon, node, &json!({}));
    assert!(
        fs::read(path).expect("the export can be read") == expected,
        "it is lost once the export is closed"
    );
}

fn a_node_moves_between_iothreads_under_its_export() {
    let folder = scratch();
    let (mut daemon, path) = mounted(folder.path());
    let users = Users::start(&path, SIZE, 4, &mut seeded("fuse moves"));
    for round in 0..rounds(300) {
        let iothread = match round % 3 {
            0 => json!("io0"),
            1 => json!("io1"),
            _ => Value::Null,
        };
        let to = json!({"node-name": "disk", "iothread": iothread, "force": true});
        daemon.qmp.ok("x-blockdev-set-iothread", to);
        users.wait_for(4);
    }
    check(&mut daemon, &path, users, "disk");
    daemon.quit();
}

fn overlays_come_and_go_under_an_export() {
    let folder = scratch();
    change_overlays(mounted(folder.path()));
}

fn overlays_come_and_go_under_an_export_on_two_iothreads() {
    let folder = scratch();
    change_overlays(mounted_with(folder.path(), &json!({"iothread": ["io0", "io1"]})));
}

/// Puts overlays over a node and commits them, while it is in use.
fn change_overlays((mut daemon, path): (Daemon, Mount)) {
    let users = Users::start(&path, SIZE, 4, &mut seeded("fuse overlays"));
    let overlay = daemon.dir().join("overlay");
    for _ in 0..rounds(60) {
        snapshot(&mut daemon.qmp, "disk", "overlay", &overlay);
        users.wait_for(8);
        let commit = json!({"job-id": "commit", "device": "overlay"});
        daemon.qmp.ok("block-commit", commit);
        daemon.qmp.wait_event("BLOCK_JOB_READY");
        daemon.qmp.ok("job-complete", json!({"id": "commit"}));
        daemon.qmp.wait_event("BLOCK_JOB_COMPLETED");
        let exports = daemon.qmp.ok("query-block-exports", json!({}));
        assert_eq!(exports[0]["node-name"], "disk");
        daemon.qmp.ok("blockdev-del", json!({"node-name": "overlay"}));
        users.wait_for(8);
    }
    check(&mut daemon, &path, users, "disk");
    let image = daemon.path("image");
    daemon.quit();
    tool::run("qemu-img", &["check", "-q", &image]);
}

fn an_export_is_removed_under_load() {
    let folder = scratch();
    let (mut daemon, path) = mounted(folder.path());
    for _ in 0..20 {
        let mut load = Command::new("dd")
            .arg("if=/dev/zero")
            .arg(format!("of={}", path.display()))
            .args(["bs=16k", "count=100000", "conv=notrunc", "status=none"])
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("dd is there");
        let hard = json!({"id": "fuse", "mode": "hard"});
        daemon.qmp.ok("block-export-del", hard);
        daemon.qmp.wait_event("BLOCK_EXPORT_DELETED");
        assert!(!is_mounted(&path));
        load.wait().expect("it ends: nobody serves it");
        let again = fuse::export("fuse", "disk", &path, &json!({"writable": true}));
        daemon.qmp.ok("block-export-add", again);
    }
    daemon.quit();
    assert!(!is_mounted(&path));
}

/// The nodes that Proxmox gives a disk: a throttle filter over the format.
fn nodes(folder: &Path) -> [Value; 2] {
    let file = |name: &str| json!({"driver": "file", "filename": folder.join(name), "node-name": "file-tpm"});
    let format =
        json!({"driver": "qcow2", "node-name": "fmt-tpm", "discard": "unmap", "file": file("state.qcow2")});
    let throttle = json!({"driver": "throttle", "node-name": "drive-tpm", "throttle-group": "throttle-tpm",
        "file": "fmt-tpm"});
    [format, throttle]
}

/// What swtpm does with its state.
#[track_caller]
fn store_state(path: &Path, state: &str) {
    let script = "
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_TRUNC)
size = os.fstat(fd).st_size
memory = mmap.mmap(fd, size, mmap.MAP_SHARED)
memory[0:len(sys.argv[2])] = sys.argv[2].encode()
memory.flush()
memory.close()
os.fsync(fd)
";
    tool::run("python3", &["-c", script, &path.display().to_string(), state]);
}

#[track_caller]
fn assert_state(path: &Path, state: &str) {
    let bytes = fs::read(path).expect("the export can be read");
    assert_eq!(bytes.len() as u64, SIZE);
    assert!(bytes.starts_with(state.as_bytes()), "it is not {state}");
}

/// Runs a job that is kept until it is dismissed.
#[track_caller]
fn run_job(qmp: &mut Qmp, command: &str, mut arguments: Value, complete: bool) {
    let id = arguments["job-id"].clone();
    arguments["auto-dismiss"] = json!(false);
    qmp.ok(command, arguments);
    if complete {
        qmp.wait_event_where("BLOCK_JOB_READY", |job| job["device"] == id);
        qmp.ok("job-complete", json!({"id": id}));
    }
    let ended = qmp.wait_event_where("BLOCK_JOB_COMPLETED", |job| job["device"] == id);
    assert_eq!(ended.get("error"), None);
    qmp.ok("job-dismiss", json!({"id": id}));
}

/// A daemon in the background, killed on drop.
struct Background(OwnedFd);

impl Background {
    fn of(pidfile: &Path) -> Self {
        let text = fs::read_to_string(pidfile).expect("there is a file with the process's number");
        let number = text.trim().parse().ok().and_then(Pid::from_raw);
        let process = pidfd_open(number.expect("it is a number"), PidfdFlags::empty());
        Self(process.expect("the process is there"))
    }

    #[track_caller]
    fn wait(&self) {
        let limit = PATIENCE.try_into().expect("it is not long");
        let ended = poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&limit));
        assert_eq!(ended, Ok(1), "the daemon does not end");
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = pidfd_send_signal(&self.0, Signal::KILL);
    }
}

/// A daemon as Proxmox starts it, in the background.
fn start_as_proxmox(folder: &Path) -> Qmp {
    let socket = monitor_path(folder, 0);
    let status = Command::new(millpond())
        .args(["serve", "--daemonize", "--chardev"])
        .arg(format!(
            "socket,id=qmp,path={},server=on,wait=off",
            socket.display()
        ))
        .args(["--monitor", "chardev=qmp,mode=control", "--pidfile"])
        .arg(folder.join("pid"))
        .status();
    assert!(status.expect("the daemon can be started").success());
    Qmp::connect(&socket, || Ok(())).expect("the daemon has a monitor")
}

fn proxmoxs_sequence_works_from_its_start_to_its_end() {
    fuse::require();
    let folder = scratch();
    let folder = folder.path();
    image::create(&folder.join("state.qcow2"), "qcow2", "", SIZE);
    let mut qmp = start_as_proxmox(folder);
    let process = Background::of(&folder.join("pid"));
    let mountpoint = folder.join("tpm");
    fs::write(&mountpoint, "").expect("a file can be made");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    fs::set_permissions(&mountpoint, mode).expect("its mode can be set");
    let limits =
        json!({"qom-type": "throttle-group", "id": "throttle-tpm", "limits": {"bps-total": 1 << 30}});
    qmp.ok("object-add", limits);
    for node in nodes(folder) {
        qmp.ok("blockdev-add", node);
    }
    let more = json!({"writable": true, "growable": false, "allow-other": "off"});
    qmp.ok(
        "block-export-add",
        fuse::export("export-tpm", "drive-tpm", &mountpoint, &more),
    );
    store_state(&mountpoint, "state 1");
    assert!(
        qmp.ok("query-named-block-nodes", json!({}))
            .as_array()
            .is_some_and(|all| all.len() >= 3)
    );
    assert_eq!(qmp.ok("query-block-jobs", json!({})), json!([]));

    // A snapshot inside the image, and one outside.
    let inside = json!({"device": "drive-tpm", "name": "inside"});
    qmp.ok("blockdev-snapshot-internal-sync", inside);
    let overlay = folder.join("overlay.qcow2");
    snapshot(&mut qmp, "fmt-tpm", "snap-tpm", &overlay);
    store_state(&mountpoint, "state 2");
    assert_state(&mountpoint, "state 2");

    // The throttle node goes on over whatever is given to it, and the snapshot is committed below it.
    let [_, mut throttle] = nodes(folder);
    throttle["file"] = json!("snap-tpm");
    qmp.ok("blockdev-reopen", json!({"options": [throttle]}));
    run_job(
        &mut qmp,
        "block-commit",
        json!({"job-id": "commit", "device": "drive-tpm", "top-node": "snap-tpm", "base-node": "fmt-tpm"}),
        true,
    );
    qmp.ok("blockdev-del", json!({"node-name": "snap-tpm"}));
    assert_state(&mountpoint, "state 2");
    store_state(&mountpoint, "state 3");

    // Another overlay takes everything from below.
    snapshot(&mut qmp, "fmt-tpm", "top-tpm", &overlay);
    run_job(
        &mut qmp,
        "block-stream",
        json!({"job-id": "stream", "device": "top-tpm"}),
        false,
    );
    assert_state(&mountpoint, "state 3");
    store_state(&mountpoint, "state 4");

    // A mirror that is given up.
    qmp.ok(
        "blockdev-add",
        json!({"driver": "null-co", "node-name": "target", "size": SIZE}),
    );
    let mirror = json!({"job-id": "mirror", "device": "drive-tpm", "target": "target", "sync": "full"});
    qmp.ok("blockdev-mirror", mirror);
    qmp.wait_event("BLOCK_JOB_READY");
    qmp.ok("block-job-cancel", json!({"device": "mirror", "force": true}));
    qmp.wait_event("BLOCK_JOB_CANCELLED");
    assert_state(&mountpoint, "state 4");

    qmp.ok("block-export-del", json!({"id": "export-tpm"}));
    assert!(!is_mounted(&mountpoint));
    qmp.ok("blockdev-del", json!({"node-name": "drive-tpm"}));
    qmp.ok("object-del", json!({"id": "throttle-tpm"}));
    qmp.quit();
    process.wait();
    assert!(
        !folder.join("pid").exists(),
        "the file with the process's number is gone"
    );
}

millpond_tests::over_each_transport!(
    a_node_moves_between_iothreads_under_its_export,
    overlays_come_and_go_under_an_export,
    overlays_come_and_go_under_an_export_on_two_iothreads,
    an_export_is_removed_under_load,
    proxmoxs_sequence_works_from_its_start_to_its_end,
);
