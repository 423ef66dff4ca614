//! The export of kind vhost-user-blk, with a front end that is this test (and QEMU's daemon beside ours).

use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use millpond_tests::PATIENCE;
use millpond_tests::daemon::{Builder, Daemon, daemon, daemon_in, scratch};
use millpond_tests::image::create;
use millpond_tests::program::{oracle, under_test};
use millpond_tests::vhost::{FrontEnd, Guest, Queue, export, kind, message, state, words};
use serde_json::json;

const SIZE: u64 = 8 << 20;
const SECTORS: u64 = SIZE / 512;

/// A daemon with a disk of random bytes behind an export at `vhost.sock`.
fn exporting(builder: Builder, more: &str) -> Builder {
    let disk = builder.dir().join("disk");
    let mut bytes = vec![0; SIZE as usize];
    fastrand::Rng::with_seed(16).fill(&mut bytes);
    std::fs::write(&disk, &bytes).expect("a disk can be made");
    let socket = builder.dir().join("vhost.sock");
    builder
        .blockdev(json!({"driver": "file", "node-name": "file", "filename": disk}))
        .blockdev(json!({"driver": "raw", "node-name": "disk", "file": "file"}))
        .option("--export", export(&socket, more))
}

fn connect(daemon: &Daemon) -> (FrontEnd, Queue) {
    let mut front_end = FrontEnd::connect(daemon.path("vhost.sock"));
    front_end.pass_memory();
    let queue = front_end.start_queue(0);
    (front_end, queue)
}

/// What a request to discard or to zero has with it.
fn segment(sector: u64, count: u32, flags: u32) -> Vec<u8> {
    words(&[sector, u64::from(count) | u64::from(flags) << 32])
}

/// Requests of every kind, right and wrong, with what each is answered.
fn answers(daemon: &Daemon, event_idx: bool) -> Vec<String> {
    let mut front_end = FrontEnd::connect_with(daemon.path("vhost.sock"), Guest::default(), event_idx);
    front_end.pass_memory();
    let mut queue = front_end.start_queue(0);
    let mut answers = Vec::new();
    let mut ask = |kind: u32, sector: u64, given: &[&[u8]], room: usize| {
        let (status, back) = front_end.request(&mut queue, kind, sector, given, room);
        let shown = if status == 0 { &back[..] } else { &[] };
        let given: Vec<_> = given.iter().map(|bytes| bytes.len()).collect();
        let sum = shown.iter().fold(17_u64, |sum, byte| {
            sum.wrapping_mul(31).wrapping_add((*byte).into())
        });
        answers.push(format!(
            "{kind} at {sector}, {given:?} for {room}: {status} {sum:x}"
        ));
    };
    let block = |byte: u8, len: usize| vec![byte; len];
    ask(kind::IN, 0, &[], 4096);
    ask(kind::IN, 8, &[], 4096 * 9);
    ask(kind::IN, 1, &[], 512);
    ask(kind::IN, 0, &[], 100);
    ask(kind::IN, 0, &[], 0);
    ask(kind::IN, SECTORS - 8, &[], 4096);
    ask(kind::IN, SECTORS - 7, &[], 4096);
    ask(kind::IN, SECTORS, &[], 512);
    ask(kind::IN, u64::MAX, &[], 512);
    ask(kind::IN, u64::MAX / 512 + 1, &[], 512);
    ask(kind::IN, 0, &[], 5 << 20);
    ask(kind::OUT, 16, &[&block(1, 4096)], 0);
    ask(
        kind::OUT,
        32,
        &[&block(2, 512), &block(3, 3 * 512), &block(4, 4096 - 2048)],
        0,
    );
    ask(kind::OUT, 48, &[&block(5, 700), &block(6, 836)], 0);
    ask(kind::OUT, 49, &[&block(7, 512)], 0);
    ask(kind::OUT, 48, &[&block(7, 511)], 0);
    ask(kind::OUT, SECTORS - 1, &[&block(8, 1024)], 0);
    ask(kind::OUT, 64, &[&block(9, 3 << 20)], 0);
    ask(kind::IN, 0, &[], 4 << 20);
    ask(kind::FLUSH, 0, &[], 0);
    ask(kind::FLUSH, 77, &[], 0);
    ask(kind::GET_ID, 0, &[], 20);
    ask(kind::DISCARD, 0, &[&segment(128, 8, 0)], 0);
    ask(kind::DISCARD, 0, &[&segment(129, 3, 0)], 0);
    ask(kind::DISCARD, 0, &[&segment(128, 8, 1)], 0);
    ask(kind::DISCARD, 0, &[&segment(128, 8, 2)], 0);
    ask(kind::DISCARD, 0, &[&segment(SECTORS - 8, 16, 0)], 0);
    ask(kind::DISCARD, 0, &[&segment(u64::MAX, 8, 0)], 0);
    ask(kind::DISCARD, 0, &[&segment(0, 32769, 0)], 0);
    ask(kind::DISCARD, 0, &[&segment(0, 8, 0)[..8]], 0);
    ask(kind::WRITE_ZEROES, 0, &[&segment(256, 64, 0)], 0);
    ask(kind::WRITE_ZEROES, 0, &[&segment(512, 64, 1)], 0);
    ask(kind::WRITE_ZEROES, 0, &[&segment(512, 64, 2)], 0);
    ask(kind::WRITE_ZEROES, 0, &[&segment(0, 32769, 0)], 0);
    ask(kind::WRITE_ZEROES, 0, &[&segment(SECTORS, 1, 0)], 0);
    ask(kind::WRITE_ZEROES, 0, &[&segment(SECTORS - 1, 1, 0)], 0);
    ask(99, 0, &[], 512);
    ask(2, 0, &[], 0);
    ask(kind::IN, 0, &[], SIZE as usize);
    answers
}

#[test]
fn requests_are_answered_as_by_qemu() {
    for (more, event_idx) in [
        (",writable=on", true),
        (",writable=on,logical-block-size=4096", false),
        ("", true),
    ] {
        let theirs = exporting(daemon().program(oracle()), more).start();
        let ours = exporting(daemon(), more).start();
        let (expected, given) = (answers(&theirs, event_idx), answers(&ours, event_idx));
        for (ours, theirs) in given.into_iter().zip(expected) {
            assert_eq!(ours, theirs, "left is ours, right is QEMU's ({more})");
        }
        let contents = |daemon: &Daemon| std::fs::read(daemon.path("disk")).unwrap();
        assert!(contents(&ours) == contents(&theirs), "the disks differ ({more})");
    }
}

/// The bytes of the configuration that QEMU's daemon has otherwise: a best size of requests that keeps Windows from working,
/// no write cache though there is one, and that blocks are never given back though they are.
const OTHERWISE: [usize; 8] = [26, 27, 28, 29, 30, 31, 32, 56];

#[test]
fn a_device_is_described_as_by_qemu() {
    for more in [",writable=on,num-queues=4", ",logical-block-size=2048"] {
        let described = |daemon: Daemon| {
            let mut front_end = FrontEnd::connect(daemon.path("vhost.sock"));
            let queues = front_end.ask_number(message::GET_QUEUE_NUM);
            let mut config = front_end.config(60);
            OTHERWISE.iter().for_each(|at| config[*at] = 0);
            (queues, config)
        };
        let theirs = described(exporting(daemon().program(oracle()), more).start());
        let ours = described(exporting(daemon(), more).start());
        assert_eq!(ours, theirs, "left is ours, right is QEMU's ({more})");
    }
    let features = |more: &str| {
        let daemon = exporting(daemon(), more).start();
        FrontEnd::connect(daemon.path("vhost.sock")).offered
    };
    let theirs = exporting(daemon().program(oracle()), "").start();
    let theirs = FrontEnd::connect(theirs.path("vhost.sock")).offered;
    // Ours has no limit of a piece to tell, no best size, nor a log of what it writes.
    let (size_max, topology, notify_on_empty, log) = (1 << 1, 1 << 10, 1 << 24, 1 << 26);
    assert_eq!(
        features(""),
        theirs & !(size_max | topology | notify_on_empty | log)
    );
    assert_eq!(
        features("") ^ features(",writable=on"),
        1 << 5,
        "only this says that it is read-only"
    );
}

#[test]
fn wrong_options_are_refused_as_by_qemu() {
    for more in [
        ",logical-block-size=100",
        ",logical-block-size=4194304",
        ",logical-block-size=256",
        ",num-queues=0",
        ",num-queues=70000",
        ",name=x",
    ] {
        let said = |builder: Builder| {
            let text = exporting(builder, more).refused();
            let text = text.lines().next().unwrap_or_default();
            text.rsplit(": ").next().unwrap_or_default().to_owned()
        };
        assert_eq!(
            said(daemon()),
            said(daemon().program(oracle())),
            "left is ours, right is QEMU's ({more})"
        );
    }
    for addr in [
        "type=inet,addr.host=127.0.0.1,addr.port=0",
        "type=vsock,addr.cid=1,addr.port=1",
    ] {
        let said = |builder: Builder| {
            builder
                .blockdev(json!({"driver": "null-co", "node-name": "disk"}))
                .option(
                    "--export",
                    format!("vhost-user-blk,id=e,node-name=disk,addr.{addr}"),
                )
                .refused()
        };
        let text = "Only socket address types 'unix' and 'fd' are supported";
        assert!(said(daemon()).contains(text));
        assert!(said(daemon().program(oracle())).contains(text));
    }
}

#[test]
fn requests_that_are_in_flight_together_are_each_answered() {
    let daemon = exporting(daemon(), ",writable=on,num-queues=3").start();
    let mut front_end = FrontEnd::connect(daemon.path("vhost.sock"));
    front_end.pass_memory();
    let mut queues: Vec<_> = (0..3).map(|index| front_end.start_queue(index)).collect();
    let places: Vec<_> = (0..90_u64)
        .map(|number| {
            let data = [number as u8 + 1; 4096];
            let queue = &mut queues[number as usize % 3];
            front_end.begin(queue, kind::OUT, number * 8, &[&data], 0)
        })
        .collect();
    for queue in &mut queues {
        for _ in 0..30 {
            queue.wait_for(&front_end.guest, PATIENCE).unwrap();
        }
        assert_eq!(front_end.stop_queue(queue), 30);
    }
    assert!(
        places
            .iter()
            .all(|status| front_end.guest.read(*status, 1) == [0])
    );
    let disk = std::fs::read(daemon.path("disk")).unwrap();
    for number in 0..90 {
        assert!(
            disk[number * 4096..][..4096]
                .iter()
                .all(|byte| *byte == number as u8 + 1),
            "{number}"
        );
    }
}

#[test]
fn a_guest_that_tells_only_where_it_is_awaited_is_not_forgotten() {
    for event_idx in [true, false] {
        let daemon = exporting(
            daemon().option("--object", "iothread,id=io"),
            ",writable=on,iothread=io",
        )
        .start();
        let mut front_end = FrontEnd::connect_with(daemon.path("vhost.sock"), Guest::default(), event_idx);
        front_end.pass_memory();
        let mut queue = front_end.start_queue(0);
        let mut told = 0;
        for round in 0..3000_u64 {
            front_end.guest.forget();
            let mut statuses = Vec::new();
            for number in 0..=round % 3 {
                let sector = (round + number) % SECTORS;
                statuses.push(front_end.prepare(&mut queue, kind::IN, sector, &[], 512));
                told += usize::from(queue.kick_where_awaited(&front_end.guest, event_idx, 1));
            }
            for _ in &statuses {
                queue.wait_for(&front_end.guest, PATIENCE).unwrap();
            }
            assert!(
                statuses
                    .iter()
                    .all(|status| front_end.guest.read(status + 512, 1) == [0])
            );
            if round % 500 == 0 {
                // The iothread sleeps by then, and has to be woken.
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        assert!((6..6000).contains(&told), "told {told} times of 6000 requests");
    }
}

#[test]
fn a_ring_that_was_stopped_goes_on_where_it_was() {
    let daemon = exporting(daemon(), ",writable=on").start();
    let (mut front_end, mut queue) = connect(&daemon);
    assert_eq!(front_end.request(&mut queue, kind::FLUSH, 0, &[], 0).0, 0);
    assert_eq!(front_end.stop_queue(&queue), 1);
    // It is not looked at while nobody has started it.
    let status = front_end.begin(&mut queue, kind::FLUSH, 0, &[], 0);
    assert_eq!(front_end.guest.read(status, 1), [0xff]);
    front_end.restart_queue(&queue, 1);
    queue.wait_for(&front_end.guest, PATIENCE).unwrap();
    assert_eq!(front_end.guest.read(status, 1), [0]);
    // Nor while it is not enabled.
    let answer = front_end.try_ask(message::SET_VRING_ENABLE, 1 | 8, &state(0, 0), &[]);
    assert_eq!(answer.unwrap().0, words(&[0]));
    let status = front_end.begin(&mut queue, kind::FLUSH, 0, &[], 0);
    assert!(
        queue
            .wait_for(&front_end.guest, Duration::from_millis(50))
            .is_err()
    );
    front_end.tell(message::SET_VRING_ENABLE, &state(0, 1), &[]);
    queue.wait_for(&front_end.guest, PATIENCE).unwrap();
    assert_eq!(front_end.guest.read(status, 1), [0]);
}

#[test]
fn a_device_without_a_cache_makes_each_write_durable() {
    let builder = daemon();
    let (disk, socket) = (builder.dir().join("disk"), builder.dir().join("vhost.sock"));
    create(&disk, "qcow2", "", SIZE);
    let daemon = builder
        .blockdev(json!({"driver": "file", "node-name": "file", "filename": disk}))
        .blockdev(
            json!({"driver": "blkdebug", "node-name": "flushes-fail", "image": "file",
            "inject-error": [{"event": "none", "iotype": "flush", "errno": 5, "once": false}]}),
        )
        .blockdev(json!({"driver": "qcow2", "node-name": "disk", "file": "flushes-fail"}))
        .option("--export", export(&socket, ",writable=on"))
        .start();
    let (mut front_end, mut queue) = connect(&daemon);
    let cache = |on: u8| [&[32_u32, 1, 0].map(u32::to_le_bytes).concat()[..], &[on]].concat();
    assert_eq!(front_end.config(60)[32], 1);
    assert_eq!(front_end.request(&mut queue, kind::OUT, 0, &[&[1; 512]], 0).0, 0);
    let set = front_end.try_ask(message::SET_CONFIG, 1 | 8, &cache(0), &[]);
    assert_eq!(set.unwrap().0, words(&[0]));
    assert_eq!(front_end.config(60)[32], 0);
    assert_eq!(
        front_end.request(&mut queue, kind::OUT, 0, &[&[1; 512]], 0).0,
        1,
        "flushes fail"
    );
    assert_eq!(
        front_end
            .request(&mut queue, kind::WRITE_ZEROES, 0, &[&segment(0, 1, 0)], 0)
            .0,
        1
    );
    let set = front_end.try_ask(message::SET_CONFIG, 1 | 8, &cache(1), &[]);
    assert_eq!(set.unwrap().0, words(&[0]));
    assert_eq!(front_end.request(&mut queue, kind::OUT, 0, &[&[1; 512]], 0).0, 0);
}

#[test]
fn a_new_length_reaches_the_guest() {
    let mut daemon = exporting(daemon(), ",writable=on").start();
    let (mut front_end, mut queue) = connect(&daemon);
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    front_end.tell(message::SET_BACKEND_REQ_FD, &[], &[theirs.as_fd()]);
    // It has been obeyed when the next message is answered.
    assert_eq!(front_end.config(8), (SECTORS).to_le_bytes());
    assert_eq!(front_end.request(&mut queue, kind::IN, SECTORS, &[], 512).0, 1);
    daemon
        .qmp
        .execute("block_resize", json!({"node-name": "disk", "size": 2 * SIZE}))
        .unwrap();
    ours.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut notice = [0; 12];
    std::io::Read::read_exact(&mut &ours, &mut notice).unwrap();
    assert_eq!(notice, [2_u32, 1, 0].map(u32::to_le_bytes).concat()[..]);
    assert_eq!(front_end.config(8), (2 * SECTORS).to_le_bytes());
    assert_eq!(front_end.request(&mut queue, kind::IN, SECTORS, &[], 512).0, 0);
}

#[test]
fn an_export_goes_though_a_front_end_is_connected() {
    for program in [oracle(), under_test().clone()] {
        let mut daemon = exporting(daemon().program(program), ",writable=on").start();
        let (mut front_end, mut queue) = connect(&daemon);
        front_end.request(&mut queue, kind::IN, 0, &[], 512);
        let shown =
            json!([{"node-name": "disk", "shutting-down": false, "type": "vhost-user-blk", "id": "exp"}]);
        assert_eq!(
            daemon.qmp.execute("query-block-exports", json!({})).unwrap(),
            shown
        );
        daemon
            .qmp
            .execute("block-export-del", json!({"id": "exp"}))
            .unwrap();
        daemon.qmp.wait_event("BLOCK_EXPORT_DELETED");
        assert!(front_end.is_cut());
        assert!(!Path::new(&daemon.path("vhost.sock")).exists());
        daemon
            .qmp
            .execute("blockdev-del", json!({"node-name": "disk"}))
            .unwrap();
        daemon.quit();
    }
}

/// Keeps 32 writes of 4 KiB in flight while `edit` is called, so many times; then looks whether every byte is there.
fn write_meanwhile(daemon: &mut Daemon, rounds: usize, mut edit: impl FnMut(&mut Daemon, usize)) {
    let (mut front_end, mut queue) = connect(daemon);
    let blocks = SIZE as usize / 4096;
    let mut written = vec![None; blocks];
    for round in 0..rounds {
        front_end.guest.forget();
        let mut statuses = Vec::new();
        for number in 0..32 {
            // No two of a round are one block: writes in flight together have no order.
            let block = (round * 32 + number) * 1009 % blocks;
            let byte = (round + number) as u8;
            written[block] = Some(byte);
            let data = [byte; 4096];
            statuses.push(front_end.begin(&mut queue, kind::OUT, block as u64 * 8, &[&data], 0));
        }
        edit(daemon, round);
        for _ in &statuses {
            let answer = queue.wait_for(&front_end.guest, PATIENCE);
            answer.expect("an answer");
        }
        assert!(
            statuses
                .iter()
                .all(|status| front_end.guest.read(*status, 1) == [0])
        );
    }
    for (block, byte) in written.iter().enumerate() {
        let Some(byte) = byte else { continue };
        let (status, back) = front_end.request(&mut queue, kind::IN, block as u64 * 8, &[], 4096);
        assert_eq!(status, 0);
        assert!(
            back.iter().all(|read| read == byte),
            "block {block} is not {byte}"
        );
    }
}

#[test]
fn a_queue_follows_its_node_from_iothread_to_iothread() {
    let threads = |builder: Builder| {
        builder
            .option("--object", "iothread,id=t0")
            .option("--object", "iothread,id=t1")
    };
    let mut daemon = exporting(threads(daemon()), ",writable=on").start();
    write_meanwhile(&mut daemon, 300, |daemon, round| {
        let iothread = ["t0", "t1"][round % 2];
        daemon.qmp.ok(
            "x-blockdev-set-iothread",
            json!({"node-name": "disk", "iothread": iothread, "force": true}),
        );
    });
    daemon.quit();
}

#[test]
fn the_graph_changes_under_a_guest_that_writes() {
    let mut daemon = exporting(daemon(), ",writable=on").start();
    daemon
        .qmp
        .ok("object-add", json!({"qom-type": "throttle-group", "id": "group"}));
    write_meanwhile(&mut daemon, 200, |daemon, round| {
        let (add, del) = (round % 2 == 0, round % 2 == 1);
        if add {
            daemon.qmp.ok(
                "blockdev-add",
                json!({"driver": "throttle", "node-name": "filter", "throttle-group": "group", "file": "file"}),
            );
        }
        let below = if add { "filter" } else { "file" };
        daemon.qmp.ok(
            "blockdev-reopen",
            json!({"options": [{"driver": "raw", "node-name": "disk", "file": below}]}),
        );
        if del {
            daemon.qmp.ok("blockdev-del", json!({"node-name": "filter"}));
        }
    });
    daemon.quit();
}

/// A daemon whose writes pass one a second.
fn throttled(dir: &Path) -> Builder {
    let builder = daemon_in(dir)
        .option("--object", "throttle-group,id=group,limits.iops-write=1")
        .blockdev(json!({"driver": "file", "node-name": "file", "filename": dir.join("disk")}))
        .blockdev(
            json!({"driver": "throttle", "node-name": "disk", "throttle-group": "group", "file": "file"}),
        );
    let socket = dir.join("vhost.sock");
    builder.option("--export", export(&socket, ",writable=on"))
}

#[test]
fn requests_in_flight_when_the_daemon_dies_are_answered_once_by_the_next() {
    let dir = scratch();
    std::fs::write(dir.path().join("disk"), vec![0; SIZE as usize]).unwrap();
    let mut daemon = throttled(dir.path()).start();
    let mut front_end = FrontEnd::connect(daemon.path("vhost.sock"));
    let area = words(&[0, 0, 1 | u64::from(millpond_tests::vhost::QUEUE_SIZE) << 16]);
    let (area, mut files) = front_end
        .try_ask(message::GET_INFLIGHT_FD, 1, &area, &[])
        .unwrap();
    let file = files.pop().expect("a file for requests in flight");
    front_end.tell(message::SET_INFLIGHT_FD, &area, &[file.as_fd()]);
    front_end.pass_memory();
    let mut queue = front_end.start_queue(0);
    let begun: Vec<_> = (0..20_u64)
        .map(|number| {
            let data = [number as u8 + 1; 4096];
            front_end.begin(&mut queue, kind::OUT, number * 8, &[&data], 0)
        })
        .collect();
    // The throttle group lets the first one or two pass at once, and the others wait.
    let first = queue.wait_for(&front_end.guest, PATIENCE).unwrap();
    daemon.kill();
    let mut answered = vec![first.0];
    answered.extend(std::iter::from_fn(|| queue.answer(&front_end.guest)).map(|(head, _)| head));
    assert!(answered.len() < 20, "nothing was in flight");
    let dead = answered.len();
    std::fs::write(dir.path().join("disk"), vec![0; SIZE as usize]).unwrap();

    let guest = front_end.leave();
    let builder = daemon_in(dir.path())
        .blockdev(json!({"driver": "file", "node-name": "disk", "filename": dir.path().join("disk")}))
        .option("--export", export(&dir.path().join("vhost.sock"), ",writable=on"));
    let daemon = builder.start();
    let mut front_end = FrontEnd::connect_with(daemon.path("vhost.sock"), guest, true);
    front_end.tell(message::SET_INFLIGHT_FD, &area, &[file.as_fd()]);
    front_end.pass_memory();
    // It does not know what the dead one has taken.
    front_end.restart_queue(&queue, 0);
    while answered.len() < 20 {
        answered.push(queue.wait_for(&front_end.guest, PATIENCE).unwrap().0);
    }
    assert!(
        queue
            .wait_for(&front_end.guest, Duration::from_millis(50))
            .is_err(),
        "one was answered twice"
    );
    answered.sort_unstable();
    answered.dedup();
    assert_eq!(answered.len(), 20);
    assert!(begun.iter().all(|status| front_end.guest.read(*status, 1) == [0]));
    assert_eq!(front_end.stop_queue(&queue), 20);
    // The second daemon wrote what the first had not answered, and nothing else.
    let disk = std::fs::read(dir.path().join("disk")).unwrap();
    let blocks = (0..20)
        .filter(|number| disk[number * 4096] == *number as u8 + 1)
        .count();
    assert_eq!(blocks, 20 - dead);
}
