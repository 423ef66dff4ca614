//! Crafted images given to `millpond img`: each command ends, in bounded time and memory, with the image's disk or with an
//! error that says what is wrong, and opens no file that only the image names.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use millpond_tests::crafted::{FIELDS, change_metadata};
use millpond_tests::daemon::scratch;
use millpond_tests::image::create;
use millpond_tests::program::millpond;
use millpond_tests::tool::{Run, qemu_io, try_run};
use millpond_tests::tools::{Both, Side};
use millpond_tests::workload::seeded;

const MIB: u64 = 1 << 20;

/// Memory that a command may map, in KiB: its threads' stacks alone are a good part of it.
const MEMORY: u64 = 2 << 20;
/// Time that a command may take on a busy machine.
const TIME: Duration = Duration::from_secs(20);

/// The commands that look at an image, and one that copies it.
const COMMANDS: &[&str] = &[
    "info --output=json IMAGE",
    "check IMAGE",
    "check -r all IMAGE",
    "map --output=json IMAGE",
    "measure -O qcow2 IMAGE",
    "snapshot -l IMAGE",
    "convert -O qcow2 IMAGE COPY",
];

/// Runs a command within the limits. It must end by itself, and say something if it fails.
#[track_caller]
fn run(command: &str, what: &str) -> Run {
    let line = format!("ulimit -v {MEMORY}; exec {} img {command}", millpond().display());
    let begun = Instant::now();
    let run = try_run("bash", &["-c", &line]);
    let told = format!("{command}: {what}\n{}{}", run.stdout, run.stderr);
    assert!(matches!(run.code, Some(0..=3)), "{:?}: {told}", run.code);
    assert!(!run.stderr.contains("panicked"), "{told}");
    assert!(begun.elapsed() < TIME, "{told}");
    if run.code == Some(1) {
        assert!(!run.stderr.is_empty(), "{told}");
    }
    run
}

/// Gives a crafted image to each command, which may repair it: each has its own.
fn look_at(good: &Path, dir: &Path, what: &str, craft: impl Fn(&Path)) {
    let (image, copy) = (dir.join("crafted"), dir.join("copy"));
    for command in COMMANDS {
        fs::copy(good, &image).expect("an image can be copied");
        craft(&image);
        let command = command.replace("IMAGE", &format!("-f qcow2 {}", image.display()));
        let command = match command.split_once(" -f qcow2") {
            // These know the format by themselves.
            Some((name, rest)) if name.starts_with("snapshot") => format!("{name}{rest}"),
            _ => command,
        };
        run(&command.replace("COPY", &copy.display().to_string()), what);
    }
}

#[test]
fn headers_out_of_range_are_refused_or_read_within_bounds() {
    let dir = scratch();
    let good = dir.path().join("good");
    create(&good, "qcow2", "", 8 * MIB);
    qemu_io(
        &["-f", "qcow2", &good.display().to_string()],
        &["write -P 1 0 1M", "write -z 1M 64k"],
    );
    for field in FIELDS {
        // The first and the last are the most out of range.
        for value in [field.values.first(), field.values.last()].into_iter().flatten() {
            let what = format!("{} = {value:#x}", field.name);
            look_at(&good, dir.path(), &what, |image| field.set(image, *value));
        }
    }
}

#[test]
fn metadata_with_any_bits_changed_is_looked_at_within_bounds() {
    let dir = scratch();
    let good = dir.path().join("good");
    create(&good, "qcow2", "cluster_size=4k", 2 * MIB);
    qemu_io(
        &["-f", "qcow2", &good.display().to_string()],
        &["write -P 1 0 512k", "write -z 1M 64k", "discard 8k 16k"],
    );
    let rng = seeded("metadata_with_any_bits_changed_is_looked_at_within_bounds");
    for round in 0..12 {
        let mut rng = rng.clone();
        rng.seed(rng.get_seed().wrapping_add(round));
        let what = format!("seed {}", rng.get_seed());
        look_at(&good, dir.path(), &what, |image| {
            change_metadata(image, &mut rng.clone())
        });
    }
}

/// A name in a header is opened by who needs what is below. What does not answer is not waited for, as QEMU's tools do.
#[test]
fn a_name_in_an_image_is_not_opened_by_who_only_looks_at_the_image() {
    let both = Both::new();
    both.prepare("qemu-img create -q -f qcow2 image 1M");
    both.prepare("qemu-img create -q -f raw other 1M");
    // Whoever opens a pipe waits for another who does.
    both.prepare("mkfifo pipe");
    both.prepare("qemu-img rebase -u -f qcow2 -F raw -b pipe image");
    for (line, code) in [
        ("info image", 0),
        ("rebase -u -f qcow2 -F raw -b other image", 0),
        ("rebase -u -f qcow2 -F raw -b pipe image", 0),
        ("info --backing-chain image", 1),
        ("check image", 1),
        ("map image", 1),
        ("convert -O raw image copy", 1),
        ("commit image", 1),
    ] {
        let words: Vec<&str> = "qemu-img".split(' ').chain(line.split(' ')).collect();
        let run = both.run(Side::Ours, &words);
        assert_eq!(run.code, Some(code), "{line}: {}", run.stderr);
        let refused = "'file' driver requires 'pipe' to be a regular file";
        assert!(
            code == 0 || run.stderr.contains(refused),
            "{line}: {}",
            run.stderr
        );
    }
}
