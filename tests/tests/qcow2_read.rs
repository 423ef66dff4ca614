//! qcow2 images made by `qemu-img`, read through the daemon and through QEMU's own: the same bytes, the same status.

use std::path::{Path, PathBuf};

use millpond_tests::daemon::{Daemon, daemon, daemon_in, scratch};
use millpond_tests::image;
use millpond_tests::nbd::{Connect, Extent};
use millpond_tests::program::oracle;
use millpond_tests::tool::{qemu_img, qemu_io};
use millpond_tests::workload::{random_bytes, seeded};
use serde_json::{Value, json};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// Two daemons that are asked the same things.
struct Pair {
    ours: Daemon,
    theirs: Daemon,
    count: u32,
}

impl Pair {
    fn new() -> Pair {
        let theirs = daemon().program(oracle()).nbd_unix().start();
        Pair {
            ours: daemon().nbd_unix().start(),
            theirs,
            count: 0,
        }
    }

    /// Opens an image in both and requires equal content and equal status in both contexts.
    #[track_caller]
    fn assert_same(&mut self, what: &str, options: &Value) {
        self.count += 1;
        let name = format!("image{}", self.count);
        let [ours, theirs] =
            [&mut self.ours, &mut self.theirs].map(|daemon| look(daemon, &name, options.clone()));
        assert_eq!(ours.data.len(), theirs.data.len(), "{what}: sizes differ");
        if let Some(at) = ours
            .data
            .iter()
            .zip(&theirs.data)
            .position(|(our, their)| our != their)
        {
            panic!(
                "{what}: byte {at} is {:#x} instead of {:#x}",
                ours.data[at], theirs.data[at]
            );
        }
        assert_eq!(
            ours.allocation, theirs.allocation,
            "{what}: base:allocation differs"
        );
        assert_eq!(ours.depth, theirs.depth, "{what}: qemu:allocation-depth differs");
    }

    #[track_caller]
    fn assert_same_file(&mut self, what: &str, path: &Path) {
        self.assert_same(
            what,
            &json!({ "driver": "qcow2", "file": { "driver": "file", "filename": path } }),
        );
    }
}

/// Everything a client can see of a disk. Extents are where they end, and their flags.
struct Look {
    data: Vec<u8>,
    allocation: Vec<(u64, u64)>,
    depth: Vec<(u64, u64)>,
}

fn look(daemon: &mut Daemon, name: &str, mut options: Value) -> Look {
    options["node-name"] = json!(name);
    options["read-only"] = json!(true);
    daemon.qmp.ok("blockdev-add", options);
    let export = json!({ "type": "nbd", "id": name, "node-name": name, "allocation-depth": true });
    daemon.qmp.ok("block-export-add", export);
    let mut session = Connect::with_depth().open(&daemon.address(), name);
    let data = session.read_all();
    let mut extents = |context: &str| -> Vec<(u64, u64)> {
        let mut end = 0;
        let mut ends = |extent: Extent| {
            end += extent.length;
            (end, extent.flags)
        };
        session.status_all(context).into_iter().map(&mut ends).collect()
    };
    let (allocation, depth) = (extents("base:allocation"), extents("qemu:allocation-depth"));
    session.disconnect().expect("a goodbye closes the connection");
    daemon.qmp.ok("block-export-del", json!({ "id": name }));
    daemon
        .qmp
        .wait_event_where("BLOCK_EXPORT_DELETED", |data| data["id"] == name);
    daemon.qmp.ok("blockdev-del", json!({ "node-name": name }));
    Look {
        data,
        allocation,
        depth,
    }
}

/// Random `qemu-io` commands that leave data, zeroes of both kinds and discarded ranges all over an image.
fn scribble(rng: &mut fastrand::Rng, path: &Path, size: u64, count: u32) {
    let commands: Vec<String> = (0..count)
        .map(|_| {
            let offset = rng.u64(0..size);
            let length = rng.u64(1..=(256 * KIB).min(size - offset));
            match rng.u8(0..8) {
                0 => format!("write -z {offset} {length}"),
                1 => format!("write -z -u {offset} {length}"),
                2 => format!("discard {offset} {length}"),
                _ => format!("write -P {} {offset} {length}", rng.u8(1..)),
            }
        })
        .collect();
    let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
    qemu_io(
        &["-f", "qcow2", "-d", "unmap", &path.display().to_string()],
        &commands,
    );
}

#[test]
fn every_layout_that_qemu_img_makes() {
    let dir = scratch();
    let mut rng = seeded("every_layout_that_qemu_img_makes");
    let mut pair = Pair::new();
    let layouts = [
        ("compat=0.10", 8 * MIB),
        ("compat=0.10,cluster_size=512", MIB),
        ("compat=0.10,cluster_size=2M", 32 * MIB),
        ("compat=1.1,cluster_size=512", MIB + 512),
        ("compat=1.1,cluster_size=1k,refcount_bits=1", 4 * MIB),
        ("compat=1.1,cluster_size=4k,refcount_bits=2", 4 * MIB),
        ("compat=1.1,cluster_size=8k,refcount_bits=4", 5 * MIB + 1024),
        ("compat=1.1,cluster_size=16k,refcount_bits=8", 8 * MIB),
        (
            "compat=1.1,cluster_size=64k,refcount_bits=16",
            8 * MIB + 65536 + 512,
        ),
        ("compat=1.1,cluster_size=256k,refcount_bits=32", 16 * MIB),
        ("compat=1.1,cluster_size=1M,refcount_bits=64", 16 * MIB),
        ("compat=1.1,cluster_size=2M", 20 * MIB + 512),
        ("lazy_refcounts=on", 8 * MIB),
        ("preallocation=metadata", 4 * MIB),
        ("preallocation=falloc", 4 * MIB),
        ("preallocation=full,cluster_size=4k", 2 * MIB),
    ];
    for (index, (options, size)) in layouts.into_iter().enumerate() {
        let path = dir.path().join(format!("{index}.qcow2"));
        image::create(&path, "qcow2", options, size);
        pair.assert_same_file(&format!("{options}, empty"), &path);
        scribble(&mut rng, &path, size, 40);
        pair.assert_same_file(options, &path);
    }
}

#[test]
fn compressed_clusters_of_both_types() {
    let dir = scratch();
    let mut rng = seeded("compressed_clusters_of_both_types");
    let mut pair = Pair::new();
    let source = dir.path().join("source.raw");
    std::fs::write(&source, half_random(&mut rng, 3 * MIB + 512)).expect("a source can be written");
    for kind in ["zlib", "zstd"] {
        for cluster_size in ["512", "4k", "64k", "2M"] {
            let options = format!("compression_type={kind},cluster_size={cluster_size}");
            let path = dir.path().join(format!("{kind}-{cluster_size}.qcow2"));
            let (from, to) = (source.display(), path.display());
            qemu_img(&format!("convert -c -f raw -O qcow2 -o {options} {from} {to}"));
            pair.assert_same_file(&options, &path);
            // Compressed clusters beside, and replaced by, others.
            scribble(&mut rng, &path, 3 * MIB, 12);
            pair.assert_same_file(&format!("{options}, partly overwritten"), &path);
        }
    }
}

/// Bytes that compress to something between nothing and themselves, with stretches of zeroes.
fn half_random(rng: &mut fastrand::Rng, length: u64) -> Vec<u8> {
    let mut bytes = random_bytes(rng, length);
    for chunk in bytes.chunks_mut(50_000) {
        match rng.u8(0..4) {
            0 => chunk.fill(0),
            1 => {}
            _ => chunk.iter_mut().for_each(|byte| *byte = b'a' + *byte % 7),
        }
    }
    bytes
}

/// Makes a chain whose images have different sizes and cluster sizes; returns its top.
fn chain(rng: &mut fastrand::Rng, dir: &Path, depth: u32, raw_base: bool) -> PathBuf {
    let format = if raw_base { "raw" } else { "qcow2" };
    let mut below = dir.join(format!("base.{format}"));
    image::create(&below, format, "", 4 * MIB);
    if raw_base {
        std::fs::write(&below, random_bytes(rng, 4 * MIB)).expect("a base can be written");
    } else {
        scribble(rng, &below, 4 * MIB, 20);
    }
    for level in 1..=depth {
        let size = match level % 4 {
            0 => 4 * MIB,
            1 => 5 * MIB + 512,
            2 => 3 * MIB + 64 * KIB,
            _ => 6 * MIB,
        };
        let cluster_size = ["4k", "64k", "16k"][level as usize % 3];
        let above = dir.join(format!("level{level}.qcow2"));
        let options = format!("cluster_size={cluster_size}");
        let below_format = if level == 1 { format } else { "qcow2" };
        // A relative name is looked up beside the overlay.
        let name = PathBuf::from(below.file_name().expect("it was made with a name"));
        image::create_overlay(&above, &options, &name, below_format, Some(size));
        scribble(rng, &above, size, 6);
        below = above;
    }
    below
}

#[test]
fn backing_chains_of_different_sizes() {
    let mut rng = seeded("backing_chains_of_different_sizes");
    let mut pair = Pair::new();
    for (depth, raw_base) in [(1, true), (1, false), (5, false), (20, true)] {
        let dir = scratch();
        let top = chain(&mut rng, dir.path(), depth, raw_base);
        pair.assert_same_file(&format!("a chain of {depth}, raw base: {raw_base}"), &top);
    }
}

#[test]
fn a_backing_node_given_by_name_replaces_the_one_in_the_header() {
    let dir = scratch();
    let mut rng = seeded("a_backing_node_given_by_name");
    let top = chain(&mut rng, dir.path(), 1, false);
    let other = dir.path().join("other.qcow2");
    image::create(&other, "qcow2", "", 2 * MIB);
    scribble(&mut rng, &other, 2 * MIB, 20);
    let mut pair = Pair::new();
    let qcow2 = |path: &Path, backing: Value| json!({ "driver": "qcow2", "file": { "driver": "file", "filename": path }, "backing": backing });
    pair.assert_same("backing from options", &qcow2(&top, qcow2(&other, Value::Null)));
    pair.assert_same("backing: null", &qcow2(&top, Value::Null));
}

#[test]
fn raw_windows_of_an_image() {
    let dir = scratch();
    let mut rng = seeded("raw_windows_of_an_image");
    let path = dir.path().join("disk.qcow2");
    image::create(&path, "qcow2", "cluster_size=4k", 4 * MIB);
    scribble(&mut rng, &path, 4 * MIB, 30);
    let mut pair = Pair::new();
    for (offset, size) in [
        (0, 4 * MIB),
        (512, MIB),
        (MIB + 1536, 2 * MIB + 512),
        (4 * MIB - 512, 512),
    ] {
        let disk = json!({ "driver": "qcow2", "file": { "driver": "file", "filename": path } });
        let window = json!({ "driver": "raw", "offset": offset, "size": size, "file": disk });
        pair.assert_same(&format!("{size} bytes at {offset}"), &window);
    }
}

#[test]
fn a_sparse_file_by_itself() {
    let dir = scratch();
    let path = dir.path().join("sparse.raw");
    let file = std::fs::File::create(&path).expect("a file can be made");
    file.set_len(8 * MIB + 100).expect("a file can grow");
    for offset in [0, MIB, 5 * MIB + 4096, 8 * MIB] {
        std::os::unix::fs::FileExt::write_all_at(&file, &[7; 100], offset).expect("a file can be written");
    }
    let mut pair = Pair::new();
    pair.assert_same("file", &json!({ "driver": "file", "filename": path }));
    pair.assert_same(
        "raw",
        &json!({ "driver": "raw", "file": { "driver": "file", "filename": path } }),
    );
}

#[test]
fn qemu_nbd_serves_the_same_as_the_daemon() {
    let dir = scratch();
    let mut rng = seeded("qemu_nbd_serves_the_same_as_the_daemon");
    let top = chain(&mut rng, dir.path(), 3, false);
    let socket = dir.path().join("qemu-nbd.sock");
    let (socket, image) = (socket.display().to_string(), top.display().to_string());
    // It forks once its socket listens, and ends with its last client.
    qemu_nbd(&[
        "-f",
        "qcow2",
        "-r",
        "-A",
        "--fork",
        "--shared=2",
        "-k",
        &socket,
        &image,
    ]);
    let address = millpond_tests::nbd::Address::Unix(socket.into());
    let mut theirs = Connect::with_depth().open(&address, "");
    let daemon = daemon_in(dir.path())
        .nbd_unix()
        .blockdev(image::file("file", &top))
        .blockdev(json!({ "driver": "qcow2", "node-name": "disk", "file": "file", "read-only": true }))
        .option("--export", "nbd,id=disk,node-name=disk,allocation-depth=on")
        .start();
    let mut ours = Connect::with_depth().open(&daemon.address(), "disk");
    assert_eq!(ours.info.size, theirs.info.size);
    assert!(ours.read_all() == theirs.read_all(), "the content differs");
    for context in ["base:allocation", "qemu:allocation-depth"] {
        assert_eq!(ours.status_all(context), theirs.status_all(context), "{context}");
    }
}

#[track_caller]
fn qemu_nbd(args: &[&str]) {
    millpond_tests::tool::run("qemu-nbd", args);
}
