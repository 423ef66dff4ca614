//! Image locks: the daemon and QEMU's programs keep each other out of an image, both ways, and share what may be
//! shared.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use millpond_tests::daemon::{Builder, Daemon, daemon_in, scratch};
use millpond_tests::image;
use millpond_tests::program::oracle;
use millpond_tests::tool::{qemu_io, try_run};
use serde_json::{Value, json};
use tempfile::TempDir;

struct Images {
    dir: TempDir,
    image: PathBuf,
}

impl Images {
    fn new() -> Images {
        let dir = scratch();
        let image = dir.path().join("disk.qcow2");
        image::create(&image, "qcow2", "", 1 << 20);
        Images { dir, image }
    }

    /// A daemon in a folder of its own below this one.
    fn daemon(&self, name: &str) -> Builder {
        let dir = self.dir.path().join(name);
        std::fs::create_dir(&dir).expect("a folder can be made");
        daemon_in(&dir)
    }

    fn name(&self) -> String {
        self.image.display().to_string()
    }
}

fn qcow2(path: &Path, more: &[(&str, Value)]) -> Value {
    let mut options = json!({
        "driver": "qcow2", "node-name": "disk", "file": { "driver": "file", "node-name": "file", "filename": path },
    });
    for (key, value) in more {
        options[*key] = value.clone();
        options["file"][*key] = value.clone();
    }
    options
}

/// Opens the image in `daemon`, which must be refused because of a lock and say so as QEMU does.
#[track_caller]
fn refused(daemon: &mut Daemon, options: Value, lock: &str) {
    let error = daemon.qmp.refused("blockdev-add", options);
    let expected = format!("Failed to get {lock} lock");
    assert!(error.desc.contains(&expected), "{}", error.desc);
}

const READ_ONLY: &[(&str, Value)] = &[("read-only", Value::Bool(true))];

#[test]
fn what_the_daemon_writes_to_nobody_else_opens() {
    let images = Images::new();
    let mut daemon = images.daemon("ours").blockdev(qcow2(&images.image, &[])).start();
    let name = images.name();
    for (args, lock) in [
        (&["-f", "qcow2", &name, "-c", "read 0 512"][..], "\"write\""),
        (
            &["-r", "-f", "qcow2", &name, "-c", "read 0 512"],
            "shared \"write\"",
        ),
    ] {
        let run = try_run("qemu-io", args);
        assert_ne!(run.code, Some(0), "{}: {}", run.line, run.stdout);
        assert!(
            run.stderr.contains(&format!("Failed to get {lock} lock")),
            "{}: {}",
            run.line,
            run.stderr
        );
    }
    let mut theirs = images.daemon("theirs").program(oracle()).start();
    refused(&mut theirs, qcow2(&images.image, &[]), "\"write\"");
    refused(&mut theirs, qcow2(&images.image, READ_ONLY), "shared \"write\"");
    // Looking with -U asks for no lock.
    qemu_io(&["-U", "-r", "-f", "qcow2", &name], &["read -P 0 0 512"]);
    daemon.qmp.ok("blockdev-del", json!({ "node-name": "disk" }));
    qemu_io(&["-f", "qcow2", &name], &["write -P 1 0 512"]);
    theirs.qmp.ok("blockdev-add", qcow2(&images.image, &[]));
    refused(&mut daemon, qcow2(&images.image, &[]), "\"write\"");
}

#[test]
fn what_others_write_to_the_daemon_does_not_open() {
    let images = Images::new();
    let mut theirs = images
        .daemon("theirs")
        .program(oracle())
        .blockdev(qcow2(&images.image, &[]))
        .start();
    let mut daemon = images.daemon("ours").start();
    refused(&mut daemon, qcow2(&images.image, &[]), "\"write\"");
    refused(&mut daemon, qcow2(&images.image, READ_ONLY), "shared \"write\"");
    let error = daemon.qmp.refused("blockdev-add", qcow2(&images.image, &[]));
    let name = images.name();
    let expected = format!("Failed to get \"write\" lock\nIs another process using the image [{name}]?");
    assert!(
        error.desc == "Failed to get \"write\" lock" || error.desc.contains(&expected),
        "the text is QEMU's: {}",
        error.desc
    );
    let forced = qcow2(
        &images.image,
        &[("read-only", json!(true)), ("force-share", json!(true))],
    );
    daemon.qmp.ok("blockdev-add", forced);
    daemon.qmp.ok("blockdev-del", json!({ "node-name": "disk" }));
    theirs.qmp.ok("blockdev-del", json!({ "node-name": "disk" }));
    daemon.qmp.ok("blockdev-add", qcow2(&images.image, &[]));
}

#[test]
fn readers_share_and_keep_writers_out() {
    let images = Images::new();
    let daemon = images
        .daemon("ours")
        .blockdev(qcow2(&images.image, READ_ONLY))
        .start();
    let mut theirs = images.daemon("theirs").program(oracle()).start();
    theirs.qmp.ok("blockdev-add", qcow2(&images.image, READ_ONLY));
    let name = images.name();
    qemu_io(&["-r", "-f", "qcow2", &name], &["read -P 0 0 512"]);
    let run = try_run("qemu-io", &["-f", "qcow2", &name, "-c", "write 0 512"]);
    assert_ne!(run.code, Some(0), "{}", run.stdout);
    assert!(run.stderr.contains("\"write\" lock"), "{}", run.stderr);
    drop(daemon);
    theirs.quit();
    qemu_io(&["-f", "qcow2", &name], &["write -P 1 0 512"]);
}

#[test]
fn two_daemons_of_ours_keep_each_other_out() {
    let images = Images::new();
    let first = images.daemon("first").blockdev(qcow2(&images.image, &[])).start();
    let said = images
        .daemon("second")
        .blockdev(qcow2(&images.image, &[]))
        .refused();
    assert!(said.contains("Failed to get \"write\" lock"), "{said}");
    assert!(
        said.contains("Is another process using the image"),
        "the hint is given: {said}"
    );
    drop(first);
    images
        .daemon("third")
        .blockdev(qcow2(&images.image, &[]))
        .start()
        .quit();
}

#[test]
fn a_daemon_that_was_killed_leaves_no_lock() {
    let images = Images::new();
    let mut daemon = images.daemon("ours").blockdev(qcow2(&images.image, &[])).start();
    daemon.kill();
    image::wait_released(&images.image);
    qemu_io(&["-f", "qcow2", &images.name()], &["write -P 1 0 512"]);
}

#[test]
fn locking_can_be_turned_off() {
    let images = Images::new();
    let mut options = qcow2(&images.image, &[]);
    options["file"]["locking"] = json!("off");
    let _daemon = images.daemon("ours").blockdev(options).start();
    qemu_io(&["-f", "qcow2", &images.name()], &["read -P 0 0 512"]);
}

#[test]
fn locks_follow_what_reopen_changes() {
    let images = Images::new();
    let mut daemon = images
        .daemon("ours")
        .blockdev(qcow2(&images.image, READ_ONLY))
        .start();
    let name = images.name();
    qemu_io(&["-r", "-f", "qcow2", &name], &["read -P 0 0 512"]);
    let reopen = |read_only: bool| {
        let mut file = image::file("file", &images.image);
        let mut disk = image::over("qcow2", "disk", "file");
        file["read-only"] = json!(read_only);
        disk["read-only"] = json!(read_only);
        json!({ "options": [file, disk] })
    };
    daemon.qmp.ok("blockdev-reopen", reopen(false));
    let run = try_run("qemu-io", &["-r", "-f", "qcow2", &name, "-c", "read 0 512"]);
    assert_ne!(run.code, Some(0), "{}", run.stdout);
    daemon.qmp.ok("blockdev-reopen", reopen(true));
    qemu_io(&["-r", "-f", "qcow2", &name], &["read -P 0 0 512"]);
}

/// A writer tries all the time, as fast as QEMU's daemon can, while ours goes to and fro between reading and writing.
#[test]
fn no_reopen_leaves_a_moment_in_which_another_writer_gets_in() {
    let images = Images::new();
    let mut daemon = images
        .daemon("ours")
        .blockdev(qcow2(&images.image, READ_ONLY))
        .start();
    let theirs = images.daemon("theirs").program(oracle()).monitors(2).start();
    let mut trying = theirs.monitor(1);
    let options = qcow2(&images.image, &[]);
    let over = Arc::new(AtomicBool::new(false));
    let stop = Arc::clone(&over);
    let writer = std::thread::spawn(move || {
        let mut tries = 0;
        while !stop.load(Ordering::Relaxed) {
            let error = trying.refused("blockdev-add", options.clone());
            assert!(error.desc.contains("Failed to get"), "{}", error.desc);
            tries += 1;
        }
        tries
    });
    let mut changes = 0;
    let begun = std::time::Instant::now();
    while begun.elapsed() < std::time::Duration::from_secs(3) && !writer.is_finished() {
        for read_only in [false, true] {
            let mut file = image::file("file", &images.image);
            let mut disk = image::over("qcow2", "disk", "file");
            file["read-only"] = json!(read_only);
            disk["read-only"] = json!(read_only);
            match daemon
                .qmp
                .execute("blockdev-reopen", json!({ "options": [file, disk] }))
            {
                Ok(_) => changes += 1,
                // Whoever tries holds its own bytes for a moment before it looks at ours.
                Err(error) => assert!(error.desc.contains("Failed to get"), "{}", error.desc),
            }
        }
    }
    over.store(true, Ordering::Relaxed);
    let tries: u64 = writer.join().expect("every try was refused");
    assert!(tries > 20 && changes > 10, "{tries} tries, {changes} changes");
}

#[test]
fn one_daemon_does_not_open_an_image_twice_for_writing() {
    let images = Images::new();
    let mut daemon = images.daemon("ours").blockdev(qcow2(&images.image, &[])).start();
    let mut second = qcow2(&images.image, &[]);
    second["node-name"] = json!("again");
    second["file"]["node-name"] = json!("file-again");
    refused(&mut daemon, second, "\"write\"");
}
