//! Character devices beside QEMU's: made, changed and removed at run time, with a monitor on each kind that carries one.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

use millpond_tests::PATIENCE;
use millpond_tests::beside::beside_qemu;
use millpond_tests::daemon::{Builder, Daemon, daemon};
use millpond_tests::program::oracle;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Value, json};

/// An answer as text, with what differs between two runs left out.
fn ask(daemon: &mut Daemon, command: &str, arguments: Value) -> String {
    let said = format!("{command} {arguments}");
    let answer = match daemon.qmp.execute(command, arguments) {
        Ok(Value::Array(mut list)) => {
            list.sort_by_key(|entry| entry["label"].to_string());
            json!(list).to_string()
        }
        Ok(reply) => reply.to_string(),
        Err(error) => format!("{}: {}", error.class, error.desc),
    };
    let text = format!("{said}: {answer}").replace(&daemon.dir().display().to_string(), "DIR");
    let text = numbers_after(&text, "/dev/pts/");
    numbers_after(&text, "127.0.0.1:")
}

/// A text with `N` for each number that follows a mark.
fn numbers_after(text: &str, mark: &str) -> String {
    let mut parts = text.split(mark);
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| {
        let rest = part.trim_start_matches(|digit: char| digit.is_ascii_digit());
        format!("{text}{mark}N{rest}")
    })
}

fn add(daemon: &mut Daemon, id: &str, kind: &str, data: Value) -> String {
    let backend = json!({"type": kind, "data": data});
    ask(daemon, "chardev-add", json!({"id": id, "backend": backend}))
}

fn change(daemon: &mut Daemon, id: &str, kind: &str, data: Value) -> String {
    let backend = json!({"type": kind, "data": data});
    ask(daemon, "chardev-change", json!({"id": id, "backend": backend}))
}

/// What `query-chardev` shows of a device.
fn filename(daemon: &mut Daemon, id: &str) -> String {
    let devices = daemon.qmp.ok("query-chardev", json!({}));
    let devices = devices.as_array().expect("a list of devices");
    let device = devices.iter().find(|device| device["label"] == id);
    let device = device.unwrap_or_else(|| panic!("there is no device {id}"));
    device["filename"].as_str().expect("a name").to_owned()
}

/// The port that a device listens on.
fn port(daemon: &mut Daemon, id: &str) -> u16 {
    let name = filename(daemon, id);
    let (_, port) = name.split_once("127.0.0.1:").expect("an address");
    let port = port.split(',').next().unwrap_or_default();
    port.parse().expect("a port")
}

fn inet(port: &str) -> Value {
    json!({"type": "inet", "data": {"host": "127.0.0.1", "port": port}})
}

fn unix(daemon: &Daemon, name: &str) -> Value {
    json!({"type": "unix", "data": {"path": daemon.path(name)}})
}

#[test]
fn devices_are_made_with_qemus_answers() {
    beside_qemu(|mut daemon| {
        let path = |name: &str| daemon.path(name);
        let (out, missing, link) = (path("out"), path("no/such"), path("link"));
        let it = &mut daemon;
        let remote = inet("7");
        let mut seen = vec![
            add(it, "n", "null", json!({})),
            add(it, "n", "null", json!({})),
            add(it, "1n", "null", json!({})),
            add(it, "f", "file", json!({"out": out})),
            add(it, "f1", "file", json!({"out": missing})),
            add(it, "f2", "file", json!({"out": out, "append": true})),
            add(it, "f3", "file", json!({"out": out, "in": missing})),
            add(it, "p", "pty", json!({})),
            add(it, "p1", "pty", json!({"path": link})),
            add(it, "p2", "pty", json!({"path": link})),
            add(it, "i", "pipe", json!({"device": missing})),
            add(it, "u", "udp", json!({"remote": remote})),
            add(it, "u1", "udp", json!({"remote": remote, "local": inet("0")})),
            add(it, "u2", "udp", json!({"remote": inet("nothing")})),
            add(it, "r", "ringbuf", json!({})),
            add(it, "r1", "ringbuf", json!({"size": 3})),
            add(it, "r2", "ringbuf", json!({"size": -1})),
            add(it, "r3", "memory", json!({"size": 8})),
            add(it, "m", "mux", json!({"chardev": "r"})),
            add(it, "m1", "mux", json!({"chardev": "nobody"})),
            add(it, "m2", "mux", json!({"chardev": "m"})),
            add(it, "s", "stdio", json!({})),
            add(it, "s1", "stdio", json!({"signal": false})),
            add(it, "l", "null", json!({"logfile": missing})),
            add(it, "l1", "null", json!({"logfile": out, "logappend": true})),
            ask(it, "query-chardev", json!({})),
        ];
        let sockets = [
            json!({"addr": unix(it, "a")}),
            json!({"addr": unix(it, "none"), "server": false}),
            json!({"addr": unix(it, "none"), "server": false, "reconnect-ms": 60000}),
            json!({"addr": unix(it, "none"), "server": false, "websocket": true}),
            json!({"addr": unix(it, "none"), "server": false, "wait": false}),
            json!({"addr": inet("0"), "websocket": true}),
            json!({"addr": inet("0"), "telnet": true, "wait": false}),
            json!({"addr": inet("0"), "telnet": true, "tn3270": true, "websocket": true}),
            json!({"addr": inet("0"), "tn3270": true}),
            json!({"addr": inet("0"), "reconnect": 3}),
            json!({"addr": inet("0"), "tls-creds": "x"}),
            json!({"addr": inet("0"), "tls-authz": "x"}),
            json!({"addr": inet("nothing")}),
        ];
        for (number, socket) in sockets.into_iter().enumerate() {
            seen.push(add(&mut daemon, &format!("s{number}"), "socket", socket));
        }
        seen.push(ask(&mut daemon, "query-chardev", json!({})));
        seen
    });
}

#[test]
fn devices_are_changed_and_removed_with_qemus_answers() {
    beside_qemu(|mut daemon| {
        let out = daemon.path("out");
        let link = daemon.path("link");
        let socket = json!({"addr": unix(&daemon, "socket")});
        let it = &mut daemon;
        let mut seen = vec![
            add(it, "n", "null", json!({})),
            add(it, "r", "ringbuf", json!({})),
            add(it, "m", "mux", json!({"chardev": "r"})),
            add(it, "over", "mux", json!({"chardev": "m"})),
            add(it, "s", "socket", socket.clone()),
            add(it, "p", "pty", json!({"path": link})),
            change(it, "n", "file", json!({"out": out})),
            change(it, "nobody", "null", json!({})),
            change(it, "m", "null", json!({})),
            change(it, "r", "null", json!({})),
            change(it, "s", "socket", socket),
        ];
        for id in ["n", "nobody", "r", "m", "over", "m", "r", "r", "s", "p"] {
            seen.push(ask(it, "chardev-remove", json!({"id": id})));
            seen.push(ask(it, "chardev-send-break", json!({"id": id})));
        }
        seen.push(format!("{:?}", std::fs::symlink_metadata(link).is_ok()));
        seen
    });
}

#[test]
fn a_device_with_a_monitor_stays_as_it_is() {
    beside_qemu(|mut daemon| {
        let devices = daemon.qmp.ok("query-chardev", json!({}));
        let own = devices[0]["label"]
            .as_str()
            .expect("the monitor's device")
            .to_owned();
        let mut seen = vec![
            change(&mut daemon, &own, "null", json!({})),
            ask(&mut daemon, "chardev-remove", json!({"id": own})),
            ask(&mut daemon, "chardev-send-break", json!({"id": own})),
        ];
        seen = seen.iter().map(|text| text.replace(&own, "OWN")).collect();
        seen
    });
}

#[test]
fn memory_is_written_and_read_as_qemus() {
    beside_qemu(|mut daemon| {
        let it = &mut daemon;
        let mut seen = vec![
            add(it, "r", "ringbuf", json!({"size": 8})),
            add(it, "n", "null", json!({})),
        ];
        let mut write = |it: &mut Daemon, data: &str, format: Option<&str>| {
            let mut arguments = json!({"device": "r", "data": data});
            if let Some(format) = format {
                arguments["format"] = json!(format);
            }
            seen.push(ask(it, "ringbuf-write", arguments));
            for size in [2, 3, 100] {
                let arguments = json!({"device": "r", "size": size});
                seen.push(ask(it, "ringbuf-read", arguments));
            }
        };
        for text in [
            "abcdef",
            "0123456789abc",
            "a\u{e4}\u{20ac}\u{1f980}",
            "a\u{0}b\n\t\"",
            "",
        ] {
            write(it, text, None);
            write(it, text, Some("utf8"));
        }
        for text in [
            "YWJjZA==", "YWJj", "YQ", "/4A=", "/wD+", "!!", "YW\nJj", "4oI=", "",
        ] {
            write(it, text, Some("base64"));
        }
        for size in [0, -1] {
            seen.push(ask(it, "ringbuf-read", json!({"device": "r", "size": size})));
        }
        seen.push(ask(
            it,
            "ringbuf-write",
            json!({"device": "r", "data": "ab\u{fc}"}),
        ));
        seen.push(ask(
            it,
            "ringbuf-read",
            json!({"device": "r", "size": 9, "format": "base64"}),
        ));
        for id in ["n", "nobody"] {
            seen.push(ask(it, "ringbuf-write", json!({"device": id, "data": "x"})));
            seen.push(ask(it, "ringbuf-read", json!({"device": id, "size": 1})));
        }
        seen
    });
}

/// A client's end of a monitor that is on any kind of device.
struct Talk<R, W> {
    reader: R,
    writer: W,
    received: Vec<u8>,
}

impl<R: Read, W: Write> Talk<R, W> {
    fn new(reader: R, writer: W) -> Self {
        let received = Vec::new();
        Self {
            reader,
            writer,
            received,
        }
    }

    /// The next line that comes.
    #[track_caller]
    fn line(&mut self) -> Value {
        loop {
            if let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.received.drain(..=end).collect();
                return serde_json::from_slice(&line).expect("a line of JSON");
            }
            let mut bytes = [0; 4096];
            let count = self.reader.read(&mut bytes).expect("a monitor answers");
            assert_ne!(count, 0, "the monitor has ended");
            self.received.extend(&bytes[..count]);
        }
    }

    fn say(&mut self, text: &str) {
        self.writer
            .write_all(text.as_bytes())
            .and_then(|()| self.writer.flush())
            .expect("a monitor takes commands");
    }

    /// A whole conversation: the greeting, and some commands with their answers.
    #[track_caller]
    fn converse(&mut self) {
        assert!(self.line()["QMP"].is_object(), "a greeting");
        self.say("{'execute': 'qmp_capabilities'}");
        assert_eq!(self.line(), json!({"return": {}}));
        self.say("{'execute': 'query-block', 'id': 1}");
        assert_eq!(self.line(), json!({"return": [], "id": 1}));
    }
}

/// A daemon with one more monitor, on a device `c`.
fn with_monitor(builder: Builder, chardev: &str) -> Daemon {
    let builder = builder.option("--chardev", chardev);
    builder.option("--monitor", "c").start()
}

/// Runs a test on QEMU's daemon and on ours.
fn both(test: impl Fn(Builder)) {
    test(daemon().program(oracle()));
    test(daemon());
}

fn tcp(daemon: &mut Daemon) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port(daemon, "c"))).expect("the device listens");
    stream
        .set_read_timeout(Some(PATIENCE))
        .expect("a socket takes a timeout");
    stream
}

#[test]
fn a_monitor_is_on_a_pseudoterminal() {
    both(|builder| {
        let mut daemon = with_monitor(builder, "pty,id=c");
        let name = filename(&mut daemon, "c");
        let path = name.strip_prefix("pty:").expect("a terminal");
        let open = || {
            File::options()
                .read(true)
                .write(true)
                .open(path)
                .expect("a terminal")
        };
        Talk::new(Patient(open()), open()).converse();
        daemon.quit();
    });
}

/// A file that is read for no longer than a test waits.
struct Patient(File);

impl Read for Patient {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let mut file = [PollFd::new(&self.0, PollFlags::IN)];
        let patience = Timespec::try_from(PATIENCE).expect("not long");
        assert_eq!(poll(&mut file, Some(&patience))?, 1, "nothing comes");
        self.0.read(buffer)
    }
}

#[test]
fn a_monitor_is_on_pipes() {
    both(|builder| {
        let dir = builder.dir().to_owned();
        let pipe = |name: &str| {
            let path = dir.join(name);
            let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
            rustix::fs::mkfifoat(rustix::fs::CWD, &path, mode).expect("a pipe");
            File::options().read(true).write(true).open(path).expect("a pipe")
        };
        let (input, output) = (pipe("c.in"), pipe("c.out"));
        let daemon = with_monitor(builder, &format!("pipe,id=c,path={}", dir.join("c").display()));
        Talk::new(Patient(output), input).converse();
        daemon.quit();
    });
}

#[test]
fn a_monitor_is_on_datagrams() {
    let builder = daemon();
    {
        let ours = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        ours.set_read_timeout(Some(PATIENCE))
            .expect("a socket takes a timeout");
        let port = ours.local_addr().expect("an address").port();
        let daemon = with_monitor(
            builder,
            &format!("udp,id=c,host=127.0.0.1,port={port},localaddr=127.0.0.1"),
        );
        let mut bytes = [0; 4096];
        let mut receive = || {
            let (count, from) = ours.recv_from(&mut bytes).expect("a datagram");
            (String::from_utf8_lossy(&bytes[..count]).into_owned(), from)
        };
        let (greeting, from) = receive();
        assert!(greeting.contains("QMP"), "{greeting}");
        for (command, answer) in [
            ("{'execute': 'qmp_capabilities'}", "{\"return\": {}}\r\n"),
            ("{'execute': 'query-block'}", "{\"return\": []}\r\n"),
        ] {
            ours.send_to(command.as_bytes(), from).expect("it is sent");
            assert_eq!(receive().0, answer);
        }
        daemon.quit();
    }
}

/// The bytes that stand for telnet's commands are not part of a conversation.
#[test]
fn a_monitor_speaks_telnet() {
    const TELNET: &[u8] = &[255, 251, 1, 255, 251, 3, 255, 251, 0, 255, 253, 0];
    const TN3270: &[u8] = &[
        255, 253, 25, 255, 251, 25, 255, 253, 0, 255, 251, 0, 255, 253, 24, 255, 250, 24, 1, 255, 240,
    ];
    both(|builder| {
        let mut daemon = with_monitor(
            builder,
            "socket,id=c,host=127.0.0.1,port=0,server=on,wait=off,telnet=on",
        );
        for _ in 0..2 {
            let mut stream = tcp(&mut daemon);
            let mut greeting = [0; TELNET.len()];
            stream.read_exact(&mut greeting).expect("options are negotiated");
            assert_eq!(greeting, TELNET);
            stream
                .write_all(&[255, 253, 1, 255, 254, 3])
                .expect("they are answered");
            let reader = stream.try_clone().expect("a socket can be cloned");
            Talk::new(reader, stream).converse();
        }
        daemon.quit();
    });
    let mut daemon = with_monitor(
        daemon(),
        "socket,id=c,host=127.0.0.1,port=0,server=on,wait=off,tn3270=on",
    );
    let mut stream = tcp(&mut daemon);
    let mut greeting = [0; TN3270.len()];
    stream.read_exact(&mut greeting).expect("options are negotiated");
    assert_eq!(greeting, TN3270);
    daemon.quit();
}

/// A WebSocket's client, which masks what it sends with zeroes.
struct WebSocket(TcpStream);

impl WebSocket {
    fn connect(mut stream: TcpStream) -> (Self, String) {
        let request = "GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
            Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
            Sec-WebSocket-Protocol: binary\r\n\r\n";
        stream.write_all(request.as_bytes()).expect("a request is sent");
        let mut response = Vec::new();
        while !response.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).expect("a response");
            response.extend(byte);
        }
        (
            Self(stream),
            String::from_utf8(response).expect("a response is text"),
        )
    }
}

impl Read for &WebSocket {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let mut stream = &self.0;
        let mut head = [0; 2];
        stream.read_exact(&mut head)?;
        assert_eq!(head[0], 0x82, "a whole message of bytes");
        let len = match head[1] {
            126 => {
                let mut long = [0; 2];
                stream.read_exact(&mut long)?;
                usize::from(u16::from_be_bytes(long))
            }
            short => usize::from(short),
        };
        stream.read_exact(&mut buffer[..len])?;
        Ok(len)
    }
}

impl Write for &WebSocket {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let len = u8::try_from(bytes.len()).expect("a short message");
        assert!(len < 126, "a short message");
        let mut frame = vec![0x82, 0x80 | len, 0, 0, 0, 0];
        frame.extend(bytes);
        (&self.0).write_all(&frame)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_monitor_speaks_websocket() {
    let builder = daemon();
    {
        let mut daemon = with_monitor(
            builder,
            "socket,id=c,host=127.0.0.1,port=0,server=on,wait=off,websocket=on",
        );
        let (socket, response) = WebSocket::connect(tcp(&mut daemon));
        let response = response.to_ascii_lowercase();
        assert!(response.starts_with("http/1.1 101 "), "{response}");
        for header in [
            "sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=\r\n",
            "sec-websocket-protocol: binary\r\n",
            "upgrade: websocket\r\n",
        ] {
            assert!(response.contains(header), "{response}");
        }
        Talk::new(&socket, &socket).converse();
        assert!(filename(&mut daemon, "c").starts_with("websocket:127.0.0.1:"));
        drop(socket);
        // Who speaks something else is gone, and the next is served.
        let mut other = tcp(&mut daemon);
        other
            .write_all(b"{'execute': 'qmp_capabilities'}\r\n\r\n")
            .expect("it is sent");
        let mut rest = Vec::new();
        other.read_to_end(&mut rest).expect("the connection is closed");
        assert!(!String::from_utf8_lossy(&rest).contains("QMP"));
        let (socket, _) = WebSocket::connect(tcp(&mut daemon));
        Talk::new(&socket, &socket).converse();
        daemon.quit();
    }
}

#[test]
fn a_monitor_reads_a_file_and_writes_another_and_all_is_logged() {
    both(|builder| {
        let dir = builder.dir().to_owned();
        let commands = "{'execute': 'qmp_capabilities'}{'execute': 'query-block'}{'execute': 'ringbuf-write', \
            'arguments': {'device': 'r', 'data': 'done'}}";
        std::fs::write(dir.join("in"), commands).expect("a file");
        std::fs::write(dir.join("log"), "before\n").expect("a file");
        let path = |name: &str| dir.join(name).display().to_string();
        let file = format!(
            "file,id=c,path={},input-path={},logfile={},logappend=on",
            path("out"),
            path("in"),
            path("log")
        );
        let mut daemon = with_monitor(builder.option("--chardev", "ringbuf,id=r"), &file);
        // The commands are carried out in their order: the last one tells that all are.
        let deadline = Instant::now() + PATIENCE;
        while daemon.qmp.ok("ringbuf-read", json!({"device": "r", "size": 9})) != "done" {
            assert!(
                Instant::now() < deadline,
                "the file's commands are not carried out"
            );
        }
        daemon.qmp.quit();
        daemon.expect_clean_exit();
        let read = |name: &str| std::fs::read_to_string(dir.join(name)).expect("the file was made");
        let out = read("out");
        let lines: Vec<&str> = out.lines().collect();
        assert!(lines[0].contains("QMP"), "{out}");
        assert_eq!(
            lines[1..],
            ["{\"return\": {}}", "{\"return\": []}", "{\"return\": {}}"]
        );
        assert_eq!(read("log"), format!("before\n{out}"));
    });
}

#[test]
fn memory_can_be_a_monitors_device_and_holds_what_it_says_last() {
    both(|builder| {
        let mut daemon = with_monitor(builder, "ringbuf,id=c,size=64");
        let read = |daemon: &mut Daemon| {
            let said = daemon
                .qmp
                .ok("ringbuf-read", json!({"device": "c", "size": 1000}));
            said.as_str().expect("text").to_owned()
        };
        let deadline = Instant::now() + PATIENCE;
        let mut said = read(&mut daemon);
        while said.is_empty() {
            assert!(Instant::now() < deadline, "the monitor does not greet");
            said = read(&mut daemon);
        }
        assert!(said.len() <= 64 && said.ends_with("\r\n"), "{said}");
        daemon.quit();
    });
}

/// Two monitors share a socket: what is typed goes to the one on which the focus is.
#[test]
fn monitors_share_a_device() {
    let builder = daemon();
    {
        let socket = builder.dir().join("shared");
        let path = socket.display();
        let builder = builder
            .option(
                "--chardev",
                format!("socket,id=base,path={path},server=on,wait=off"),
            )
            .option("--chardev", "mux,id=m,chardev=base")
            .option("--monitor", "m")
            .option("--monitor", "m");
        let mut daemon = builder.start();
        let devices = ask(&mut daemon, "query-chardev", json!({}));
        assert_eq!(devices.matches("\"frontend-open\":true").count(), 3, "{devices}");
        for id in ["m", "base"] {
            let refused = daemon.qmp.refused("chardev-remove", json!({"id": id}));
            assert_eq!(refused.desc, format!("Chardev '{id}' is busy"));
        }
        for _ in 0..2 {
            let mut talk = shared_talk(&socket);
            assert!(talk.line()["QMP"].is_object() && talk.line()["QMP"].is_object());
            // Each negotiates by itself.
            talk.say("{'execute': 'qmp_capabilities', 'id': 'one'}");
            assert_eq!(talk.line(), json!({"return": {}, "id": "one"}));
            talk.say("\u{1}c{'execute': 'query-block', 'id': 'other'}");
            assert_eq!(talk.line()["error"]["class"], "CommandNotFound");
            talk.say("{'execute': 'qmp_capabilities', 'id': 'other'}");
            assert_eq!(talk.line(), json!({"return": {}, "id": "other"}));
            talk.say(
                "{'execute': 'query-block', 'id': 'other'}\u{1}c{'execute': 'query-block', 'id': 'one'}",
            );
            let mut answers = [talk.line(), talk.line()];
            answers.sort_by_key(|answer| answer["id"].to_string());
            let of = |id: &str| json!({"return": [], "id": id});
            assert_eq!(answers, [of("one"), of("other")]);
        }
        // Whoever types can end the program.
        let mut talk = shared_talk(&socket);
        assert!(talk.line()["QMP"].is_object() && talk.line()["QMP"].is_object());
        talk.say("\u{1}x");
        daemon.expect_clean_exit();
    }
}

fn shared_talk(path: &Path) -> Talk<UnixStream, UnixStream> {
    let stream = UnixStream::connect(path).expect("the device listens");
    stream
        .set_read_timeout(Some(PATIENCE))
        .expect("a socket takes a timeout");
    Talk::new(stream.try_clone().expect("a socket can be cloned"), stream)
}

#[test]
fn a_device_is_shared_by_its_own_option() {
    both(|builder| {
        let socket = builder.dir().join("shared");
        let device = format!("socket,id=c,path={},server=on,wait=off,mux=on", socket.display());
        let mut daemon = with_monitor(builder, &device);
        let devices = ask(&mut daemon, "query-chardev", json!({}));
        assert!(
            devices.contains("\"c-base\"") && devices.contains("\"mux\""),
            "{devices}"
        );
        shared_talk(&socket).converse();
        daemon.quit();
    });
}

/// A log that nobody takes holds up the monitor that is logged, and no other.
#[test]
fn a_log_that_is_not_written_holds_up_nobody_else() {
    let builder = daemon();
    let pipe = builder.dir().join("pipe");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, mode).expect("a pipe");
    // It is open, and nobody reads it.
    let held = File::options()
        .read(true)
        .write(true)
        .open(&pipe)
        .expect("a pipe");
    let socket = builder.dir().join("logged");
    let device = format!(
        "socket,id=c,path={},server=on,wait=off,logfile={}",
        socket.display(),
        pipe.display()
    );
    let mut daemon = with_monitor(builder, &device);
    let mut logged = shared_talk(&socket);
    logged.converse();
    for _ in 0..40 {
        logged.say("{'execute': 'query-qmp-schema'}");
    }
    // A pipe holds 64 KiB, and as many pieces of that size wait for it as there may.
    for _ in 0..5 {
        assert!(logged.line()["return"].is_array());
    }
    for _ in 0..10 {
        assert_eq!(daemon.qmp.ok("query-block", json!({})), json!([]));
    }
    let before = Instant::now();
    daemon.qmp.quit();
    daemon.expect_clean_exit();
    assert!(before.elapsed() < PATIENCE, "the end waits for the log");
    drop(held);
}
