//! Files that are not the daemon's own: whatever path it is given, it writes over none and removes none.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use millpond_tests::daemon::{daemon, scratch};
use millpond_tests::program::millpond;
use serde_json::json;

/// What a user's file holds.
const CONTENTS: &[u8] = b"the only copy";

fn user_file(dir: &Path) -> PathBuf {
    let path = dir.join("disk.img");
    fs::write(&path, CONTENTS).expect("a file can be made");
    path
}

#[track_caller]
fn assert_untouched(path: &Path) {
    let held = fs::read(path).expect("the user's file is there");
    assert_eq!(held, CONTENTS, "{}", path.display());
}

/// Runs `millpond` with arguments that it must refuse; answers what it says.
#[track_caller]
fn refused(args: &[&str]) -> String {
    let mut command = Command::new("timeout");
    command.arg("20").arg(millpond()).args(args).stdin(Stdio::null());
    let output = command.output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
    said
}

#[test]
fn a_path_for_a_socket_that_holds_something_else_is_refused() {
    let dir = scratch();
    let file = user_file(dir.path());
    let link = dir.path().join("link");
    symlink(&file, &link).expect("a link can be made");
    let image = dir.path().join("served.qcow2").display().to_string();
    millpond_tests::image::create(Path::new(&image), "qcow2", "", 1 << 20);
    for path in [&file, &link] {
        let path = path.display().to_string();
        for args in [
            vec![
                "serve",
                "--nbd-server",
                &format!("addr.type=unix,addr.path={path}"),
            ],
            vec![
                "serve",
                "--chardev",
                &format!("socket,id=c,path={path},server=on,wait=off"),
            ],
            vec![&image, "--socket", &path],
            vec![&image, "--socket", &format!("{path}.sock"), "--qmp", &path],
        ] {
            let said = refused(&args);
            assert!(said.contains("exists and is not a socket"), "{args:?}: {said}");
            assert!(said.contains(&path), "the path is named: {said}");
            assert_untouched(&file);
        }
    }
    assert!(fs::symlink_metadata(&link).expect("it is there").is_symlink());
}

#[test]
fn a_path_for_a_pidfile_that_holds_something_else_is_refused() {
    let dir = scratch();
    let file = user_file(dir.path());
    let path = file.display().to_string();
    for more in [&[][..], &["--daemonize"]] {
        let args = [&["serve", "--pidfile", &path], more].concat();
        let said = refused(&args);
        assert!(said.contains("exists and holds no process id"), "{said}");
        assert_untouched(&file);
    }
}

#[test]
fn a_log_is_appended_to_no_image() {
    let dir = scratch();
    let image = dir.path().join("disk.qcow2");
    millpond_tests::image::create(&image, "qcow2", "", 1 << 20);
    let held = fs::read(&image).expect("it is there");
    let said = refused(&["serve", "-T", &format!("file={}", image.display())]);
    assert!(said.contains("is no text"), "{said}");
    assert_eq!(fs::read(&image).expect("it is there"), held);
}

#[test]
fn commands_write_over_no_file_of_the_user() {
    let mut daemon = daemon().start();
    let file = user_file(daemon.dir());
    let path = file.display().to_string();
    let error = daemon
        .qmp
        .execute(
            "nbd-server-start",
            json!({ "addr": { "type": "unix", "data": { "path": path } } }),
        )
        .expect_err("no socket");
    assert!(
        error.desc.contains("exists and is not a socket"),
        "{}",
        error.desc
    );
    let error = daemon
        .qmp
        .execute("x-millpond-flight-record", json!({ "filename": path }))
        .expect_err("no record");
    assert!(error.desc.contains("is no flight record"), "{}", error.desc);
    assert_untouched(&file);
    // One record may be written over another.
    let record = daemon.path("record");
    for _ in 0..2 {
        daemon
            .qmp
            .ok("x-millpond-flight-record", json!({ "filename": record }));
    }
    daemon.quit();
}

#[test]
fn an_image_that_cannot_be_made_takes_nothing_away() {
    let dir = scratch();
    // A link that leads nowhere yet is the user's, not ours.
    let link = dir.path().join("disk.qcow2");
    symlink(dir.path().join("elsewhere"), &link).expect("a link can be made");
    let said = refused(&[&link.display().to_string(), "--create", "1M"]);
    assert!(said.contains("exists already"), "{said}");
    assert!(fs::symlink_metadata(&link).expect("it is there").is_symlink());
    assert!(!dir.path().join("elsewhere").exists());
    // One that was begun is taken away again.
    let image = dir.path().join("large.qcow2");
    refused(&[&image.display().to_string(), "--create", "7E"]);
    assert!(!image.exists());
}

#[test]
fn a_successor_keeps_the_sockets_that_it_took_over() {
    let dir = scratch();
    let socket = |name: &str| dir.path().join(name);
    let start = || {
        daemon()
            .option(
                "--nbd-server",
                format!("addr.type=unix,addr.path={}", socket("nbd").display()),
            )
            .option(
                "--chardev",
                format!("socket,id=c,path={},server=on,wait=off", socket("qmp").display()),
            )
            .option("--monitor", "chardev=c")
            .option("--pidfile", socket("pid").display().to_string())
            .start()
    };
    let mut first = start();
    // As somebody does who takes the first for dead.
    fs::remove_file(socket("pid")).expect("it is there");
    let second = start();
    first.qmp.ok("nbd-server-stop", json!({}));
    UnixStream::connect(socket("nbd")).expect("the second's server listens");
    first.quit();
    for name in ["nbd", "qmp"] {
        UnixStream::connect(socket(name)).expect("the second still listens");
    }
    assert!(socket("pid").exists());
    second.quit();
    for name in ["nbd", "qmp", "pid"] {
        assert!(!socket(name).exists(), "{name} is left behind");
    }
}

#[test]
fn relative_paths_are_removed_where_they_were_made() {
    let dir = scratch();
    let run = |args: &[&str]| {
        let output = Command::new(millpond())
            .args(args)
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .output()
            .expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{args:?}: {said}");
    };
    run(&[
        "serve",
        "--daemonize",
        "--nbd-server",
        "addr.type=unix,addr.path=nbd",
        "--chardev",
        "socket,id=c,path=qmp,server=on,wait=off",
        "--monitor",
        "c",
        "--pidfile",
        "pid",
    ]);
    let mut qmp = millpond_tests::qmp::Qmp::connect(&dir.path().join("qmp"), || Ok(())).expect("a monitor");
    qmp.quit();
    let pidfile = dir.path().join("pid");
    let deadline = std::time::Instant::now() + millpond_tests::PATIENCE;
    // It is no child of ours, and the pidfile goes last.
    while pidfile.exists() {
        assert!(std::time::Instant::now() < deadline, "the daemon does not end");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    for name in ["nbd", "qmp"] {
        assert!(!dir.path().join(name).exists(), "{name} is left behind");
    }
}

#[test]
fn a_socket_in_use_is_left_to_whom_it_serves() {
    let dir = scratch();
    let image = dir.path().join("disk.qcow2");
    millpond_tests::image::create(&image, "qcow2", "", 1 << 20);
    let (image, taken) = (image.display().to_string(), dir.path().join("taken"));
    let listener = UnixListener::bind(&taken).expect("a socket can be made");
    let (path, free) = (taken.display().to_string(), format!("{}.free", taken.display()));
    for args in [
        &[image.as_str(), "--socket", &path][..],
        &[&image, "--socket", &free, "--qmp", &path],
    ] {
        let said = refused(args);
        assert!(said.contains("in use by another server"), "{said}");
        UnixStream::connect(&taken).expect("it still listens");
    }
    drop(listener);
}
