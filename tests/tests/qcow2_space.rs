//! What zero writes and discards leave of a qcow2 image, beside QEMU's daemon: the same map, the same space, nothing
//! leaked. Where ours does better than QEMU's, the test says so.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use millpond_tests::beside::{Command, errors_of, same_answers};
use millpond_tests::daemon::{daemon_in, scratch};
use millpond_tests::nbd::Request;
use millpond_tests::nbd::wire::{CMD_FLAG_FAST_ZERO, CMD_FLAG_NO_HOLE};
use millpond_tests::program::{Program, oracle, under_test};
use millpond_tests::{image, tool};
use serde_json::{Value, json};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
/// Bytes of every image here, which are not always whole clusters.
const SIZE: u64 = 16 * MIB + 512;

/// A zero write that keeps storage, as most clients mean it.
fn zero(offset: u64, len: u64) -> Request {
    Request::zero(offset, len).flags(CMD_FLAG_NO_HOLE)
}

/// One that may give storage up.
fn unmap(offset: u64, len: u64) -> Request {
    Request::zero(offset, len)
}

fn write(offset: u64, len: u64) -> Request {
    Request::write(offset, vec![0x5a; len as usize])
}

/// What a run leaves: each request's error, and the image's map without the places in the file.
#[derive(Debug, PartialEq)]
struct Left {
    errors: Vec<u32>,
    map: Vec<Value>,
    data: Vec<u8>,
}

/// How an image is made, and how its node is opened.
#[derive(Default)]
struct Image<'a> {
    options: &'a str,
    backing: Option<&'a Path>,
    /// Done with QEMU's tools before the daemon has it.
    prepared: Option<fn(&Path)>,
    node: Value,
}

/// Makes an image, does the requests to a daemon of `program`, and looks at what is left; answers also its space on disk.
fn run(program: Program, image: &Image<'_>, requests: &[Request]) -> (Left, u64) {
    let dir = scratch();
    let path = dir.path().join("disk.qcow2");
    match image.backing {
        Some(backing) => image::create_overlay(&path, image.options, backing, "raw", Some(SIZE)),
        None => image::create(&path, "qcow2", image.options, SIZE),
    }
    if let Some(prepare) = image.prepared {
        prepare(&path);
    }
    let node = image::with(image::over("qcow2", "disk", "file"), &image.node);
    let mut file = image::file("file", &path);
    file["discard"] = json!("unmap");
    let errors = errors_of(program, dir.path(), vec![file, node], requests);
    image::assert_clean(&path);
    let raw = dir.path().join("disk.raw");
    tool::qemu_img(&format!(
        "convert -f qcow2 -O raw {} {}",
        path.display(),
        raw.display()
    ));
    let data = fs::read(&raw).expect("it was just converted");
    let space = fs::metadata(&path).expect("the image is there").blocks() * 512;
    let map = map(&path);
    (Left { errors, map, data }, space)
}

fn map(path: &Path) -> Vec<Value> {
    let parts = tool::run_json("qemu-img", &["map", "--output=json", &path.display().to_string()]);
    let mut parts = parts.as_array().expect("map prints a list").clone();
    for part in &mut parts {
        part.as_object_mut().expect("of objects").remove("offset");
    }
    parts
}

/// The requests must leave the same of both images; answers how much space each takes, ours first.
#[track_caller]
fn same(image: &Image<'_>, requests: &[Request]) -> (u64, u64) {
    let (theirs, their_space) = run(oracle(), image, requests);
    let (ours, our_space) = run(under_test().clone(), image, requests);
    assert_eq!(
        (&ours.errors, &ours.map),
        (&theirs.errors, &theirs.map),
        "left is ours, right is QEMU's: {requests:?}"
    );
    assert!(ours.data == theirs.data, "the data differs: {requests:?}");
    assert!(
        our_space <= their_space + 128 * KIB,
        "{our_space} bytes of ours, {their_space} of QEMU's: {requests:?}"
    );
    (our_space, their_space)
}

/// A backing file with one block of data, shorter than the images over it.
fn base(dir: &Path) -> PathBuf {
    let path = dir.join("base.raw");
    let file = fs::File::create(&path).expect("the folder can be written to");
    let made = file
        .set_len(10 * MIB)
        .and_then(|()| file.write_all_at(&[7; 4 * KIB as usize], 300 * KIB));
    made.expect("a sparse file can be written");
    path
}

#[test]
fn parts_of_clusters_that_read_as_zeroes_become_zero_clusters() {
    let dir = scratch();
    let backing = base(dir.path());
    // Head and tail of a long write, in clusters that nothing was written to, beside data, and over it.
    let requests = [
        zero(1000, 200 * KIB),
        write(512 * KIB, 256 * KIB),
        zero(500 * KIB, 100 * KIB),
        zero(700 * KIB, 100 * KIB),
        unmap(600 * KIB, 100 * KIB),
        zero(1000, 300),
    ];
    for options in ["", "cluster_size=4k"] {
        let image = Image {
            options,
            ..Image::default()
        };
        same(&image, &requests);
        let over = Image {
            options,
            backing: Some(&backing),
            ..Image::default()
        };
        let below = [
            zero(290 * KIB, 5000),
            zero(320 * KIB, 1000),
            zero(305 * KIB, 1000),
            // Where the backing file ends, and behind it.
            zero(10 * MIB - 100, 1000),
            zero(11 * MIB + 7, 3 * MIB),
            zero(SIZE - 700, 700),
        ];
        same(&over, &[&requests[..], &below[..]].concat());
    }
}

#[test]
fn fast_zeroes_succeed_where_only_tables_change() {
    let dir = scratch();
    let backing = base(dir.path());
    let fast = |offset, len| zero(offset, len).flags(CMD_FLAG_FAST_ZERO);
    let requests = [
        fast(1000, 200),
        write(128 * KIB, 64 * KIB),
        fast(130 * KIB, 200),
        fast(192 * KIB, 200),
        fast(290 * KIB, 5000),
        fast(320 * KIB, 1000),
    ];
    same(&Image::default(), &requests);
    let over = Image {
        backing: Some(&backing),
        ..Image::default()
    };
    same(&over, &requests);
    let (left, _) = run(under_test().clone(), &over, &requests);
    let failed: Vec<bool> = left.errors.iter().map(|error| *error != 0).collect();
    assert_eq!(failed, [false, false, true, false, true, false]);
}

#[test]
fn zeroes_cost_nothing_in_version_2() {
    let old = Image {
        options: "compat=0.10",
        ..Image::default()
    };
    same(&old, &[zero(0, SIZE)]);
    let (space, _) = same(&old, &[unmap(0, SIZE), unmap(100, 5000), zero(9 * MIB + 3, 10)]);
    assert!(space < MIB, "{space} bytes for nothing but zeroes");
    let unmapping = Image {
        options: "compat=0.10",
        node: json!({"discard": "unmap"}),
        ..Image::default()
    };
    let (space, _) = same(&unmapping, &[write(100 * KIB, 2 * MIB), unmap(1000, 8 * MIB)]);
    assert!(space < MIB, "{space} bytes for nothing but zeroes");
    // A zero write that is to keep storage keeps it, which QEMU's does not.
    let (left, _) = run(
        under_test().clone(),
        &old,
        &[write(MIB, MIB), zero(512 * KIB, 2 * MIB)],
    );
    assert!(left.errors == [0, 0] && left.data.iter().all(|byte| *byte == 0));
    let data = left.map.iter().filter(|part| part["data"] == true);
    let kept: Vec<_> = data
        .map(|part| (part["start"].clone(), part["length"].clone()))
        .collect();
    assert_eq!(kept, [(json!(MIB), json!(MIB))]);
    // What shows a backing file must be written over.
    let dir = scratch();
    let backing = base(dir.path());
    let over = Image {
        options: "compat=0.10",
        backing: Some(&backing),
        ..Image::default()
    };
    same(&over, &[zero(1000, 400 * KIB), unmap(MIB, MIB)]);
}

#[test]
fn a_sparse_disk_stays_sparse_when_it_is_copied() {
    let dir = scratch();
    let source = base(dir.path());
    for options in ["compat=0.10", "compat=1.1"] {
        let path = dir.path().join("copy.qcow2");
        image::create(&path, "qcow2", options, 10 * MIB);
        let daemon = daemon_in(dir.path())
            .nbd_unix()
            .blockdev(image::file("file", &path))
            .blockdev(image::over("qcow2", "disk", "file"))
            .export("disk")
            .start();
        let source = source.display().to_string();
        tool::run(
            "qemu-img",
            &[
                "convert",
                "-n",
                "-f",
                "raw",
                "-O",
                "raw",
                &source,
                &daemon.uri("disk"),
            ],
        );
        daemon.quit();
        image::assert_clean(&path);
        image::assert_identical(("raw", &source), ("qcow2", &path.display().to_string()));
        let space = fs::metadata(&path).expect("the image is there").blocks() * 512;
        assert!(space < MIB, "{options}: {space} bytes for 4 KiB of data");
    }
}

/// Four megabytes of data that an internal snapshot shares.
fn with_snapshot(path: &Path) {
    let name = path.display().to_string();
    tool::qemu_io(&["-f", "qcow2", &name], &["write -P 7 0 4M"]);
    tool::qemu_img(&format!("snapshot -c before {name}"));
}

fn compressed(path: &Path) {
    let name = path.display().to_string();
    tool::qemu_io(&["-f", "qcow2", &name], &["write -c -P 7 0 4M"]);
}

#[test]
fn storage_that_may_go_goes_whatever_refers_to_it() {
    let requests = [
        Request::trim(0, MIB),
        unmap(MIB, MIB + 100),
        zero(3 * MIB, 512 * KIB),
    ];
    for options in ["compat=0.10", "compat=1.1"] {
        for prepared in [Some(with_snapshot as fn(&Path)), Some(compressed), None] {
            let image = Image {
                options,
                prepared,
                node: json!({"discard": "unmap"}),
                ..Image::default()
            };
            same(&image, &requests);
        }
    }
}

#[test]
fn discards_that_keep_the_reference_give_the_space_back() {
    let node = json!({"discard": "unmap", "discard-no-unref": true});
    let image = Image {
        node: node.clone(),
        ..Image::default()
    };
    let mut requests = vec![write(0, 4 * MIB)];
    let (full, _) = same(&image, &requests);
    requests.extend([Request::trim(0, MIB), unmap(MIB, MIB), zero(2 * MIB, MIB)]);
    let (space, _) = same(&image, &requests);
    assert!(
        space + 2 * MIB <= full,
        "{space} bytes of {full}: two megabytes were given up"
    );
    // What was given up is written to again where it was.
    requests.extend([write(100, 3 * MIB)]);
    let (space, _) = same(&image, &requests);
    assert!(space <= full + 64 * KIB, "{space} bytes, {full} before");
    // What a snapshot shares still holds its data: QEMU's daemon throws that away.
    let shared = Image {
        prepared: Some(with_snapshot),
        node,
        ..Image::default()
    };
    let (left, space) = run(under_test().clone(), &shared, &requests[1..4]);
    assert!(left.errors == [0, 0, 0] && left.data[..3 * MIB as usize].iter().all(|byte| *byte == 0));
    assert!(space >= 4 * MIB, "{space} bytes: the snapshot's data is gone");
}

#[test]
fn a_size_that_is_no_whole_number_of_sectors_is_cut_down() {
    let dir = scratch();
    let path = dir.path().join("odd.qcow2");
    image::create(&path, "qcow2", "", MIB);
    image::poke(&path, 24, &(MIB - 700).to_be_bytes());
    let add = |read_only: bool| -> Command {
        let mut node = image::over("qcow2", "disk", "file");
        node["file"] = image::file("file", &path);
        node["read-only"] = json!(read_only);
        ("blockdev-add", node)
    };
    let size = ("query-named-block-nodes", json!({"flat": true}));
    same_answers(&[add(true), size.clone()]);
    let info = tool::run_json(
        "qemu-img",
        &["info", "--output=json", &path.display().to_string()],
    );
    assert_eq!(info["virtual-size"], json!(MIB - 1024));
    let daemon = daemon_in(dir.path())
        .nbd_unix()
        .blockdev(image::file("file", &path))
        .blockdev(image::over("qcow2", "disk", "file"))
        .export("disk")
        .start();
    let mut session = daemon.session("disk");
    assert_eq!(session.info.size, MIB - 1024);
    session.write(MIB - 1024 - 512, &[1; 512]);
    assert_ne!(session.refused(&Request::write(MIB - 1024, vec![1; 512])), 0);
    session.disconnect().expect("a goodbye closes the connection");
    daemon.quit();
    image::assert_clean(&path);
}

#[test]
fn bitmaps_that_cannot_be_are_refused_as_qemu_refuses_them() {
    let dir = scratch();
    let path = dir.path().join("marked.qcow2");
    image::create(&path, "qcow2", "", MIB);
    tool::qemu_img(&format!("bitmap --add {} only", path.display()));
    let good = fs::read(&path).expect("the image can be read");
    let extension = 0x2385_2875_u32.to_be_bytes();
    let at = good
        .windows(4)
        .position(|word| word == extension)
        .expect("it has a bitmap")
        + 8;
    let cases: [(usize, &[u8]); 9] = [
        (0, &65_536_u32.to_be_bytes()),
        (0, &0_u32.to_be_bytes()),
        (0, &2_u32.to_be_bytes()),
        (4, &7_u32.to_be_bytes()),
        (8, &0_u64.to_be_bytes()),
        (8, &(1_u64 << 40).to_be_bytes()),
        (8, &64_u64.to_be_bytes()),
        (16, &0x5_0001_u64.to_be_bytes()),
        (16, &0xffff_ffff_ffff_0000_u64.to_be_bytes()),
    ];
    let mut commands = Vec::new();
    for (number, (offset, bytes)) in cases.iter().enumerate() {
        let path = dir.path().join(format!("bad{number}.qcow2"));
        let mut bad = good.clone();
        bad[at + offset..at + offset + bytes.len()].copy_from_slice(bytes);
        fs::write(&path, bad).expect("the folder can be written to");
        let mut node = image::over("qcow2", "disk", "file");
        node["file"] = image::file("file", &path);
        node["read-only"] = json!(true);
        commands.push(("blockdev-add", node));
    }
    same_answers(&commands);
}
