//! The driver `nbd`: disks of QEMU's server and of ours, servers that die and come back, and servers that lie.

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use millpond_tests::PATIENCE;
use millpond_tests::daemon::{Builder, Daemon, daemon, scratch};
use millpond_tests::image::{create, map};
use millpond_tests::nbd::Request;
use millpond_tests::nbd::wire::*;
use millpond_tests::tool::{hint, qemu_io, try_run};
use millpond_tests::workload::random_bytes;
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 16 * MIB;

/// QEMU's server of a raw image, at a unix socket.
struct QemuNbd(Child);

impl QemuNbd {
    fn start(socket: &Path, image: &Path, more: &[&str]) -> Self {
        // The socket of one that was killed is still there.
        drop(std::fs::remove_file(socket));
        let child = Command::new("qemu-nbd")
            .args([
                "-t",
                "-e",
                "8",
                "-f",
                "raw",
                "-x",
                "disk",
                "--discard=unmap",
                "-k",
            ])
            .arg(socket)
            .args(more)
            .arg(image)
            .stdin(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot run qemu-nbd: {error}{}", hint("qemu-nbd")));
        let server = Self(child);
        let deadline = Instant::now() + PATIENCE;
        while UnixStream::connect(socket).is_err() {
            assert!(Instant::now() < deadline, "qemu-nbd does not listen");
            thread::yield_now();
        }
        server
    }
}

impl Drop for QemuNbd {
    fn drop(&mut self) {
        // Both fail only where it has ended.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// A node that is a disk of the server at `socket`.
fn disk(socket: &Path, more: &Value) -> Value {
    let mut options = json!({
        "driver": "nbd", "node-name": "disk", "export": "disk",
        "server": { "type": "unix", "path": socket },
    });
    for (name, value) in more.as_object().into_iter().flatten() {
        options[name] = value.clone();
    }
    options
}

fn exporting(disk: Value) -> Builder {
    daemon().nbd_unix().blockdev(disk).export("disk")
}

/// What a client does to a disk, and what must come of it.
fn use_disk(daemon: &Daemon) {
    let mut session = daemon.session("disk");
    let bytes = random_bytes(&mut fastrand::Rng::with_seed(3), 3 * MIB + 512);
    session.write(MIB - 512, &bytes);
    assert_eq!(session.read(MIB - 512, bytes.len() as u64), bytes);
    assert_eq!(session.read(0, 4096), [0; 4096]);
    session.ok(&Request::zero(2 * MIB, MIB));
    assert_eq!(session.read(2 * MIB, MIB), vec![0; MIB as usize]);
    session.ok(&Request::trim(8 * MIB, 4 * MIB));
    session.ok(&Request::write(5 * MIB, vec![9; 4096]).flags(CMD_FLAG_FUA));
    session.flush();
    assert_eq!(session.refused(&Request::read(SIZE, 512)), EINVAL);
    session.disconnect().expect("a goodbye");
}

fn assert_used(image: &Path) {
    let bytes = std::fs::read(image).expect("an image");
    let expected = random_bytes(&mut fastrand::Rng::with_seed(3), 3 * MIB + 512);
    let start = MIB as usize - 512;
    assert!(bytes[start..2 * MIB as usize] == expected[..MIB as usize + 512]);
    assert!(
        bytes[2 * MIB as usize..3 * MIB as usize]
            .iter()
            .all(|byte| *byte == 0)
    );
    assert!(bytes[3 * MIB as usize..start + expected.len()] == expected[2 * MIB as usize + 512..]);
    assert!(bytes[5 * MIB as usize..][..4096].iter().all(|byte| *byte == 9));
}

#[test]
fn a_disk_of_qemus_server_is_read_and_written() {
    let dir = scratch();
    let (image, socket) = (dir.path().join("image"), dir.path().join("socket"));
    create(&image, "raw", "", SIZE);
    let _server = QemuNbd::start(&socket, &image, &[]);
    let daemon = exporting(disk(&socket, &json!({}))).start();
    use_disk(&daemon);
    daemon.quit();
    assert_used(&image);
}

#[test]
fn a_disk_of_our_server_is_read_and_written_and_its_holes_are_told() {
    let dir = scratch();
    let (image, socket) = (dir.path().join("image"), dir.path().join("socket"));
    create(&image, "raw", "", SIZE);
    let file = json!({"driver": "file", "node-name": "disk", "filename": image, "discard": "unmap"});
    let server = daemon()
        .option(
            "--nbd-server",
            format!("addr.type=unix,addr.path={}", socket.display()),
        )
        .blockdev(file)
        .option("--export", "type=nbd,id=e,node-name=disk,name=disk,writable=on")
        .start();
    let daemon = exporting(disk(&socket, &json!({}))).start();
    use_disk(&daemon);
    let uri = format!("nbd+unix:///disk?socket={}", socket.display());
    let through = map("raw", &daemon.uri("disk"));
    assert_eq!(
        through,
        map("raw", &uri),
        "the same holes as without a client between"
    );
    assert!(through.len() > 3, "{through:?}");
    daemon.quit();
    server.quit();
    assert_used(&image);
}

#[test]
fn names_and_refusals_are_qemus() {
    let dir = scratch();
    let (image, socket) = (dir.path().join("image"), dir.path().join("socket"));
    create(&image, "raw", "", SIZE);
    let _server = QemuNbd::start(&socket, &image, &["-r"]);
    let path = socket.display();
    for (name, refusal) in [
        (
            format!("nbd+unix:///nope?socket={path}"),
            "Requested export not available\nserver reported: export 'nope' not present",
        ),
        (
            "nbd+unix:///disk?socket=/nowhere/socket".to_owned(),
            "Failed to connect to '/nowhere/socket': No such file or directory",
        ),
        (
            "nbd:localhost:1".to_owned(),
            "Failed to connect to 'localhost:1': Connection refused",
        ),
        ("nbd:".to_owned(), "NBD server address missing"),
        ("nbd://".to_owned(), "No valid URL specified"),
    ] {
        let theirs = try_run("qemu-io", &["-f", "raw", "-r", "-c", "length", &name]);
        assert_eq!(
            theirs.stderr,
            format!("qemu-io: can't open device {name}: {refusal}\n")
        );
        let millpond = millpond_tests::program::millpond().display().to_string();
        let ours = try_run(&millpond, &["io", "-f", "raw", "-r", "-c", "length", &name]);
        assert_eq!(
            ours.stderr,
            format!("millpond io: can't open device {name}: {refusal}\n")
        );
        assert_eq!(ours.code, theirs.code);
    }
    let refused = exporting(disk(&socket, &json!({"read-only": false}))).refused();
    assert!(
        refused.contains("request on write denied without write permission"),
        "{refused}"
    );
    let mut daemon = daemon()
        .blockdev(disk(&socket, &json!({"read-only": true})))
        .start();
    let nodes = daemon.qmp.ok("query-named-block-nodes", json!({}));
    assert_eq!(
        nodes[0]["image"]["filename"],
        format!("nbd+unix:///disk?socket={path}")
    );
    daemon.quit();
}

#[test]
fn requests_wait_for_a_server_that_comes_back_in_time_and_are_done_once_it_is_there() {
    let dir = scratch();
    let (image, socket) = (dir.path().join("image"), dir.path().join("socket"));
    create(&image, "raw", "", SIZE);
    let server = QemuNbd::start(&socket, &image, &[]);
    let daemon = exporting(disk(&socket, &json!({"reconnect-delay": 120}))).start();
    let mut session = daemon.session("disk");
    session.write(0, &[1; 4096]);
    drop(server);
    for n in 0..16 {
        let request = Request::write(n * 4096, vec![n as u8 + 1; 4096]);
        session.submit(&request).expect("a request is taken");
    }
    let _server = QemuNbd::start(&socket, &image, &[]);
    for _ in 0..16 {
        assert_eq!(session.complete().expect("an answer").error, 0);
    }
    session.flush();
    session.disconnect().expect("a goodbye");
    daemon.quit();
    for n in 0..16_u64 {
        let pattern = format!("read -P {} {} 4k", n + 1, n * 4096);
        qemu_io(&["-r", "-f", "raw", &image.display().to_string()], &[&pattern]);
    }
}

#[test]
fn without_a_delay_requests_fail_at_once_until_the_server_is_back() {
    let dir = scratch();
    let (image, socket) = (dir.path().join("image"), dir.path().join("socket"));
    create(&image, "raw", "", SIZE);
    let server = QemuNbd::start(&socket, &image, &[]);
    let daemon = exporting(disk(&socket, &json!({}))).start();
    let mut session = daemon.session("disk");
    session.write(0, &[1; 4096]);
    drop(server);
    for _ in 0..3 {
        assert_eq!(session.refused(&Request::read(0, 4096)), EIO);
    }
    let _server = QemuNbd::start(&socket, &image, &[]);
    assert_eq!(session.read(0, 4096), [1; 4096]);
    session.disconnect().expect("a goodbye");
    daemon.quit();
}

#[test]
fn a_server_that_came_back_silent_is_awaited_no_longer_than_the_delay() {
    let dir = scratch();
    let (image, socket) = (dir.path().join("image"), dir.path().join("socket"));
    create(&image, "raw", "", SIZE);
    let server = QemuNbd::start(&socket, &image, &[]);
    let daemon = exporting(disk(&socket, &json!({"reconnect-delay": 2}))).start();
    let mut session = daemon.session("disk");
    drop(server);
    std::fs::remove_file(&socket).expect("a socket of the one that was killed");
    // Connections to it are made, and none is taken.
    let _silent = UnixListener::bind(&socket).expect("a socket");
    let begun = Instant::now();
    assert_eq!(session.refused(&Request::read(0, 4096)), EIO);
    // Without a bound of its own a try ends after 30 seconds.
    assert!(begun.elapsed() < Duration::from_secs(20));
    session.disconnect().expect("a goodbye");
    daemon.quit();
}

#[test]
fn a_daemon_ends_though_a_server_is_awaited() {
    let dir = scratch();
    let (image, socket) = (dir.path().join("image"), dir.path().join("socket"));
    create(&image, "raw", "", SIZE);
    let server = QemuNbd::start(&socket, &image, &[]);
    let daemon = exporting(disk(&socket, &json!({"reconnect-delay": 3600})))
        .option("--x-millpond-shutdown-grace", "2")
        .start();
    let mut session = daemon.session("disk");
    drop(server);
    session
        .submit(&Request::read(0, 4096))
        .expect("a request is taken");
    let begun = Instant::now();
    let mut daemon = daemon;
    daemon.qmp.quit();
    daemon.wait();
    assert!(begun.elapsed() < PATIENCE);
}

#[test]
fn a_daemon_that_is_its_own_server_answers_and_ends() {
    let dir = scratch();
    let image = dir.path().join("image");
    create(&image, "raw", "", SIZE);
    let file = json!({"driver": "file", "node-name": "store", "filename": image, "discard": "unmap"});
    let mut daemon = daemon().nbd_unix().blockdev(file).start();
    let export = |node: &str, name: &str| json!({"type": "nbd", "id": name, "node-name": node, "name": name, "writable": true});
    daemon.qmp.ok("block-export-add", export("store", "inner"));
    let millpond_tests::nbd::Address::Unix(path) = daemon.address() else {
        panic!("the server listens at a unix socket");
    };
    let own = disk(&path, &json!({"export": "inner"}));
    daemon.qmp.ok("blockdev-add", own);
    daemon.qmp.ok("block-export-add", export("disk", "disk"));
    use_disk(&daemon);
    daemon.quit();
    assert_used(&image);
}

#[test]
fn a_disk_moves_between_iothreads_under_load() {
    let dir = scratch();
    let (image, socket) = (dir.path().join("image"), dir.path().join("socket"));
    create(&image, "raw", "", SIZE);
    let _server = QemuNbd::start(&socket, &image, &[]);
    let mut daemon = exporting(disk(&socket, &json!({}))).start();
    for id in ["one", "two"] {
        daemon
            .qmp
            .ok("object-add", json!({"qom-type": "iothread", "id": id}));
    }
    let mut session = daemon.session("disk");
    for round in 0..20_u64 {
        for n in 0..8 {
            let request = Request::write(n * 4096, vec![round as u8 + 1; 4096]);
            session.submit(&request).expect("a request is taken");
        }
        let iothread = if round % 2 == 0 { "one" } else { "two" };
        let place = json!({"node-name": "disk", "iothread": iothread, "force": true});
        daemon.qmp.ok("x-blockdev-set-iothread", place);
        for _ in 0..8 {
            assert_eq!(session.complete().expect("an answer").error, 0);
        }
        assert_eq!(session.read(0, 8 * 4096), vec![round as u8 + 1; 8 * 4096]);
    }
    session.disconnect().expect("a goodbye");
    daemon.quit();
}

/// What a server of the test answers to the first read of 4096 bytes at 0, whose cookie it is given.
type Lie = fn(u64) -> Vec<u8>;

fn chunk(cookie: u64, flags: u16, kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = STRUCTURED_REPLY_MAGIC.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend((payload.len() as u32).to_be_bytes());
    bytes.extend(payload);
    bytes
}

fn data(offset: u64, len: usize) -> Vec<u8> {
    let mut payload = offset.to_be_bytes().to_vec();
    payload.resize(8 + len, 7);
    payload
}

fn hole(offset: u64, len: u32) -> Vec<u8> {
    let mut payload = offset.to_be_bytes().to_vec();
    payload.extend(len.to_be_bytes());
    payload
}

fn simple(cookie: u64, error: u32) -> Vec<u8> {
    let mut bytes = SIMPLE_REPLY_MAGIC.to_be_bytes().to_vec();
    bytes.extend(error.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes
}

const LIES: &[(&str, Lie)] = &[
    ("a wrong magic", |_| vec![0x55; 64]),
    ("another's cookie", |cookie| {
        chunk(cookie + 1, 1, REPLY_OFFSET_DATA, &data(0, 4096))
    }),
    ("a cookie of a slot that is not there", |cookie| {
        chunk(cookie | 0xffff, 1, REPLY_OFFSET_DATA, &data(0, 4096))
    }),
    ("data without chunks", |cookie| {
        [simple(cookie, 0), vec![7; 4096]].concat()
    }),
    ("too little data", |cookie| {
        chunk(cookie, 1, REPLY_OFFSET_DATA, &data(0, 2048))
    }),
    ("no data", |cookie| chunk(cookie, 1, REPLY_NONE, &[])),
    ("too much data", |cookie| {
        chunk(cookie, 1, REPLY_OFFSET_DATA, &data(0, 8192))
    }),
    ("data elsewhere", |cookie| {
        chunk(cookie, 1, REPLY_OFFSET_DATA, &data(4096, 4096))
    }),
    ("data at no offset", |cookie| {
        chunk(cookie, 1, REPLY_OFFSET_DATA, &data(u64::MAX - 7, 4096))
    }),
    ("the same twice", |cookie| {
        [
            chunk(cookie, 0, REPLY_OFFSET_DATA, &data(0, 4096)),
            chunk(cookie, 1, REPLY_OFFSET_DATA, &data(0, 4096)),
        ]
        .concat()
    }),
    ("a hole over data", |cookie| {
        [
            chunk(cookie, 0, REPLY_OFFSET_DATA, &data(0, 4096)),
            chunk(cookie, 1, REPLY_OFFSET_HOLE, &hole(1024, 1024)),
        ]
        .concat()
    }),
    ("an empty hole", |cookie| {
        chunk(cookie, 1, REPLY_OFFSET_HOLE, &hole(0, 0))
    }),
    ("a short hole", |cookie| {
        chunk(cookie, 1, REPLY_OFFSET_HOLE, &[0; 4])
    }),
    ("a status", |cookie| {
        chunk(cookie, 1, REPLY_BLOCK_STATUS, &[0; 12])
    }),
    ("an unknown chunk", |cookie| chunk(cookie, 1, 77, &[0; 12])),
    ("an unknown error", |cookie| chunk(cookie, 1, 0x8077, &[0; 12])),
    ("an endless error", |cookie| {
        chunk(cookie, 1, REPLY_ERROR, &[0; 70_000])
    }),
    ("an error that is none", |cookie| {
        chunk(cookie, 1, REPLY_ERROR, &[0; 6])
    }),
    ("an error whose text is longer than it", |cookie| {
        chunk(cookie, 1, REPLY_ERROR, &[0, 0, 0, 5, 0xff, 0xff])
    }),
    ("half a head", |cookie| {
        chunk(cookie, 1, REPLY_OFFSET_DATA, &data(0, 4096))[..10].to_vec()
    }),
    ("half its data", |cookie| {
        chunk(cookie, 1, REPLY_OFFSET_DATA, &data(0, 4096))[..2000].to_vec()
    }),
];

/// A server that agrees with its client on a disk, and answers its first read by a lie and the others rightly.
struct Liar {
    stream: UnixStream,
    lie: Option<Lie>,
}

impl Liar {
    fn bytes<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn answer(&mut self, option: u32, kind: u32, payload: &[u8]) -> io::Result<()> {
        self.stream.write_all(&answer(option, kind, payload))
    }

    fn negotiate(&mut self) -> io::Result<()> {
        let mut hello = [MAGIC.to_be_bytes(), OPTION_MAGIC.to_be_bytes()].concat();
        hello.extend((FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).to_be_bytes());
        self.stream.write_all(&hello)?;
        self.bytes::<4>()?;
        loop {
            self.bytes::<8>()?;
            let option = u32::from_be_bytes(self.bytes()?);
            let len = u32::from_be_bytes(self.bytes()?);
            let mut payload = vec![0; len as usize];
            self.stream.read_exact(&mut payload)?;
            match option {
                OPT_STRUCTURED_REPLY => self.answer(option, REP_ACK, &[])?,
                OPT_GO => {
                    let mut info = INFO_EXPORT.to_be_bytes().to_vec();
                    info.extend(SIZE.to_be_bytes());
                    info.extend(TRANSMISSION_HAS_FLAGS.to_be_bytes());
                    self.answer(option, REP_INFO, &info)?;
                    return self.answer(option, REP_ACK, &[]);
                }
                other => self.answer(other, REP_ERR_UNSUP, &[])?,
            }
        }
    }

    fn serve(&mut self) -> io::Result<()> {
        self.negotiate()?;
        loop {
            let request = self.bytes::<28>()?;
            let number = |at: usize| u64::from_be_bytes(request[at..at + 8].try_into().expect("eight bytes"));
            let len = u32::from_be_bytes(request[24..].try_into().expect("four bytes"));
            if u16::from_be_bytes([request[6], request[7]]) != CMD_READ {
                return Ok(());
            }
            let (cookie, offset) = (number(8), number(16));
            if let Some(lie) = self.lie.take() {
                self.stream.write_all(&lie(cookie))?;
                // What is half ends with the connection.
                self.stream.shutdown(std::net::Shutdown::Write)?;
            } else {
                let right = chunk(cookie, 1, REPLY_OFFSET_DATA, &data(offset, len as usize));
                self.stream.write_all(&right)?;
            }
        }
    }
}

/// Listens, and lies to its first client by its first answer.
fn lie(socket: &Path, lie: Lie) {
    let listener = UnixListener::bind(socket).expect("a socket");
    thread::spawn(move || {
        let mut lie = Some(lie);
        for stream in listener.incoming().flatten() {
            // A client that finds the lie hangs up.
            drop(
                Liar {
                    stream,
                    lie: lie.take(),
                }
                .serve(),
            );
        }
    });
}

#[test]
fn what_a_server_may_not_say_fails_its_request_and_no_other() {
    for (name, told) in LIES {
        let dir = scratch();
        let socket = dir.path().join("socket");
        lie(&socket, *told);
        let raw = disk(&socket, &json!({"read-only": true}));
        let mut daemon = daemon().nbd_unix().blockdev(raw).export_read_only("disk").start();
        let mut session = daemon.session("disk");
        assert_eq!(session.refused(&Request::read(0, 4096)), EIO, "{name}");
        // A lie that says no more than an error leaves the connection, which ends before the next request.
        let mut next = (0..2).map(|_| session.call(&Request::read(8192, 512)).expect("an answer"));
        assert!(
            next.any(|answer| answer.error == 0),
            "{name}: the next connection serves"
        );
        session.disconnect().expect("a goodbye");
        daemon.assert_running();
        daemon.quit();
    }
}

#[test]
fn a_server_that_says_nothing_can_be_given_up() {
    let dir = scratch();
    let socket = dir.path().join("socket");
    let listener = UnixListener::bind(&socket).expect("a socket");
    let silent = thread::spawn(move || {
        let (stream, _) = listener.accept().expect("a client");
        let mut liar = Liar { stream, lie: None };
        liar.negotiate().expect("an agreement");
        // Requests are taken, and nothing comes of them.
        io::copy(&mut liar.stream, &mut io::sink()).expect("the client hangs up");
    });
    let raw = disk(&socket, &json!({"read-only": true}));
    let mut daemon = daemon()
        .nbd_unix()
        .blockdev(raw)
        .export_read_only("disk")
        .option("--x-millpond-shutdown-grace", "1")
        .start();
    let mut session = daemon.session("disk");
    session
        .submit(&Request::read(0, 4096))
        .expect("a request is taken");
    let begun = Instant::now();
    daemon.qmp.quit();
    daemon.wait();
    assert!(begun.elapsed() < PATIENCE - Duration::from_secs(1));
    silent.join().expect("no panic");
}

fn answer(option: u32, kind: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = OPTION_REPLY_MAGIC.to_be_bytes().to_vec();
    bytes.extend(option.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend((payload.len() as u32).to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// The description of an export of this length.
fn described(size: u64) -> Vec<u8> {
    let mut info = INFO_EXPORT.to_be_bytes().to_vec();
    info.extend(size.to_be_bytes());
    info.extend(TRANSMISSION_HAS_FLAGS.to_be_bytes());
    answer(OPT_GO, REP_INFO, &info)
}

/// An export that is described, with these sizes of blocks.
fn blocks(sizes: [u32; 3]) -> Vec<u8> {
    let mut info = INFO_BLOCK_SIZE.to_be_bytes().to_vec();
    sizes.iter().for_each(|size| info.extend(size.to_be_bytes()));
    [
        described(SIZE),
        answer(OPT_GO, REP_INFO, &info),
        answer(OPT_GO, REP_ACK, &[]),
    ]
    .concat()
}

fn context(name: &str) -> Vec<u8> {
    let payload = [&7_u32.to_be_bytes(), name.as_bytes()].concat();
    answer(OPT_SET_META_CONTEXT, REP_META_CONTEXT, &payload)
}

/// What a server says in place of what it should.
type Tale = fn() -> Vec<u8>;

/// Tales that a server tells in the negotiation: the option that it answers so, 0 for its first words.
const TALES: &[(&str, u32, Tale)] = &[
    ("wrong first words", 0, || vec![0x55; 18]),
    ("half its first words", 0, || MAGIC.to_be_bytes().to_vec()),
    ("words of no negotiation", 0, || {
        [MAGIC.to_be_bytes(), [7; 8]].concat()
    }),
    ("an answer with a wrong magic", OPT_EXTENDED_HEADERS, || {
        vec![0; 20]
    }),
    ("an answer to another option", OPT_EXTENDED_HEADERS, || {
        answer(OPT_LIST, REP_ACK, &[])
    }),
    ("half an answer", OPT_STRUCTURED_REPLY, || {
        answer(OPT_STRUCTURED_REPLY, REP_ACK, &[])[..7].to_vec()
    }),
    ("an endless answer", OPT_EXTENDED_HEADERS, || {
        let mut bytes = answer(OPT_EXTENDED_HEADERS, REP_ERR_UNSUP, &[]);
        bytes.splice(16.., u32::MAX.to_be_bytes());
        bytes
    }),
    ("an answer that answers nothing", OPT_STRUCTURED_REPLY, || {
        answer(OPT_STRUCTURED_REPLY, REP_SERVER, &[])
    }),
    ("a context that nobody asked for", OPT_SET_META_CONTEXT, || {
        context("base:other")
    }),
    ("a context twice", OPT_SET_META_CONTEXT, || {
        [context("base:allocation"), context("base:allocation")].concat()
    }),
    ("contexts without end", OPT_SET_META_CONTEXT, || {
        answer(OPT_SET_META_CONTEXT, REP_INFO, &[])
    }),
    ("no description", OPT_GO, || answer(OPT_GO, REP_ACK, &[])),
    ("a description of a wrong length", OPT_GO, || {
        answer(OPT_GO, REP_INFO, &[0; 5])
    }),
    ("an empty description", OPT_GO, || answer(OPT_GO, REP_INFO, &[])),
    ("descriptions without end", OPT_GO, || {
        described(SIZE).repeat(1000)
    }),
    ("a length that no disk has", OPT_GO, || {
        [described(u64::MAX), answer(OPT_GO, REP_ACK, &[])].concat()
    }),
    ("blocks of three bytes", OPT_GO, || blocks([3, 4096, MIB as u32])),
    ("blocks of nothing", OPT_GO, || blocks([0, 0, 0])),
    ("blocks that are too large", OPT_GO, || {
        blocks([MIB as u32, MIB as u32, 32 * MIB as u32])
    }),
    ("blocks larger than the largest", OPT_GO, || {
        blocks([4096, 4096, 512])
    }),
    ("a preference below the least", OPT_GO, || {
        blocks([4096, 512, MIB as u32])
    }),
];

/// Agrees with a client up to the tale, tells that, and says no more.
fn tell(stream: UnixStream, told: u32, tale: Tale) -> io::Result<()> {
    let mut liar = Liar { stream, lie: None };
    if told == 0 {
        liar.stream.write_all(&tale())?;
        return Ok(());
    }
    let mut hello = [MAGIC.to_be_bytes(), OPTION_MAGIC.to_be_bytes()].concat();
    hello.extend((FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).to_be_bytes());
    liar.stream.write_all(&hello)?;
    liar.bytes::<4>()?;
    loop {
        liar.bytes::<8>()?;
        let option = u32::from_be_bytes(liar.bytes()?);
        let len = u32::from_be_bytes(liar.bytes()?);
        let mut payload = vec![0; len as usize];
        liar.stream.read_exact(&mut payload)?;
        match option {
            _ if option == told => return liar.stream.write_all(&tale()),
            OPT_STRUCTURED_REPLY => liar.answer(option, REP_ACK, &[])?,
            other => liar.answer(other, REP_ERR_UNSUP, &[])?,
        }
    }
}

#[test]
fn what_a_server_may_not_say_in_the_negotiation_ends_an_open() {
    let dir = scratch();
    let mut daemon = daemon().start();
    for (name, told, tale) in TALES {
        let socket = dir.path().join(name.replace(' ', "-"));
        let listener = UnixListener::bind(&socket).expect("a socket");
        let server = thread::spawn(move || {
            let (stream, _) = listener.accept().expect("a client");
            // A client that has had enough hangs up.
            drop(tell(stream, *told, *tale));
        });
        let refused = daemon
            .qmp
            .refused("blockdev-add", disk(&socket, &json!({"read-only": true})));
        assert!(!refused.desc.is_empty(), "{name}");
        server.join().expect("no panic");
        daemon.assert_running();
    }
    assert_eq!(daemon.qmp.ok("query-named-block-nodes", json!({})), json!([]));
    daemon.quit();
}
