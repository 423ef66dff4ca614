//! Images made by `qemu-img`, and the JSON by which a daemon opens them.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use serde_json::{Value, json};

use crate::{PATIENCE, tool};

/// Makes an image with `qemu-img create`; `options` is the argument of `-o`, or empty.
#[track_caller]
pub fn create(path: &Path, format: &str, options: &str, size: u64) {
    let mut args = vec!["create".to_owned(), "-q".into(), "-f".into(), format.to_owned()];
    if !options.is_empty() {
        args.extend(["-o".to_owned(), options.to_owned()]);
    }
    args.extend([path.display().to_string(), size.to_string()]);
    tool::run("qemu-img", &args);
}

/// Makes a qcow2 overlay of `backing`, of its own size if one is given.
#[track_caller]
pub fn create_overlay(path: &Path, options: &str, backing: &Path, backing_format: &str, size: Option<u64>) {
    let mut args: Vec<String> = ["create", "-q", "-f", "qcow2", "-F", backing_format, "-b"]
        .map(Into::into)
        .to_vec();
    args.push(backing.display().to_string());
    if !options.is_empty() {
        args.extend(["-o".to_owned(), options.to_owned()]);
    }
    args.push(path.display().to_string());
    args.extend(size.map(|size| size.to_string()));
    tool::run("qemu-img", &args);
}

/// Options of a `file` node.
pub fn file(name: &str, path: &Path) -> Value {
    json!({ "driver": "file", "node-name": name, "filename": path })
}

/// Options of a node of `driver` over the node `file`.
pub fn over(driver: &str, name: &str, file: &str) -> Value {
    json!({ "driver": driver, "node-name": name, "file": file })
}

/// The same options with others added, or in their place.
#[must_use]
pub fn with(mut options: Value, more: &Value) -> Value {
    for (name, value) in more.as_object().into_iter().flatten() {
        options[name] = value.clone();
    }
    options
}

/// Waits until nobody holds an image that a killed daemon had open. The kernel takes an io_uring apart after the process
/// is gone, and until then requests in flight go on and keep the file's locks. Their end cannot be awaited, so this asks
/// again.
#[track_caller]
pub fn wait_released(path: &Path) {
    let deadline = Instant::now() + PATIENCE;
    let info = ["info", "-f", "qcow2", &path.display().to_string()];
    while tool::try_run("qemu-img", &info).stderr.contains("lock") {
        assert!(Instant::now() < deadline, "{} is still locked", path.display());
    }
}

/// `qemu-img check`, which must find neither errors nor leaks.
#[track_caller]
pub fn assert_clean(path: &Path) {
    let run = tool::try_run("qemu-img", &["check", "-f", "qcow2", &path.display().to_string()]);
    assert_eq!(run.code, Some(0), "{}:\n{}{}", run.line, run.stdout, run.stderr);
}

/// `qemu-img check`, which may find leaks (it ends with 3) but no error.
#[track_caller]
pub fn assert_at_most_leaks(path: &Path) {
    let run = tool::try_run("qemu-img", &["check", "-f", "qcow2", &path.display().to_string()]);
    assert!(
        matches!(run.code, Some(0 | 3)),
        "{}:\n{}{}",
        run.line,
        run.stdout,
        run.stderr
    );
}

/// `qemu-img compare` of two images or URIs, which must be identical.
#[track_caller]
pub fn assert_identical(one: (&str, &str), other: (&str, &str)) {
    tool::run(
        "qemu-img",
        &["compare", "-f", one.0, "-F", other.0, one.1, other.1],
    );
}

/// What `qemu-img map` says of an image or URI, reduced to what any server of it can know: start, length, data, zero.
#[track_caller]
pub fn map(format: &str, name: &str) -> Vec<(u64, u64, bool, bool)> {
    let parts = tool::run_json("qemu-img", &["map", "-U", "--output=json", "-f", format, name]);
    let mut joined: Vec<(u64, u64, bool, bool)> = Vec::new();
    for part in parts.as_array().expect("map prints a list") {
        let number = |key: &str| part[key].as_u64().expect("map prints numbers");
        let truth = |key: &str| part[key].as_bool().expect("map prints truth values");
        let (start, length, data, zero) = (number("start"), number("length"), truth("data"), truth("zero"));
        match joined.last_mut() {
            Some(last) if (last.2, last.3) == (data, zero) => last.1 += length,
            _ => joined.push((start, length, data, zero)),
        }
    }
    joined
}

/// Puts bytes into a file without changing what is around them.
#[track_caller]
pub fn poke(path: &Path, offset: u64, bytes: &[u8]) {
    let file = OpenOptions::new()
        .write(true)
        .open(path)
        .expect("the image is there");
    file.write_all_at(bytes, offset)
        .expect("the image can be changed");
}

/// Makes a qcow2 image with this backing file name, as it is. The name needs no file behind it.
#[track_caller]
pub fn backed_by(path: &Path, name: &str, format: Option<&str>) {
    create(path, "qcow2", "", 1 << 20);
    let mut extensions = Vec::new();
    if let Some(format) = format {
        extensions.extend(0xe279_2aca_u32.to_be_bytes());
        extensions.extend(u32::try_from(format.len()).expect("short").to_be_bytes());
        extensions.extend(format.as_bytes());
        extensions.resize(extensions.len().next_multiple_of(8), 0);
    }
    extensions.extend([0; 8]);
    poke(path, 112, &extensions);
    poke(path, 2048, name.as_bytes());
    poke(path, 8, &2048_u64.to_be_bytes());
    poke(path, 16, &u32::try_from(name.len()).expect("short").to_be_bytes());
}
