//! Crafted images: each is refused with an error that says what is wrong, or read without harm; the daemon goes on.

use std::fs::{self, OpenOptions};
use std::path::Path;
use std::time::Instant;

use millpond_tests::PATIENCE;
use millpond_tests::crafted::{FIELDS, change_metadata};
use millpond_tests::daemon::{Daemon, daemon, scratch};
use millpond_tests::image::{self, backed_by, poke};
use millpond_tests::nbd::{Connect, Request};
use millpond_tests::program::oracle;
use millpond_tests::tool::qemu_io;
use millpond_tests::workload::seeded;
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

fn options(path: &Path, read_only: bool) -> Value {
    json!({ "driver": "qcow2", "node-name": "image", "read-only": read_only,
            "file": { "driver": "file", "filename": path } })
}

/// Opens an image; the error if it is refused.
fn open(daemon: &mut Daemon, path: &Path, read_only: bool) -> Result<(), String> {
    daemon
        .qmp
        .execute("blockdev-add", options(path, read_only))
        .map(|_| ())
        .map_err(|error| error.desc)
}

/// Reads all of the open image and, if told, writes to it; whatever is answered, it must be answered.
fn exercise(daemon: &mut Daemon, writable: bool) {
    let export = json!({ "type": "nbd", "id": "image", "node-name": "image", "writable": writable });
    daemon.qmp.ok("block-export-add", export);
    let mut session = Connect::default().open(&daemon.address(), "image");
    let size = session.info.size;
    let address = daemon.address();
    let mut ask = |request: Request| {
        // An error of the image may cost the client its connection, as it does with QEMU, but nothing more.
        if session.call(&request).is_err() {
            session = Connect::default().open(&address, "image");
        }
    };
    // Sampled: a header may claim any size.
    let step = (size / 64).max(65536) & !511;
    for offset in (0..size).step_by(step as usize) {
        let length = 65536.min(size - offset);
        ask(Request::read(offset, length));
        ask(Request::new(
            millpond_tests::nbd::wire::CMD_BLOCK_STATUS,
            offset,
            length,
        ));
        if writable {
            ask(Request::write(offset, vec![1; length.min(5000) as usize]));
            ask(Request::zero(offset, length));
            ask(Request::trim(offset, length));
        }
    }
    if writable {
        ask(Request::flush());
    }
    session.disconnect().expect("a goodbye closes the connection");
    daemon
        .qmp
        .ok("block-export-del", json!({ "id": "image", "mode": "hard" }));
    daemon
        .qmp
        .wait_event_where("BLOCK_EXPORT_DELETED", |data| data["id"] == "image");
}

fn close(daemon: &mut Daemon) {
    daemon.qmp.ok("blockdev-del", json!({ "node-name": "image" }));
}

#[test]
fn each_header_field_out_of_range() {
    let dir = scratch();
    let path = dir.path().join("crafted.qcow2");
    let good = dir.path().join("good.qcow2");
    image::create(&good, "qcow2", "", 8 * MIB);
    qemu_io(
        &["-f", "qcow2", &good.display().to_string()],
        &["write -P 1 0 1M", "write -z 1M 64k"],
    );
    let mut ours = daemon().nbd_unix().start();
    let mut theirs = daemon().program(oracle()).start();
    for field in FIELDS {
        for value in field.values {
            let what = format!("{} = {value:#x}", field.name);
            for read_only in [true, false] {
                fs::copy(&good, &path).expect("an image can be copied");
                field.set(&path, *value);
                let their_answer = open(&mut theirs, &path, read_only);
                if their_answer.is_ok() {
                    close(&mut theirs);
                    // QEMU may have repaired the image.
                    fs::copy(&good, &path).expect("an image can be copied");
                    field.set(&path, *value);
                }
                match open(&mut ours, &path, read_only) {
                    Ok(()) => {
                        assert!(
                            their_answer.is_ok(),
                            "{what} was opened; QEMU says {their_answer:?}"
                        );
                        exercise(&mut ours, !read_only);
                        close(&mut ours);
                    }
                    Err(error) => assert!(!error.is_empty(), "{what}: an error must say something"),
                }
            }
        }
    }
    fs::copy(&good, &path).expect("an image can be copied");
    open(&mut ours, &path, false).expect("a good image is opened after all the bad ones");
    ours.quit();
}

#[test]
fn refusals_name_what_is_wrong() {
    let dir = scratch();
    let path = dir.path().join("crafted.qcow2");
    let mut daemon = daemon().start();
    for (offset, bytes, expected) in [
        (0, &[0; 4][..], "Image is not in qcow2 format"),
        (4, &[0, 0, 0, 9], "Unsupported qcow2 version 9"),
        (20, &[0, 0, 0, 30], "Unsupported cluster size: 2^30"),
        (
            96,
            &[0, 0, 0, 7],
            "Reference count entry width too large; may not exceed 64 bits",
        ),
        (100, &[0, 0, 0, 80], "qcow2 header too short"),
        (
            72,
            &[0x80, 0, 0, 0, 0, 0, 0, 0],
            "Unsupported qcow2 feature(s): Unknown incompatible feature",
        ),
        (16, &[0, 0, 8, 0], "Backing file name"),
        (40, &[0, 0, 0, 0, 0, 0, 2, 1], "L1 table offset"),
        (48, &[0, 0, 0, 0, 0, 0, 2, 1], "eference count table offset"),
        (36, &[0xff; 4], "L1 table"),
    ] {
        image::create(&path, "qcow2", "", MIB);
        if offset == 16 {
            poke(&path, 8, &[0, 0, 0, 0, 0, 0, 2, 0]);
        }
        poke(&path, offset, bytes);
        let error = open(&mut daemon, &path, true).expect_err(expected);
        assert!(
            error.to_lowercase().contains(&expected.to_lowercase()),
            "expected {expected:?} in {error:?}"
        );
    }
    fs::write(&path, b"QFI\xfb\0\0\0\x03").expect("a file can be written");
    open(&mut daemon, &path, true).expect_err("a header that is cut short");
    fs::write(&path, b"").expect("a file can be written");
    open(&mut daemon, &path, true).expect_err("an empty file");
}

#[test]
fn metadata_with_any_bits_changed() {
    let dir = scratch();
    let mut rng = seeded("metadata_with_any_bits_changed");
    let path = dir.path().join("crafted.qcow2");
    let good = dir.path().join("good.qcow2");
    image::create(&good, "qcow2", "cluster_size=4k", 2 * MIB);
    qemu_io(
        &["-f", "qcow2", &good.display().to_string()],
        &["write -P 1 0 512k", "write -z 1M 64k", "discard 8k 16k"],
    );
    let mut daemon = daemon().nbd_unix().start();
    for _ in 0..150 {
        fs::copy(&good, &path).expect("an image can be copied");
        change_metadata(&path, &mut rng);
        let read_only = rng.bool();
        if open(&mut daemon, &path, read_only).is_ok() {
            exercise(&mut daemon, !read_only);
            close(&mut daemon);
        }
    }
    daemon.assert_running();
    let resident = daemon.resident_kib();
    assert!(resident < 512 << 10, "{resident} KiB after all images are closed");
    daemon.quit();
}

#[test]
fn images_cut_short_anywhere() {
    let dir = scratch();
    let path = dir.path().join("cut.qcow2");
    let good = dir.path().join("good.qcow2");
    image::create(&good, "qcow2", "cluster_size=4k", 2 * MIB);
    qemu_io(
        &["-f", "qcow2", &good.display().to_string()],
        &["write -P 1 0 64k"],
    );
    let length = fs::metadata(&good).expect("the image").len();
    let mut daemon = daemon().nbd_unix().start();
    for cut in (0..length).step_by(2048 + 8) {
        fs::copy(&good, &path).expect("an image can be copied");
        OpenOptions::new()
            .write(true)
            .open(&path)
            .and_then(|file| file.set_len(cut))
            .expect("it can be cut");
        for read_only in [true, false] {
            if open(&mut daemon, &path, read_only).is_ok() {
                exercise(&mut daemon, !read_only);
                close(&mut daemon);
            }
        }
    }
    daemon.assert_running();
}

#[test]
fn tables_that_point_at_themselves_are_never_written_over() {
    let dir = scratch();
    let path = dir.path().join("crafted.qcow2");
    let mut daemon = daemon().nbd_unix().start();
    let header: Vec<u8> = {
        image::create(&path, "qcow2", "", MIB);
        fs::read(&path).expect("the image")[..512].to_vec()
    };
    let l1 = u64::from_be_bytes(header[40..48].try_into().expect("eight bytes"));
    // The only L2 table is the header, the L1 table itself, or the refcount table. QEMU 10.0 dies of the first.
    for target in [0, l1, 65536] {
        image::create(&path, "qcow2", "", MIB);
        poke(&path, l1, &(target | 1 << 63).to_be_bytes());
        let before = fs::read(&path).expect("the image")[..512].to_vec();
        if open(&mut daemon, &path, false).is_ok() {
            exercise(&mut daemon, true);
            close(&mut daemon);
        }
        let after = fs::read(&path).expect("the image")[..512].to_vec();
        // Marking the image corrupt is the one change that is right.
        assert_eq!(
            before[..72],
            after[..72],
            "an L2 table at {target:#x} led to a write over the header"
        );
    }
    daemon.assert_running();
}

#[test]
fn backing_names_that_lead_elsewhere() {
    let dir = scratch();
    let path = dir.path().join("crafted.qcow2");
    let mut daemon = daemon().nbd_unix().start();
    for name in [
        "nbd:unix:/nonexistent/socket",
        "nbd://127.0.0.1:1/x",
        "http://127.0.0.1:1/x",
        "ssh://127.0.0.1:1/x",
        "nonsense:x",
        "json:{\"driver\": \"nonsense\"}",
        "json:{\"driver\": \"file\", \"filename\"",
        "json:{\"driver\": \"nbd\", \"server\": {\"type\": \"unix\", \"path\": \"/nonexistent\"}}",
        "json:[]",
        "json:",
        "/nonexistent/image",
        "",
        "/dev/null/x",
        "\u{1b}[31mred\u{1b}[0m",
    ] {
        for format in [Some("raw"), Some("qcow2"), Some("nonsense"), None] {
            backed_by(&path, name, format);
            match open(&mut daemon, &path, true) {
                // Only a name of no length means that there is no backing file.
                Ok(()) => {
                    assert_eq!(name, "", "{name:?} ({format:?}) was opened");
                    close(&mut daemon);
                }
                Err(error) => assert!(!error.is_empty(), "{name:?}: an error must say something"),
            }
        }
    }
    daemon.assert_running();
    assert!(
        !daemon.log().contains('\u{1b}'),
        "control characters of a name reach the log"
    );
}

#[test]
fn backing_files_in_a_circle() {
    let dir = scratch();
    let [one, other, own] = ["one", "other", "own"].map(|name| dir.path().join(format!("{name}.qcow2")));
    backed_by(&one, &other.display().to_string(), Some("qcow2"));
    backed_by(&other, &one.display().to_string(), Some("qcow2"));
    backed_by(&own, &own.display().to_string(), Some("qcow2"));
    let mut daemon = daemon().start();
    for path in [&one, &own] {
        for read_only in [true, false] {
            let asked = Instant::now();
            let error = open(&mut daemon, path, read_only).expect_err("a circle has no bottom");
            assert!(!error.is_empty());
            assert!(
                asked.elapsed() < PATIENCE / 4,
                "it took {:?} to refuse a circle",
                asked.elapsed()
            );
        }
    }
    let nodes = daemon.qmp.ok("query-named-block-nodes", json!({}));
    assert_eq!(nodes, json!([]), "nothing is left of what was refused");
}

#[test]
fn a_chain_of_two_hundred_is_read_and_asked_about() {
    const DEPTH: u64 = 200;
    let dir = scratch();
    let level = |index: u64| dir.path().join(format!("{index}.qcow2"));
    image::create(&level(0), "qcow2", "cluster_size=4k", 4 * MIB);
    // Each level has one cluster of its own.
    for index in 0..DEPTH {
        if index > 0 {
            image::create(&level(index), "qcow2", "cluster_size=4k", 4 * MIB);
        }
        let write = format!("write -P {} {} 4k", index % 250 + 1, index * 4096);
        qemu_io(&["-f", "qcow2", &level(index).display().to_string()], &[&write]);
        if index > 0 {
            let name = format!("{}.qcow2", index - 1);
            let mut extension = 0xe279_2aca_u32.to_be_bytes().to_vec();
            extension.extend([0, 0, 0, 5]);
            extension.extend(b"qcow2\0\0\0\0\0\0\0\0\0\0\0");
            poke(&level(index), 112, &extension);
            poke(&level(index), 2048, name.as_bytes());
            poke(&level(index), 8, &2048_u64.to_be_bytes());
            poke(
                &level(index),
                16,
                &u32::try_from(name.len()).expect("short").to_be_bytes(),
            );
        }
    }
    let mut daemon = daemon().nbd_unix().start();
    open(&mut daemon, &level(DEPTH - 1), false).expect("a deep chain is no fault");
    daemon.qmp.ok(
        "block-export-add",
        json!({ "type": "nbd", "id": "image", "node-name": "image", "writable": true }),
    );
    let mut session = Connect::default().open(&daemon.address(), "image");
    let bytes = session.read(0, DEPTH * 4096);
    for (index, cluster) in bytes.chunks(4096).enumerate() {
        assert!(
            cluster.iter().all(|byte| usize::from(*byte) == index % 250 + 1),
            "level {index} is misread"
        );
    }
    session.write(100, &[0xee; 8000]);
    assert_eq!(session.read(100, 8000), [0xee; 8000]);
    let flat = daemon.qmp.ok("query-named-block-nodes", json!({ "flat": true }));
    assert_eq!(flat.as_array().map(Vec::len), Some(2 * DEPTH as usize));
    // Not flat, each node tells of all below it: it must still be answered.
    daemon
        .qmp
        .send_raw("{\"execute\": \"query-named-block-nodes\"}\n");
    let line = daemon.qmp.receive_line().expect("an answer");
    assert!(line.contains("\"return\""), "an answer of {} bytes", line.len());
    drop(session);
    daemon.quit();
}
