//! qcow2 images with subclusters, beside QEMU's daemon: the same map to the subcluster, the same bytes, the same words for what
//! cannot be.

use std::fs;
use std::path::{Path, PathBuf};

use millpond_tests::beside::{Command, beside_qemu, errors_of, same_answers};
use millpond_tests::daemon::{Daemon, daemon, scratch};
use millpond_tests::image;
use millpond_tests::nbd::wire::CMD_FLAG_NO_HOLE;
use millpond_tests::nbd::{Connect, Request};
use millpond_tests::program::{Program, oracle, under_test};
use millpond_tests::tool;
use serde_json::{Value, json};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const SIZE: u64 = 4 * MIB + 512;

fn node(path: &Path) -> Value {
    let mut node = image::over("qcow2", "disk", "");
    node["file"] = json!({"driver": "file", "node-name": "file", "filename": path, "discard": "unmap"});
    node
}

/// How an image is made, prepared by QEMU's tools, and opened.
#[derive(Debug, Clone, Default)]
struct Image<'a> {
    options: &'a str,
    /// It shows a file that is full of data.
    backed: bool,
    prepared: Option<fn(&Path)>,
    node: Value,
}

/// What requests leave: their errors, the map without places, and the data.
#[derive(Debug, PartialEq)]
struct Left {
    errors: Vec<u32>,
    map: Vec<Value>,
    data: Vec<u8>,
}

fn run(program: Program, how: &Image<'_>, requests: &[Request]) -> Left {
    let dir = scratch();
    let path = dir.path().join("disk.qcow2");
    let options = format!("extended_l2=on{}", how.options);
    if how.backed {
        let base = dir.path().join("base.raw");
        fs::write(&base, vec![0xbb; SIZE as usize]).expect("the folder can be written to");
        image::create_overlay(&path, &options, &base, "raw", Some(SIZE));
    } else {
        image::create(&path, "qcow2", &options, SIZE);
    }
    if let Some(prepare) = how.prepared {
        prepare(&path);
    }
    let options = image::with(node(&path), &how.node);
    let errors = errors_of(program, dir.path(), vec![options], requests);
    image::assert_clean(&path);
    let raw = dir.path().join("disk.raw");
    let (from, to) = (path.display(), raw.display());
    tool::qemu_img(&format!("convert -f qcow2 -O raw {from} {to}"));
    let map = tool::run_json("qemu-img", &["map", "--output=json", &path.display().to_string()]);
    let mut map = map.as_array().expect("a list").clone();
    for part in &mut map {
        let part = part.as_object_mut().expect("of objects");
        part.remove("offset");
        // Zeroes beside a write may be a hole in the file, or not.
        if part["data"] == true {
            part["zero"] = json!(false);
        }
    }
    // What both say alike of neighbours is one part, wherever these are in the file.
    map.dedup_by(|part, before| {
        let alike = ["depth", "present", "zero", "data", "compressed"]
            .iter()
            .all(|key| part[key] == before[key]);
        if alike {
            let length = |part: &Value| part["length"].as_u64().expect("a number");
            before["length"] = json!(length(before) + length(part));
        }
        alike
    });
    Left {
        errors,
        map,
        data: fs::read(&raw).expect("it was just converted"),
    }
}

#[track_caller]
fn same(how: &Image<'_>, requests: &[Request]) {
    let theirs = run(oracle(), how, requests);
    let ours = run(under_test().clone(), how, requests);
    assert_eq!(
        (&ours.errors, &ours.map),
        (&theirs.errors, &theirs.map),
        "left is ours, right is QEMU's: {how:?}"
    );
    assert!(ours.data == theirs.data, "the data differs: {how:?}");
}

fn requests() -> Vec<Request> {
    let write = |offset: u64, len: u64| Request::write(offset, vec![0x5a; len as usize]);
    let keep = |offset: u64, len: u64| Request::zero(offset, len).flags(CMD_FLAG_NO_HOLE);
    vec![
        write(0, KIB),
        write(3 * KIB, 512),
        write(100 * KIB, 300 * KIB),
        keep(2 * KIB, 6 * KIB),
        write(5 * KIB, 512),
        Request::zero(110 * KIB, 7 * KIB),
        keep(128 * KIB, 64 * KIB),
        Request::zero(192 * KIB, 64 * KIB),
        Request::trim(256 * KIB, 64 * KIB),
        Request::trim(321 * KIB, 3 * KIB),
        write(130 * KIB, 512),
        write(200 * KIB, 512),
        write(260 * KIB, 512),
        keep(MIB + 512, 512),
        keep(MIB + 70 * KIB, 200 * KIB),
        Request::zero(2 * MIB, MIB),
        write(2 * MIB + 333 * KIB, 9 * KIB),
        write(SIZE - 512, 512),
        keep(SIZE - 5 * KIB, 5 * KIB),
    ]
}

fn shared_with_a_snapshot(path: &Path) {
    let path = path.display();
    tool::qemu_io(
        &["-f", "qcow2", &path.to_string()],
        &["write -P 1 0 700k", "write -z 20k 30k", "write -c -P 3 2M 2M"],
    );
    tool::qemu_img(&format!("snapshot -c s {path}"));
}

#[test]
fn requests_leave_what_they_leave_with_qemu() {
    let keep = json!({"discard": "unmap", "discard-no-unref": true});
    let unmap = json!({"discard": "unmap"});
    let snapshot: Option<fn(&Path)> = Some(shared_with_a_snapshot);
    for (options, backed, prepared, node) in [
        ("", false, None, unmap.clone()),
        ("", true, snapshot, json!({})),
        (",cluster_size=16k", false, snapshot, unmap.clone()),
        (",cluster_size=16k", true, None, keep.clone()),
        (",cluster_size=2M", false, None, json!({})),
        (",cluster_size=2M", true, snapshot, unmap),
        (",preallocation=metadata", true, None, keep),
    ] {
        let how = Image {
            options,
            backed,
            prepared,
            node,
        };
        same(&how, &requests());
    }
}

/// An image of one table, in which entry 0 has a subcluster with data, entry 1 is full, and entry 6 is compressed. Answers
/// where the table is.
fn sample(dir: &Path) -> (PathBuf, usize) {
    let path = dir.join("good.qcow2");
    image::create(&path, "qcow2", "extended_l2=on,cluster_size=16k", MIB);
    tool::qemu_io(
        &["-f", "qcow2", &path.display().to_string()],
        &["write -P 1 0 1k", "write -P 2 16k 16k", "write -c -P 5 96k 16k"],
    );
    (path, 0x1_0000)
}

#[test]
fn bitmaps_that_cannot_be_are_told_in_qemus_words() {
    let dir = scratch();
    let (path, table) = sample(dir.path());
    let good = fs::read(&path).expect("it was just made");
    let crafted = |name: &str, at: usize, words: &[u64]| {
        let path = dir.path().join(name);
        let mut bytes = good.clone();
        for (word, n) in words.iter().zip(0..) {
            bytes[table + at + 8 * n..][..8].copy_from_slice(&word.to_be_bytes());
        }
        fs::write(&path, bytes).expect("the folder can be written to");
        path
    };
    let cases = [
        crafted("both", 8, &[3 << 32 | 3]),
        crafted("one-of-many", 24, &[1 << 32 | 0xffff_ffff]),
        crafted("nowhere", 0, &[0, 3]),
        crafted("compressed", 6 * 16 + 8, &[1]),
        crafted("flag-without-meaning", 3 * 16, &[1, 0]),
    ];
    let look = |mut daemon: Daemon| {
        let mut seen = Vec::new();
        for path in &cases {
            for writable in [false, true] {
                let copy = daemon.dir().join("copy");
                fs::copy(path, &copy).expect("the folder can be written to");
                let mut options = node(&copy);
                options["read-only"] = json!(!writable);
                daemon.qmp.ok("blockdev-add", options);
                let export = json!({"type": "nbd", "id": "e", "node-name": "disk", "name": "disk", "writable": writable});
                daemon.qmp.ok("block-export-add", export);
                for offset in [0, 16 * KIB, 48 * KIB, 96 * KIB] {
                    let mut session = Connect::default().open(&daemon.address(), "disk");
                    let request = if writable {
                        Request::write(offset + KIB, vec![7; 512])
                    } else {
                        Request::read(offset, 512)
                    };
                    seen.push(session.call(&request).map_or(u32::MAX, |answer| answer.error));
                }
                daemon
                    .qmp
                    .ok("block-export-del", json!({"id": "e", "mode": "hard"}));
                daemon.qmp.wait_event("BLOCK_EXPORT_DELETED");
                daemon.qmp.ok("blockdev-del", json!({"node-name": "disk"}));
            }
        }
        seen
    };
    beside_qemu(look);
}

#[test]
fn what_is_told_of_the_image_is_as_qemus() {
    let dir = scratch();
    let (path, _) = sample(dir.path());
    let small = dir.path().join("small.qcow2");
    fs::copy(&path, &small).expect("the folder can be written to");
    image::poke(&small, 20, &13_u32.to_be_bytes());
    let add = |path: &Path| -> Command {
        let mut options = node(path);
        options["read-only"] = json!(true);
        ("blockdev-add", options)
    };
    same_answers(&[
        add(&path),
        ("query-named-block-nodes", json!({"flat": true})),
        ("blockdev-del", json!({"node-name": "disk"})),
        add(&small),
    ]);
}

#[test]
fn images_are_made_as_qemu_makes_them() {
    let mut daemon = daemon().start();
    let dir = daemon.dir().to_path_buf();
    for (options, more) in [
        (json!({}), ""),
        (
            json!({"cluster-size": 16384, "preallocation": "metadata"}),
            ",cluster_size=16k,preallocation=metadata",
        ),
        (
            json!({"cluster-size": 2 * MIB, "refcount-bits": 1}),
            ",cluster_size=2M,refcount_bits=1",
        ),
    ] {
        let (ours, theirs) = (dir.join("ours"), dir.join("theirs"));
        fs::write(&ours, b"").expect("the folder can be written to");
        image::create(&theirs, "qcow2", &format!("extended_l2=on{more}"), 64 * MIB);
        let mut image = json!({"driver": "qcow2", "size": 64 * MIB, "extended-l2": true,
            "file": {"driver": "file", "filename": ours}});
        for (name, value) in options.as_object().expect("an object") {
            image[name] = value.clone();
        }
        daemon
            .qmp
            .ok("blockdev-create", json!({"job-id": "j", "options": image}));
        while daemon.qmp.wait_event("JOB_STATUS_CHANGE")["status"] != "concluded" {}
        assert_eq!(daemon.qmp.ok("query-jobs", json!({}))[0]["error"], Value::Null);
        daemon.qmp.ok("job-dismiss", json!({"id": "j"}));
        daemon.qmp.wait_event("JOB_STATUS_CHANGE");
        image::assert_clean(&ours);
        let told = |path: &Path| {
            let name = path.display().to_string();
            let info = tool::run_json("qemu-img", &["info", "--output=json", &name]);
            (
                info["format-specific"].clone(),
                info["cluster-size"].clone(),
                image::map("qcow2", &name),
            )
        };
        assert_eq!(told(&ours), told(&theirs), "left is ours: {options}");
    }
    daemon.quit();
}
