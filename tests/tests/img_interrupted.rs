//! `millpond img` that is interrupted, that runs out of space, whose source cannot be read, or whose images somebody else uses:
//! sources stay what they were, and what is half done can be done again.

use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Instant;

use millpond_tests::PATIENCE;
use millpond_tests::daemon::scratch;
use millpond_tests::mounted::Mounted;
use millpond_tests::program::millpond;
use millpond_tests::tool::{Run, qemu_img, run, try_run};
use millpond_tests::tools::{Both, Side};
use millpond_tests::workload::random_bytes;
use rustix::process::{Pid, Signal, kill_process};

const MIB: u64 = 1 << 20;
/// Bytes of data that a command is interrupted in.
const DATA: usize = 96 << 20;

/// A file of data that no image makes smaller.
fn data(path: &Path, seed: u64) -> Vec<u8> {
    let bytes = random_bytes(&mut fastrand::Rng::with_seed(seed), DATA as u64);
    fs::write(path, &bytes).expect("data is written");
    bytes
}

/// A command of ours that runs.
fn begin(dir: &Path, line: &str) -> Child {
    Command::new(millpond())
        .arg("img")
        .args(line.split(' '))
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("our program is there")
}

/// Interrupts a command once a file takes more space than so many bytes; answers whether it had not ended before.
#[track_caller]
fn interrupt(child: &mut Child, file: &Path, more_than: u64, signal: Signal) -> bool {
    let deadline = Instant::now() + PATIENCE;
    let is_far = || fs::metadata(file).is_ok_and(|found| found.blocks() * 512 > more_than);
    while !is_far() {
        if child.try_wait().expect("a child").is_some() {
            break;
        }
        assert!(
            Instant::now() < deadline,
            "nothing is written to {}",
            file.display()
        );
        thread::yield_now();
    }
    let pid = Pid::from_child(child);
    // It fails only where it has ended.
    let _ = kill_process(pid, signal);
    let status = child.wait().expect("a child");
    let mut told = String::new();
    let stderr = child.stderr.as_mut().expect("its standard error");
    stderr.read_to_string(&mut told).expect("text");
    assert!(!told.contains("panicked"), "{told}");
    status.signal() == Some(signal.as_raw())
}

fn in_folder(dir: &Path, line: &str) {
    let line = format!("cd {} && {line}", dir.display());
    run("bash", &["-c", &line]);
}

/// What QEMU's tool says once nobody holds the image: the kernel goes on with the requests of who was killed for a moment, and
/// keeps its locks as long.
#[track_caller]
fn once_free(arguments: &[&str]) -> Run {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let run = try_run("qemu-img", arguments);
        if !run.stderr.contains("lock") {
            return run;
        }
        assert!(Instant::now() < deadline, "{arguments:?}: {}", run.stderr);
    }
}

/// The disk of an image, as QEMU reads it.
fn disk(dir: &Path, image: &str) -> Vec<u8> {
    let raw = dir.join("disk-of");
    let (from, to) = (dir.join(image).display().to_string(), raw.display().to_string());
    let converted = once_free(&["convert", "-O", "raw", &from, &to]);
    assert_eq!(converted.code, Some(0), "{image}: {}", converted.stderr);
    let bytes = fs::read(&raw).expect("a disk");
    fs::remove_file(&raw).expect("it is there");
    bytes
}

#[test]
fn a_copy_that_is_interrupted_leaves_its_source_and_can_be_made_again() {
    let dir = scratch();
    let (dir, source) = (dir.path(), dir.path().join("source"));
    let bytes = data(&source, 1);
    let mut interrupted = 0;
    for (more_than, signal) in [
        (0, Signal::INT),
        (8 * MIB, Signal::TERM),
        (0, Signal::KILL),
        (32 * MIB, Signal::KILL),
    ] {
        for (format, options) in [("raw", ""), ("qcow2", ""), ("qcow2", "-c ")] {
            let target = dir.join("target");
            // That of before is not what is looked at.
            drop(fs::remove_file(&target));
            let line = format!("convert {options}-f raw -O {format} source target");
            let mut child = begin(dir, &line);
            interrupted += u32::from(interrupt(&mut child, &target, more_than, signal));
            assert!(fs::read(&source).expect("the source") == bytes, "{line}");
            // Nobody holds it any more.
            in_folder(dir, "qemu-io -f raw -c 'discard 0 0' source");
        }
    }
    assert!(interrupted > 4, "only {interrupted} copies were interrupted");
    let whole = begin(dir, "convert -f raw -O qcow2 source target").wait_with_output();
    assert_eq!(whole.expect("a child").status.code(), Some(0));
    assert!(disk(dir, "target") == bytes);
}

#[test]
fn a_copy_tells_how_far_it_is_when_it_is_asked() {
    let dir = scratch();
    let (dir, source) = (dir.path(), dir.path().join("source"));
    data(&source, 4);
    let mut child = begin(dir, "convert -r 32M -f raw -O raw source target");
    let pid = Pid::from_child(&child);
    let target = dir.join("target");
    let deadline = Instant::now() + PATIENCE;
    // It catches the signal once it copies.
    while !fs::metadata(&target).is_ok_and(|found| found.blocks() > 0) {
        assert!(Instant::now() < deadline, "nothing is copied");
        thread::yield_now();
    }
    kill_process(pid, Signal::USR1).expect("it runs");
    let status = child.wait().expect("a child");
    let mut told = String::new();
    let stderr = child.stderr.as_mut().expect("its standard error");
    stderr.read_to_string(&mut told).expect("text");
    assert_eq!(status.code(), Some(0), "{told}");
    let percent = told
        .trim()
        .strip_prefix('(')
        .and_then(|told| told.strip_suffix("/100%)"));
    let percent: f64 = percent.and_then(|percent| percent.parse().ok()).expect(&told);
    assert!(percent > 0.0 && percent <= 100.0, "{told}");
}

/// A chain of two images, of which the upper has all of the data; answers what the disk is.
fn chain(dir: &Path) -> Vec<u8> {
    let bytes = data(&dir.join("data"), 2);
    in_folder(
        dir,
        &format!(
            "qemu-img create -q -f qcow2 base {DATA} && qemu-img create -q -f qcow2 -b base -F qcow2 top && \
             qemu-img convert -n -f raw -O qcow2 data top && qemu-img create -q -f qcow2 other {DATA}"
        ),
    );
    bytes
}

/// An image may have lost track of clusters that nothing refers to, and nothing else.
#[track_caller]
fn assert_sound(dir: &Path, image: &str) {
    let path = dir.join(image).display().to_string();
    let check = once_free(&["check", "-f", "qcow2", &path]);
    assert!(
        matches!(check.code, Some(0 | 3)),
        "{image}: {}{}",
        check.stdout,
        check.stderr
    );
}

#[test]
fn a_commit_that_is_killed_loses_nothing_and_is_done_again() {
    let dir = scratch();
    let dir = dir.path();
    let bytes = chain(dir);
    let mut interrupted = 0;
    for more_than in [MIB, 16 * MIB, 48 * MIB] {
        let mut child = begin(dir, "commit top");
        interrupted += u32::from(interrupt(&mut child, &dir.join("base"), more_than, Signal::KILL));
        for image in ["base", "top"] {
            assert_sound(dir, image);
        }
        assert!(disk(dir, "top") == bytes, "after a kill at {more_than}");
    }
    assert!(interrupted > 0, "no commit was interrupted");
    let whole = begin(dir, "commit top").wait_with_output().expect("a child");
    assert_eq!(
        whole.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&whole.stderr)
    );
    assert!(disk(dir, "base") == bytes && disk(dir, "top") == bytes);
}

#[test]
fn a_rebase_that_is_killed_leaves_the_disk_as_it_was() {
    let dir = scratch();
    let dir = dir.path();
    let bytes = chain(dir);
    in_folder(dir, "qemu-img create -q -f qcow2 -b top -F qcow2 upper");
    let mut interrupted = 0;
    for more_than in [MIB, 16 * MIB, 48 * MIB] {
        let mut child = begin(dir, "rebase -f qcow2 -b other -F qcow2 upper");
        interrupted += u32::from(interrupt(&mut child, &dir.join("upper"), more_than, Signal::KILL));
        assert_sound(dir, "upper");
        assert!(disk(dir, "upper") == bytes, "after a kill at {more_than}");
    }
    assert!(interrupted > 0, "no rebase was interrupted");
    let whole = begin(dir, "rebase -f qcow2 -b other -F qcow2 upper").wait_with_output();
    assert_eq!(whole.expect("a child").status.code(), Some(0));
    assert!(disk(dir, "upper") == bytes);
}

#[test]
fn a_full_disk_is_told_and_the_source_is_as_it_was() {
    let both = Both::new();
    let disks = Mounted::tmpfs(4);
    let bytes = random_bytes(&mut fastrand::Rng::with_seed(3), 8 * MIB);
    both.write("source", &bytes);
    let target = disks.dir().join("target").display().to_string();
    for options in [
        "-O raw",
        "-O qcow2",
        "-O qcow2 -c",
        "-O qcow2 -o preallocation=falloc",
        "-O raw -S 0",
    ] {
        let words = format!("qemu-img convert -f raw {options} source {target}");
        let words: Vec<&str> = words.split(' ').collect();
        let told = [Side::Ours, Side::Theirs].map(|side| {
            drop(fs::remove_file(&target));
            let run = both.run(side, &words);
            // Where exactly there was no more room depends on the order of writes.
            let told = run.stderr.replace(|c: char| c.is_ascii_digit(), "");
            (run.code, told)
        });
        assert_eq!(told[0], told[1], "{options}: left is ours, right is QEMU's");
        assert_eq!(told[0].0, Some(1), "{options}");
        assert!(fs::read(both.ours().join("source")).expect("the source") == bytes);
    }
    // One that is committed stays whole.
    let base = disks.dir().join("base").display().to_string();
    drop(fs::remove_file(&target));
    qemu_img(&format!("create -q -f qcow2 {base} 8M"));
    both.prepare(&format!("qemu-img create -q -f qcow2 -b {base} -F qcow2 top"));
    both.prepare("qemu-img convert -n -f raw -O qcow2 source top");
    let run = both.run(Side::Ours, &["qemu-img", "commit", "top"]);
    assert!(
        run.code == Some(1) && run.stderr.contains("No space left on device"),
        "{}",
        run.stderr
    );
    assert_sound(&both.ours(), "top");
    assert!(disk(&both.ours(), "top") == bytes);
}

#[test]
fn reads_and_writes_that_fail_are_told_as_qemu_tells_them() {
    let both = Both::new();
    both.prepare("qemu-img create -q -f raw good 4M");
    both.write_image("raw", "good", &["write -P 1 0 4M"]);
    both.prepare("qemu-img create -q -f raw target 4M");
    both.prepare("qemu-img create -q -f qcow2 -b good -F raw top");
    let bad = |event: &str, errno: u32, image: &str| {
        format!(
            "driver=raw,file.driver=blkdebug,file.image.filename={image},file.inject-error.0.event=none,\
             file.inject-error.0.iotype={event},file.inject-error.0.errno={errno},file.inject-error.0.sector=4096"
        )
    };
    for line in [
        format!("convert --image-opts -O raw {} copy", bad("read", 5, "good")),
        format!("convert --image-opts -O qcow2 {} copy", bad("read", 5, "good")),
        format!(
            "convert -f raw -n --target-image-opts good {}",
            bad("write", 28, "target")
        ),
        format!(
            "compare --image-opts {} driver=raw,file.filename=good",
            bad("read", 5, "good")
        ),
    ] {
        both.same(&format!("qemu-img {line}"));
        both.assert_same_bytes("good");
    }
}

/// A program of QEMU's that holds an image for writing.
struct Holder(Child);

impl Holder {
    fn of(folder: &Path, image: &str) -> Self {
        let mut child = Command::new("qemu-io")
            .args(["-f", "qcow2", "-c", "length", "-c", "sleep 3600000", image])
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("qemu-io is installed");
        // It is held back for whoever reads a pipe; so the lock itself is waited for, by who is refused.
        drop(child.stdout.take());
        Self(child)
    }
}

impl Holder {
    fn has_ended(&mut self) -> bool {
        self.0.try_wait().expect("a child").is_some()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // Both fail only where it has ended.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[test]
fn images_that_somebody_uses_are_left_alone_as_by_qemu() {
    let both = Both::new();
    both.prepare("qemu-img create -q -f qcow2 held 1M");
    both.prepare("qemu-img create -q -f qcow2 -b held -F qcow2 top");
    both.prepare("qemu-img create -q -f raw source 1M");
    let _holders = [Side::Ours, Side::Theirs].map(|side| {
        let folder = both.folder(side);
        let image = folder.join("held").display().to_string();
        let mut holder = Holder::of(&folder, "held");
        let deadline = Instant::now() + PATIENCE;
        while try_run("qemu-img", &["check", "-r", "all", &image]).code != Some(1) {
            assert!(Instant::now() < deadline, "qemu-io does not hold the image");
            if holder.has_ended() {
                // Who looked had the image when it came.
                holder = Holder::of(&folder, "held");
            }
        }
        holder
    });
    let before = fs::read(both.ours().join("held")).expect("an image");
    for line in [
        "create -f qcow2 held 1M",
        "convert -f raw -O qcow2 source held",
        "convert -n -f raw -O qcow2 source held",
        "convert -O raw held copy",
        "convert -U -O raw held copy",
        "info held",
        "info -U held",
        "check held",
        "check -r all held",
        "compare held held",
        "compare -U held held",
        "map held",
        "resize held 2M",
        "commit top",
        "rebase -b '' held",
        "rebase -u -b '' held",
        "amend -o compat=0.10 held",
        "snapshot -c s held",
        "snapshot -l held",
        "bitmap --add held b",
        "measure -O qcow2 held",
        "dd if=source of=held -f raw -O qcow2 bs=512",
    ] {
        both.same(&format!("qemu-img {line}"));
        assert!(
            fs::read(both.ours().join("held")).expect("an image") == before,
            "{line}"
        );
    }
}
