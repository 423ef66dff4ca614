//! qcow2 images with their data in a file of its own, beside QEMU's daemon and tools: the same graph, the same answers, the
//! same bytes in both files.

use std::fs;
use std::path::Path;

use millpond_tests::beside::{Command, GRAPH, beside_qemu, errors_of, same_answers};
use millpond_tests::daemon::{Daemon, daemon_in, scratch};
use millpond_tests::image;
use millpond_tests::nbd::Request;
use millpond_tests::nbd::wire::CMD_FLAG_NO_HOLE;
use millpond_tests::program::{Program, oracle, under_test};
use millpond_tests::tool;
use serde_json::{Value, json};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
/// Where the header's extensions begin in images that `qemu-img` has made; the one with the data file's name is the first.
const EXTENSION: usize = 112;

fn add(options: Value) -> Command {
    ("blockdev-add", options)
}

fn graph() -> Command {
    (GRAPH, json!({}))
}

fn named(path: &Path, read_only: bool) -> Value {
    let mut node = image::over("qcow2", "disk", "");
    node["file"] = json!({"driver": "file", "node-name": "file", "filename": path});
    node["read-only"] = json!(read_only);
    node
}

/// Makes `NAME.qcow2` with its data in `NAME.raw`.
fn create(dir: &Path, name: &str, options: &str) -> std::path::PathBuf {
    let path = dir.join(format!("{name}.qcow2"));
    let data = dir.join(format!("{name}.raw"));
    let options = format!("data_file={}{options}", data.display());
    image::create(&path, "qcow2", &options, MIB);
    path
}

#[test]
fn the_graph_and_what_is_told_of_the_image_are_as_qemus() {
    for options in ["", ",data_file_raw=on"] {
        let dir = scratch();
        let path = create(dir.path(), "disk", options);
        let given = |node: &str| {
            let mut options = named(&path, false);
            options["data-file"] = json!(node);
            options
        };
        let reopen = |data_file: Option<&str>| {
            let mut options = json!({"driver": "qcow2", "node-name": "disk", "file": "file"});
            if let Some(node) = data_file {
                options["data-file"] = json!(node);
            }
            ("blockdev-reopen", json!({"options": [options]}))
        };
        let writer = json!({"type": "nbd", "id": "e", "node-name": "disk", "writable": true});
        same_answers(&[
            add(image::file("data", &dir.path().join("disk.raw"))),
            add(given("data")),
            graph(),
            ("block-export-add", writer.clone()),
            graph(),
            (
                "block-export-add",
                json!({"type": "nbd", "id": "x", "node-name": "data", "writable": true}),
            ),
            reopen(None),
            reopen(Some("file")),
            reopen(Some("data")),
            ("query-named-block-nodes", json!({})),
            ("blockdev-del", json!({"node-name": "data"})),
        ]);
        same_answers(&[
            add(named(&path, false)),
            ("block-export-add", writer),
            graph(),
            ("query-named-block-nodes", json!({"flat": true})),
        ]);
    }
}

#[test]
fn crafted_names_and_flags_are_answered_as_qemu_answers_them() {
    let dir = scratch();
    let path = create(dir.path(), "good", "");
    let good = fs::read(&path).expect("it was just made");
    let data = dir.path().join("good.raw").display().to_string();
    let crafted = |name: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let path = dir.path().join(format!("{name}.qcow2"));
        let mut bytes = good.clone();
        change(&mut bytes);
        fs::write(&path, bytes).expect("the folder can be written to");
        path
    };
    let extension = |bytes: &mut Vec<u8>, name: &[u8]| {
        let mut new = 0x4441_5441_u32.to_be_bytes().to_vec();
        new.extend(u32::try_from(name.len()).expect("short").to_be_bytes());
        new.extend(name);
        new.resize(new.len().next_multiple_of(8) + 8, 0);
        bytes[EXTENSION..EXTENSION + new.len()].copy_from_slice(&new);
    };
    let images = [
        crafted("none", &|bytes| bytes[EXTENSION] = 0x12),
        crafted("unflagged", &|bytes| bytes[79] = 0),
        crafted("raw-unflagged", &|bytes| (bytes[79], bytes[95]) = (0, 2)),
        crafted("empty", &|bytes| extension(bytes, b"")),
        crafted("long", &|bytes| bytes[EXTENSION + 5] = 1),
        crafted("longer-than-paths", &|bytes| extension(bytes, &[b'a'; 5000])),
        crafted("missing", &|bytes| extension(bytes, b"/nowhere/data")),
        crafted("json", &|bytes| {
            extension(bytes, b"json:{\"driver\":\"null-co\"}")
        }),
        crafted("protocol", &|bytes| {
            extension(bytes, format!("file:{data}").as_bytes())
        }),
    ];
    let null = json!({"driver": "null-co", "size": MIB, "node-name": "null"});
    let mut commands = Vec::new();
    for path in &images {
        for read_only in [true, false] {
            let mut nodes = vec![named(path, read_only)];
            // Of two faults at once QEMU names the other.
            if !path.ends_with("raw-unflagged.qcow2") {
                let mut given = named(path, read_only);
                given["data-file"] = null.clone();
                nodes.push(given);
            }
            for node in nodes {
                commands.push(add(node));
                commands.push(("blockdev-del", json!({"node-name": "disk"})));
            }
        }
    }
    same_answers(&commands);
}

#[test]
fn images_are_made_as_qemu_makes_them() {
    beside_qemu(|mut daemon: Daemon| {
        let dir = daemon.dir().to_path_buf();
        let mut seen = Vec::new();
        for (number, options) in [
            json!({}),
            json!({"data-file-raw": true}),
            json!({"preallocation": "metadata", "cluster-size": 4096}),
            json!({"version": "v2"}),
            json!({"data-file-raw": true, "backing-file": "x", "backing-fmt": "raw"}),
        ]
        .into_iter()
        .enumerate()
        {
            for name in ["image", "data"] {
                fs::write(dir.join(format!("{name}{number}")), b"").expect("the folder can be written to");
                let node = image::file(&format!("{name}{number}"), Path::new(&format!("{name}{number}")));
                let mut node = node;
                node["filename"] = json!(dir.join(format!("{name}{number}")));
                daemon.qmp.ok("blockdev-add", node);
            }
            let mut image = json!({"driver": "qcow2", "size": MIB, "file": format!("image{number}"),
                "data-file": format!("data{number}")});
            for (name, value) in options.as_object().expect("an object") {
                image[name] = value.clone();
            }
            daemon
                .qmp
                .ok("blockdev-create", json!({"job-id": "j", "options": image}));
            while daemon.qmp.wait_event("JOB_STATUS_CHANGE")["status"] != "concluded" {}
            let error = daemon.qmp.ok("query-jobs", json!({}))[0]["error"].clone();
            daemon.qmp.ok("job-dismiss", json!({"id": "j"}));
            daemon.qmp.wait_event("JOB_STATUS_CHANGE");
            let path = dir.join(format!("image{number}"));
            let (info, map) = if error.is_null() {
                image::assert_clean(&path);
                let arguments = ["info", "--output=json", &path.display().to_string()].map(str::to_owned);
                let info = tool::run_json("qemu-img", &arguments)["format-specific"]["data"].clone();
                let info = info.to_string().replace(&dir.display().to_string(), "DIR");
                (info, image::map("qcow2", &path.display().to_string()))
            } else {
                (String::new(), Vec::new())
            };
            let length = fs::metadata(dir.join(format!("data{number}")))
                .expect("it is there")
                .len();
            seen.push((error, info, map, length));
        }
        seen
    });
}

/// What requests leave: their errors, the image's map, and all that its data file holds.
#[derive(Debug, PartialEq)]
struct Left {
    errors: Vec<u32>,
    map: Vec<Value>,
    data: Vec<u8>,
}

/// Makes an image with its data in a file of its own, and has a daemon of `program` do the requests.
fn run(program: Program, options: &str, node: &Value, requests: &[Request]) -> Left {
    let dir = scratch();
    let path = create(dir.path(), "disk", options);
    let options = image::with(named(&path, false), node);
    let errors = errors_of(program, dir.path(), vec![options], requests);
    image::assert_clean(&path);
    let map = tool::run_json("qemu-img", &["map", "--output=json", &path.display().to_string()]);
    let data = fs::read(dir.path().join("disk.raw")).expect("it is there");
    Left {
        errors,
        map: map.as_array().expect("a list").clone(),
        data,
    }
}

#[test]
fn requests_leave_the_same_in_both_files() {
    let write = |offset: u64, len: u64| Request::write(offset, vec![0x5a; len as usize]);
    let requests = [
        write(0, 300 * KIB),
        write(500 * KIB, 10 * KIB),
        Request::zero(64 * KIB, 64 * KIB).flags(CMD_FLAG_NO_HOLE),
        Request::zero(128 * KIB, 64 * KIB),
        Request::trim(192 * KIB, 64 * KIB),
        write(70 * KIB, KIB),
        write(130 * KIB, KIB),
        Request::zero(600 * KIB, 10 * KIB),
        Request::zero(700 * KIB, 200 * KIB).flags(CMD_FLAG_NO_HOLE),
        write(MIB - 512, 512),
    ];
    for options in [
        "",
        ",data_file_raw=on",
        ",preallocation=metadata",
        ",cluster_size=4k",
        ",cluster_size=4k,data_file_raw=on",
    ] {
        for node in [
            json!({}),
            json!({"discard": "unmap"}),
            json!({"discard": "unmap", "discard-no-unref": true}),
        ] {
            let theirs = run(oracle(), options, &node, &requests);
            let ours = run(under_test().clone(), options, &node, &requests);
            assert_eq!(
                (&ours.errors, &ours.map),
                (&theirs.errors, &theirs.map),
                "left is ours, right is QEMU's: {options} {node}"
            );
            let differs = ours
                .data
                .iter()
                .zip(&theirs.data)
                .position(|(one, other)| one != other);
            assert_eq!(
                (differs, ours.data.len()),
                (None, theirs.data.len()),
                "the data files differ: {options} {node}"
            );
        }
    }
}

#[test]
fn a_resize_takes_the_data_file_along() {
    const SIZES: [u64; 3] = [3 * MIB, 512 * KIB, 2 * MIB + 64 * KIB];
    for options in ["", ",data_file_raw=on"] {
        let of = |resize: &dyn Fn(&Path) -> Vec<u64>| {
            let dir = scratch();
            let path = create(dir.path(), "disk", options);
            let lengths = resize(&path);
            image::assert_clean(&path);
            (lengths, image::map("qcow2", &path.display().to_string()))
        };
        let length = |path: &Path| {
            let data = fs::metadata(path.with_extension("raw"));
            data.expect("it is there").len()
        };
        let ours = of(&|path| {
            let daemon = daemon_in(path.parent().expect("a folder"));
            let mut daemon = daemon.blockdev(named(path, false)).start();
            let lengths = SIZES.map(|size| {
                daemon
                    .qmp
                    .ok("block_resize", json!({"node-name": "disk", "size": size}));
                length(path)
            });
            daemon.quit();
            lengths.to_vec()
        });
        let theirs = of(&|path| {
            let lengths = SIZES.map(|size| {
                tool::qemu_img(&format!("resize --shrink {} {size}", path.display()));
                length(path)
            });
            lengths.to_vec()
        });
        assert_eq!(ours, theirs, "left is ours: {options}");
    }
}

#[test]
fn a_data_file_has_no_room_for_snapshots_and_compressed_data() {
    beside_qemu(|mut daemon| {
        let path = create(daemon.dir(), "disk", "");
        daemon.qmp.ok("blockdev-add", named(&path, false));
        let snapshot = json!({"device": "disk", "name": "s"});
        let refused = [
            "blockdev-snapshot-internal-sync",
            "blockdev-snapshot-delete-internal-sync",
        ]
        .map(|command| daemon.qmp.refused(command, snapshot.clone()));
        daemon.quit();
        refused.map(|refused| (refused.class, refused.desc))
    });
    // QEMU takes the filter, and refuses each write.
    let dir = scratch();
    let path = create(dir.path(), "disk", "");
    let mut daemon = daemon_in(dir.path()).blockdev(named(&path, false)).start();
    let compress = json!({"driver": "compress", "node-name": "c", "file": "disk"});
    let refused = daemon.qmp.refused("blockdev-add", compress);
    let text = "Compression is not supported for underlying format: qcow2";
    assert_eq!(refused.desc, text);
    daemon.quit();
}
