//! What is told of an image whose metadata is wrong: beside QEMU's daemon, on copies of the same image.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use millpond_tests::daemon::{Daemon, daemon, scratch};
use millpond_tests::program::oracle;
use millpond_tests::{image, tool};
use serde_json::{Value, json};

/// An image with one cluster of data.
fn sound(path: &Path) {
    image::create(path, "qcow2", "", 1 << 20);
    tool::qemu_io(
        &["-f", "qcow2", &path.display().to_string()],
        &["write -P 1 0 64k"],
    );
}

/// The number at `offset` of an image's file.
fn number(path: &Path, offset: u64) -> u64 {
    let file = File::open(path).expect("the image is there");
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, offset)
        .expect("the image can be read");
    u64::from_be_bytes(bytes)
}

/// Where an image's first L2 table is.
fn first_table(path: &Path) -> u64 {
    number(path, number(path, 40)) & 0x00ff_ffff_ffff_fe00
}

/// An image whose data cluster is given an offset that no cluster has.
fn damaged(path: &Path) {
    sound(path);
    let l2 = first_table(path);
    image::poke(path, l2, &(number(path, l2) | 0x200).to_be_bytes());
}

/// The events that coming upon the damage twice causes.
fn told(daemon: Daemon, image: &Path, read_only: bool, request: &str) -> Vec<Value> {
    let events = told_with(daemon, image, json!({"read-only": read_only}), request);
    events.expect("damage gives errors")
}

/// The same of an image that is opened with these options; none where no request failed.
fn told_with(mut daemon: Daemon, image: &Path, more: Value, request: &str) -> Option<Vec<Value>> {
    let path = daemon.path("image");
    fs::copy(image, &path).expect("the image can be copied");
    let mut options = image::over("qcow2", "disk", "file");
    options["file"] = json!({"driver": "file", "filename": path});
    for (name, value) in more.as_object().expect("options") {
        options[name] = value.clone();
    }
    let read_only = options["read-only"] == true;
    daemon.qmp.ok("blockdev-add", options);
    let export = json!({"type": "nbd", "id": "e", "node-name": "disk", "writable": !read_only});
    daemon.qmp.ok("block-export-add", export);
    let uri = daemon.uri("disk");
    for _ in 0..2 {
        let mut arguments = vec!["-f", "raw", &uri, "-c", request];
        if read_only {
            arguments.push("-r");
        }
        if tool::try_run("qemu-io", &arguments).code == Some(0) {
            return None;
        }
    }
    // Refused by QEMU, whose node is gone by now; either answer comes after the events.
    drop(
        daemon
            .qmp
            .execute("query-named-block-nodes", json!({"flat": true})),
    );
    let events = daemon.qmp.take_events();
    let events = events.into_iter();
    Some(
        events
            .map(|event| json!([event["event"], event["data"]]))
            .collect(),
    )
}

/// What is told must be the same, and one thing.
#[track_caller]
fn same(image: &Path, read_only: bool, request: &str) {
    let theirs = told(
        daemon().program(oracle()).nbd_unix().start(),
        image,
        read_only,
        request,
    );
    let ours = told(daemon().nbd_unix().start(), image, read_only, request);
    assert_eq!(ours, theirs, "left is ours, right is QEMU's");
    assert_eq!(ours.len(), 1);
}

#[test]
fn corruption_is_told_once_as_qemu_tells_it() {
    let dir = scratch();
    let image = dir.path().join("damaged.qcow2");
    damaged(&image);
    for read_only in [false, true] {
        same(&image, read_only, "read 0 4k");
    }
    same(&image, false, "write 3000 600");
}

#[test]
fn writes_over_metadata_are_told_with_their_place() {
    let dir = scratch();
    let good = dir.path().join("good.qcow2");
    sound(&good);
    let (l1, table, l2) = (number(&good, 40), number(&good, 48), first_table(&good));
    let block = number(&good, table);
    let bad = dir.path().join("bad.qcow2");
    let case = |offset: u64, bytes: &[u8], request: &str| {
        fs::copy(&good, &bad).expect("the folder can be written to");
        image::poke(&bad, offset, bytes);
        same(&bad, false, request);
    };
    // All clusters count as free.
    case(table, &[0; 8], "write 128k 64k");
    case(table, &[0; 8], "write 128k 600");
    case(block, &[0; 2], "write 128k 64k");
    for metadata in [l1, table, l2, block] {
        case(l2, &(1 << 63 | metadata).to_be_bytes(), "write 0 64k");
        case(l2, &(1 << 63 | metadata).to_be_bytes(), "write 3000 600");
        let count = block + (metadata >> 16) * 2;
        case(count, &[0; 2], "write 128k 64k");
    }
}

/// A snapshot's L2 table is guarded only by who asks for that.
#[test]
fn writes_over_the_tables_of_snapshots_are_told_if_they_are_guarded() {
    let dir = scratch();
    let image = dir.path().join("image.qcow2");
    let name = image.display().to_string();
    sound(&image);
    tool::run("qemu-img", &["snapshot", "-c", "one", &name]);
    // The disk has a table of its own from now on.
    tool::qemu_io(&["-f", "qcow2", &name], &["write -P 2 0 64k"]);
    let inactive = number(&image, number(&image, number(&image, 64))) & 0x00ff_ffff_ffff_fe00;
    assert_ne!(inactive, first_table(&image));
    let block = number(&image, number(&image, 48));
    image::poke(&image, block + (inactive >> 16) * 2, &[0; 2]);
    for (guard, is_told) in [
        (json!("all"), true),
        (json!({"template": "none", "inactive-l2": true}), true),
        (json!({"template": "all", "inactive-l2": false}), false),
        (json!("cached"), false),
        (json!("constant"), false),
    ] {
        let told = |daemon| told_with(daemon, &image, json!({"overlap-check": guard}), "write 128k 64k");
        let theirs = told(daemon().program(oracle()).nbd_unix().start());
        let ours = told(daemon().nbd_unix().start());
        assert_eq!(ours, theirs, "{guard}: left is ours, right is QEMU's");
        assert_eq!(ours.is_some(), is_told, "{guard}: {ours:?}");
    }
}
