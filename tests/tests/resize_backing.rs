//! What a disk gained by a resize reads as zeroes, whatever its backing file has there; and what a file gained of it.

use std::os::unix::fs::MetadataExt;

use millpond_tests::daemon::{Daemon, daemon, daemon_in, scratch};
use millpond_tests::image;
use millpond_tests::program::oracle;
use millpond_tests::tool::qemu_io;
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

#[test]
fn a_resize_does_not_bring_the_backing_file_to_light() {
    let dir = scratch();
    let (base, disk) = (dir.path().join("base.raw"), dir.path().join("disk.qcow2"));
    image::create(&base, "raw", "", 2 * MIB);
    let (base_name, disk_name) = (base.display().to_string(), disk.display().to_string());
    qemu_io(&["-f", "raw", &base_name], &["write -P 0x5a 0 2M"]);
    image::create_overlay(&disk, "", &base, "raw", Some(2 * MIB));
    let mut daemon = daemon_in(dir.path())
        .blockdev(image::file("file", &disk))
        .blockdev(image::over("qcow2", "disk", "file"))
        .start();
    for size in [MIB, 3 * MIB] {
        daemon
            .qmp
            .ok("block_resize", json!({"node-name": "disk", "size": size}));
    }
    daemon.quit();
    let commands = ["read -P 0x5a 0 1M", "read -P 0 1M 2M"];
    qemu_io(&["-f", "qcow2", &disk_name], &commands);
    image::assert_clean(&disk);
}

/// The alignment that a file system demands can be probed only where something is allocated.
#[test]
fn the_first_block_of_an_empty_file_is_written_when_it_grows_as_in_qemu() {
    let dir = scratch();
    let path = dir.path().join("disk.raw");
    let shape = |mut daemon: Daemon, size: u64, more: Value| {
        std::fs::write(&path, "").expect("a file");
        let mut node = json!({"driver": "file", "node-name": "file", "filename": path});
        for (name, value) in more.as_object().expect("an object") {
            node[name] = value.clone();
        }
        daemon.qmp.ok("blockdev-add", node);
        let resize = json!({"node-name": "file", "size": size});
        daemon.qmp.ok("block_resize", resize);
        daemon.quit();
        let facts = std::fs::metadata(&path).expect("it is there");
        (facts.len(), facts.blocks() > 0)
    };
    for size in [1, 512, 1000, 4096, 5000, MIB] {
        for more in [json!({}), json!({"cache": {"direct": true}})] {
            let ours = shape(daemon().start(), size, more.clone());
            let theirs = shape(daemon().program(oracle()).start(), size, more.clone());
            assert_eq!(ours, theirs, "{size} {more}");
        }
    }
}
