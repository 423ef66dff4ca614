//! FUSE exports over io_uring: when they are, and what becomes of requests that the kernel has given them.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use millpond_tests::daemon::{Daemon, daemon};
use millpond_tests::fuse::{self, Mount, Transport, Withheld, export, is_mounted, mount, mountpoint};
use millpond_tests::strace::Strace;
use millpond_tests::{PATIENCE, image, tool};
use rustix::thread::{CpuSet, sched_setaffinity};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

/// A daemon with a null node whose requests take so long, and iothreads.
fn start(latency_ns: u64) -> Daemon {
    let node = json!({"driver": "null-co", "node-name": "disk", "size": 64 * MIB, "read-zeroes": true,
        "latency-ns": latency_ns});
    daemon()
        .option("--object", "iothread,id=io0")
        .option("--object", "iothread,id=io1")
        .blockdev(node)
        .start()
}

fn open(path: &Path) -> File {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_DIRECT);
    options.open(path).expect("an export can be opened")
}

/// How often the device is read while a hundred reads are served.
fn reads_of_the_device() -> usize {
    let mut daemon = start(0);
    let path = mount(&mut daemon, "disk", &json!({"writable": true, "iothread": "io0"}));
    let file = File::open(&path).expect("an export can be opened");
    let strace = Strace::attach(daemon.pid(), "readv", &daemon.dir().join("calls"));
    let mut bytes = [1; 4096];
    for piece in 0..100 {
        file.read_exact_at(&mut bytes, piece * 4096).expect("it is read");
    }
    let calls = strace.detach();
    assert!(bytes.iter().all(|byte| *byte == 0));
    drop(file);
    daemon.quit();
    calls.len()
}

#[test]
fn requests_come_over_io_uring_or_by_the_device() {
    fuse::over(Transport::Device, || {
        assert!(reads_of_the_device() >= 100, "each is read from the device");
    });
    fuse::over(Transport::IoUring, || {
        let reads = reads_of_the_device();
        assert!(reads < 10, "the device was read {reads} times");
    });
}

#[test]
fn who_insists_on_io_uring_is_told_where_the_kernel_does_not_offer_it() {
    fuse::require();
    let _withheld = Withheld::new();
    let mut daemon = start(0);
    let path = mountpoint(&daemon, "disk");
    let refused = daemon.qmp.refused(
        "block-export-add",
        export("fuse", "disk", &path, &json!({"x-millpond-io-uring": "on"})),
    );
    assert!(refused.desc.contains("enable_uring"), "{}", refused.desc);
    assert!(!is_mounted(&path), "what fails leaves nothing");
    daemon
        .qmp
        .ok("block-export-add", export("fuse", "disk", &path, &json!({})));
    assert_eq!(fuse::length(&path), 64 * MIB, "the device serves it");
    daemon.quit();
}

#[test]
fn an_iothread_that_was_left_lives_as_long_as_the_kernel_needs_it() {
    fuse::over(Transport::IoUring, || {
        let builder = daemon();
        let image = builder.dir().join("image");
        image::create(&image, "raw", "", 32 * MIB);
        let builder = builder.option("--object", "iothread,id=io0");
        let mut daemon = builder.blockdev(image::file("disk", &image)).start();
        // The kernel is given everything here.
        let path = mount(&mut daemon, "disk", &json!({"writable": true, "iothread": "io0"}));
        assert_eq!(fuse::length(&path), 32 * MIB);
        let away = json!({"node-name": "disk", "iothread": null, "force": true});
        daemon.qmp.ok("x-blockdev-set-iothread", away);
        daemon.qmp.ok("object-del", json!({"id": "io0"}));
        // More at once than there were before: some come by what the iothread gave that is to end.
        verify(&path, 64);
        daemon.qmp.ok("block-export-del", json!({"id": "fuse"}));
        assert!(!is_mounted(&path));
        daemon.quit();
    });
}

/// Writes all of a file at random, so many requests at once, and reads it back.
#[track_caller]
fn verify(path: &Path, depth: u32) {
    let args = [
        "--name=fuse".to_owned(),
        format!("--filename={}", path.display()),
        format!("--iodepth={depth}"),
        "--ioengine=libaio".to_owned(),
        "--direct=1".to_owned(),
        "--rw=randwrite".to_owned(),
        "--bsrange=4k-64k".to_owned(),
        "--size=16m".to_owned(),
        "--verify=crc32c".to_owned(),
        "--verify_fatal=1".to_owned(),
        "--verify_state_save=0".to_owned(),
    ];
    tool::run("fio", &args);
}

/// A daemon whose requests take a while, and so many reads that are under way on an export of it.
#[track_caller]
fn reading(latency_ns: u64, count: usize) -> (Daemon, Mount, Vec<JoinHandle<io::Result<usize>>>) {
    let mut daemon = start(latency_ns);
    let path = mount(&mut daemon, "disk", &json!({"writable": true, "iothread": "io0"}));
    let reads = (0..count).map(|index| {
        let file = open(&path);
        let mut buffer = Aligned([0xee; 4096]);
        thread::spawn(move || file.read_at(&mut buffer.0, index as u64 * 4096))
    });
    let reads: Vec<_> = reads.collect();
    let deadline = Instant::now() + PATIENCE;
    while under_way(&mut daemon) < count as u64 {
        assert!(Instant::now() < deadline, "the reads do not come");
    }
    (daemon, path, reads)
}

/// Memory as reads past the page cache want it.
#[repr(align(4096))]
struct Aligned([u8; 4096]);

fn under_way(daemon: &mut Daemon) -> u64 {
    let iothreads = daemon.qmp.ok("x-millpond-query-iothreads", json!({}));
    let mut all = iothreads.as_array().expect("a list").iter();
    let found = all.find(|iothread| iothread["id"] == "io0");
    found
        .and_then(|iothread| iothread["requests"].as_u64())
        .expect("the iothread is there")
}

#[test]
fn what_is_under_way_when_users_give_up_the_file_system_ends_and_the_daemon_goes_on() {
    fuse::over(Transport::IoUring, || {
        let (mut daemon, path, reads) = reading(1_000_000_000, 12);
        tool::run("umount", &[Path::new("--force"), Path::new("--lazy"), &path]);
        for read in reads {
            let error = read
                .join()
                .expect("a call ends")
                .expect_err("nobody waits for it");
            let number = error.raw_os_error();
            assert!(
                number == Some(libc::ECONNABORTED) || number == Some(libc::ENOTCONN),
                "{error}"
            );
        }
        daemon.qmp.wait_event("BLOCK_EXPORT_DELETED");
        let path = mount(&mut daemon, "disk", &json!({"writable": true, "iothread": "io1"}));
        assert_eq!(fuse::length(&path), 64 * MIB);
        daemon.quit();
    });
}

#[test]
fn what_is_under_way_when_users_detach_the_file_system_is_answered() {
    fuse::over(Transport::IoUring, || {
        let (mut daemon, path, reads) = reading(1_000_000_000, 12);
        tool::run("umount", &[Path::new("--lazy"), &path]);
        for read in reads {
            let count = read.join().expect("a call ends").expect("it is answered");
            assert_eq!(count, 4096);
        }
        daemon.qmp.wait_event("BLOCK_EXPORT_DELETED");
        daemon.quit();
    });
}

#[test]
fn users_who_die_with_requests_under_way_cost_no_memory_and_no_requests() {
    fuse::over(Transport::IoUring, || {
        let builder = daemon();
        let path = builder.dir().join("image");
        image::create(&path, "raw", "", 64 * MIB);
        let mut daemon = builder.blockdev(image::file("disk", &path)).start();
        let more = json!({"writable": true, "allow-other": "on"});
        let path = mount(&mut daemon, "disk", &more);
        let before = daemon.resident_kib();
        for _ in 0..20 {
            let mut user = Command::new("fio")
                .args(["--name=user", "--ioengine=libaio", "--direct=1", "--iodepth=64"])
                .args([
                    "--thread",
                    "--rw=randrw",
                    "--bs=1m",
                    "--size=64m",
                    "--time_based",
                    "--runtime=60",
                ])
                .arg(format!("--filename={}", path.display()))
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("fio is there");
            let deadline = Instant::now() + PATIENCE;
            while in_flight(&mut daemon) == 0 {
                assert!(Instant::now() < deadline, "the user asks for nothing");
            }
            user.kill().expect("it can be killed");
            user.wait().expect("it ends");
        }
        let more = daemon.resident_kib().saturating_sub(before) / 1024;
        // What the rings have, and as much again for what is between them and the image.
        assert!(more < 80, "{more} MiB more");
        verify(&path, 32);
        daemon.quit();
    });
}

/// How many requests the node of the export has in flight.
fn in_flight(daemon: &mut Daemon) -> u64 {
    let iothreads = daemon.qmp.ok("x-millpond-query-iothreads", json!({}));
    let all = iothreads.as_array().expect("a list").iter();
    all.filter_map(|iothread| iothread["requests"].as_u64()).sum()
}

#[test]
fn exports_come_and_go_on_both_transports_side_by_side() {
    fuse::over(Transport::IoUring, || {
        let mut daemon = start(0);
        let paths: Vec<_> = (0..8)
            .map(|number| mountpoint(&daemon, &format!("disk{number}")))
            .collect();
        for _ in 0..3 {
            for (number, path) in paths.iter().enumerate() {
                let io_uring = if number % 2 == 0 { "on" } else { "off" };
                let more: Value = json!({"writable": true, "x-millpond-io-uring": io_uring});
                let id = format!("fuse{number}");
                daemon
                    .qmp
                    .ok("block-export-add", export(&id, "disk", path, &more));
            }
            let files: Vec<_> = paths.iter().map(|path| open(path)).collect();
            for file in &files {
                let mut buffer = Aligned([0xee; 4096]);
                let count = file.read_at(&mut buffer.0, 8192).expect("it is read");
                assert_eq!((count, buffer.0), (4096, [0; 4096]));
            }
            for number in 0..paths.len() {
                let id = json!({"id": format!("fuse{number}")});
                daemon.qmp.ok("block-export-del", id);
                daemon.qmp.wait_event("BLOCK_EXPORT_DELETED");
            }
            for file in &files {
                file.read_at(&mut Aligned([0; 4096]).0, 0)
                    .expect_err("nobody serves it any more");
            }
        }
        daemon.quit();
    });
}

/// How often an iothread has run tasks.
fn task_runs(daemon: &mut Daemon, id: &str) -> u64 {
    let iothreads = daemon.qmp.ok("x-millpond-query-iothreads", json!({}));
    let mut all = iothreads.as_array().expect("a list").iter();
    let found = all.find(|iothread| iothread["id"] == id);
    found
        .and_then(|iothread| iothread["task-runs"].as_u64())
        .expect("the iothread is there")
}

/// Reads a file from a processor, so many times.
fn read_on(cpu: usize, path: &Path, count: u64) {
    let file = open(path);
    let reader = move || {
        let mut cpus = CpuSet::new();
        cpus.set(cpu);
        sched_setaffinity(None, &cpus).expect("there are two processors at least");
        for piece in 0..count {
            let mut buffer = Aligned([0xee; 4096]);
            let read = file.read_at(&mut buffer.0, piece * 4096).expect("it is read");
            assert_eq!((read, buffer.0), (4096, [0; 4096]));
        }
    };
    thread::spawn(reader).join().expect("all is read");
}

#[test]
fn the_queues_of_processors_are_spread_over_the_iothreads_of_an_export() {
    fuse::over(Transport::IoUring, || {
        let mut daemon = start(0);
        let more = json!({"writable": true, "iothread": ["io0", "io1"]});
        let path = mount(&mut daemon, "disk", &more);
        // The node is on the first, so that only what is read by way of the second is seen there.
        const READS: u64 = 400;
        let mut before = task_runs(&mut daemon, "io1");
        for (cpu, least, most) in [(0, 0, READS / 4), (1, READS, u64::MAX), (0, 0, READS / 4)] {
            read_on(cpu, &path, READS);
            let after = task_runs(&mut daemon, "io1");
            let runs = after - before;
            assert!(
                (least..=most).contains(&runs),
                "processor {cpu}: {runs} of {READS}"
            );
            before = after;
        }
        let refused = daemon.qmp.refused("object-del", json!({"id": "io1"}));
        assert!(refused.desc.contains("in use"), "{}", refused.desc);
        daemon.qmp.ok("block-export-del", json!({"id": "fuse"}));
        daemon.qmp.ok("object-del", json!({"id": "io1"}));
        daemon.quit();
    });
}

#[test]
fn more_iothreads_than_processors_serve_an_export_as_well() {
    for transport in [Transport::Device, Transport::IoUring] {
        fuse::over(transport, || {
            let builder = daemon();
            let image = builder.dir().join("image");
            image::create(&image, "raw", "", 32 * MIB);
            let names: Vec<_> = (0..5).map(|number| format!("io{number}")).collect();
            let builder = names.iter().fold(builder, |builder, name| {
                builder.option("--object", format!("iothread,id={name}"))
            });
            let mut daemon = builder.blockdev(image::file("disk", &image)).start();
            let path = mount(&mut daemon, "disk", &json!({"writable": true, "iothread": names}));
            verify(&path, 32);
            daemon.qmp.ok("block-export-del", json!({"id": "fuse"}));
            assert!(!is_mounted(&path));
            daemon.quit();
        });
    }
}
