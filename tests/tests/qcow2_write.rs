//! Random work through the daemon on qcow2 images of every layout: what is read must be what a plain array in memory
//! has, and `qemu-img check` must find nothing.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use millpond_tests::beside::beside_qemu;
use millpond_tests::daemon::{Daemon, daemon_in, scratch};
use millpond_tests::image;
use millpond_tests::model::Model;
use millpond_tests::nbd::Connect;
use millpond_tests::tool::{qemu_img, qemu_io, run_json};
use millpond_tests::workload::{Load, Mix, one_by_one, random_bytes, seeded};
use serde_json::{Value, json};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// Serves `path` as export `disk`; `more` is added to the qcow2 node's options.
fn serve(dir: &Path, path: &Path, more: &[(&str, Value)]) -> Daemon {
    let mut disk = image::over("qcow2", "disk", "file");
    for (key, value) in more {
        disk[*key] = value.clone();
    }
    let mut file = image::file("file", path);
    file["discard"] = json!("unmap");
    daemon_in(dir)
        .nbd_unix()
        .blockdev(file)
        .blockdev(disk)
        .export("disk")
        .start()
}

/// What QEMU finds in an image, read without the daemon.
#[track_caller]
fn content(path: &Path) -> Vec<u8> {
    let raw = path.with_extension("converted");
    qemu_img(&format!(
        "convert -f qcow2 -O raw {} {}",
        path.display(),
        raw.display()
    ));
    let bytes = std::fs::read(&raw).expect("it was just converted");
    std::fs::remove_file(&raw).expect("it was just read");
    bytes
}

/// Works on an image in two runs with a restart between, then has QEMU check and read it.
#[track_caller]
fn work(rng: &mut fastrand::Rng, dir: &Path, path: &Path, mut model: Model, more: &[(&str, Value)]) {
    for count in [150, 100] {
        let daemon = serve(dir, path, more);
        let mut session = Connect::extended().open(&daemon.address(), "disk");
        assert_eq!(session.info.size, model.size());
        model.check(0, &session.read_all());
        one_by_one(&mut session, &mut model, rng, Mix::ALL, count, 200 * KIB);
        // Then many at once, on whole blocks.
        let part = 0..model.size() & !4095;
        let mut load = Load::new(session, model, part, rng.fork(), Mix::NO_TRIM, 32);
        while load.completed() < 300 {
            load.step().expect("the daemon answers");
        }
        let (after, mut session) = load.finish().expect("the daemon answers");
        model = after;
        model.check(0, &session.read_all());
        session.disconnect().expect("a goodbye closes the connection");
        daemon.quit();
        image::assert_clean(path);
        Model::of(content(path)).check(0, model.bytes());
    }
}

#[test]
fn every_layout_takes_random_work() {
    let dir = scratch();
    let mut rng = seeded("every_layout_takes_random_work");
    let layouts = [
        ("compat=0.10", 4 * MIB),
        ("compat=0.10,cluster_size=512", MIB),
        ("compat=1.1,cluster_size=512,refcount_bits=64", MIB + 512),
        ("compat=1.1,cluster_size=4k,refcount_bits=1", 4 * MIB),
        ("compat=1.1,cluster_size=8k,refcount_bits=4", 4 * MIB + 1024),
        ("compat=1.1,cluster_size=64k", 8 * MIB + 512),
        ("compat=1.1,cluster_size=2M,refcount_bits=8", 20 * MIB),
        ("lazy_refcounts=on,cluster_size=16k", 4 * MIB),
        ("preallocation=metadata,cluster_size=16k", 4 * MIB),
        ("preallocation=full,cluster_size=4k", 2 * MIB),
    ];
    for (index, (options, size)) in layouts.into_iter().enumerate() {
        eprintln!("layout: {options}");
        let path = dir.path().join(format!("{index}.qcow2"));
        image::create(&path, "qcow2", options, size);
        work(&mut rng, dir.path(), &path, Model::new(size), &[]);
    }
}

#[test]
fn discards_give_space_back_and_read_as_zeroes() {
    let dir = scratch();
    let mut rng = seeded("discards_give_space_back");
    let path = dir.path().join("disk.qcow2");
    image::create(&path, "qcow2", "cluster_size=4k", 4 * MIB);
    work(
        &mut rng,
        dir.path(),
        &path,
        Model::new(4 * MIB),
        &[("discard", json!("unmap"))],
    );
    let daemon = serve(dir.path(), &path, &[("discard", json!("unmap"))]);
    let mut session = daemon.session("disk");
    session.write(0, &vec![1; 4 * MIB as usize]);
    session.flush();
    session.ok(&millpond_tests::nbd::Request::trim(0, 4 * MIB));
    session.flush();
    assert!(
        session.read_all().iter().all(|byte| *byte == 0),
        "a discarded cluster of a v3 image reads as zeroes"
    );
    session.disconnect().expect("a goodbye closes the connection");
    daemon.quit();
    image::assert_clean(&path);
    let info = run_json(
        "qemu-img",
        &["info", "--output=json", &path.display().to_string()],
    );
    let used = info["actual-size"].as_u64().expect("a size");
    assert!(used < MIB, "{used} bytes are still used");
}

#[test]
fn detect_zeroes_turns_writes_into_holes() {
    let dir = scratch();
    let mut rng = seeded("detect_zeroes");
    let path = dir.path().join("disk.qcow2");
    image::create(&path, "qcow2", "", 4 * MIB);
    let more = [("discard", json!("unmap")), ("detect-zeroes", json!("unmap"))];
    work(&mut rng, dir.path(), &path, Model::new(4 * MIB), &more);
    let daemon = serve(dir.path(), &path, &more);
    let mut session = daemon.session("disk");
    session.write(0, &vec![0; 4 * MIB as usize]);
    assert!(
        session
            .status_all("base:allocation")
            .iter()
            .all(|extent| extent.flags == 3),
        "all is a hole of zeroes"
    );
}

/// What a node does with zeroes it does wherever it stands: below another, too.
#[test]
fn zeroes_are_detected_by_nodes_below_others_as_in_qemu() {
    for (driver, create) in [("raw", "raw"), ("qcow2", "qcow2"), ("copy-on-read", "raw")] {
        beside_qemu(|mut daemon| {
            let path = daemon.dir().join("disk");
            image::create(&path, create, "", 4 * MIB);
            qemu_io(&["-f", create, &path.display().to_string()], &["write -P 1 0 4M"]);
            let mut file = image::file("file", &path);
            file["discard"] = json!("unmap");
            file["detect-zeroes"] = json!("unmap");
            daemon.qmp.ok("blockdev-add", file);
            let mut disk = image::over(driver, "disk", "file");
            disk["discard"] = json!("unmap");
            daemon.qmp.ok("blockdev-add", disk);
            daemon.qmp.ok(
                "block-export-add",
                json!({"type": "nbd", "id": "export", "node-name": "disk", "writable": true}),
            );
            let mut session = daemon.session("disk");
            session.write(0, &vec![0; 2 * MIB as usize]);
            session.write(2 * MIB, &vec![1; MIB as usize]);
            session.flush();
            // In 64 KiB: where the file lies in many pieces, the file system itself needs some blocks to tell where.
            let held = std::fs::metadata(&path).expect("it is there").blocks() / 128;
            drop(session);
            daemon.quit();
            held
        });
    }
}

#[test]
fn overlays_copy_what_they_overwrite() {
    let mut rng = seeded("overlays_copy_what_they_overwrite");
    for (depth, size, options) in [
        (1, 4 * MIB, "cluster_size=64k"),
        (1, 6 * MIB + 512, "cluster_size=4k"),
        (3, 3 * MIB, "cluster_size=512"),
        (5, 5 * MIB, "compat=0.10,cluster_size=16k"),
        (20, 4 * MIB, "cluster_size=2M,lazy_refcounts=on"),
    ] {
        eprintln!("a chain of {depth}, {options}");
        let dir = scratch();
        let base = dir.path().join("base.raw");
        let bytes = random_bytes(&mut rng, 4 * MIB);
        std::fs::write(&base, &bytes).expect("a base can be written");
        let (mut below, mut format) = (base.clone(), "raw");
        for level in 1..=depth {
            let above = dir.path().join(format!("level{level}.qcow2"));
            image::create_overlay(&above, options, &below, format, Some(size));
            (below, format) = (above, "qcow2");
        }
        let mut expected = bytes;
        expected.resize(size as usize, 0);
        work(&mut rng, dir.path(), &below, Model::of(expected), &[]);
        let unchanged = std::fs::read(&base).expect("the base");
        assert_eq!(unchanged.len() as u64, 4 * MIB, "the base has kept its size");
    }
}

#[test]
fn compressed_images_take_writes() {
    let mut rng = seeded("compressed_images_take_writes");
    for kind in ["zlib", "zstd"] {
        for cluster_size in ["4k", "64k"] {
            let dir = scratch();
            let (source, path) = (dir.path().join("source.raw"), dir.path().join("disk.qcow2"));
            let bytes: Vec<u8> = (0..3 * MIB).map(|at| (at / 1000 % 251) as u8).collect();
            std::fs::write(&source, &bytes).expect("a source can be written");
            let options = format!("compression_type={kind},cluster_size={cluster_size}");
            let (from, to) = (source.display(), path.display());
            qemu_img(&format!("convert -c -f raw -O qcow2 -o {options} {from} {to}"));
            work(&mut rng, dir.path(), &path, Model::of(bytes), &[]);
        }
    }
}

#[test]
fn an_image_left_dirty_by_a_crash_is_repaired_on_opening() {
    let dir = scratch();
    let path = dir.path().join("disk.qcow2");
    image::create(&path, "qcow2", "lazy_refcounts=on", 4 * MIB);
    // qemu-io ends without closing the image: the dirty bit stays and refcounts are behind.
    let image = path.display().to_string();
    let crash = [
        "-f",
        "qcow2",
        "-c",
        "write -P 3 0 1M",
        "-c",
        "flush",
        "-c",
        "abort",
        &image,
    ];
    let run = millpond_tests::tool::try_run("qemu-io", &crash);
    assert_ne!(run.code, Some(0), "abort must not look like success");
    let info = run_json("qemu-img", &["info", "--output=json", &image]);
    assert_eq!(info["dirty-flag"], true, "the image is dirty before it is opened");
    let daemon = serve(dir.path(), &path, &[]);
    let mut session = daemon.session("disk");
    assert_eq!(session.read(0, MIB), vec![3; MIB as usize]);
    session.write(2 * MIB, &[4; 4096]);
    session.flush();
    session.disconnect().expect("a goodbye closes the connection");
    daemon.quit();
    image::assert_clean(&path);
    qemu_io(&["-f", "qcow2", &image], &["read -P 3 0 1M", "read -P 4 2M 4k"]);
    assert_eq!(
        run_json("qemu-img", &["info", "--output=json", &image])["dirty-flag"],
        false
    );
}

#[test]
fn unknown_autoclear_bits_are_cleared_only_by_a_writable_open() {
    let dir = scratch();
    let path = dir.path().join("disk.qcow2");
    image::create(&path, "qcow2", "", MIB);
    let autoclear = 88;
    let poke = |bits: u64| {
        let file = std::fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .expect("the image");
        std::os::unix::fs::FileExt::write_all_at(&file, &bits.to_be_bytes(), autoclear)
            .expect("a header field");
    };
    let peek = || {
        let bytes = std::fs::read(&path).expect("the image");
        u64::from_be_bytes(bytes[88..96].try_into().expect("eight bytes"))
    };
    poke(1 << 40);
    let mut disk = image::over("qcow2", "disk", "file");
    disk["read-only"] = json!(true);
    daemon_in(dir.path())
        .blockdev(image::file("file", &path))
        .blockdev(disk)
        .start()
        .quit();
    assert_eq!(peek(), 1 << 40);
    let daemon = serve(dir.path(), &path, &[]);
    daemon.session("disk").write(0, &[1; 512]);
    daemon.quit();
    assert_eq!(peek(), 0);
    image::assert_clean(&path);
}

#[test]
fn images_made_by_blockdev_create_are_sound_to_qemu() {
    let dir = scratch();
    let mut rng = seeded("images_made_by_blockdev_create");
    for (index, options) in [
        json!({}),
        json!({ "version": "v2" }),
        json!({ "version": "v3", "cluster-size": 4096, "refcount-bits": 1 }),
        json!({ "lazy-refcounts": true, "cluster-size": 2 * MIB }),
        json!({ "preallocation": "metadata" }),
    ]
    .into_iter()
    .enumerate()
    {
        let path = dir.path().join(format!("{index}.qcow2"));
        let mut daemon = daemon_in(dir.path()).start();
        let create = json!({ "driver": "file", "filename": path, "size": 0 });
        let create = json!({ "job-id": "file", "options": create });
        daemon
            .qmp
            .run_job("file", "blockdev-create", create)
            .expect("a file can be made");
        daemon.qmp.ok("blockdev-add", image::file("file", &path));
        let mut format = json!({ "driver": "qcow2", "file": "file", "size": 4 * MIB });
        for (key, value) in options.as_object().expect("an object") {
            format[key] = value.clone();
        }
        let create = json!({ "job-id": "format", "options": format });
        daemon
            .qmp
            .run_job("format", "blockdev-create", create)
            .unwrap_or_else(|error| panic!("{options}: {error}"));
        daemon.quit();
        image::assert_clean(&path);
        let info = run_json(
            "qemu-img",
            &["info", "--output=json", &path.display().to_string()],
        );
        assert_eq!(info["virtual-size"], 4 * MIB, "{options}");
        work(&mut rng, dir.path(), &path, Model::new(4 * MIB), &[]);
    }
}
