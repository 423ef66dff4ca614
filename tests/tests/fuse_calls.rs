//! System calls on a FUSE export beside QEMU's own: each has the same result, and the same error.
//!
//! What differs on purpose is in [`DIFFERS`].

use std::fmt::Debug;
use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use millpond_tests::daemon::{Daemon, daemon};
use millpond_tests::program::oracle;
use millpond_tests::{fuse, image};
use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek, statvfs};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

/// What QEMU answers otherwise, and why.
const DIFFERS: &[(&str, &str)] = &[
    // QEMU's arithmetic fails there, and it says EIO; behind the end of a disk there is no space.
    ("a write at the end", "ENOSPC"),
    ("a write past the end", "ENOSPC"),
    ("an append", "ENOSPC"),
];

/// The results of calls in turn.
struct Calls {
    path: PathBuf,
    file: File,
    results: Vec<(String, String)>,
}

impl Calls {
    /// Makes a call, and notes its result.
    fn call<T: Debug>(&mut self, name: &str, call: impl FnOnce(&mut Self) -> io::Result<T>) {
        let result = match call(self) {
            Ok(value) => format!("{value:?}"),
            Err(error) => {
                let number = error.raw_os_error().unwrap_or_default();
                let names = [
                    (libc::ENOSPC, "ENOSPC"),
                    (libc::EIO, "EIO"),
                    (libc::EACCES, "EACCES"),
                ];
                let known = names.iter().find(|(known, _)| *known == number);
                known.map_or_else(|| format!("error {number}"), |(_, name)| (*name).to_owned())
            }
        };
        self.results.push((name.to_owned(), result));
        let length = fuse::length(&self.path);
        self.results
            .push((format!("the length after {name}"), length.to_string()));
    }

    fn read(&mut self, name: &str, offset: u64, len: usize) {
        self.call(name, |calls| {
            let mut bytes = vec![0xee; len];
            let count = calls.file.read_at(&mut bytes, offset)?;
            bytes.truncate(count);
            let sum = bytes
                .iter()
                .fold(7_u64, |sum, &byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
            Ok((count, sum))
        });
    }

    fn write(&mut self, name: &str, offset: u64, bytes: &[u8]) {
        self.call(name, |calls| calls.file.write_at(bytes, offset));
    }

    fn allocate(&mut self, name: &str, mode: FallocateFlags, offset: u64, len: u64) {
        self.call(name, |calls| {
            Ok(fallocate(calls.file.as_fd(), mode, offset, len)?)
        });
    }

    fn seek(&mut self, name: &str, to: SeekFrom) {
        self.call(name, |calls| Ok(seek(&calls.file, to)?));
    }

    fn set_len(&mut self, len: u64) {
        self.call(&format!("ftruncate to {len}"), |calls| calls.file.set_len(len));
    }

    fn reopen(&mut self, name: &str, options: &OpenOptions) {
        self.call(name, |calls| {
            calls.file = options.open(&calls.path)?;
            Ok(())
        });
    }
}

fn reads_and_writes(calls: &mut Calls) {
    calls.read("a read", 0, 10);
    calls.read("a read that is not aligned", 3, 1000);
    calls.read("a read across the end", MIB - 50, 100);
    calls.read("a read at the end", MIB, 100);
    calls.read("a read past the end", MIB + 1000, 100);
    calls.write("a write", 7, &[b'x'; 100]);
    calls.write("a large write", 1001, &vec![b'y'; 300_000]);
    calls.read("what was written", 0, 310_000);
    calls.write("a write across the end", MIB - 50, &[b'z'; 100]);
    calls.write("a write at the end", MIB + 512, &[b'z'; 100]);
    calls.write("a write past the end", MIB + 4096, &[b'w'; 100]);
    calls.call("fsync", |calls| calls.file.sync_all());
    calls.call("fdatasync", |calls| calls.file.sync_data());
}

fn seeks(calls: &mut Calls) {
    for offset in [0, 100, 500_000, MIB - 1, MIB, MIB + 1, 2 * MIB] {
        calls.seek(&format!("data from {offset}"), SeekFrom::Data(offset));
        calls.seek(&format!("a hole from {offset}"), SeekFrom::Hole(offset));
    }
}

fn space(calls: &mut Calls) {
    let (punch, keep, zero) = (
        FallocateFlags::PUNCH_HOLE,
        FallocateFlags::KEEP_SIZE,
        FallocateFlags::ZERO_RANGE,
    );
    let none = FallocateFlags::empty();
    calls.allocate("a hole", punch | keep, 0, 65536);
    calls.allocate("a hole without KEEP_SIZE", punch, 0, 65536);
    calls.allocate("a hole past the end", punch | keep, 4 * MIB, 4096);
    calls.allocate("zeroes with KEEP_SIZE", zero | keep, 131_072, 65536);
    calls.allocate("zeroes past the end with KEEP_SIZE", zero | keep, 4 * MIB, 4096);
    calls.allocate("zeroes", zero, 131_072, 65536);
    calls.read("what they left", 0, MIB as usize);
    calls.set_len(MIB);
    calls.allocate("zeroes across the end", zero, MIB - 512, 4096);
    calls.allocate("zeroes behind the end", zero, MIB + 8192, 4096);
    calls.set_len(MIB);
    calls.allocate("space inside", none, 0, 4096);
    calls.allocate("space across the end", none, MIB - 512, 4096);
    calls.allocate("space at the end", none, MIB, 4096);
    calls.allocate("space behind the end", none, MIB + 8192, 4096);
    calls.allocate("space with KEEP_SIZE", keep, 0, 4096);
    for mode in [
        FallocateFlags::COLLAPSE_RANGE,
        FallocateFlags::INSERT_RANGE,
        FallocateFlags::UNSHARE_RANGE,
    ] {
        calls.allocate(&format!("{mode:?}"), mode, 0, 4096);
    }
}

fn lengths(calls: &mut Calls) {
    for len in [2 * MIB, MIB, MIB / 2, MIB] {
        calls.set_len(len);
    }
    calls.read("what was cut off", MIB / 2, MIB as usize / 2);
}

fn ownership(calls: &mut Calls) {
    for mode in [0o600, 0o400, 0o640, 0o666, 0o777, 0, 0o200, 0o4700, 0o1600] {
        calls.call(&format!("chmod {mode:o}"), |calls| {
            let changed = std::fs::set_permissions(&calls.path, Permissions::from_mode(mode));
            let now = std::fs::metadata(&calls.path)?.mode();
            changed.map(|()| format!("{now:o}"))
        });
    }
    for (user, group) in [(Some(1), Some(2)), (None, Some(5)), (Some(0), Some(0))] {
        calls.call(&format!("chown {user:?} {group:?}"), |calls| {
            std::os::unix::fs::chown(&calls.path, user, group)?;
            let now = std::fs::metadata(&calls.path)?;
            Ok((now.uid(), now.gid(), format!("{:o}", now.mode())))
        });
    }
    let times = std::fs::FileTimes::new().set_modified(std::time::SystemTime::UNIX_EPOCH);
    calls.call("utime", |calls| calls.file.set_times(times));
}

fn names(calls: &mut Calls) {
    calls.call("unlink", |calls| std::fs::remove_file(&calls.path));
    calls.call("rename", |calls| {
        std::fs::rename(&calls.path, calls.path.with_extension("x"))
    });
    calls.call("a name inside", |calls| {
        File::open(calls.path.join("x")).map(drop)
    });
    calls.call("statvfs", |calls| {
        let of = statvfs(&calls.path)?;
        Ok((
            of.f_bsize,
            of.f_frsize,
            of.f_blocks,
            of.f_bfree,
            of.f_files,
            of.f_namemax,
        ))
    });
    calls.call("stat", |calls| {
        let of = std::fs::metadata(&calls.path)?;
        Ok((of.ino(), of.nlink(), of.is_file()))
    });
    let mut value = [0_u8; 8];
    calls.call("getxattr", |calls| {
        Ok(rustix::fs::getxattr(&calls.path, "user.x", value.as_mut_slice())?)
    });
}

fn opens(calls: &mut Calls) {
    let both = || OpenOptions::new().read(true).write(true).clone();
    calls.reopen("open O_TRUNC", both().truncate(true));
    calls.read("what is there then", 0, 4096);
    calls.reopen("open O_EXCL", both().create_new(true));
    calls.reopen(
        "open O_DIRECTORY",
        OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY),
    );
    calls.reopen("open O_SYNC", both().custom_flags(libc::O_SYNC));
    calls.write("a write with O_SYNC", 50, &[b'S'; 100]);
    calls.reopen("open O_DIRECT", both().custom_flags(libc::O_DIRECT));
    calls.read("a direct read", 4096, 8192);
    calls.reopen("open O_APPEND", OpenOptions::new().append(true));
    calls.call("an append", |calls| {
        io::Write::write(&mut calls.file, &[b'q'; 512])
    });
}

/// All of the calls, and their results.
fn results(daemon: &mut Daemon, node: &str, more: &Value) -> Vec<(String, String)> {
    let path = fuse::mount(daemon, node, more);
    let mut options = OpenOptions::new();
    options.read(true).write(more["writable"] == true);
    let file = options.open(&path).expect("an export can be opened");
    let results = Vec::new();
    let mut calls = Calls {
        path: path.to_owned(),
        file,
        results,
    };
    for group in [reads_and_writes, seeks, space, lengths, ownership, names, opens] {
        group(&mut calls);
    }
    let Calls { results, file, .. } = calls;
    drop(file);
    daemon.qmp.ok("block-export-del", json!({"id": "fuse"}));
    results
}

fn open(program_is_ours: bool, format: &str) -> Daemon {
    let builder = match program_is_ours {
        true => daemon(),
        false => daemon().program(oracle()),
    };
    let path = builder.dir().join("image");
    image::create(&path, format, "", MIB);
    if format == "raw" {
        write_start(&path);
    }
    let file = image::file("file", &path);
    let builder = builder.blockdev(file);
    match format {
        "raw" => builder.start(),
        _ => builder.blockdev(image::over(format, "format", "file")).start(),
    }
}

fn write_start(path: &Path) {
    let image = OpenOptions::new()
        .write(true)
        .open(path)
        .expect("the image is there");
    image
        .write_all_at(b"the first bytes", 0)
        .expect("it can be written");
}

#[track_caller]
fn same_results(format: &str, more: &Value) {
    fuse::require();
    let node = if format == "raw" { "file" } else { "format" };
    let run = |ours| {
        let mut daemon = open(ours, format);
        let results = results(&mut daemon, node, more);
        daemon.quit();
        results
    };
    let (ours, theirs) = (run(true), fuse::as_qemu_has_it(|| run(false)));
    assert_eq!(ours.len(), theirs.len());
    let mut wrong = String::new();
    for ((name, ours), (_, theirs)) in ours.iter().zip(&theirs) {
        let differs = DIFFERS
            .iter()
            .any(|(call, result)| call == name && result == ours);
        if ours != theirs && !differs {
            wrong += &format!("{name}: {ours}, QEMU: {theirs}\n");
        }
    }
    assert!(wrong.is_empty(), "{format} {more}:\n{wrong}");
}

fn calls_on_a_raw_export_have_qemus_results() {
    same_results("raw", &json!({"writable": true}));
}

fn calls_on_a_qcow2_export_have_qemus_results() {
    same_results("qcow2", &json!({"writable": true}));
}

fn calls_on_a_growable_export_have_qemus_results() {
    same_results("raw", &json!({"writable": true, "growable": true}));
    same_results("qcow2", &json!({"writable": true, "growable": true}));
}

fn calls_on_a_read_only_export_have_qemus_results() {
    same_results("raw", &json!({}));
    same_results("qcow2", &json!({"growable": false}));
}

fn calls_on_an_export_of_one_user_have_qemus_results() {
    same_results("raw", &json!({"writable": true, "allow-other": "off"}));
}

millpond_tests::over_each_transport!(
    calls_on_a_raw_export_have_qemus_results,
    calls_on_a_qcow2_export_have_qemus_results,
    calls_on_a_growable_export_have_qemus_results,
    calls_on_a_read_only_export_have_qemus_results,
    calls_on_an_export_of_one_user_have_qemus_results,
);
