//! What every kind of export must do, each case for all kinds: sizes, ends, errors, lengths that change, drained sections
//! under load, removal, and clients that die.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use millpond_tests::daemon::{Builder, Daemon, daemon, daemon_in, scratch};
use millpond_tests::exported::{Client, Exported, ID, KINDS, Kind};
use millpond_tests::image;
use millpond_tests::model::Model;
use millpond_tests::nbd::Request;
use millpond_tests::nbd::wire::*;
use millpond_tests::workload::{random_bytes, seeded};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 8 * MIB;

/// A daemon with a qcow2 image as its node `disk`, and two iothreads.
fn with_image() -> Daemon {
    with_image_in(daemon())
}

fn with_image_in(builder: Builder) -> Daemon {
    let path = builder.dir().join("image");
    image::create(&path, "qcow2", "", SIZE);
    let builder = builder
        .nbd_unix()
        .option("--object", "iothread,id=io0")
        .option("--object", "iothread,id=io1")
        .blockdev(json!({"driver": "file", "node-name": "file", "filename": path, "discard": "unmap"}))
        .blockdev(json!({"driver": "qcow2", "node-name": "disk", "file": "file", "discard": "unmap"}));
    builder.start()
}

fn writable() -> Value {
    json!({"writable": true})
}

/// A request of any kind, somewhere on the disk.
fn any_request(rng: &mut fastrand::Rng, kind: Kind, longest: u64) -> Request {
    let mut range = |unit: u64| {
        let length = unit * rng.u64(1..=longest.div_ceil(unit));
        (unit * rng.u64(0..=(SIZE - length) / unit), length)
    };
    let (offset, length) = range(kind.granularity());
    let (zeroes, zeroed) = range(kind.zero_granularity());
    match rng.u8(..20) {
        0..8 => Request::read(offset, length),
        8..16 => Request::write(offset, random_bytes(rng, length)),
        16 | 17 => Request::zero(zeroes, zeroed),
        18 => Request::trim(zeroes, zeroed),
        _ => Request::flush(),
    }
}

/// Does a request that must succeed, and holds it against what the disk must have.
#[track_caller]
fn do_checked(client: &mut dyn Client, model: &mut Model, request: &Request) {
    let read = |client: &mut dyn Client| {
        let again = Request::read(request.offset, request.length);
        client.call(&again).expect("a range can be read")
    };
    match request.command {
        CMD_READ => model.check(request.offset, &read(client)),
        CMD_TRIM => {
            client.call(request).expect("a range can be discarded");
            model.settle(request.offset, &read(client));
        }
        _ => {
            client.call(request).expect("a request succeeds");
            model.apply(request);
        }
    }
}

#[track_caller]
fn remove(daemon: &mut Daemon, mode: &str) {
    daemon.qmp.ok("block-export-del", json!({"id": ID, "mode": mode}));
    let gone = daemon.qmp.wait_event("BLOCK_EXPORT_DELETED");
    assert_eq!(gone, json!({ "id": ID }));
    assert_eq!(daemon.qmp.ok("query-block-exports", json!({})), json!([]));
}

#[test]
fn what_is_written_is_read_and_in_the_image_afterwards() {
    for kind in KINDS {
        println!("{kind:?}");
        let folder = scratch();
        let mut daemon = with_image_in(daemon_in(folder.path()));
        let image = daemon.path("image");
        let exported = kind.export(&mut daemon, "disk", &writable());
        let (mut client, mut model) = (exported.connect(), Model::new(SIZE));
        let mut rng = seeded("every export");
        for longest in [4096, 64 << 10, 3 * MIB] {
            for _ in 0..60 {
                let request = any_request(&mut rng, kind, longest);
                do_checked(&mut *client, &mut model, &request);
            }
        }
        model.check(0, &client.call(&Request::read(0, SIZE)).expect("all is read"));
        client.leave();
        remove(&mut daemon, "safe");
        drop(exported);
        daemon.quit();
        image::assert_clean(image.as_ref());
        let raw = format!("{image}.raw");
        millpond_tests::tool::qemu_img(&format!("convert -O raw {image} {raw}"));
        model.check(0, &std::fs::read(raw).expect("the image can be read"));
    }
}

#[test]
fn nothing_is_behind_the_end() {
    for kind in KINDS {
        println!("{kind:?}");
        let mut daemon = with_image();
        let exported = kind.export(&mut daemon, "disk", &writable());
        let mut client = exported.connect();
        let unit = kind.granularity();
        let last = Request::write(SIZE - unit, vec![7; unit as usize]);
        client.call(&last).expect("the last bytes can be written");
        for length in [unit, 2 * unit, MIB] {
            let across = SIZE - length + unit;
            for request in [
                Request::read(across, length),
                Request::write(across, vec![1; length as usize]),
                Request::read(SIZE, length),
                Request::write(SIZE, vec![1; length as usize]),
                Request::zero(SIZE, length),
                Request::write(1 << 62, vec![1; length as usize]),
            ] {
                let (command, at) = (request.command, request.offset);
                if command == CMD_WRITE_ZEROES && kind.is_file() {
                    // A file is made longer by it.
                    continue;
                }
                let ended = client.call(&request);
                assert!(ended.is_err(), "command {command} of {length} bytes at {at}");
            }
        }
        assert_eq!(client.length(), SIZE);
        let end = client.call(&Request::read(SIZE - unit, unit));
        // A file's write goes as far as there is room.
        let expected = if kind.is_file() { 1 } else { 7 };
        assert_eq!(
            end.expect("the last bytes are there"),
            vec![expected; unit as usize]
        );
    }
}

#[test]
fn what_is_not_writable_is_not_written() {
    for kind in KINDS {
        println!("{kind:?}");
        let mut daemon = with_image();
        let exported = kind.export(&mut daemon, "disk", &json!({}));
        let mut client = exported.connect();
        for request in [
            Request::write(0, vec![1; 4096]),
            Request::zero(0, 4096),
            Request::trim(0, 4096),
        ] {
            assert!(client.call(&request).is_err(), "command {}", request.command);
        }
        let read = client.call(&Request::read(0, 4096)).expect("it can be read");
        assert_eq!(read, vec![0; 4096]);
    }
}

#[test]
fn a_new_length_is_seen_by_who_is_connected() {
    for kind in KINDS {
        println!("{kind:?}");
        let mut daemon = with_image();
        let exported = kind.export(&mut daemon, "disk", &writable());
        let mut client = exported.connect();
        let size = |size: u64| json!({"node-name": "disk", "size": size});
        if kind == Kind::Nbd {
            // Its clients learn a length once: QEMU lets nobody change it.
            let refused = daemon.qmp.refused("block_resize", size(2 * SIZE));
            assert!(refused.desc.contains("permissions 'resize'"), "{refused:?}");
            continue;
        }
        let resize = |daemon: &mut Daemon, to: u64| daemon.qmp.ok("block_resize", size(to));
        resize(&mut daemon, 2 * SIZE);
        assert_eq!(client.length(), 2 * SIZE);
        let far = Request::write(2 * SIZE - 4096, vec![5; 4096]);
        client.call(&far).expect("what is new can be written");
        resize(&mut daemon, SIZE);
        assert_eq!(client.length(), SIZE);
        let read = client.call(&Request::read(2 * SIZE - 4096, 4096));
        read.expect_err("it is gone");
        resize(&mut daemon, 2 * SIZE);
        let read = client.call(&Request::read(2 * SIZE - 4096, 4096));
        assert_eq!(read.expect("it is there"), vec![0; 4096]);
    }
}

#[test]
fn an_error_below_is_the_request_s_own() {
    for kind in KINDS {
        println!("{kind:?}");
        let rules: Vec<_> = ["read_aio", "write_aio", "flush_to_disk"]
            .map(|event| json!({"event": event, "errno": 5, "once": true}))
            .into();
        let builder = daemon().nbd_unix();
        let path = builder.dir().join("image");
        image::create(&path, "raw", "", SIZE);
        let builder = builder
            .blockdev(image::file("file", &path))
            .blockdev(
                json!({"driver": "blkdebug", "node-name": "debug", "image": "file", "inject-error": rules}),
            )
            .blockdev(image::over("raw", "disk", "debug"));
        let mut daemon = builder.start();
        let exported = kind.export(&mut daemon, "disk", &writable());
        let mut client = exported.connect();
        for request in [
            Request::read(0, 4096),
            Request::write(0, vec![1; 4096]),
            Request::flush(),
        ] {
            assert!(client.call(&request).is_err(), "command {}", request.command);
            let again = client.call(&request);
            assert!(
                again.is_ok(),
                "command {} a second time: {again:?}",
                request.command
            );
        }
    }
}

/// A client that makes requests until it is told to stop.
struct Busy {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<Model>,
}

impl Busy {
    fn start(exported: &Exported, kind: Kind, mut rng: fastrand::Rng) -> Busy {
        let (stop, done) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (mut client, mut model) = (exported.connect(), Model::new(SIZE));
        let (stopping, count) = (Arc::clone(&stop), Arc::clone(&done));
        let thread = std::thread::spawn(move || {
            while !stopping.load(Ordering::Relaxed) {
                let request = any_request(&mut rng, kind, 64 << 10);
                do_checked(&mut *client, &mut model, &request);
                count.fetch_add(1, Ordering::Relaxed);
            }
            model
        });
        Busy { stop, done, thread }
    }

    /// Waits until some more requests have ended.
    #[track_caller]
    fn wait_for(&self, more: u64) {
        let end = self.done.load(Ordering::Relaxed) + more;
        let deadline = std::time::Instant::now() + millpond_tests::PATIENCE;
        while self.done.load(Ordering::Relaxed) < end {
            assert!(!self.thread.is_finished(), "a client has found a fault");
            assert!(std::time::Instant::now() < deadline, "a client stands still");
            std::thread::yield_now();
        }
    }

    fn finish(self) -> Model {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("a client ends well")
    }
}

#[test]
fn the_graph_changes_under_a_busy_client() {
    for kind in KINDS {
        println!("{kind:?}");
        let mut daemon = with_image();
        let exported = kind.export(&mut daemon, "disk", &writable());
        let busy = Busy::start(&exported, kind, seeded("busy client"));
        let overlay = daemon.dir().join("overlay");
        for round in 0..30 {
            let iothread = ["io0", "io1", "io0"][round % 3];
            daemon.qmp.ok(
                "x-blockdev-set-iothread",
                json!({"node-name": "disk", "iothread": iothread, "force": true}),
            );
            busy.wait_for(2);
            if round % 3 == 0 {
                image::create(&overlay, "qcow2", "", SIZE);
                let file = json!({"driver": "file", "filename": overlay});
                daemon.qmp.ok(
                    "blockdev-add",
                    json!({"driver": "qcow2", "node-name": "over", "backing": null, "file": file}),
                );
                daemon
                    .qmp
                    .ok("blockdev-snapshot", json!({"node": "disk", "overlay": "over"}));
                busy.wait_for(2);
                daemon
                    .qmp
                    .ok("block-commit", json!({"job-id": "commit", "device": "over"}));
                daemon.qmp.wait_event("BLOCK_JOB_READY");
                daemon.qmp.ok("job-complete", json!({"id": "commit"}));
                daemon.qmp.wait_event("BLOCK_JOB_COMPLETED");
                daemon.qmp.ok("blockdev-del", json!({"node-name": "over"}));
            }
        }
        let model = busy.finish();
        let mut client = exported.connect();
        model.check(0, &client.call(&Request::read(0, SIZE)).expect("all is read"));
    }
}

#[test]
fn an_export_is_removed_under_its_client() {
    for kind in KINDS {
        println!("{kind:?}");
        let mut daemon = with_image();
        let exported = kind.export(&mut daemon, "disk", &writable());
        let mut client = exported.connect();
        client
            .call(&Request::write(0, vec![3; 4096]))
            .expect("it is written");
        if kind.keeps() {
            let refused = daemon.qmp.refused("block-export-del", json!({"id": ID}));
            assert_eq!(refused.desc, format!("export '{ID}' still in use"));
            assert!(client.call(&Request::read(0, 4096)).is_ok());
        }
        remove(&mut daemon, "hard");
        daemon.qmp.ok("blockdev-del", json!({"node-name": "disk"}));
        if kind != Kind::VhostUserBlk {
            client
                .call(&Request::read(0, 4096))
                .expect_err("nobody serves it any more");
        }
        daemon.quit();
    }
}

#[test]
fn a_client_that_dies_amid_a_request_harms_nobody() {
    for kind in KINDS {
        println!("{kind:?}");
        let latency = Duration::from_millis(300).as_nanos() as u64;
        let slow = json!({"driver": "null-co", "node-name": "disk", "size": SIZE, "read-zeroes": true,
            "latency-ns": latency});
        let mut daemon = daemon().nbd_unix().blockdev(slow).start();
        let exported = kind.export(&mut daemon, "disk", &writable());
        for request in [
            Request::write(0, vec![1; 4096]),
            Request::write(4096, vec![2; 1 << 20]),
        ] {
            exported.connect().die_amid(&request);
        }
        let mut client = exported.connect();
        let read = client.call(&Request::read(0, 4096));
        assert_eq!(read.expect("others are served"), vec![0; 4096]);
        client.leave();
        remove(&mut daemon, "hard");
        daemon.qmp.ok("blockdev-del", json!({"node-name": "disk"}));
        daemon.quit();
    }
}
