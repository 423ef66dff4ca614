//! The log of stored bitmaps, `x-millpond-bitmap-log`: a daemon that is killed leaves bitmaps that miss nothing, which the next
//! one makes an incremental backup by. QEMU reads such images, and once it has written to one the log counts no more.

use std::collections::HashMap;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use millpond_tests::beside::Command;
use millpond_tests::bitmaps::{add, clear, disable, enable, export, merge, ok, remove, shown, together};
use millpond_tests::daemon::{Daemon, daemon_in, scratch};
use millpond_tests::nbd::{Connect, Request};
use millpond_tests::workload::seeded;
use millpond_tests::{image, tool};
use serde_json::{Value, json};
use tempfile::TempDir;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const SIZE: u64 = 24 * MIB;
const DEPTH: usize = 16;

/// A folder with one image.
struct Place(TempDir);

impl Place {
    fn new(options: &str) -> Self {
        let place = Self(scratch());
        image::create(&place.disk(), "qcow2", options, SIZE);
        place
    }

    fn disk(&self) -> PathBuf {
        self.0.path().join("disk")
    }

    fn options(&self, more: &Value) -> Value {
        let mut node = image::over("qcow2", "disk", "");
        node["file"] = image::file("disk-file", &self.disk());
        node["discard"] = json!("unmap");
        image::with(node, more)
    }

    fn serve(&self) -> Daemon {
        daemon_in(self.0.path()).nbd_unix().start()
    }

    fn open(&self, log: bool) -> Daemon {
        let mut daemon = self.serve();
        let node = self.options(&json!({"x-millpond-bitmap-log": log}));
        daemon.qmp.ok("blockdev-add", node);
        export(&mut daemon, "disk");
        daemon
    }

    /// Kills a daemon, and waits until the image is free.
    fn kill(&self, mut daemon: Daemon) {
        daemon.kill();
        image::wait_released(&self.disk());
        image::assert_at_most_leaks(&self.disk());
    }

    /// The header's autoclear features.
    fn autoclear(&self) -> u64 {
        self.number(88)
    }

    fn number(&self, offset: u64) -> u64 {
        let mut bytes = [0; 8];
        let file = std::fs::File::open(self.disk()).expect("the image");
        file.read_exact_at(&mut bytes, offset).expect("it can be read");
        u64::from_be_bytes(bytes)
    }

    /// Where the last cluster of the bitmap directory ends, which has clusters of 64 KiB.
    fn directory_end(&self) -> u64 {
        let mut at = 112;
        loop {
            let head = self.number(at);
            if head >> 32 == 0x2385_2875 {
                return self.number(at + 24) + 64 * KIB;
            }
            assert_ne!(head >> 32, 0, "the image lists no bitmaps");
            at += 8 + (head & 0xffff_ffff).next_multiple_of(8);
        }
    }

    fn qemu_img(&self, words: &str) -> String {
        tool::qemu_img(&words.replace("DISK", &self.disk().display().to_string()))
    }
}

fn add_stored(name: &str, granularity: u64) -> Command {
    let (command, mut arguments) = add("disk", name, granularity);
    arguments["persistent"] = json!(true);
    (command, arguments)
}

/// The bitmaps of the node, by their names.
fn bitmaps(daemon: &mut Daemon) -> HashMap<String, Value> {
    let nodes = daemon.qmp.ok("query-named-block-nodes", json!({"flat": true}));
    let nodes = nodes.as_array().expect("a list").clone();
    let disk = nodes.into_iter().find(|node| node["node-name"] == "disk");
    let bitmaps = disk.expect("the node")["dirty-bitmaps"].clone();
    let bitmaps = bitmaps.as_array().into_iter().flatten().cloned();
    let named = |bitmap: Value| (bitmap["name"].as_str().expect("a name").to_owned(), bitmap);
    bitmaps.map(named).collect()
}

/// The hashes of all bitmaps, in an order of their own.
fn hashes(daemon: &mut Daemon) -> Vec<String> {
    let mut hashes = shown(daemon);
    hashes.retain(|line| line.contains("sha256"));
    hashes.sort();
    hashes
}

#[track_caller]
fn is_usable(daemon: &mut Daemon, name: &str) -> bool {
    let bitmaps = bitmaps(daemon);
    let bitmap = bitmaps.get(name).expect("the bitmap");
    bitmap.get("inconsistent").is_none()
}

/// Writes, zeroes and discards at random until so many requests were answered; others are in flight then.
fn load(daemon: &Daemon, rng: &mut fastrand::Rng, count: u32) {
    let mut session = Connect::default().open(&daemon.address(), "disk").pipelined();
    for _ in 0..count {
        while session.in_flight() < DEPTH {
            let len = rng.u64(1..=64) * 512;
            let offset = rng.u64(0..(SIZE - len) / 512) * 512;
            let request = match rng.u8(0..8) {
                0 => Request::zero(offset, len),
                1 => Request::trim(offset, len),
                2 => Request::flush(),
                _ => Request::write(offset, (0..len).map(|_| rng.u8(..)).collect()),
            };
            session.submit(&request).expect("it is sent");
        }
        let answer = session.complete().expect("the daemon answers");
        assert_eq!(answer.error, 0, "{}", answer.message);
    }
}

/// Copies what is dirty by the bitmap `b`, or all where `sync` says so, to the target that earlier backups went to.
fn back_up(daemon: &mut Daemon, sync: &str) {
    let path = PathBuf::from(daemon.path("target"));
    if !path.exists() {
        image::create(&path, "raw", "", SIZE);
    }
    daemon.qmp.ok("blockdev-add", image::file("target", &path));
    let mut arguments =
        json!({"job-id": "j", "device": "disk", "target": "target", "sync": sync, "auto-dismiss": false});
    if sync == "incremental" {
        arguments["bitmap"] = json!("b");
    }
    let ended = daemon.qmp.run_job("j", "blockdev-backup", arguments);
    ended.expect("the backup succeeds");
    daemon.qmp.ok("blockdev-del", json!({"node-name": "target"}));
}

#[track_caller]
fn assert_target_is_the_disk(daemon: &Daemon) {
    let (disk, target) = (
        daemon.session("disk").read_all(),
        std::fs::read(daemon.path("target")).expect("the target"),
    );
    let differs = disk.iter().zip(&target).position(|(disk, target)| disk != target);
    assert_eq!(differs, None, "the copy is not the disk");
    assert_eq!(disk.len(), target.len());
}

/// Killed under load, again and again: each time the next daemon copies what has changed since the last backup, and has all.
#[test]
fn an_incremental_backup_after_a_kill_has_all_that_was_written() {
    for options in ["", "cluster_size=4k", "cluster_size=16k,extended_l2=on"] {
        let mut rng = seeded("an_incremental_backup_after_a_kill");
        let place = Place::new(options);
        let mut daemon = place.open(true);
        load(&daemon, &mut rng, 100);
        ok(&mut daemon, add_stored("b", 64 * KIB));
        back_up(&mut daemon, "full");
        for round in 0..4 {
            load(&daemon, &mut rng, 50 + 100 * round);
            place.kill(daemon);
            let info = place.qemu_img("info DISK");
            assert!(info.contains("in-use"), "{info}");
            daemon = place.open(true);
            assert!(is_usable(&mut daemon, "b"), "{options}");
            back_up(&mut daemon, "incremental");
            assert_target_is_the_disk(&daemon);
            // What was copied is clean, and stays so.
            place.kill(daemon);
            daemon = place.open(true);
            assert_eq!(bitmaps(&mut daemon)["b"]["count"], 0, "{options}");
        }
        load(&daemon, &mut rng, 50);
        daemon.quit();
        image::assert_at_most_leaks(&place.disk());
        assert_eq!(place.autoclear(), 1, "no trace is left of the log");
        let mut daemon = place.open(false);
        back_up(&mut daemon, "incremental");
        assert_target_is_the_disk(&daemon);
        daemon.quit();
        image::assert_at_most_leaks(&place.disk());
    }
}

/// A log of a data file's disk is in the image.
#[test]
fn bitmaps_of_a_disk_in_a_data_file_are_logged() {
    let mut rng = seeded("bitmaps_of_a_disk_in_a_data_file");
    let dir = scratch();
    let data = dir.path().join("data");
    let place = Place(dir);
    image::create(
        &place.disk(),
        "qcow2",
        &format!("data_file={},data_file_raw=on", data.display()),
        SIZE,
    );
    let mut daemon = place.open(true);
    ok(&mut daemon, add_stored("b", 64 * KIB));
    back_up(&mut daemon, "full");
    load(&daemon, &mut rng, 200);
    place.kill(daemon);
    let mut daemon = place.open(true);
    back_up(&mut daemon, "incremental");
    assert_target_is_the_disk(&daemon);
    daemon.quit();
    image::assert_at_most_leaks(&place.disk());
}

/// What was answered is so after a kill: no bitmap says less, and none says more where nothing was written.
#[test]
fn changes_of_bitmaps_outlive_a_kill() {
    let place = Place::new("");
    let mut daemon = place.open(true);
    let mut session = daemon.session("disk");
    ok(&mut daemon, add_stored("a", 4 * KIB));
    ok(&mut daemon, add_stored("b", 64 * KIB));
    session.write(MIB, &[1; 4096]);
    session.write(9 * MIB + 512, &[2; 300 * 1024]);
    drop(session);
    let mut daemon = Some(daemon);
    let changes = [
        disable("disk", "a"),
        clear("disk", "b"),
        merge("disk", "b", json!(["a"])),
        add_stored("c", 512),
        enable("disk", "a"),
        together(&[clear("disk", "a"), merge("disk", "c", json!(["b"]))]),
        remove("disk", "b"),
        together(&[remove("disk", "c"), add_stored("d", 64 * KIB)]),
    ];
    for change in changes {
        let mut killed = daemon.take().expect("it runs");
        ok(&mut killed, change.clone());
        let before = (bitmaps(&mut killed), hashes(&mut killed));
        place.kill(killed);
        let mut opened = place.open(true);
        let after = (bitmaps(&mut opened), hashes(&mut opened));
        assert_eq!(after, before, "{change:?}");
        daemon = Some(opened);
    }
    let mut daemon = daemon.expect("it runs");
    // A list that fails leaves all as it was, in the image too.
    let failing = together(&[clear("disk", "a"), remove("disk", "d"), ("abort", json!({}))]);
    daemon.session("disk").write(5 * MIB, &[3; 512]);
    assert!(daemon.qmp.execute(failing.0, failing.1).is_err());
    let before = bitmaps(&mut daemon);
    place.kill(daemon);
    let mut daemon = place.open(true);
    for (name, bitmap) in bitmaps(&mut daemon) {
        assert_eq!(bitmap, before[&name], "what was written is a region of the log");
    }
    daemon.quit();
    image::assert_at_most_leaks(&place.disk());
}

/// The log begins in what another program's directory leaves of its cluster, which may be the end of the file.
#[test]
fn bitmaps_that_qemu_made_are_logged() {
    for options in ["cluster_size=512", "", "cluster_size=2M"] {
        let place = Place::new(options);
        place.qemu_img("bitmap --add -g 65536 DISK a");
        place.qemu_img("bitmap --add --disable -g 65536 DISK off");
        let daemon = place.open(true);
        daemon.session("disk").write(3 * MIB, &[1; 512]);
        place.kill(daemon);
        let mut daemon = place.open(true);
        let found = bitmaps(&mut daemon);
        let count = found["a"]["count"].as_u64().expect("a number");
        // With the smallest clusters there is room for 512 regions of this disk, with others for more.
        assert_eq!(
            (count, &found["off"]["count"]),
            (64 * KIB, &json!(0)),
            "{options}"
        );
        daemon.quit();
        image::assert_at_most_leaks(&place.disk());
    }
}

/// A disk that has grown or shrunk since its bitmaps were stored.
#[test]
fn bitmaps_follow_a_resize_that_a_kill_comes_after() {
    let place = Place::new("");
    let mut daemon = place.open(true);
    ok(&mut daemon, add_stored("a", 64 * KIB));
    daemon.session("disk").write(3 * MIB, &[1; 512]);
    let resize = |daemon: &mut Daemon, size: u64| {
        millpond_tests::bitmaps::unexport(daemon, "disk");
        daemon
            .qmp
            .ok("block_resize", json!({"node-name": "disk", "size": size}));
        export(daemon, "disk");
    };
    for size in [8 << 30, 4 * MIB] {
        resize(&mut daemon, size);
        daemon.session("disk").write(size - 4096, &[2; 4096]);
        place.kill(daemon);
        daemon = place.open(true);
        assert!(is_usable(&mut daemon, "a"));
        let count = bitmaps(&mut daemon)["a"]["count"].as_u64().expect("a number");
        assert!(count >= 128 * KIB, "{count}");
    }
    daemon.quit();
    image::assert_at_most_leaks(&place.disk());
}

/// Who only reads leaves the log as it is.
#[test]
fn qemu_reads_an_image_with_a_log_and_finds_nothing_wrong() {
    let place = Place::new("");
    let mut daemon = place.open(true);
    ok(&mut daemon, add_stored("a", 64 * KIB));
    let mut session = daemon.session("disk");
    session.write(3 * MIB, &[1; 512]);
    session.flush();
    drop(session);
    place.kill(daemon);
    image::assert_clean(&place.disk());
    let info = place.qemu_img("info DISK");
    assert!(info.contains("in-use"), "{info}");
    let out = place.0.path().join("out");
    place.qemu_img(&format!("convert -f qcow2 -O raw DISK {}", out.display()));
    let mut daemon = place.serve();
    let read_only = place.options(&json!({"read-only": true}));
    daemon.qmp.ok("blockdev-add", read_only);
    assert_eq!(bitmaps(&mut daemon)["a"]["count"], 64 * KIB);
    daemon.quit();
    // A log that is not to go on is believed once, and ends with the first change.
    let mut daemon = place.open(false);
    assert_eq!(bitmaps(&mut daemon)["a"]["count"], 64 * KIB);
    assert_eq!(place.autoclear(), 1);
    daemon.session("disk").write(5 * MIB, &[1; 512]);
    place.kill(daemon);
    let mut daemon = place.open(true);
    assert!(!is_usable(&mut daemon, "a"));
    daemon.quit();
}

/// QEMU takes the log's flag away before it writes. What it has written is in no log, so nobody relies on one.
#[test]
fn once_qemu_has_written_to_the_image_its_bitmaps_are_inconsistent() {
    let place = Place::new("");
    let mut daemon = place.open(true);
    ok(&mut daemon, add_stored("a", 64 * KIB));
    ok(&mut daemon, add_stored("b", 64 * KIB));
    daemon.session("disk").write(3 * MIB, &[1; 512]);
    place.kill(daemon);
    assert_eq!(place.autoclear(), 1 << 62 | 1);
    let disk = place.disk().display().to_string();
    tool::qemu_io(&["-f", "qcow2", &disk], &["write 7M 64k"]);
    assert_eq!(place.autoclear(), 1);
    image::assert_at_most_leaks(&place.disk());
    let mut daemon = place.open(true);
    assert!(!is_usable(&mut daemon, "a"));
    daemon.session("disk").write(9 * MIB, &[1; 512]);
    // Beside one of which nobody knows what is dirty no other has a log.
    ok(&mut daemon, remove("disk", "b"));
    ok(&mut daemon, add_stored("c", 64 * KIB));
    place.kill(daemon);
    let mut daemon = place.open(true);
    assert!(!is_usable(&mut daemon, "a"));
    ok(&mut daemon, remove("disk", "a"));
    let names: Vec<String> = bitmaps(&mut daemon).into_keys().collect();
    for name in names {
        ok(&mut daemon, remove("disk", &name));
    }
    ok(&mut daemon, add_stored("c", 64 * KIB));
    daemon.session("disk").write(9 * MIB, &[1; 512]);
    place.kill(daemon);
    let mut daemon = place.open(true);
    assert_eq!(bitmaps(&mut daemon)["c"]["count"], 64 * KIB);
    daemon.quit();
    image::assert_at_most_leaks(&place.disk());
}

/// Whatever is crafted where a log is, the image opens, and no bitmap is believed that the log does not belong to.
#[test]
fn crafted_logs_are_ignored() {
    let place = Place::new("");
    let mut daemon = place.open(true);
    ok(&mut daemon, add_stored("a", 64 * KIB));
    daemon.session("disk").write(3 * MIB, &[1; 512]);
    place.kill(daemon);
    let sound = std::fs::read(place.disk()).expect("the image");
    let foot = place.directory_end() - 48;
    for (at, bytes) in [
        (0, vec![0; 8]),
        (8, u64::MAX.to_be_bytes().to_vec()),
        (16, u64::MAX.to_be_bytes().to_vec()),
        (24, u32::MAX.to_be_bytes().to_vec()),
        (28, u32::MAX.to_be_bytes().to_vec()),
        (28, 0_u32.to_be_bytes().to_vec()),
        (32, vec![0; 16]),
    ] {
        std::fs::write(place.disk(), &sound).expect("the image");
        image::poke(&place.disk(), foot + at, &bytes);
        let mut daemon = place.open(at % 16 == 0);
        assert!(!is_usable(&mut daemon, "a"), "{bytes:?} at {at}");
        daemon.session("disk").write(5 * MIB, &[1; 512]);
        daemon.quit();
        image::assert_at_most_leaks(&place.disk());
    }
}

/// Where a region is dirty a write waits for nothing: one flush is made for all that is written there.
#[test]
fn a_region_is_made_durable_once() {
    let place = Place::new("");
    let mut daemon = place.open(true);
    ok(&mut daemon, add_stored("a", 64 * KIB));
    let flushes = |daemon: &mut Daemon| {
        let stats = daemon.qmp.ok("query-blockstats", json!({"query-nodes": true}));
        let stats = stats.as_array().expect("a list").clone();
        let file = stats.into_iter().find(|node| node["node-name"] == "disk-file");
        file.expect("the node")["stats"]["flush_operations"]
            .as_u64()
            .expect("a number")
    };
    let mut session = daemon.session("disk");
    let before = flushes(&mut daemon);
    for at in 0..50 {
        session.write(MIB + at * 512, &[1; 512]);
    }
    assert_eq!(flushes(&mut daemon), before + 1);
    session.write(2 * MIB, &vec![1; MIB as usize]);
    assert_eq!(
        flushes(&mut daemon),
        before + 2,
        "all regions of a request at once"
    );
    drop(session);
    daemon.quit();
}

#[test]
fn the_option_is_off_unless_given_and_stays_as_it_was_given() {
    let place = Place::new("");
    let mut daemon = place.open(false);
    ok(&mut daemon, add_stored("a", 64 * KIB));
    daemon.quit();
    let mut daemon = place.open(false);
    daemon.session("disk").write(3 * MIB, &[1; 512]);
    assert_eq!(place.autoclear(), 1);
    let options = json!({"options": [place.options(&json!({"x-millpond-bitmap-log": true}))]});
    let refused = daemon.qmp.refused("blockdev-reopen", options);
    assert_eq!(refused.desc, "Cannot change the option 'x-millpond-bitmap-log'");
    place.kill(daemon);
    let mut daemon = place.open(true);
    assert!(!is_usable(&mut daemon, "a"));
    daemon.quit();
}
