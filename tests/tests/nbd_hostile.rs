//! NBD clients that die, stall and lie at every step: each hurts only itself.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use millpond_tests::daemon::{Daemon, daemon};
use millpond_tests::nbd::wire::*;
use millpond_tests::nbd::{Address, Connect, Handshake, Request, go_data, meta_context_data};
use millpond_tests::workload::{random_bytes, seeded};
use serde_json::json;

const SIZE: u64 = 64 << 20;

fn serve(server_options: &str) -> Daemon {
    daemon()
        .nbd_unix_with(server_options)
        .blockdev(json!({ "driver": "null-co", "node-name": "disk", "size": SIZE, "read-zeroes": true }))
        .export("disk")
        .start()
}

/// A well-behaved client beside the hostile ones; it reads without pause and must always be answered.
struct Bystander {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<Duration>,
}

impl Bystander {
    fn start(daemon: &Daemon) -> Bystander {
        let mut session = daemon.session("disk");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let (mut count, mut longest) = (0_u64, Duration::ZERO);
            loop {
                let asked = Instant::now();
                assert_eq!(session.read(4096 * (count % 1000), 4096), [0; 4096]);
                longest = longest.max(asked.elapsed());
                count += 1;
                if stopped.load(Ordering::Relaxed) {
                    return longest;
                }
            }
        });
        Bystander { stop, thread }
    }

    fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        let longest = self.thread.join().expect("the bystander is served throughout");
        assert!(
            longest < Duration::from_secs(5),
            "the bystander waited {longest:?}"
        );
    }
}

fn option_bytes(option: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = OPTION_MAGIC.to_be_bytes().to_vec();
    bytes.extend(option.to_be_bytes());
    bytes.extend(u32::try_from(data.len()).expect("short").to_be_bytes());
    bytes.extend(data);
    bytes
}

/// All that a client says in a good conversation, step by step.
fn conversation() -> Vec<Vec<u8>> {
    vec![
        u32::from(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES)
            .to_be_bytes()
            .to_vec(),
        option_bytes(OPT_LIST, &[]),
        option_bytes(OPT_STRUCTURED_REPLY, &[]),
        option_bytes(
            OPT_SET_META_CONTEXT,
            &meta_context_data("disk", &["base:allocation"]),
        ),
        option_bytes(OPT_INFO, &go_data("disk", &[INFO_NAME])),
        option_bytes(OPT_GO, &go_data("disk", &[INFO_BLOCK_SIZE])),
        Request::read(0, 4096).encode(1, false),
        Request::write(0, vec![5; 512]).encode(2, false),
        Request::new(CMD_BLOCK_STATUS, 0, SIZE).encode(3, false),
        Request::zero(0, 4096).encode(4, false),
        Request::flush().encode(5, false),
        Request::new(CMD_DISC, 0, 0).encode(6, false),
    ]
}

/// Sends bytes and ends; that the server closes first is its right.
fn say_and_leave(address: &Address, bytes: &[u8], wait_for_greeting: bool) {
    let mut stream = address.connect().expect("the server listens");
    if wait_for_greeting {
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting).expect("a greeting");
    }
    let _ = stream.write_all(bytes);
}

#[test]
fn clients_that_die_after_any_byte() {
    let mut daemon = serve(",max-connections=0");
    let bystander = Bystander::start(&daemon);
    let whole = conversation().concat();
    for length in 0..=whole.len() {
        say_and_leave(&daemon.address(), &whole[..length], length % 2 == 0);
    }
    bystander.finish();
    daemon.assert_running();
    daemon.quit();
}

#[test]
fn clients_that_stop_reading_answers_but_stay() {
    let daemon = serve(",max-connections=0");
    let bystander = Bystander::start(&daemon);
    let mut stalled = Vec::new();
    for _ in 0..8 {
        let mut session = daemon.session("disk").pipelined();
        for index in 0..256 {
            session
                .submit(&Request::read(index << 17, 1 << 20))
                .expect("a thread takes it");
        }
        stalled.push(session);
    }
    // One answer from each shows that all of them are being served.
    for session in &mut stalled {
        assert_eq!(session.complete().expect("an answer").data.len(), 1 << 20);
    }
    let resident = daemon.resident_kib();
    assert!(
        resident < 512 << 10,
        "{resident} KiB for 8 clients that do not read: 16 MiB each are in flight at most"
    );
    bystander.finish();
    daemon.quit();
}

#[test]
fn clients_that_stall_in_negotiation_are_closed_after_the_time_limit() {
    let mut daemon = serve(",max-connections=0,handshake-max-seconds=1");
    let bystander = Bystander::start(&daemon);
    let steps = conversation();
    let mut stalled = Vec::new();
    for count in 0..6 {
        for cut in [0, 3] {
            let mut bytes = steps[..count].concat();
            bytes.extend(&steps[count][..cut.min(steps[count].len())]);
            let mut stream = daemon.address().connect().expect("the server listens");
            stream.write_all(&bytes).expect("the server takes it");
            stalled.push((count, cut, stream, Instant::now()));
        }
    }
    for (count, cut, mut stream, since) in stalled {
        stream
            .wait_closed()
            .unwrap_or_else(|error| panic!("stalled after {count} steps and {cut} bytes: {error}"));
        assert!(
            since.elapsed() > Duration::from_millis(500),
            "closed long before the time limit"
        );
    }
    // The limit ends with negotiation: the bystander is past it by now.
    bystander.finish();
    daemon.assert_running();
    daemon.quit();
}

/// Sends one option and expects an error of one of these kinds, then that negotiation goes on.
#[track_caller]
fn refused(daemon: &Daemon, structured: bool, option: u32, data: &[u8], kinds: &[u32]) {
    let mut handshake = Handshake::start(&daemon.address()).expect("a greeting");
    if structured {
        assert!(handshake.structured_replies().expect("a reply"));
    }
    let reply = handshake.outcome(option, data).expect("a reply");
    assert!(kinds.contains(&reply.kind), "{:#x}: {}", reply.kind, reply.text());
    assert!(reply.data.len() <= 4096, "an error of {} bytes", reply.data.len());
    let mut session = handshake.go("disk").expect("replies").expect("the export exists");
    assert_eq!(session.read(0, 512), [0; 512]);
}

/// A payload of GO whose parts are as told, true or not.
fn raw_go(name_length: u32, name: &[u8], count: u16, infos: &[u8]) -> Vec<u8> {
    [
        &name_length.to_be_bytes()[..],
        name,
        &count.to_be_bytes()[..],
        infos,
    ]
    .concat()
}

#[test]
fn lies_about_lengths_inside_options_are_refused_and_negotiation_goes_on() {
    let daemon = serve("");
    let invalid = [REP_ERR_INVALID];
    for option in [OPT_GO, OPT_INFO] {
        refused(&daemon, false, option, &[], &invalid);
        refused(&daemon, false, option, &[0, 0, 0], &invalid);
        refused(&daemon, false, option, &raw_go(5, b"disk", 0, &[]), &invalid);
        refused(
            &daemon,
            false,
            option,
            &raw_go(u32::MAX, b"disk", 0, &[]),
            &invalid,
        );
        refused(&daemon, false, option, &raw_go(4, b"disk", 3, &[0, 1]), &invalid);
        refused(
            &daemon,
            false,
            option,
            &raw_go(4, b"disk", u16::MAX, &[]),
            &invalid,
        );
        refused(
            &daemon,
            false,
            option,
            &raw_go(4, b"disk", 0, &[1, 2, 3]),
            &invalid,
        );
        refused(
            &daemon,
            false,
            option,
            &raw_go(4, b"di\0k", 0, &[]),
            &[REP_ERR_INVALID, REP_ERR_UNKNOWN],
        );
        refused(
            &daemon,
            false,
            option,
            &raw_go(4, &[0xff; 4], 0, &[]),
            &[REP_ERR_INVALID, REP_ERR_UNKNOWN],
        );
    }
    for option in [OPT_LIST_META_CONTEXT, OPT_SET_META_CONTEXT] {
        refused(&daemon, true, option, &[], &invalid);
        refused(&daemon, true, option, &9u32.to_be_bytes(), &invalid);
        let name = [&4u32.to_be_bytes()[..], b"disk"].concat();
        refused(&daemon, true, option, &name, &invalid);
        let with = |rest: &[u8]| [&name[..], rest].concat();
        refused(&daemon, true, option, &with(&u32::MAX.to_be_bytes()), &invalid);
        refused(
            &daemon,
            true,
            option,
            &with(&[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff]),
            &invalid,
        );
        refused(
            &daemon,
            true,
            option,
            &with(&[0, 0, 0, 1, 0, 0, 0, 9, b'b', b'a']),
            &invalid,
        );
    }
    for option in [OPT_LIST, OPT_STRUCTURED_REPLY, OPT_EXTENDED_HEADERS] {
        refused(
            &daemon,
            false,
            option,
            &[1, 2, 3, 4],
            &[REP_ERR_INVALID, REP_ERR_TOO_BIG],
        );
    }
    refused(
        &daemon,
        false,
        OPT_STARTTLS,
        &[],
        &[REP_ERR_UNSUP, REP_ERROR_BIT | 2, REP_ERR_INVALID],
    );
}

#[test]
fn names_of_any_length_are_answered_or_refused() {
    let daemon = serve("");
    for length in [256, 257, 4096] {
        let name = "n".repeat(length);
        refused(&daemon, false, OPT_GO, &go_data(&name, &[]), &[REP_ERR_UNKNOWN]);
        refused(&daemon, false, OPT_INFO, &go_data(&name, &[]), &[REP_ERR_UNKNOWN]);
        refused(
            &daemon,
            true,
            OPT_SET_META_CONTEXT,
            &meta_context_data(&name, &[]),
            &[REP_ERR_UNKNOWN],
        );
    }
    for length in [4097, 100_000, 1 << 20] {
        let name = "n".repeat(length);
        let kinds = [REP_ERR_INVALID, REP_ERR_TOO_BIG, REP_ERR_UNKNOWN];
        refused(&daemon, false, OPT_GO, &go_data(&name, &[]), &kinds);
        refused(
            &daemon,
            true,
            OPT_LIST_META_CONTEXT,
            &meta_context_data("disk", &[&name]),
            &[REP_ACK, REP_ERR_INVALID, REP_ERR_TOO_BIG],
        );
    }
}

#[test]
fn what_cannot_be_answered_ends_that_connection() {
    let mut daemon = serve("");
    let bystander = Bystander::start(&daemon);
    let flags = u32::from(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES)
        .to_be_bytes()
        .to_vec();
    let huge = |option: u32| [&OPTION_MAGIC.to_be_bytes()[..], &option.to_be_bytes(), &[0xff; 4]].concat();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("unknown client flags", u32::MAX.to_be_bytes().to_vec()),
        ("a bad option magic", [&flags[..], &[0x41; 16]].concat()),
        ("a GO of 4 GiB", [&flags[..], &huge(OPT_GO)].concat()),
        ("an unknown option of 4 GiB", [&flags[..], &huge(1234)].concat()),
        ("a name of 4 GiB", [&flags[..], &huge(OPT_EXPORT_NAME)].concat()),
        (
            "an unknown name",
            [&flags[..], &option_bytes(OPT_EXPORT_NAME, b"nothing")].concat(),
        ),
        (
            "a name that is too long",
            [&flags[..], &option_bytes(OPT_EXPORT_NAME, &[b'n'; 5000])].concat(),
        ),
        (
            "an HTTP request",
            b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
        ),
    ];
    for (what, bytes) in cases {
        let mut stream = daemon.address().connect().expect("the server listens");
        stream.write_all(&bytes).expect("the server takes it");
        stream
            .wait_closed()
            .unwrap_or_else(|error| panic!("{what}: not closed: {error}"));
    }
    bystander.finish();
    daemon.assert_running();
}

#[test]
fn broken_requests_end_the_connection_or_fail_alone() {
    let mut daemon = serve("");
    let bystander = Bystander::start(&daemon);
    // Not a request at all: there is no way to find the next one.
    for (connect, magic) in [
        (Connect::default(), EXTENDED_REQUEST_MAGIC),
        (Connect::extended(), REQUEST_MAGIC),
    ] {
        let mut session = connect.open(&daemon.address(), "disk");
        session
            .send_bytes([&magic.to_be_bytes()[..], &[0; 28]].concat())
            .expect("the server takes it");
        session
            .stream()
            .wait_closed()
            .expect("a bad magic ends the connection");
    }
    // A write whose data will not be read, since no server could hold it.
    let mut session = daemon.session("disk");
    let mut write = Request::write(0, Vec::new());
    write.length = u64::from(u32::MAX);
    session
        .send_bytes(write.encode(1, false))
        .expect("the server takes it");
    session
        .stream()
        .wait_closed()
        .expect("an oversized write ends the connection");
    // A read that is too long has no data to skip.
    let mut session = daemon.session("disk");
    assert_eq!(session.refused(&Request::read(0, (32 << 20) + 1)), EINVAL);
    assert_eq!(
        session.read(0, 32 << 20).len(),
        32 << 20,
        "the longest read that is allowed"
    );
    bystander.finish();
    daemon.assert_running();
}

#[test]
fn more_connections_than_allowed_wait_or_are_closed() {
    let mut daemon = serve(",max-connections=2");
    let (first, mut second) = (daemon.session("disk"), daemon.session("disk"));
    let mut third = daemon
        .address()
        .connect()
        .expect("a connection can wait in the backlog");
    third
        .set_patience(Duration::from_millis(300))
        .expect("a socket takes a time limit");
    let mut greeting = [0; 18];
    match third.read(&mut greeting) {
        Ok(0) => {}
        Ok(_) => panic!("a third client was greeted"),
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
        Err(error) => {
            assert!(
                matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut),
                "{error}"
            );
            first.disconnect().expect("a goodbye closes the connection");
            third
                .set_patience(millpond_tests::PATIENCE)
                .expect("a socket takes a time limit");
            third.read_exact(&mut greeting).expect("a place became free");
        }
    }
    assert_eq!(second.read(0, 512), [0; 512]);
    daemon.assert_running();
}

#[test]
fn silent_connections_cost_little_and_go_with_the_server() {
    let mut daemon = serve(",max-connections=0,handshake-max-seconds=0");
    let before = daemon.resident_kib();
    let silent: Vec<_> = (0..200)
        .map(|_| daemon.address().connect().expect("the server listens"))
        .collect();
    let mut session = daemon.session("disk");
    assert_eq!(session.read(0, 512), [0; 512]);
    let after = daemon.resident_kib();
    assert!(
        after < before + (100 << 10),
        "200 silent connections took {} KiB",
        after - before
    );
    daemon.qmp.ok("nbd-server-stop", json!({}));
    for mut stream in silent {
        stream
            .wait_closed()
            .expect("stopping the server closes every connection");
    }
    session
        .stream()
        .wait_closed()
        .expect("stopping the server closes every session");
    daemon.quit();
}

#[test]
fn a_daemon_ends_in_time_beside_clients_that_do_nothing() {
    let daemon = serve(",handshake-max-seconds=0");
    let silent = daemon.address().connect().expect("the server listens");
    let mut stalled = daemon.session("disk").pipelined();
    for index in 0..64 {
        stalled
            .submit(&Request::read(index << 20, 1 << 20))
            .expect("a thread takes it");
    }
    stalled.complete().expect("an answer");
    let mut half = daemon.session("disk");
    half.send_bytes(Request::write(0, vec![1; 4096]).encode(1, false)[..1000].to_vec())
        .expect("it is taken");
    daemon.quit();
    drop((silent, stalled, half));
}

#[test]
fn an_export_removed_hard_takes_its_clients_along() {
    let mut daemon = serve("");
    let mut session = daemon.session("disk");
    let error = daemon
        .qmp
        .refused("block-export-del", json!({ "id": "exp-disk" }));
    assert!(error.desc.contains("still in use"), "{}", error.desc);
    daemon
        .qmp
        .ok("block-export-del", json!({ "id": "exp-disk", "mode": "hard" }));
    daemon
        .qmp
        .wait_event_where("BLOCK_EXPORT_DELETED", |data| data["id"] == "exp-disk");
    session.stream().wait_closed().expect("its session is closed");
    daemon.quit();
}

#[test]
fn garbage_in_a_good_conversation() {
    let mut daemon = serve(",max-connections=0");
    let bystander = Bystander::start(&daemon);
    let mut rng = seeded("garbage_in_a_good_conversation");
    let steps = conversation();
    for _ in 0..400 {
        let bytes = mutate(&mut rng, &steps);
        let mut stream = daemon.address().connect().expect("the server listens");
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(Shutdown::Write);
        stream
            .wait_closed()
            .expect("the server ends what a client has ended");
    }
    bystander.finish();
    daemon.assert_running();
    let resident = daemon.resident_kib();
    assert!(resident < 512 << 10, "{resident} KiB after all clients have gone");
    daemon.quit();
}

/// A conversation with bits flipped, numbers made extreme, and steps lost, doubled or swapped.
fn mutate(rng: &mut fastrand::Rng, steps: &[Vec<u8>]) -> Vec<u8> {
    let mut steps = steps.to_vec();
    for _ in 0..rng.u8(1..4) {
        let (one, other) = (rng.usize(0..steps.len()), rng.usize(0..steps.len()));
        let at = rng.usize(0..steps[one].len().max(1));
        match rng.u8(0..6) {
            0 => steps.swap(one, other),
            1 => steps[one] = steps[other].clone(),
            2 => {
                let noise = random_bytes(rng, 9);
                steps[one].extend(noise);
            }
            3 => steps[one].truncate(at),
            4 => {
                if let Some(byte) = steps[one].get_mut(at) {
                    *byte ^= 1 << rng.u8(0..8);
                }
            }
            _ => {
                let extreme = [0, 1, 0x7fff_ffff, 0x8000_0000, u32::MAX][rng.usize(0..5)].to_be_bytes();
                let end = (at + 4).min(steps[one].len());
                let count = end.saturating_sub(at);
                if count > 0 {
                    steps[one][at..end].copy_from_slice(&extreme[..count]);
                }
            }
        }
    }
    steps.concat()
}
