//! FUSE exports from their beginning to their end: what is refused, who may use them, and what ends them.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use millpond_tests::beside::same_answers;
use millpond_tests::daemon::{Daemon, daemon, daemon_in, scratch};
use millpond_tests::fuse::{self, Mount, export, is_mounted, mount, mountpoint};
use millpond_tests::program::{self, oracle};
use millpond_tests::{PATIENCE, image, tool};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

/// A daemon with a node `disk` over the file `image`.
fn start() -> Daemon {
    fuse::require();
    let builder = daemon();
    let path = builder.dir().join("image");
    image::create(&path, "raw", "", MIB);
    builder.blockdev(image::file("disk", &path)).start()
}

fn open(path: &Path) -> File {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    options.open(path).expect("an export can be opened")
}

fn exports(daemon: &mut Daemon) -> Value {
    daemon.qmp.ok("query-block-exports", json!({}))
}

#[test]
fn what_is_wrong_with_an_export_is_told_in_qemus_words() {
    fuse::require();
    let dir = scratch();
    let file = dir.path().join("file");
    File::create(&file).expect("a file can be made");
    let null = json!({"driver": "null-co", "node-name": "n", "size": MIB, "read-only": true});
    let add = |path: &Path, more: Value| ("block-export-add", export("e", "n", path, &more));
    same_answers(&[
        ("blockdev-add", null),
        add(&dir.path().join("nothing"), json!({})),
        add(dir.path(), json!({})),
        add(&file, json!({"allow-other": "maybe"})),
        add(&file, json!({"name": "n"})),
        add(&file, json!({"writable": true})),
        add(&file, json!({"growable": true})),
        add(&file, json!({"id": "1"})),
        add(&file, json!({})),
        add(&file, json!({})),
        add(&file, json!({"id": "f"})),
        ("query-block-exports", json!({})),
        ("block-export-del", json!({"id": "e"})),
        ("block-export-del", json!({"id": "e"})),
        ("query-block-exports", json!({})),
        (
            "block-export-add",
            json!({"type": "fuse", "id": "e", "node-name": "n"}),
        ),
    ]);
    assert!(!is_mounted(&file));
}

/// Removes an export whose file is open; what its users and the monitor see of that.
fn remove_while_open(mut daemon: Daemon) -> (Value, Option<i32>, Option<u64>) {
    let null = json!({"driver": "null-co", "node-name": "n", "size": MIB, "read-zeroes": true});
    daemon.qmp.ok("blockdev-add", null);
    let path = mount(&mut daemon, "n", &json!({"writable": true}));
    let file = open(&path);
    file.write_all_at(b"data", 0).expect("it is written");
    daemon.qmp.ok("block-export-del", json!({"id": "fuse"}));
    let gone = daemon.qmp.wait_event("BLOCK_EXPORT_DELETED");
    assert!(!is_mounted(&path));
    let error = file.read_at(&mut [0; 4], 0).expect_err("nobody serves it");
    daemon.qmp.ok("blockdev-del", json!({"node-name": "n"}));
    let length = std::fs::metadata(&path).map(|of| of.size()).ok();
    daemon.quit();
    (gone, error.raw_os_error(), length)
}

fn an_export_is_removed_while_its_file_is_open_as_with_qemu() {
    let theirs = fuse::as_qemu_has_it(|| remove_while_open(daemon().program(oracle()).start()));
    assert_eq!(remove_while_open(daemon().start()), theirs);
}

fn a_file_is_covered_once_by_whatever_name() {
    let mut daemon = start();
    let path = mount(&mut daemon, "disk", &json!({}));
    let link = daemon.dir().join("link");
    std::os::unix::fs::symlink(&path, &link).expect("a link can be made");
    for again in [&*path, &daemon.dir().join("./disk"), &link] {
        let refused = daemon
            .qmp
            .refused("block-export-add", export("again", "disk", again, &json!({})));
        let text = format!("There already is a FUSE export on '{}'", again.display());
        assert_eq!(refused.desc, text);
    }
    assert_eq!(exports(&mut daemon).as_array().map(Vec::len), Some(1));
    daemon.quit();
    assert!(!is_mounted(&path), "a daemon that ends unmounts");
}

fn an_export_that_its_users_unmount_is_removed() {
    let mut daemon = start();
    let path = mount(&mut daemon, "disk", &json!({"writable": true}));
    open(&path).write_all_at(b"kept", 512).expect("it is written");
    fuse::unmount(&path);
    let gone = daemon.qmp.wait_event("BLOCK_EXPORT_DELETED");
    assert_eq!(gone, json!({"id": "fuse"}));
    assert_eq!(exports(&mut daemon), json!([]));
    assert_eq!(fuse::length(&path), 0, "what the export covered is there again");
    // The file can be covered again, and shows what was written.
    let path = mount(&mut daemon, "disk", &json!({}));
    let mut bytes = [0; 4];
    File::open(&path)
        .and_then(|file| file.read_exact_at(&mut bytes, 512))
        .expect("it is read");
    assert_eq!(&bytes, b"kept");
    // An unmounted file that is open is served until it is closed.
    let file = File::open(&path).expect("an export can be opened");
    tool::run("umount", &[Path::new("--lazy"), &path]);
    file.read_exact_at(&mut bytes, 512).expect("it is read");
    assert_eq!(exports(&mut daemon).as_array().map(Vec::len), Some(1));
    drop(file);
    daemon.qmp.wait_event("BLOCK_EXPORT_DELETED");
    daemon.quit();
}

fn what_a_killed_daemon_has_left_is_unmounted_by_the_next() {
    let mut daemon = start();
    let path = mount(&mut daemon, "disk", &json!({"writable": true}));
    let dir = scratch();
    daemon.kill();
    let error = std::fs::metadata(&path).expect_err("nobody serves it");
    let gone = [libc::ENOTCONN, libc::ECONNABORTED];
    assert!(
        error.raw_os_error().is_some_and(|number| gone.contains(&number)),
        "{error}"
    );
    let null = json!({"driver": "null-co", "node-name": "n", "size": MIB, "read-zeroes": true});
    let next = daemon_in(dir.path()).blockdev(null);
    let option = format!("type=fuse,id=e,node-name=n,mountpoint={}", path.display());
    let mut next = next.option("--export", option).start();
    assert_eq!(fuse::length(&path), MIB);
    assert!(next.log().contains("dead FUSE server"), "the log says so");
    next.qmp.ok("block-export-del", json!({"id": "e"}));
    assert!(!is_mounted(&path));
    next.quit();
}

fn the_modes_of_files_hold_for_other_users() {
    let mut daemon = start();
    let as_nobody = |path: &Path| {
        let path = path.display().to_string();
        let read = Command::new("setpriv")
            .args([
                "--reuid=65534",
                "--regid=65534",
                "--clear-groups",
                "head",
                "-c1",
                &path,
            ])
            .output();
        read.expect("setpriv is there").status.success()
    };
    // Also the folder must let others through.
    let all = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(daemon.dir(), all).expect("the folder is ours");
    let path = mount(&mut daemon, "disk", &json!({"allow-other": "on"}));
    assert!(!as_nobody(&path), "a new export is its daemon's alone");
    let readable = std::fs::Permissions::from_mode(0o444);
    std::fs::set_permissions(&path, readable).expect("the mode can be changed");
    assert!(as_nobody(&path));
    daemon.qmp.ok("block-export-del", json!({"id": "fuse"}));
    let path = mount(&mut daemon, "disk", &json!({"allow-other": "off"}));
    assert!(!as_nobody(&path));
    let mounts = std::fs::read_to_string("/proc/self/mounts").expect("the kernel lists mounts");
    let of = |mounts: &str| {
        let path = path.display().to_string();
        let mut lines = mounts.lines();
        lines.find(|line| line.contains(&path)).map(str::to_owned)
    };
    assert!(!of(&mounts).expect("it is mounted").contains("allow_other"));
    daemon.quit();
}

fn a_change_of_the_nodes_length_is_seen_at_once() {
    let mut daemon = start();
    let path = mount(&mut daemon, "disk", &json!({"writable": true}));
    let file = open(&path);
    for size in [4 * MIB, MIB / 2, 2 * MIB] {
        let resize = json!({"node-name": "disk", "size": size});
        daemon.qmp.ok("block_resize", resize);
        assert_eq!(fuse::length(&path), size);
        file.write_all_at(b"at the end", size - 10)
            .expect("it is written");
    }
    daemon.quit();
}

fn the_length_changes_only_where_others_let_it() {
    let mut daemon = start();
    daemon.start_nbd_server();
    let path = mount(&mut daemon, "disk", &json!({"writable": true}));
    let nbd = json!({"type": "nbd", "id": "nbd", "node-name": "disk"});
    daemon.qmp.ok("block-export-add", nbd);
    let file = open(&path);
    let error = file
        .set_len(2 * MIB)
        .expect_err("clients of NBD were told the length");
    assert_eq!(error.raw_os_error(), Some(libc::EPERM));
    let growable = mountpoint(&daemon, "growable");
    let more = json!({"writable": true, "growable": true});
    let refused = daemon
        .qmp
        .refused("block-export-add", export("growable", "disk", &growable, &more));
    assert!(refused.desc.contains("permissions 'resize'"), "{}", refused.desc);
    daemon.qmp.ok("block-export-del", json!({"id": "nbd"}));
    file.set_len(2 * MIB).expect("nobody minds");
    assert_eq!(fuse::length(&path), 2 * MIB);
    // The permission was lent for that only.
    let nbd = json!({"type": "nbd", "id": "nbd", "node-name": "disk"});
    daemon.qmp.ok("block-export-add", nbd);
    daemon.quit();
}

/// What the bytes of a piece are: never zero.
fn filler(piece: u64) -> u8 {
    (piece % 255) as u8 + 1
}

fn writes_past_the_end_of_a_growable_export_lose_nothing() {
    let mut daemon = start();
    let path = mount(&mut daemon, "disk", &json!({"writable": true, "growable": true}));
    const PIECE: u64 = 4096;
    const PIECES: u64 = 256;
    thread::scope(|scope| {
        for lane in 0..8 {
            let path = &path;
            scope.spawn(move || {
                let file = open(path);
                for piece in (0..PIECES).filter(|piece| piece % 8 == lane) {
                    let bytes = [filler(piece); PIECE as usize];
                    file.write_all_at(&bytes, MIB + piece * PIECE)
                        .expect("it is written");
                }
            });
        }
    });
    let file = open(&path);
    assert_eq!(fuse::length(&path), MIB + PIECES * PIECE);
    let mut bytes = [0; PIECE as usize];
    for piece in 0..PIECES {
        file.read_exact_at(&mut bytes, MIB + piece * PIECE)
            .expect("it is read");
        assert!(bytes.iter().all(|&byte| byte == filler(piece)), "piece {piece}");
    }
    daemon.quit();
}

/// A daemon whose storage takes so long for everything, and a read of an export of it, which is under way.
#[track_caller]
fn reading(latency: Duration) -> (Daemon, Mount, JoinHandle<io::Result<usize>>) {
    fuse::require();
    let node = json!({"driver": "null-co", "node-name": "disk", "size": MIB, "read-zeroes": true,
        "latency-ns": latency.as_nanos() as u64});
    let mut daemon = daemon()
        .monitors(2)
        .option("--x-millpond-shutdown-grace", "1")
        .option("--object", "iothread,id=io")
        .blockdev(node)
        .start();
    let path = mount(&mut daemon, "disk", &json!({"writable": true, "iothread": "io"}));
    let file = open(&path);
    let mut requests = || {
        let iothreads = daemon.qmp.ok("x-millpond-query-iothreads", json!({}));
        let mut all = iothreads.as_array().expect("a list").iter();
        let ours = all.find(|iothread| iothread["id"] == "io");
        ours.and_then(|ours| ours["requests"].as_u64()).expect("it tells")
    };
    let before = requests();
    let read = thread::spawn(move || file.read_at(&mut [0; 4096], 0));
    while requests() == before {
        assert!(!read.is_finished(), "it takes long");
    }
    (daemon, path, read)
}

fn an_export_of_dead_storage_is_unmounted_and_the_log_names_what_it_waits_for() {
    let (mut daemon, path, read) = reading(Duration::from_secs(3600));
    let refused = daemon.qmp.refused("block-export-del", json!({"id": "fuse"}));
    assert_eq!(refused.desc, "export 'fuse' still in use");
    let hard = json!({"id": "fuse", "mode": "hard"});
    daemon.qmp.ok("block-export-del", hard);
    let deadline = Instant::now() + PATIENCE;
    while is_mounted(&path) {
        assert!(Instant::now() < deadline, "it is not unmounted");
    }
    assert_eq!(exports(&mut daemon)[0]["shutting-down"], true);
    daemon.wait_for_log("the removal of an export takes long");
    assert!(daemon.log().contains("a read of"), "{}", daemon.log());
    assert!(!read.is_finished());
    daemon.qmp.quit();
    assert!(!daemon.wait().success(), "not everything was closed");
    let end = read.join().expect("a call ends");
    end.expect_err("nobody serves it any more");
}

fn what_comes_in_a_drained_section_is_answered_behind_it() {
    let latency = Duration::from_secs(2);
    let (mut daemon, path, read) = reading(latency);
    let change = json!({"execute": "x-blockdev-set-iothread",
        "arguments": {"node-name": "disk", "iothread": null, "force": true}});
    let mut changing = daemon.monitor(1);
    changing.send_raw(&change.to_string());
    let (before, age) = loop {
        let before = Instant::now();
        let drains = daemon.qmp.ok("x-millpond-query-drains", json!({}));
        if let Some(age) = drains[0]["waiting-for"][0]["requests"][0]["age-ns"].as_u64() {
            break (before, Duration::from_nanos(age));
        }
        assert!(!read.is_finished(), "the section ended before it was seen");
    };
    assert_eq!(fuse::length(&path), MIB);
    assert!(
        before.elapsed() + age >= latency,
        "it was answered in the drained section"
    );
    assert_eq!(
        read.join().expect("a call ends").expect("the read succeeds"),
        4096
    );
    changing
        .answer()
        .expect("the monitor is there")
        .expect("the node moves");
    daemon.qmp.ok("block-export-del", json!({"id": "fuse"}));
    assert!(!is_mounted(&path));
    daemon.quit();
}

/// What an ordinary user does, in a mount namespace where all may open the device, as on most machines.
const ORDINARY: &str = r#"
set -eu
cd "$1"
mknod device c 10 229
chmod 666 device
mount --bind device /dev/fuse
exec setpriv --reuid=65534 --regid=65534 --clear-groups bash -c '
    set -eu
    truncate -s 1M image
    touch disk
    ./millpond serve --blockdev file,node-name=f,filename=image \
        --export fuse,id=e,node-name=f,mountpoint=disk,writable=on \
        --chardev socket,id=c,path=qmp.sock,server=on,wait=off --monitor c &
    ./millpond qmp --wait 10 qmp.sock query-block-exports
    grep -q "$PWD/disk fuse" /proc/mounts
    echo written | dd of=disk conv=notrunc status=none
    ./millpond qmp qmp.sock quit
    wait
    if grep -q "$PWD/disk fuse" /proc/mounts; then exit 1; fi
    head -n 1 image
'
"#;

#[test]
fn an_ordinary_user_mounts_by_fusermount3() {
    fuse::require();
    let folder = scratch();
    let all = std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(folder.path(), all).expect("the folder is ours");
    std::fs::copy(program::millpond(), folder.path().join("millpond")).expect("a program can be copied");
    let arguments = ["-m", "bash", "-c", ORDINARY, "bash"].map(Path::new);
    let output = tool::run("unshare", &[&arguments[..], &[folder.path()]].concat());
    assert!(output.ends_with("written\n"), "{output}");
}

millpond_tests::over_each_transport!(
    an_export_is_removed_while_its_file_is_open_as_with_qemu,
    a_file_is_covered_once_by_whatever_name,
    an_export_that_its_users_unmount_is_removed,
    the_modes_of_files_hold_for_other_users,
    a_change_of_the_nodes_length_is_seen_at_once,
    the_length_changes_only_where_others_let_it,
    writes_past_the_end_of_a_growable_export_lose_nothing,
    what_a_killed_daemon_has_left_is_unmounted_by_the_next,
    an_export_of_dead_storage_is_unmounted_and_the_log_names_what_it_waits_for,
    what_comes_in_a_drained_section_is_answered_behind_it,
);
