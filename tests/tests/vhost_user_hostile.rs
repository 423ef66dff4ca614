//! Front ends and guests that break the rules of vhost-user and of virtio: each is disconnected with the reason in the log, and
//! nobody else is harmed.

use std::os::fd::{AsFd, OwnedFd};

use millpond_tests::daemon::{Daemon, daemon};
use millpond_tests::vhost::{
    DATA, FrontEnd, GUEST, Guest, INDIRECT, MEMORY, NEXT, Piece, QUEUE_SIZE, Queue, USER, WRITE, event,
    export, kind, message, state, words,
};
use rustix::fs::ftruncate;
use serde_json::json;

/// A daemon with an export at `vhost.sock`, which may be written.
fn exporting() -> Daemon {
    let builder = daemon();
    let socket = builder.dir().join("vhost.sock");
    builder
        .blockdev(json!({"driver": "null-co", "node-name": "disk", "size": 1 << 20, "read-zeroes": true}))
        .option("--export", export(&socket, ",writable=on,num-queues=2"))
        .start()
}

fn connect(daemon: &Daemon) -> FrontEnd {
    let mut front_end = FrontEnd::connect(daemon.path("vhost.sock"));
    front_end.pass_memory();
    front_end
}

/// The front end was disconnected, the log says why, and another is served.
#[track_caller]
fn is_cut(daemon: &Daemon, mut front_end: FrontEnd, why: &str) {
    assert!(front_end.is_cut(), "it is still connected: {why}");
    daemon.wait_for_log(why);
    drop(front_end);
    is_served(daemon);
}

#[track_caller]
fn is_served(daemon: &Daemon) {
    let mut front_end = connect(daemon);
    let mut queue = front_end.start_queue(0);
    assert_eq!(front_end.request(&mut queue, kind::IN, 0, &[], 512).0, 0);
}

/// A message that is refused, with its payload and how many descriptors come with it.
type Refused = (u32, Vec<u8>, usize, &'static str);

fn refused_messages() -> Vec<Refused> {
    let ring = |index: u64| words(&[index, USER, USER + 0x8000, USER + 0x4000, 0]);
    let config = |at: u32, len: u32, bytes: usize| {
        let mut payload = [at, len, 0].map(u32::to_le_bytes).concat();
        payload.resize(12 + bytes, 0);
        payload
    };
    let area = |len, offset, queues: u64, size: u64| words(&[len, offset, queues | size << 16]);
    let one_region = |guest, len, user| words(&[0, guest, len, user, 0]);
    vec![
        (77, vec![], 0, "message 77: it is not known"),
        (message::SET_FEATURES, words(&[u64::MAX]), 0, "were not offered"),
        (
            message::SET_FEATURES,
            vec![1],
            0,
            "its length does not fit: 1 bytes",
        ),
        (
            message::SET_PROTOCOL_FEATURES,
            words(&[1 << 50]),
            0,
            "were not offered",
        ),
        (message::SET_VRING_NUM, state(2, 128), 0, "there is no queue 2"),
        (
            message::SET_VRING_NUM,
            state(u32::MAX, 128),
            0,
            "there is no queue",
        ),
        (
            message::SET_VRING_NUM,
            state(0, 0),
            0,
            "cannot have 0 descriptors",
        ),
        (
            message::SET_VRING_NUM,
            state(0, 100),
            0,
            "cannot have 100 descriptors",
        ),
        (
            message::SET_VRING_NUM,
            state(0, 2048),
            0,
            "cannot have 2048 descriptors",
        ),
        (message::SET_VRING_ADDR, ring(9), 0, "there is no queue 9"),
        (message::SET_VRING_BASE, state(9, 0), 0, "there is no queue 9"),
        (message::GET_VRING_BASE, state(9, 0), 0, "there is no queue 9"),
        (message::SET_VRING_ENABLE, state(9, 1), 0, "there is no queue 9"),
        (message::SET_VRING_KICK, words(&[9]), 1, "there is no queue 9"),
        (
            message::SET_VRING_KICK,
            words(&[0]),
            1,
            "is to start, but its size was not set",
        ),
        (
            message::SET_VRING_KICK,
            words(&[0]),
            0,
            "it needs 1 descriptors, and has 0",
        ),
        (
            message::SET_VRING_KICK,
            words(&[0x100]),
            0,
            "it needs 1 descriptors, and has 0",
        ),
        (message::SET_VRING_CALL, words(&[9]), 1, "there is no queue 9"),
        (
            message::SET_VRING_CALL,
            words(&[0]),
            2,
            "it needs 1 descriptors, and has 2",
        ),
        (
            message::SET_MEM_TABLE,
            words(&[9]),
            0,
            "9 regions of memory are too many",
        ),
        (
            message::SET_MEM_TABLE,
            words(&[u64::from(u32::MAX)]),
            0,
            "are too many",
        ),
        (
            message::SET_MEM_TABLE,
            words(&[1, GUEST, MEMORY]),
            1,
            "its length does not fit",
        ),
        (
            message::SET_MEM_TABLE,
            FrontEnd::memory_table(),
            0,
            "it needs 1 descriptors, and has 0",
        ),
        (
            message::SET_MEM_TABLE,
            words(&[1, u64::MAX, MEMORY, USER, 0]),
            1,
            "cannot be mapped",
        ),
        (
            message::SET_MEM_TABLE,
            words(&[1, GUEST, 0, USER, 0]),
            1,
            "cannot be mapped",
        ),
        (
            message::SET_MEM_TABLE,
            words(&[1, GUEST, MEMORY, USER, 1]),
            1,
            "cannot be mapped",
        ),
        (
            message::SET_MEM_TABLE,
            words(&[1, GUEST, u64::MAX / 2, USER, 0]),
            1,
            "cannot be mapped",
        ),
        (
            message::SET_MEM_TABLE,
            words(&[2, 0, 8192, 0, 0, 4096, 8192, 1 << 40, 0]),
            2,
            "cannot be mapped",
        ),
        (
            message::ADD_MEM_REG,
            one_region(GUEST, MEMORY, USER),
            1,
            "cannot be mapped",
        ),
        (
            message::REM_MEM_REG,
            one_region(GUEST, 4096, USER),
            0,
            "there is no such region",
        ),
        (
            message::GET_CONFIG,
            config(0, 64, 63),
            0,
            "its length does not fit",
        ),
        (
            message::GET_CONFIG,
            config(250, 64, 64),
            0,
            "its length does not fit",
        ),
        (
            message::GET_CONFIG,
            config(u32::MAX, 8, 8),
            0,
            "its length does not fit",
        ),
        (message::SET_CONFIG, config(0, 8, 8), 0, "cannot be changed"),
        (
            message::SET_INFLIGHT_FD,
            area(1 << 20, 0, 3, 128),
            1,
            "an in-flight area for 3 queues",
        ),
        (
            message::SET_INFLIGHT_FD,
            area(1 << 20, 0, 1, 0),
            1,
            "an in-flight area for 1 queues of 0",
        ),
        (
            message::SET_INFLIGHT_FD,
            area(1 << 20, 0, 1, 4096),
            1,
            "an in-flight area for 1 queues of 4096",
        ),
        (
            message::SET_INFLIGHT_FD,
            area(2000, 0, 1, 128),
            1,
            "an in-flight area of 2000 bytes is too short",
        ),
        (
            message::SET_INFLIGHT_FD,
            area(4096, 7, 1, 128),
            1,
            "the in-flight area cannot be had",
        ),
    ]
}

#[test]
fn a_message_that_makes_no_sense_ends_the_connection() {
    let daemon = exporting();
    for (request, payload, files, why) in refused_messages() {
        let mut front_end = connect(&daemon);
        let memory: Vec<OwnedFd> = (0..files)
            .map(|_| front_end.guest.file().try_clone().unwrap())
            .collect();
        let memory: Vec<_> = memory.iter().map(AsFd::as_fd).collect();
        front_end.tell(request, &payload, &memory);
        is_cut(&daemon, front_end, why);
    }
}

#[test]
fn bytes_that_are_no_message_end_the_connection() {
    let daemon = exporting();
    let header = |request: u32, flags: u32, len: u32| [request, flags, len].map(u32::to_le_bytes).concat();
    let cases = [
        (header(1, 1, u32::MAX), "message 1 has 4294967295 bytes"),
        (header(1, 1, 5000), "message 1 has 5000 bytes"),
        (header(1, 0, 0), "message 1 is not of this protocol"),
        (header(1, 2, 0), "message 1 is not of this protocol"),
        (header(1, 5, 0), "message 1 is not of this protocol"),
        (vec![0xff; 100], "is not of this protocol"),
    ];
    for (bytes, why) in cases {
        let mut front_end = FrontEnd::bare(daemon.path("vhost.sock"), Guest::default());
        front_end.send_raw(&bytes, &[]).unwrap();
        is_cut(&daemon, front_end, why);
    }
    // One that stops in a message keeps nobody's memory, and the next is served as soon as it has gone.
    let mut front_end = FrontEnd::bare(daemon.path("vhost.sock"), Guest::default());
    front_end.send_raw(&header(1, 1, 100)[..7], &[]).unwrap();
    drop(front_end);
    is_served(&daemon);
    // More descriptors than any message has.
    let mut front_end = FrontEnd::bare(daemon.path("vhost.sock"), Guest::default());
    let file = event();
    let files = [file.as_fd(); 12];
    front_end
        .send_raw(&header(message::SET_OWNER, 1, 0), &files)
        .unwrap();
    is_cut(&daemon, front_end, "descriptors came that belong to no message");
}

#[test]
fn rings_outside_of_the_memory_do_not_start() {
    let daemon = exporting();
    let places = [
        (
            USER + MEMORY,
            USER + 0x8000,
            USER + 0x4000,
            "the descriptor table of queue 0 is at",
        ),
        (USER, USER - 8, USER + 0x4000, "the used ring of queue 0 is at"),
        (USER, USER + 0x8000, 0, "the available ring of queue 0 is at"),
        (
            USER + 8,
            USER + 0x8000,
            USER + 0x4000,
            "the descriptor table of queue 0 is at",
        ),
        (
            USER,
            USER + 0x8002,
            USER + 0x4000,
            "the used ring of queue 0 is at",
        ),
        (
            USER,
            USER + 0x8000,
            USER + 0x4001,
            "the available ring of queue 0 is at",
        ),
        (
            USER + MEMORY - 16,
            USER + 0x8000,
            USER + 0x4000,
            "the ring of queue 0 is at",
        ),
        (
            USER,
            USER + MEMORY - 4,
            USER + 0x4000,
            "the ring of queue 0 is at",
        ),
    ];
    for (descriptors, used, available, why) in places {
        let mut front_end = connect(&daemon);
        front_end.tell(message::SET_VRING_NUM, &state(0, QUEUE_SIZE.into()), &[]);
        front_end.tell(
            message::SET_VRING_ADDR,
            &words(&[0, descriptors, used, available, 0]),
            &[],
        );
        front_end.tell(message::SET_VRING_KICK, &words(&[0]), &[event().as_fd()]);
        is_cut(&daemon, front_end, why);
    }
}

/// A ring with something wrong on it.
type Crafted = (&'static str, fn(&mut FrontEnd, &mut Queue));

/// Offers a request of these pieces.
fn offer(front_end: &mut FrontEnd, queue: &mut Queue, pieces: &[Piece]) {
    let head = queue.describe(&front_end.guest, pieces);
    queue.offer(&front_end.guest, head);
}

/// The pieces of a read that is right.
fn read(front_end: &mut FrontEnd) -> [Piece; 3] {
    let header = front_end.guest.header(kind::IN, 0);
    [
        header,
        (front_end.guest.room(512), 512, WRITE),
        (front_end.guest.room(1), 1, WRITE),
    ]
}

/// Offers a request by a table of these descriptors, with the number that follows each.
fn offer_table(front_end: &mut FrontEnd, queue: &mut Queue, len: u32, table: &[(Piece, u16)]) {
    let at = front_end.guest.room(16 * table.len());
    for (number, (piece, next)) in (0..).zip(table) {
        front_end.guest.descriptor(at + 16 * number, *piece, *next);
    }
    offer(front_end, queue, &[(at, len, INDIRECT)]);
}

const CRAFTED: [Crafted; 17] = [
    (
        "more requests than the queue has descriptors",
        |front_end, queue| {
            front_end.guest.set_number(queue.available() + 2, 1000);
        },
    ),
    ("descriptor 500 is not in its table", |front_end, queue| {
        queue.offer(&front_end.guest, 500)
    }),
    ("descriptor 65535 is not in its table", |front_end, queue| {
        queue.offer(&front_end.guest, u16::MAX)
    }),
    ("a request without a header", |front_end, queue| {
        let status = front_end.guest.room(1);
        offer(front_end, queue, &[(DATA, 15, 0), (status, 1, WRITE)]);
    }),
    ("a request without room for its status", |front_end, queue| {
        let header = front_end.guest.header(kind::FLUSH, 0);
        offer(front_end, queue, &[header]);
    }),
    ("an empty descriptor", |front_end, queue| {
        let [header, _, status] = read(front_end);
        offer(front_end, queue, &[header, (DATA, 0, WRITE), status]);
    }),
    (
        "a descriptor to be read behind one to be written",
        |front_end, queue| {
            let [header, data, status] = read(front_end);
            offer(front_end, queue, &[data, header, status]);
        },
    ),
    ("is not in the guest's memory", |front_end, queue| {
        let [_, data, status] = read(front_end);
        offer(front_end, queue, &[(GUEST - 8, 16, 0), data, status]);
    }),
    ("is not in the guest's memory", |front_end, queue| {
        let [header, _, status] = read(front_end);
        offer(
            front_end,
            queue,
            &[header, (GUEST + MEMORY - 256, 512, WRITE), status],
        );
    }),
    ("is not in the guest's memory", |front_end, queue| {
        let [header, _, status] = read(front_end);
        offer(front_end, queue, &[header, (u64::MAX - 100, 512, WRITE), status]);
    }),
    ("is not in the guest's memory", |front_end, queue| {
        let [header, data, _] = read(front_end);
        offer(front_end, queue, &[header, data, (GUEST + MEMORY, 1, WRITE)]);
    }),
    ("one that leads to itself", |front_end, queue| {
        let [header, ..] = read(front_end);
        // The descriptor that `describe` is about to write leads to itself.
        let head = queue.describe(&front_end.guest, &[header]);
        let at = GUEST + 16 * u64::from(head);
        front_end.guest.descriptor(at, (header.0, 16, NEXT), head);
        queue.offer(&front_end.guest, head);
    }),
    ("an indirect table of 15 bytes", |front_end, queue| {
        let [header, data, status] = read(front_end);
        offer_table(front_end, queue, 15, &[(header, 0), (data, 0), (status, 0)]);
    }),
    ("an indirect table of 0 bytes", |front_end, queue| {
        let [header, ..] = read(front_end);
        offer_table(front_end, queue, 0, &[(header, 0)]);
    }),
    ("an indirect table of 4294967280 bytes", |front_end, queue| {
        let [header, ..] = read(front_end);
        offer_table(front_end, queue, u32::MAX - 15, &[(header, 0)]);
    }),
    (
        "an indirect table of 16 bytes, or in another one",
        |front_end, queue| {
            let inner = front_end.guest.room(16);
            offer_table(front_end, queue, 16, &[((inner, 16, INDIRECT), 0)]);
        },
    ),
    ("descriptor 7 is not in its table", |front_end, queue| {
        let [header, ..] = read(front_end);
        offer_table(front_end, queue, 16, &[((header.0, 16, NEXT), 7)]);
    }),
];

#[test]
fn a_ring_with_nonsense_on_it_ends_the_connection() {
    let daemon = exporting();
    for (why, craft) in CRAFTED {
        let mut front_end = connect(&daemon);
        let mut queue = front_end.start_queue(0);
        craft(&mut front_end, &mut queue);
        queue.kick();
        is_cut(&daemon, front_end, why);
    }
}

#[test]
fn requests_by_tables_are_served() {
    let daemon = exporting();
    let mut front_end = connect(&daemon);
    let mut queue = front_end.start_queue(1);
    let [header, data, status] = read(&mut front_end);
    let next = |(at, len, flags): Piece| (at, len, flags | NEXT);
    offer_table(
        &mut front_end,
        &mut queue,
        48,
        &[(next(header), 1), (next(data), 2), (status, 0)],
    );
    queue.kick();
    queue
        .wait_for(&front_end.guest, millpond_tests::PATIENCE)
        .unwrap();
    assert_eq!(front_end.guest.read(status.0, 1), [0]);
    // The header may come before it, and the table have the rest.
    let table = front_end.guest.room(32);
    front_end.guest.descriptor(table, next(data), 1);
    front_end.guest.descriptor(table + 16, status, 0);
    front_end.guest.write(status.0, &[9]);
    offer(&mut front_end, &mut queue, &[header, (table, 32, INDIRECT)]);
    queue.kick();
    queue
        .wait_for(&front_end.guest, millpond_tests::PATIENCE)
        .unwrap();
    assert_eq!(front_end.guest.read(status.0, 1), [0]);
}

#[test]
fn memory_that_is_cut_short_harms_only_its_guest() {
    let daemon = exporting();
    for len in [0, 4096, DATA - GUEST] {
        let mut front_end = connect(&daemon);
        let mut queue = front_end.start_queue(0);
        front_end.request(&mut queue, kind::IN, 0, &[], 512);
        front_end.guest.header(kind::IN, 0);
        // The rings are looked at first, then what they lead to: which goes depends on the length.
        let file = front_end.guest.file().try_clone().unwrap();
        let kick = queue.take_kick();
        queue.offer(&front_end.guest, 0);
        ftruncate(&file, len).unwrap();
        rustix::io::write(&kick, &1_u64.to_ne_bytes()).unwrap();
        is_cut(&daemon, front_end, "was cut short");
    }
}

#[test]
fn an_in_flight_area_that_is_damaged_is_refused() {
    let daemon = exporting();
    let damages: [fn(&mut [u8]); 4] = [
        |area| area[8] = 2,
        |area| area[10] = 77,
        // An answer of a descriptor that there is not.
        |area| (area[12], area[13], area[14]) = (0xff, 0xff, 9),
        |area| area.fill(0xff),
    ];
    for damage in damages {
        let mut front_end = connect(&daemon);
        let wanted = words(&[0, 0, 1 | u64::from(QUEUE_SIZE) << 16]);
        let (area, mut files) = front_end
            .try_ask(message::GET_INFLIGHT_FD, 1, &wanted, &[])
            .unwrap();
        let file = files.pop().unwrap();
        let mut bytes = vec![0; 2064];
        // As a back end that has just begun leaves it.
        (bytes[8], bytes[10]) = (1, QUEUE_SIZE as u8);
        damage(&mut bytes);
        rustix::io::pwrite(&file, &bytes, 0).unwrap();
        front_end.tell(message::SET_INFLIGHT_FD, &area, &[file.as_fd()]);
        front_end.start_queue(0);
        is_cut(&daemon, front_end, "the in-flight area of queue 0 is damaged");
    }
}

#[test]
fn descriptors_that_are_no_counters_harm_nobody() {
    let daemon = exporting();
    // A socket is not one that is read as a counter; a full counter is waited for by nobody.
    let mut front_end = connect(&daemon);
    let queue = front_end.start_queue(0);
    front_end.stop_queue(&queue);
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    front_end.tell(message::SET_VRING_KICK, &words(&[0]), &[theirs.as_fd()]);
    drop(ours);
    is_cut(&daemon, front_end, "the kick descriptor failed");
    let mut front_end = connect(&daemon);
    let mut queue = front_end.start_queue(0);
    let full = event();
    rustix::io::write(&full, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    front_end.tell(message::SET_VRING_CALL, &words(&[0]), &[full.as_fd()]);
    let status = front_end.begin(&mut queue, kind::FLUSH, 0, &[], 0);
    while front_end.guest.read(status, 1) != [0] {
        // Each is answered only when the iothread goes on.
        assert_eq!(front_end.config(8).len(), 8);
    }
    assert_eq!(front_end.stop_queue(&queue), 1);
}

/// A descriptor's address, length, flags and successor at random, most of them near what makes sense.
fn random_descriptor(random: &mut fastrand::Rng) -> (Piece, u16) {
    let address = match random.u8(..8) {
        0 => random.u64(..),
        1 => GUEST + MEMORY - random.u64(..64),
        2 => GUEST + random.u64(..8 * 65536),
        _ => DATA + 16 * random.u64(..1024),
    };
    let len = match random.u8(..8) {
        0 => random.u32(..),
        1 => 0,
        2..5 => 16,
        5 => 1,
        _ => 512 * random.u32(..64),
    };
    let flags = if random.u8(..16) == 0 {
        random.u16(..)
    } else {
        random.u16(..4)
    };
    let next = if random.u8(..16) == 0 {
        random.u16(..)
    } else {
        random.u16(..QUEUE_SIZE)
    };
    ((address, len, flags), next)
}

/// What a descriptor is where nothing is random: one of a header, data, and the room for a status.
fn sound_descriptor(random: &mut fastrand::Rng, index: u16) -> (Piece, u16) {
    let piece = match index % 3 {
        0 => (DATA + 16 * random.u64(..64), 16, NEXT),
        1 => (
            DATA + 16 * 1024,
            512 * random.u32(1..8),
            NEXT | (random.u16(..2) * WRITE),
        ),
        _ => (DATA + 16 * 512, 1, WRITE),
    };
    (piece, index + 1)
}

#[test]
fn random_rings_harm_nobody_but_their_guest() {
    let mut daemon = exporting();
    let mut ended = 0;
    for seed in 0..100 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut front_end = connect(&daemon);
        let mut queue = front_end.start_queue(0);
        for number in 0..64 {
            let kind = [
                kind::IN,
                kind::OUT,
                kind::FLUSH,
                kind::GET_ID,
                kind::DISCARD,
                kind::WRITE_ZEROES,
                7,
            ];
            let (at, _, _) = front_end
                .guest
                .header(*random.choice(&kind).unwrap(), random.u64(..2048));
            assert_eq!(at, DATA + 16 * number);
        }
        // One descriptor in so many is not sound: from nearly all to nearly none.
        let sound = 1_u32 << random.u8(..12);
        for index in 0..QUEUE_SIZE {
            let (piece, next) = match random.u32(..sound) {
                0 => random_descriptor(&mut random),
                _ => sound_descriptor(&mut random, index),
            };
            front_end
                .guest
                .descriptor(GUEST + 16 * u64::from(index), piece, next);
        }
        for _ in 0..random.u16(1..64) {
            let head = match random.u32(..64 * sound) {
                0 => random.u16(..),
                _ => 3 * random.u16(..QUEUE_SIZE / 3),
            };
            queue.offer(&front_end.guest, head);
        }
        queue.kick();
        // What was taken by then is served to its end, or the connection is: at the latest when this was answered.
        let stop = front_end.try_ask(message::GET_VRING_BASE, 1, &state(0, 0), &[]);
        let is_cut = stop.is_err() || front_end.try_ask(message::GET_FEATURES, 1, &[], &[]).is_err();
        ended += usize::from(is_cut);
    }
    assert!(
        (10..90).contains(&ended),
        "{ended} of 100 were disconnected: the rings are not random enough"
    );
    daemon.assert_running();
    is_served(&daemon);
}
