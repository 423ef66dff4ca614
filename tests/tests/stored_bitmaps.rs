//! Dirty bitmaps that qcow2 images store: kept when an image is closed, called in use while it is open, and shown, refused and
//! removed as QEMU's daemon does. Images go from one program to the other, and `qemu-img check` finds nothing wrong.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use millpond_tests::beside::Command;
use millpond_tests::bitmaps::{
    add, answer, clear, disable, enable, export, merge, named, ok, remove, shown, together,
};
use millpond_tests::daemon::{Daemon, daemon_in, scratch};
use millpond_tests::program::{Program, oracle, under_test};
use millpond_tests::{image, tool};
use serde_json::{Value, json};
use tempfile::TempDir;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// A folder with one image, and the program that opens it, again and again.
struct Place {
    dir: TempDir,
    program: Program,
}

impl Place {
    fn new(program: &Program) -> Place {
        let (dir, program) = (scratch(), program.clone());
        Place { dir, program }
    }

    fn disk(&self) -> PathBuf {
        self.dir.path().join("disk")
    }

    fn create(&self, options: &str, size: u64) {
        image::create(&self.disk(), "qcow2", options, size);
    }

    /// `qemu-img bitmap` with these words before the image's name, and those behind it.
    fn qemu_img_bitmap(&self, before: &str, name: &str) {
        let path = self.disk().display().to_string();
        let mut words = vec!["bitmap"];
        words.extend(before.split(' '));
        words.extend([path.as_str(), name]);
        tool::run("qemu-img", &words);
    }

    fn serve_by(&self, program: &Program) -> Daemon {
        daemon_in(self.dir.path())
            .program(program.clone())
            .nbd_unix()
            .start()
    }

    /// A daemon with the image as the node `disk`, exported if it can be written.
    fn open_by(&self, program: &Program, read_only: bool) -> Daemon {
        let mut daemon = self.serve_by(program);
        daemon.qmp.ok("blockdev-add", self.options(read_only));
        if !read_only {
            export(&mut daemon, "disk");
        }
        daemon
    }

    fn open(&self, read_only: bool) -> Daemon {
        self.open_by(&self.program, read_only)
    }

    fn options(&self, read_only: bool) -> Value {
        let mut node = image::over("qcow2", "disk", "");
        node["file"] = image::file("disk-file", &self.disk());
        node["read-only"] = json!(read_only);
        node
    }

    /// The bitmaps as `qemu-img info` lists them.
    fn listed(&self) -> String {
        let path = self.disk().display().to_string();
        let info = tool::run_json("qemu-img", &["info", "-U", "--output=json", path.as_str()]);
        info["format-specific"]["data"]["bitmaps"].to_string()
    }
}

/// Tells the same story of both programs, each in a folder of its own.
#[track_caller]
fn beside_qemu(story: impl Fn(&Place) -> Vec<String>) {
    let theirs = story(&Place::new(&oracle()));
    let ours = story(&Place::new(under_test()));
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert_eq!(ours, theirs, "left is ours, right is QEMU's");
    }
    assert_eq!(ours.len(), theirs.len());
}

/// A bitmap that the image is to store.
fn add_stored(name: &str, granularity: u64) -> Command {
    let (command, mut arguments) = add("disk", name, granularity);
    arguments["persistent"] = json!(true);
    (command, arguments)
}

fn write(daemon: &Daemon, ranges: &[(u64, u64)]) {
    let mut session = daemon.session("disk");
    for (offset, len) in ranges {
        session.write(*offset, &vec![1; usize::try_from(*len).expect("small")]);
    }
    session.flush();
    // QEMU's daemon dies where its node moves while a client leaves.
    session.disconnect().expect("a goodbye");
}

fn answers(daemon: &mut Daemon, commands: &[Command]) -> Vec<String> {
    let answers = commands.iter().flat_map(|command| answer(daemon, command));
    answers.collect()
}

/// What the daemon says that the image lists.
fn shown_in_image(daemon: &mut Daemon) -> String {
    let nodes = daemon.qmp.ok("query-named-block-nodes", json!({"flat": true}));
    let nodes = nodes.as_array().expect("a list");
    let disk = nodes
        .iter()
        .find(|node| node["node-name"] == "disk")
        .expect("the node");
    disk["image"]["format-specific"]["data"]["bitmaps"].to_string()
}

/// Bitmaps of one page and of several clusters, with bits here and there, runs over clusters of bits, and all of them.
fn record(place: &Place, daemon: &mut Daemon) -> Vec<String> {
    for (name, granularity) in [
        ("fine", 512),
        ("coarse", 64 * KIB),
        ("whole", 512),
        ("off", 4 * KIB),
    ] {
        ok(daemon, add_stored(name, granularity));
    }
    ok(daemon, add("disk", "passing", 512));
    ok(daemon, disable("disk", "whole"));
    write(daemon, &[(0, 512), (3 * MIB, 700 * KIB), (7 * MIB - 512, 512)]);
    ok(daemon, disable("disk", "off"));
    ok(daemon, enable("disk", "whole"));
    write(daemon, &[(5 * MIB + 512, 1024)]);
    let mut session = daemon.session("disk");
    for at in 0..7 {
        session.write(at * MIB, &vec![2; MIB as usize]);
    }
    drop(session);
    for name in ["fine", "coarse"] {
        ok(daemon, clear("disk", name));
    }
    write(
        daemon,
        &[(MIB - 512, 300 * KIB), (2 * MIB, 512), (6 * MIB + 100 * KIB, 512)],
    );
    let seen = shown(daemon);
    assert!(place.listed().contains("in-use") || place.listed() == "null");
    seen
}

/// What one program stores the other reads, bit by bit, in clusters of all sizes.
#[test]
fn bitmaps_go_from_one_program_to_the_other_and_back() {
    for options in ["", "cluster_size=512", "cluster_size=2M,refcount_bits=64"] {
        for (writer, reader) in [(under_test().clone(), oracle()), (oracle(), under_test().clone())] {
            let place = Place::new(&writer);
            place.create(options, 7 * MIB);
            let mut daemon = place.open(false);
            let mut kept = record(&place, &mut daemon);
            daemon.quit();
            image::assert_clean(&place.disk());
            // What is not stored is gone.
            kept.retain(|line| !line.contains("passing"));
            let hashes = |seen: Vec<String>| -> Vec<String> {
                let mut hashes: Vec<_> = seen.into_iter().filter(|line| line.contains("sha256")).collect();
                hashes.sort();
                hashes
            };
            let mut daemon = place.open_by(&reader, true);
            let read = shown(&mut daemon);
            let read_hashes = hashes(read);
            daemon.quit();
            let written: Vec<_> = hashes(kept);
            for hash in &read_hashes {
                assert!(written.contains(hash), "{options}: {hash} was not written");
            }
            assert_eq!(
                read_hashes.len(),
                4,
                "{options:?} {:?} to {:?}",
                writer.path(),
                reader.path()
            );
            // And again by the first, after the second has had it for writing.
            let mut daemon = place.open_by(&reader, false);
            write(&daemon, &[(4 * MIB + 5000, 20 * KIB)]);
            let second = hashes(shown(&mut daemon));
            daemon.quit();
            image::assert_clean(&place.disk());
            let mut daemon = place.open(true);
            assert_eq!(hashes(shown(&mut daemon)), second, "{options}");
            daemon.quit();
        }
    }
}

#[test]
fn stored_bitmaps_are_added_shown_and_removed_as_qemu_does() {
    beside_qemu(|place| {
        place.create("", 4 * MIB);
        place.qemu_img_bitmap("--add", "old");
        place.qemu_img_bitmap("--add --disable -g 4096", "off");
        let mut daemon = place.open(false);
        let mut seen = shown(&mut daemon);
        seen.push(shown_in_image(&mut daemon));
        write(&daemon, &[(0, 4096), (MIB, 512)]);
        let long = "n".repeat(1023);
        let too_long = "n".repeat(1024);
        seen.extend(answers(
            &mut daemon,
            &[
                add_stored("old", 65_536),
                add_stored("new", 1 << 31),
                add_stored(&long, 512),
                add_stored(&too_long, 512),
                add_stored("odd", 513),
                add("disk", "passing", 512),
                merge("disk", "new", json!(["old", "off"])),
                merge("disk", "passing", json!(["old"])),
                remove("disk", &long),
                remove("disk", "old"),
                remove("disk", "passing"),
            ],
        ));
        seen.push(shown_in_image(&mut daemon));
        daemon.quit();
        seen.push(place.listed());
        image::assert_clean(&place.disk());
        // The last one goes with its directory.
        let mut daemon = place.open(false);
        seen.extend(answers(
            &mut daemon,
            &[remove("disk", "off"), remove("disk", "new")],
        ));
        seen.push(shown_in_image(&mut daemon));
        daemon.quit();
        seen.push(place.listed());
        image::assert_clean(&place.disk());
        seen
    });
}

#[test]
fn images_that_cannot_store_a_bitmap_say_why() {
    beside_qemu(|place| {
        let mut seen = Vec::new();
        for (options, size, granularity) in [("compat=0.10", MIB, 65_536), ("", 8 << 40, 512)] {
            drop(std::fs::remove_file(place.disk()));
            place.create(options, size);
            let mut daemon = place.open(false);
            seen.extend(answers(
                &mut daemon,
                &[add_stored("b", granularity), add("disk", "b", 65_536)],
            ));
            seen.extend(answers(&mut daemon, &[add_stored("b", granularity)]));
            daemon.quit();
        }
        let mut daemon = place.serve_by(&place.program);
        daemon
            .qmp
            .ok("blockdev-add", json!({"driver": "null-co", "node-name": "disk"}));
        seen.extend(answers(&mut daemon, &[add_stored("b", 65_536)]));
        daemon.quit();
        seen
    });
}

/// Nobody knows what such bitmaps miss: they are shown, and can be removed, and that is all.
#[test]
fn bitmaps_of_an_image_that_was_not_closed_are_inconsistent() {
    beside_qemu(|place| {
        place.create("", 4 * MIB);
        let mut daemon = place.open(false);
        ok(&mut daemon, add_stored("a", 65_536));
        ok(&mut daemon, add_stored("b", 4096));
        daemon.quit();
        let mut daemon = place.open(false);
        write(&daemon, &[(MIB, 4096)]);
        daemon.kill();
        image::wait_released(&place.disk());
        image::assert_at_most_leaks(&place.disk());
        let mut seen = vec![place.listed()];
        for read_only in [true, false] {
            let mut daemon = place.open(read_only);
            seen.extend(shown(&mut daemon));
            seen.extend(answers(
                &mut daemon,
                &[
                    add("disk", "c", 4096),
                    clear("disk", "a"),
                    enable("disk", "a"),
                    disable("disk", "a"),
                    merge("disk", "a", json!(["c"])),
                    merge("disk", "c", json!(["a"])),
                    ("block_resize", json!({"node-name": "disk", "size": 8 * MIB})),
                    (
                        "block-export-add",
                        json!({"type": "nbd", "id": "e", "node-name": "disk", "name": "e", "bitmaps": ["a"]}),
                    ),
                    remove("disk", "a"),
                    remove("disk", "a"),
                ],
            ));
            daemon.quit();
            seen.push(place.listed());
        }
        seen
    });
}

#[test]
fn bitmaps_of_a_read_only_image_are_not_changed() {
    beside_qemu(|place| {
        place.create("", 4 * MIB);
        place.qemu_img_bitmap("--add", "a");
        place.qemu_img_bitmap("--add --disable", "b");
        let mut daemon = place.open(true);
        let mut seen = shown(&mut daemon);
        seen.extend(answers(
            &mut daemon,
            &[
                clear("disk", "a"),
                remove("disk", "a"),
                merge("disk", "a", json!(["b"])),
                enable("disk", "b"),
                add("disk", "c", 65_536),
                merge("disk", "c", json!(["a"])),
            ],
        ));
        seen.push(shown_in_image(&mut daemon));
        daemon.quit();
        seen.push(place.listed());
        seen
    });
}

/// A reopen as read-only leaves an image that others may read; one for writing takes it back.
#[test]
fn reopens_store_bitmaps_and_take_them_back() {
    beside_qemu(|place| {
        place.create("", 4 * MIB);
        let mut daemon = place.serve_by(&place.program);
        daemon.qmp.ok("blockdev-add", place.options(false));
        ok(&mut daemon, add_stored("a", 65_536));
        ok(&mut daemon, add("disk", "passing", 65_536));
        export(&mut daemon, "disk");
        write(&daemon, &[(MIB, 4096)]);
        millpond_tests::bitmaps::unexport(&mut daemon, "disk");
        let mut seen = Vec::new();
        for read_only in [true, false, true, false] {
            let options = json!({"options": [place.options(read_only)]});
            seen.extend(answer(&mut daemon, &("blockdev-reopen", options)).split_off(1));
            seen.push(shown_in_image(&mut daemon));
            seen.push(place.listed());
            seen.extend(answer(&mut daemon, &clear("disk", "passing")));
            seen.extend(answer(&mut daemon, &disable("disk", "a")));
            seen.extend(answer(&mut daemon, &enable("disk", "a")));
        }
        export(&mut daemon, "disk");
        write(&daemon, &[(2 * MIB, 4096)]);
        seen.extend(shown(&mut daemon));
        daemon.quit();
        image::assert_clean(&place.disk());
        seen
    });
}

/// Who gets an image gets its bitmaps, and gives them back as they are then.
#[test]
fn bitmaps_go_along_with_an_image_that_is_handed_over() {
    let set = |active: bool| -> Command {
        let arguments = json!({"node-name": "disk", "active": active});
        ("blockdev-set-active", arguments)
    };
    beside_qemu(|place| {
        place.create("", 4 * MIB);
        place.qemu_img_bitmap("--add", "a");
        let mut daemon = place.open(false);
        write(&daemon, &[(MIB, 4096)]);
        ok(&mut daemon, add("disk", "passing", 65_536));
        millpond_tests::bitmaps::unexport(&mut daemon, "disk");
        let mut seen = answers(&mut daemon, &[set(false)]);
        seen.push(place.listed());
        let other = place.disk().display().to_string();
        tool::qemu_io(&["-f", "qcow2", &other], &["write 2M 64k"]);
        seen.extend(answers(&mut daemon, &[set(true)]));
        seen.push(place.listed());
        daemon.quit();
        image::assert_clean(&place.disk());
        seen
    });
}

#[test]
fn a_list_of_changes_takes_stored_bitmaps_back_if_one_fails() {
    beside_qemu(|place| {
        place.create("", 4 * MIB);
        place.qemu_img_bitmap("--add", "old");
        let mut daemon = place.open(false);
        write(&daemon, &[(MIB, 4096)]);
        let mut seen = answers(
            &mut daemon,
            &[
                together(&[
                    add_stored("new", 4096),
                    remove("disk", "old"),
                    ("abort", json!({})),
                ]),
                together(&[
                    add_stored("new", 4096),
                    merge("disk", "new", json!(["old"])),
                    disable("disk", "old"),
                ]),
            ],
        );
        daemon.quit();
        seen.push(place.listed());
        image::assert_clean(&place.disk());
        let mut daemon = place.open(false);
        seen.extend(shown(&mut daemon));
        daemon.quit();
        seen
    });
}

#[test]
fn stored_bitmaps_follow_their_disk_through_resizes_and_moves() {
    beside_qemu(|place| {
        place.create("cluster_size=4k", 4 * MIB);
        place.qemu_img_bitmap("--add -g 512", "a");
        let mut daemon = place.open(false);
        daemon
            .qmp
            .ok("object-add", json!({"qom-type": "iothread", "id": "io"}));
        write(&daemon, &[(0, 512), (4 * MIB - 512, 512)]);
        let move_to = |iothread: Value| -> Command {
            let arguments = json!({"node-name": "disk", "iothread": iothread, "force": true});
            ("x-blockdev-set-iothread", arguments)
        };
        let mut seen = answers(&mut daemon, &[move_to(json!("io"))]);
        write(&daemon, &[(MIB, 512)]);
        seen.extend(answers(&mut daemon, &[move_to(Value::Null)]));
        millpond_tests::bitmaps::unexport(&mut daemon, "disk");
        for size in [40 * MIB, 2 * MIB, 3 * MIB] {
            let resize = ("block_resize", json!({"node-name": "disk", "size": size}));
            seen.extend(answer(&mut daemon, &resize));
            daemon.quit();
            image::assert_clean(&place.disk());
            daemon = place.serve_by(&place.program);
            daemon.qmp.ok("blockdev-add", place.options(false));
            seen.extend(shown(&mut daemon));
        }
        daemon.quit();
        seen
    });
}

/// A crafted image is refused in QEMU's words, wherever its bitmaps contradict themselves.
#[test]
fn broken_directories_and_tables_are_refused() {
    beside_qemu(|place| {
        place.create("", 4 * MIB);
        place.qemu_img_bitmap("--add -g 512", "first");
        let directory = directory_of(&place.disk());
        let table = number(&place.disk(), directory);
        let sound = std::fs::read(place.disk()).expect("the image");
        let mut seen = Vec::new();
        let entry = |at: u64, bytes: &[u8]| (directory + at, bytes.to_vec());
        for (at, bytes) in [
            entry(0, &[0; 8]),
            entry(0, &(table + 512).to_be_bytes()),
            entry(8, &0_u32.to_be_bytes()),
            entry(8, &2_u32.to_be_bytes()),
            entry(8, &u32::MAX.to_be_bytes()),
            entry(12, &4_u32.to_be_bytes()),
            entry(16, &[2]),
            entry(17, &[8]),
            entry(17, &[32]),
            entry(18, &0_u16.to_be_bytes()),
            entry(18, &2000_u16.to_be_bytes()),
            entry(20, &1_u32.to_be_bytes()),
            entry(20, &1000_u32.to_be_bytes()),
            (table, 2_u64.to_be_bytes().to_vec()),
            (table, (table | 1).to_be_bytes().to_vec()),
            (table, (1_u64 << 56).to_be_bytes().to_vec()),
            (table, 1_u64.to_be_bytes().to_vec()),
        ] {
            std::fs::write(place.disk(), &sound).expect("the image");
            image::poke(&place.disk(), at, &bytes);
            for read_only in [true, false] {
                let mut daemon = place.serve_by(&place.program);
                let opened = daemon.qmp.execute("blockdev-add", place.options(read_only));
                seen.push(match opened {
                    Ok(_) => shown(&mut daemon).join("\n"),
                    Err(error) => format!("{} at {at}: {}", bytes.len(), error.desc),
                });
                daemon.quit();
            }
        }
        seen
    });
}

fn number(path: &Path, offset: u64) -> u64 {
    let file = File::open(path).expect("the image");
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, offset)
        .expect("the image can be read");
    u64::from_be_bytes(bytes)
}

/// Where the directory of an image's bitmaps is, by the header extension.
fn directory_of(path: &Path) -> u64 {
    let mut at = 112;
    loop {
        let head = number(path, at);
        if head >> 32 == 0x2385_2875 {
            return number(path, at + 24);
        }
        assert_ne!(head >> 32, 0, "the image lists no bitmaps");
        at += 8 + (head & 0xffff_ffff).next_multiple_of(8);
    }
}

/// An export holds a stored bitmap as it holds others.
#[test]
fn an_exported_bitmap_stays_as_it_is() {
    beside_qemu(|place| {
        place.create("", 4 * MIB);
        place.qemu_img_bitmap("--add --disable", "a");
        let mut daemon = place.open(false);
        let export = json!({"type": "nbd", "id": "e", "node-name": "disk", "name": "e", "bitmaps": ["a"]});
        daemon.qmp.ok("block-export-add", export);
        let mut seen = answers(&mut daemon, &[remove("disk", "a"), clear("disk", "a")]);
        seen.push(
            daemon
                .qmp
                .ok("x-debug-block-dirty-bitmap-sha256", named("disk", "a"))
                .to_string(),
        );
        daemon.quit();
        seen.push(place.listed());
        seen
    });
}
