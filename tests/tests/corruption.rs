//! What is told of an image whose metadata is wrong: beside QEMU's daemon, on copies of the same image.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use millpond_tests::daemon::{Daemon, daemon, scratch};
use millpond_tests::program::oracle;
use millpond_tests::{image, tool};
use serde_json::{Value, json};

/// An image with one cluster of data, whose L2 entry is then given an offset that no cluster has.
fn damaged(path: &Path) {
    image::create(path, "qcow2", "", 1 << 20);
    let name = path.display().to_string();
    tool::qemu_io(&["-f", "qcow2", &name], &["write -P 1 0 64k"]);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .expect("the image is there");
    let number = |offset: u64| {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, offset)
            .expect("the image can be read");
        u64::from_be_bytes(bytes)
    };
    const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
    let l2 = number(number(40)) & OFFSET;
    let entry = number(l2) | 0x200;
    file.write_all_at(&entry.to_be_bytes(), l2)
        .expect("the image can be written");
}

/// The events that reading the damage twice causes.
fn told(mut daemon: Daemon, image: &Path, read_only: bool) -> Vec<Value> {
    let path = daemon.path("image");
    fs::copy(image, &path).expect("the image can be copied");
    let mut options = image::over("qcow2", "disk", "file");
    options["file"] = json!({"driver": "file", "filename": path});
    options["read-only"] = json!(read_only);
    daemon.qmp.ok("blockdev-add", options);
    let export = json!({"type": "nbd", "id": "e", "node-name": "disk", "writable": !read_only});
    daemon.qmp.ok("block-export-add", export);
    let uri = daemon.uri("disk");
    for _ in 0..2 {
        let mut arguments = vec!["-f", "raw", &uri, "-c", "read 0 4k"];
        if read_only {
            arguments.push("-r");
        }
        let read = tool::try_run("qemu-io", &arguments);
        assert_ne!(read.code, Some(0), "damage cannot be read: {}", read.stdout);
    }
    // Refused by QEMU, whose node is gone by now; either answer comes after the events.
    drop(
        daemon
            .qmp
            .execute("query-named-block-nodes", json!({"flat": true})),
    );
    let events = daemon.qmp.take_events();
    events
        .into_iter()
        .map(|event| json!([event["event"], event["data"]]))
        .collect()
}

#[test]
fn corruption_is_told_once_as_qemu_tells_it() {
    let dir = scratch();
    let image = dir.path().join("damaged.qcow2");
    damaged(&image);
    for read_only in [false, true] {
        let theirs = told(daemon().program(oracle()).nbd_unix().start(), &image, read_only);
        let ours = told(daemon().nbd_unix().start(), &image, read_only);
        assert_eq!(ours, theirs, "left is ours, right is QEMU's");
        assert_eq!(ours.len(), 1);
    }
}
