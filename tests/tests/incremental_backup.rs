//! Backups by dirty bitmaps, beside QEMU's daemon: what is copied, what the bitmaps say during the job and after it, and what
//! is refused; and a moment kept for who asks for what is dirty alone, as backup programs that pull do.

use millpond_tests::beside::{Command, beside_qemu};
use millpond_tests::bitmaps::{
    add, answer, clear, disable, enable, export, merge, named, ok, open, remove, shown, together, unexport,
};
use millpond_tests::daemon::Daemon;
use millpond_tests::image;
use millpond_tests::nbd::Request;
use millpond_tests::tool;
use serde_json::{Value, json};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const SIZE: u64 = 4 * MIB;
const EIO: u64 = 5;

/// A disk with data everywhere, what was written to it since the bitmap `b` was made, and a target that fails a write if it
/// is to.
fn prepare(daemon: &mut Daemon, fails: bool) {
    open(daemon, "qcow2", "disk", SIZE);
    let path = daemon.dir().join("target");
    image::create(&path, "raw", "", SIZE);
    let mut session = daemon.session("disk");
    for at in 0..4 {
        session.write(at * MIB, &vec![at as u8 + 1; MIB as usize]);
    }
    ok(daemon, add("disk", "b", 64 * KIB));
    session.write(64 * KIB, &[0x11; 4096]);
    session.write(2 * MIB, &vec![0x22; 300 * KIB as usize]);
    session.write(3 * MIB + 100 * KIB, &[0x33; 512]);
    let mut file = image::file("target-file", &path);
    if fails {
        let rule =
            json!({"event": "none", "iotype": "write", "errno": EIO, "sector": (3 * MIB + 64 * KIB) / 512});
        file =
            json!({"driver": "blkdebug", "node-name": "target-file", "image": file, "inject-error": [rule]});
        file["image"]["node-name"] = json!("image");
    }
    daemon.qmp.ok("blockdev-add", file);
    daemon
        .qmp
        .ok("blockdev-add", image::over("raw", "target", "target-file"));
}

fn backup(more: Value) -> Value {
    let mut arguments =
        json!({"job-id": "j", "device": "disk", "target": "target", "sync": "bitmap", "bitmap": "b"});
    for (name, value) in more.as_object().expect("an object") {
        arguments[name] = value.clone();
        if value.is_null() {
            arguments.as_object_mut().expect("an object").remove(name);
        }
    }
    arguments
}

/// What is in the target's file, in a form that is told apart.
fn copied(daemon: &Daemon) -> Vec<String> {
    let bytes = std::fs::read(daemon.path("target")).expect("the target");
    let blocks = bytes.chunks(64 * KIB as usize).map(|block| {
        let hash = block.iter().fold(7_u64, |hash, byte| {
            hash.wrapping_mul(31).wrapping_add(u64::from(*byte))
        });
        format!("{hash:x}")
    });
    blocks.collect()
}

/// What comes of each mode, where the job succeeds and where it does not.
#[test]
fn bitmaps_follow_a_backup_as_they_are_asked_to() {
    let modes = [
        json!({"sync": "incremental"}),
        json!({"bitmap-mode": "on-success"}),
        json!({"bitmap-mode": "never"}),
        json!({"bitmap-mode": "always"}),
        json!({"sync": "full", "bitmap-mode": "on-success"}),
        json!({"sync": "full", "bitmap-mode": "always"}),
        json!({"sync": "top", "bitmap-mode": "always"}),
    ];
    for mode in modes {
        for fails in [false, true] {
            let told = |mut daemon: Daemon| {
                prepare(&mut daemon, fails);
                let mut arguments = backup(mode.clone());
                arguments["auto-dismiss"] = json!(false);
                let ended = daemon.qmp.run_job("j", "blockdev-backup", arguments);
                let mut told = vec![format!("{mode} {ended:?}")];
                told.extend(shown(&mut daemon));
                // What is written from now on is recorded again.
                daemon.session("disk").write(0, &[9; 512]);
                told.extend(shown(&mut daemon));
                daemon.qmp.quit();
                daemon.expect_clean_exit();
                if !fails {
                    told.extend(copied(&daemon));
                }
                told
            };
            beside_qemu(told);
        }
    }
}

/// While the job goes on the bitmap is in use, and what is written is kept apart.
#[test]
fn a_bitmap_is_in_use_while_its_backup_goes_on() {
    for (mode, is_enabled) in [("on-success", true), ("never", true), ("on-success", false)] {
        beside_qemu(|mut daemon| {
            prepare(&mut daemon, false);
            if !is_enabled {
                ok(&mut daemon, disable("disk", "b"));
            }
            let more = json!({"bitmap-mode": mode, "filter-node-name": "filter", "auto-finalize": false, "auto-dismiss": false});
            daemon.qmp.ok("blockdev-backup", backup(more));
            daemon
                .qmp
                .wait_event_where("JOB_STATUS_CHANGE", |data| data["status"] == "pending");
            daemon.session("disk").write(MIB, &[5; 512]);
            let mut seen = shown(&mut daemon);
            let second = backup(json!({"job-id": "k", "bitmap-mode": mode}));
            for command in [
                clear("disk", "b"),
                enable("disk", "b"),
                disable("disk", "b"),
                remove("disk", "b"),
                merge("disk", "b", json!(["b"])),
                ("blockdev-backup", second),
            ] {
                seen.extend(answer(&mut daemon, &command));
            }
            daemon.qmp.ok("job-finalize", json!({"id": "j"}));
            daemon
                .qmp
                .wait_event_where("JOB_STATUS_CHANGE", |data| data["status"] == "concluded");
            seen.extend(shown(&mut daemon));
            daemon.quit();
            seen
        });
    }
}

#[test]
fn what_no_bitmap_can_do_is_refused_in_qemus_words() {
    beside_qemu(|mut daemon| {
        prepare(&mut daemon, false);
        let mut seen = Vec::new();
        for more in [
            json!({"bitmap": null}),
            json!({"bitmap": null, "sync": "incremental"}),
            json!({"bitmap": null, "sync": "full", "bitmap-mode": "always"}),
            json!({"bitmap": "none", "bitmap-mode": "always"}),
            json!({}),
            json!({"sync": "full"}),
            json!({"sync": "incremental", "bitmap-mode": "always"}),
            json!({"sync": "none", "bitmap-mode": "always"}),
            json!({"sync": "full", "bitmap-mode": "never"}),
            json!({"sync": "top", "bitmap-mode": "never"}),
        ] {
            seen.extend(answer(&mut daemon, &("blockdev-backup", backup(more))));
        }
        daemon.quit();
        seen
    });
}

/// A list of which one part fails leaves the bitmap as it was. (With the mode `always` QEMU calls all of the disk dirty then,
/// though its job has not begun.)
#[test]
fn a_list_that_fails_puts_the_bitmap_together_again() {
    beside_qemu(|mut daemon| {
        prepare(&mut daemon, false);
        let start: Command = ("blockdev-backup", backup(json!({"bitmap-mode": "on-success"})));
        let list = together(&[start, ("abort", json!({}))]);
        let mut seen = answer(&mut daemon, &list);
        daemon.session("disk").write(MIB, &[5; 512]);
        seen.extend(shown(&mut daemon));
        daemon.quit();
        seen
    });
}

/// Backups that end alike keep or clear their bitmaps alike; those that do not, each by itself.
#[test]
fn grouped_backups_keep_all_bitmaps_when_one_of_them_fails() {
    for (completion, fails) in [("grouped", true), ("grouped", false), ("individual", true)] {
        beside_qemu(|mut daemon| {
            prepare(&mut daemon, fails);
            open(&mut daemon, "qcow2", "spare", SIZE);
            let path = daemon.dir().join("spare-target");
            image::create(&path, "raw", "", SIZE);
            daemon
                .qmp
                .ok("blockdev-add", image::file("spare-target-file", &path));
            let target = image::over("raw", "spare-target", "spare-target-file");
            daemon.qmp.ok("blockdev-add", target);
            ok(&mut daemon, add("spare", "b", 64 * KIB));
            daemon.session("spare").write(MIB, &[7; 4096]);
            let start = |job: &str, device: &str, target: &str| {
                let more = json!({"job-id": job, "device": device, "target": target,
                    "sync": "incremental", "auto-dismiss": false});
                json!({"type": "blockdev-backup", "data": backup(more)})
            };
            let list = json!({"actions": [start("j", "disk", "target"), start("k", "spare", "spare-target")],
                "properties": {"completion-mode": completion}});
            daemon.qmp.ok("transaction", list);
            for job in ["j", "k"] {
                daemon.qmp.wait_event_where("JOB_STATUS_CHANGE", |data| {
                    data["id"] == job && data["status"] == "concluded"
                });
            }
            let mut jobs = daemon.qmp.ok("query-jobs", json!({}));
            let jobs = jobs.as_array_mut().expect("a list");
            jobs.sort_by_key(|job| job["id"].to_string());
            // How far a job was when another failed is up to chance.
            let mut seen: Vec<String> = jobs
                .iter()
                .map(|job| format!("{} {}", job["id"], job["error"]))
                .collect();
            seen.extend(shown(&mut daemon));
            daemon.session("spare").write(0, &[9; 512]);
            seen.extend(shown(&mut daemon));
            daemon.quit();
            seen
        });
    }
}

/// The same by a target that the command opens itself.
#[test]
fn a_drive_is_backed_up_by_a_bitmap() {
    for (sync, mode) in [
        ("incremental", None),
        ("bitmap", Some("never")),
        ("bitmap", Some("always")),
    ] {
        beside_qemu(|mut daemon| {
            prepare(&mut daemon, false);
            daemon.qmp.ok("blockdev-del", json!({"node-name": "target"}));
            daemon.qmp.ok("blockdev-del", json!({"node-name": "target-file"}));
            let path = daemon.path("target");
            let mut arguments = json!({"job-id": "j", "device": "disk", "target": path, "format": "raw",
                "mode": "existing", "sync": sync, "bitmap": "b", "auto-dismiss": false});
            if let Some(mode) = mode {
                arguments["bitmap-mode"] = json!(mode);
            }
            let ended = daemon.qmp.run_job("j", "drive-backup", arguments);
            let mut told = vec![format!("{ended:?}")];
            told.extend(shown(&mut daemon));
            daemon.qmp.quit();
            daemon.expect_clean_exit();
            told.extend(copied(&daemon));
            told
        });
    }
}

/// The moment of a disk, of which only what a bitmap names can be asked for: the flow of programs that pull.
fn fleece(daemon: &mut Daemon) {
    ok(
        daemon,
        together(&[
            add("disk", "moment", 64 * KIB),
            disable("disk", "moment"),
            merge("disk", "moment", json!(["b"])),
            add("disk", "next", 64 * KIB),
            disable("disk", "b"),
        ]),
    );
    unexport(daemon, "disk");
    let scratch = daemon.dir().join("scratch");
    image::create(&scratch, "qcow2", "", SIZE);
    daemon
        .qmp
        .ok("blockdev-add", image::file("scratch-file", &scratch));
    daemon
        .qmp
        .ok("blockdev-add", image::over("qcow2", "scratch", "scratch-file"));
    let mut filter = image::over("copy-before-write", "cbw", "disk");
    filter["target"] = json!("scratch");
    filter["bitmap"] = named("disk", "moment");
    daemon.qmp.ok("blockdev-add", filter);
    daemon
        .qmp
        .ok("blockdev-add", image::over("snapshot-access", "view", "cbw"));
    export(daemon, "cbw");
    let view = json!({
        "type": "nbd", "id": "view", "node-name": "view", "name": "view", "bitmaps": [named("disk", "moment")],
    });
    daemon.qmp.ok("block-export-add", view);
}

#[test]
fn what_is_dirty_can_be_pulled_as_it_was_while_the_disk_goes_on() {
    beside_qemu(|mut daemon| {
        prepare(&mut daemon, false);
        fleece(&mut daemon);
        let mut guest = daemon.session("cbw");
        guest.write(0, &vec![0x77; SIZE as usize / 2 + 64 * KIB as usize]);
        let uri = daemon.uri("view");
        let map = format!(
            "driver=nbd,export=view,x-dirty-bitmap=qemu:dirty-bitmap:moment,{}",
            server(&uri)
        );
        let dirty = tool::run("qemu-img", &["map", "--output=json", "--image-opts", &map]);
        let mut seen = vec![dirty];
        let mut view = daemon.session("view");
        for (offset, len) in [
            (64 * KIB, 64 * KIB),
            (2 * MIB, 320 * KIB),
            (3 * MIB + 64 * KIB, 64 * KIB),
        ] {
            let bytes = view.read(offset, len);
            seen.push(format!(
                "{:?}",
                bytes
                    .iter()
                    .fold(0_u64, |sum, byte| sum * 3 % 1_000_003 + u64::from(*byte))
            ));
        }
        seen.push(format!("{}", view.refused(&Request::read(0, 512))));
        drop((view, guest));
        for id in ["view", "cbw"] {
            unexport(&mut daemon, id);
        }
        for node in ["view", "cbw"] {
            daemon.qmp.ok("blockdev-del", json!({"node-name": node}));
        }
        ok(&mut daemon, remove("disk", "moment"));
        seen.extend(
            shown(&mut daemon)
                .into_iter()
                .filter(|line| line.contains("disk:")),
        );
        daemon.quit();
        seen
    });
}

/// The options of a server behind a URI of a unix socket.
fn server(uri: &str) -> String {
    let socket = uri.split("socket=").nth(1).expect("a unix socket");
    format!("server.type=unix,server.path={socket}")
}

#[test]
fn a_filter_says_why_it_cannot_keep_to_a_bitmap() {
    beside_qemu(|mut daemon| {
        prepare(&mut daemon, false);
        daemon.qmp.ok(
            "blockdev-add",
            json!({"driver": "null-co", "node-name": "short", "size": MIB}),
        );
        ok(&mut daemon, add("short", "s", 64 * KIB));
        let mut seen = Vec::new();
        for bitmap in [
            named("disk", "none"),
            named("none", "b"),
            named("short", "s"),
            named("disk", "b"),
        ] {
            let mut filter = image::over("copy-before-write", "cbw", "disk");
            filter["target"] = json!("target");
            filter["bitmap"] = bitmap;
            seen.extend(answer(&mut daemon, &("blockdev-add", filter)).into_iter().take(1));
        }
        // The bitmap itself stays free.
        seen.extend(answer(&mut daemon, &clear("disk", "b")));
        daemon.quit();
        seen
    });
}
