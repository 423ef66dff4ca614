//! Locks on files between this program and QEMU's, and reopening without ever losing them.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod host;

use std::fs;
use std::path::{Path, PathBuf};

use host::{Node, qemu, run};
use millpond_drivers::api::ReopenRequest;
use millpond_drivers::protocol::file::{CreateFile, create_file};
use millpond_messages::io::Preallocation;
use millpond_messages::{OpenFlags, Permissions, RequestFlags, Result};
use millpond_ring::Ring;
use serde_json::json;

const NONE: RequestFlags = RequestFlags::empty();
const RW: OpenFlags = OpenFlags::RDWR;
const READ: Permissions = Permissions::CONSISTENT_READ;
const WRITE: Permissions = Permissions::WRITE;
const ALL: Permissions = Permissions::all();

on_each_engine! {
    a_writer_keeps_qemu_out_until_it_lets_go
    a_writer_that_shares_everything_keeps_nobody_out
    without_locking_nobody_is_kept_out
    qemu_keeps_us_out
    what_is_refused_leaves_the_old_locks
    a_reopen_changes_flags_and_keeps_data_and_locks
    options_of_the_file_stay_as_they_are
    a_node_that_moves_takes_its_locks_along
}

/// Where the tests write: data of the image's disk, not its metadata.
const AT: u64 = 1 << 20;

/// A qcow2 image, since a format is what makes QEMU forbid others to write.
fn image() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let options = [
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        "preallocation=full",
        path.to_str().unwrap(),
        "2M",
    ];
    let (ok, text) = qemu("qemu-img", &options);
    assert!(ok, "{text}");
    (dir, path)
}

/// Whether QEMU can use the image, and what it says.
fn qemu_io(path: &Path, how: &[&str], command: &str) -> (bool, String) {
    let image = format!("driver=qcow2,file.filename={}", path.display());
    qemu(
        "qemu-io",
        &[how, &["--image-opts", "-c", command, &image]].concat(),
    )
}

fn hint(path: &Path) -> String {
    format!("Is another process using the image [{}]?", path.display())
}

fn a_writer_keeps_qemu_out_until_it_lets_go(ring: &Ring) {
    let (_dir, path) = image();
    let node = Node::file(ring, &path, RW).unwrap();
    let (ok, text) = qemu_io(&path, &[], "write 0 512");
    assert!(ok, "a node that nobody uses keeps nobody out: {text}");
    node.permit(READ | WRITE, READ).unwrap();
    let (ok, text) = qemu_io(&path, &[], "write 0 512");
    assert!(
        !ok && text.contains("Failed to get \"write\" lock") && text.contains(&hint(&path)),
        "{text}"
    );
    let (ok, text) = qemu_io(&path, &["-r"], "read 0 512");
    assert!(
        !ok && text.contains("Failed to get shared \"write\" lock"),
        "{text}"
    );
    let (ok, text) = qemu_io(&path, &["-r", "-U"], "read 0 512");
    assert!(ok, "{text}");

    node.permit(READ, READ | Permissions::WRITE_UNCHANGED).unwrap();
    let (ok, text) = qemu_io(&path, &["-r"], "read 0 512");
    assert!(ok, "two readers share: {text}");
    assert!(!qemu_io(&path, &[], "write 0 512").0);
    node.close();
    let (ok, text) = qemu_io(&path, &[], "write 0 512");
    assert!(ok, "{text}");
}

fn a_writer_that_shares_everything_keeps_nobody_out(ring: &Ring) {
    let (_dir, path) = image();
    let node = Node::file(ring, &path, RW).unwrap();
    node.permit(READ, ALL).unwrap();
    let (ok, text) = qemu_io(&path, &[], "write 0 512");
    assert!(ok, "{text}");
}

fn without_locking_nobody_is_kept_out(ring: &Ring) {
    let (_dir, path) = image();
    let node = Node::open(
        ring,
        "file",
        json!({"filename": path, "locking": "off"}),
        RW,
        None,
    )
    .unwrap();
    node.permit(READ | WRITE, READ).unwrap();
    let (ok, text) = qemu_io(&path, &[], "write 0 512");
    assert!(ok, "{text}");
}

/// QEMU's storage daemon with a node that is written to through an export, until dropped.
struct Holder(std::process::Child);

impl Holder {
    fn new(path: &Path) -> Self {
        use std::io::{BufRead, BufReader};
        let directory = path.parent().unwrap().display();
        let mut child = std::process::Command::new("qemu-storage-daemon")
            .args([
                "--blockdev",
                &format!("driver=file,node-name=f,filename={}", path.display()),
            ])
            .args([
                "--nbd-server",
                &format!("addr.type=unix,addr.path={directory}/socket"),
            ])
            .args(["--export", "type=nbd,id=e,node-name=f,writable=on"])
            .args(["--chardev", "stdio,id=c", "--monitor", "c"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("cannot run qemu-storage-daemon: install qemu-utils");
        // The monitor greets once all options before it were carried out.
        let mut greeting = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut greeting)
            .unwrap();
        assert!(greeting.contains("QMP"), "{greeting}");
        Self(child)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn refusal(result: Result<()>) -> (String, Option<String>) {
    let error = result.unwrap_err();
    (error.to_string(), error.hint().map(str::to_owned))
}

fn qemu_keeps_us_out(ring: &Ring) {
    let (_dir, path) = image();
    let holder = Holder::new(&path);
    let node = Node::file(ring, &path, RW).unwrap();
    let expected = (
        "Failed to get shared \"write\" lock".to_owned(),
        Some(hint(&path)),
    );
    assert_eq!(refusal(node.permit(READ, READ)), expected);
    node.permit(READ, ALL).unwrap();
    let wanted = CreateFile {
        filename: path.display().to_string(),
        size: 0,
        preallocation: Preallocation::Off,
        nocow: false,
        extent_size_hint: None,
    };
    let before = fs::read(&path).unwrap();
    // The export forbids others to resize, which making an image anew does.
    assert_eq!(
        refusal(create_file(&wanted)),
        ("Failed to get \"resize\" lock".to_owned(), Some(hint(&path)))
    );
    assert!(
        fs::read(&path).unwrap() == before,
        "an image in use is not emptied"
    );
    drop(holder);
    node.permit(READ, READ).unwrap();
}

fn what_is_refused_leaves_the_old_locks(ring: &Ring) {
    let (_dir, path) = image();
    let first = Node::file(ring, &path, RW).unwrap();
    let second = Node::file(ring, &path, RW).unwrap();
    first.permit(READ, READ).unwrap();
    second.permit(READ, READ).unwrap();
    let expected = ("Failed to get \"write\" lock".to_owned(), Some(hint(&path)));
    assert_eq!(refusal(second.permit(READ | WRITE, READ)), expected);
    first.close();
    // Had the refused lock been left behind, a third could not be told to share with readers only.
    let third = Node::file(ring, &path, RW).unwrap();
    third.permit(READ, READ).unwrap();
    // The second still does not share writing.
    assert_eq!(refusal(third.permit(WRITE, ALL)), expected);
    // Prepared and aborted is as if it had never been.
    second.close();
    run(ring, second.driver.permissions_prepare(WRITE, READ)).unwrap_err();
    third.permit(Permissions::empty(), ALL).unwrap();
    run(ring, second.driver.permissions_prepare(WRITE, READ)).unwrap();
    second.driver.permissions_abort();
    third.permit(WRITE, READ).unwrap();
}

fn reopen(node: &Node, path: &Path, extra: serde_json::Value, flags: OpenFlags) -> Result<()> {
    let serde_json::Value::Object(mut options) = json!({"filename": path}) else {
        panic!("an object")
    };
    if let serde_json::Value::Object(extra) = extra {
        options.extend(extra);
    }
    run(
        &node.ring,
        node.driver.reopen_prepare(ReopenRequest { options, flags }),
    )
}

fn a_reopen_changes_flags_and_keeps_data_and_locks(ring: &Ring) {
    let (_dir, path) = image();
    let node = Node::file(ring, &path, RW).unwrap();
    node.permit(READ | WRITE, READ).unwrap();
    node.write(AT, &[9; 512], NONE);

    // Another file takes the name: the node stays with its own.
    fs::rename(&path, path.with_extension("old")).unwrap();
    fs::write(&path, [0; 512]).unwrap();
    // In the order of a transaction: options first, then the permissions that go with them.
    reopen(&node, &path, json!({}), OpenFlags::NOCACHE).unwrap();
    run(
        ring,
        node.driver
            .permissions_prepare(READ, READ | Permissions::WRITE_UNCHANGED),
    )
    .unwrap();
    node.driver.reopen_commit();
    node.driver.permissions_commit();
    assert!(node.driver.abilities().limits.request_alignment > 1);
    assert_eq!(node.read(AT, 4096)[..512], [9; 512]);
    let old = path.with_extension("old");
    let (ok, text) = qemu_io(&old, &[], "write 0 512");
    assert!(!ok && text.contains("Failed to get \"write\" lock"), "{text}");
    assert!(qemu_io(&old, &["-r"], "read 0 512").0);

    // Back again, and first given up half-way.
    for commit in [false, true] {
        reopen(&node, &path, json!({}), RW).unwrap();
        run(ring, node.driver.permissions_prepare(READ | WRITE, READ)).unwrap();
        if commit {
            node.driver.permissions_commit();
            node.driver.reopen_commit();
        } else {
            node.driver.permissions_abort();
            node.driver.reopen_abort();
        }
        assert_eq!(node.driver.abilities().limits.request_alignment == 1, commit);
        assert_eq!(qemu_io(&old, &["-r"], "read 0 512").0, !commit);
    }
    node.write(AT + 512, &[8; 100], NONE);
    assert_eq!(node.read(AT + 500, 100), [vec![9; 12], vec![8; 88]].concat());
    node.close();
    assert!(qemu_io(&old, &[], "write 0 512").0);
}

fn options_of_the_file_stay_as_they_are(ring: &Ring) {
    let (_dir, path) = image();
    let node = Node::open(
        ring,
        "file",
        json!({"filename": path, "aio": "native"}),
        OpenFlags::NOCACHE,
        None,
    );
    let node = node.unwrap();
    let text = |extra, flags| reopen(&node, &path, extra, flags).unwrap_err().to_string();
    let direct = OpenFlags::NOCACHE;
    assert_eq!(
        text(json!({"aio": "threads"}), direct),
        "Cannot change the option 'aio'"
    );
    assert_eq!(
        text(json!({}), direct),
        "Option 'aio' cannot be reset to its default value"
    );
    assert_eq!(
        text(json!({"aio": "native", "locking": "on"}), direct),
        "Cannot change the option 'locking'"
    );
    assert_eq!(
        text(json!({"aio": "native", "filename": "b"}), direct),
        "Cannot change the option 'filename'"
    );
    assert_eq!(
        text(json!({"aio": "native"}), OpenFlags::empty()),
        "aio=native was specified, but it requires cache.direct=on, which was not specified."
    );
    reopen(
        &node,
        &path,
        json!({"aio": "native", "drop-cache": false}),
        direct | RW,
    )
    .unwrap();
    node.driver.reopen_commit();
    node.write(AT, &vec![1; 4096], NONE);
}

fn a_node_that_moves_takes_its_locks_along(ring: &Ring) {
    let (_dir, path) = image();
    let node = Node::file(ring, &path, RW).unwrap();
    node.permit(READ | WRITE, READ).unwrap();
    node.write(AT, &[5; 512], NONE);
    let moved = node.driver.depart();
    drop(node);
    assert!(
        !qemu_io(&path, &[], "write 0 512").0,
        "nobody gets in while it is under way"
    );
    let thread = std::thread::spawn(move || {
        let ring = host::ring(millpond_ring::Engine::Threads);
        let driver = moved.arrive(Vec::new(), ring.clone());
        let node = Node {
            ring,
            driver,
            flags: RW,
        };
        assert_eq!(node.read(AT, 512), [5; 512]);
        node.write(AT, &[6; 512], RequestFlags::FUA);
        assert_eq!(node.driver.image().filename(), Some(path.display().to_string()));
        assert!(!qemu_io(&path, &[], "write 0 512").0);
        node.close();
        assert!(qemu_io(&path, &[], "write 512 512").0);
        assert_eq!(fs::read(&path).unwrap()[AT as usize..][..512], [6; 512]);
    });
    thread.join().unwrap();
}
