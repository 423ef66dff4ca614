//! The driver `nbd` and the list of exports inside TLS: servers of QEMU's and ours, who is refused and how that is told, and
//! servers that cheat.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread;

use millpond_tests::daemon::{Daemon, daemon, scratch};
use millpond_tests::nbd::Request;
use millpond_tests::nbd::wire::{
    FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, MAGIC, OPT_STARTTLS, OPTION_MAGIC, OPTION_REPLY_MAGIC, REP_ACK,
};
use millpond_tests::program::{Program, oracle, under_test};
use millpond_tests::tls::{CLIENT, Certificates, qemu_client, serve, socket};
use millpond_tests::tools::{Both, Side};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

fn serving(program: Program, credentials: &str) -> Daemon {
    serve(daemon().program(program), credentials, "").start()
}

#[test]
fn data_is_the_same_by_each_kind_of_credentials() {
    let (made, both) = (Certificates::new(), Both::new());
    for (server, client) in made.kinds() {
        for program in [oracle(), under_test().clone()] {
            let daemon = serving(program, &server);
            let mut words = vec!["qemu-io".to_owned()];
            words.extend(qemu_client(&socket(&daemon), &client));
            for command in [
                "write -P 0x11 0 32M",
                "write -P 0x22 1048577 12345",
                "write -z 2M 1M",
                "flush",
                "read -P 0x11 0 1M",
                "read -P 0x22 1048577 12345",
                "read -P 0 2M 1M",
                "aio_read -P 0x11 3M 10M",
                "aio_read -P 0x11 13M 10M",
                "aio_write -P 0x33 40M 10M",
                "aio_flush",
                "read -P 0x33 40M 10M",
            ] {
                words.extend(["-c".to_owned(), command.to_owned()]);
            }
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let run = both.run(Side::Ours, &words);
            let is_sound = run.code == Some(0) && !run.stdout.contains("failed");
            assert!(is_sound, "{client}:\n{}{}", run.stdout, run.stderr);
            let bytes = fs::read(daemon.path("disk.raw")).expect("an image");
            let all = |range: std::ops::Range<u64>, byte: u8| {
                let range = range.start as usize..range.end as usize;
                bytes[range].iter().all(|other| *other == byte)
            };
            assert!(all(0..MIB, 0x11) && all(2 * MIB..3 * MIB, 0) && all(40 * MIB..50 * MIB, 0x33));
            daemon.quit();
        }
    }
}

/// A command line of both tools, with the same text from both; the place of the server is `SOCKET` in it.
#[track_caller]
fn same(both: &Both, server: &Path, line: &str) {
    let line = line.replace("SOCKET", &server.display().to_string());
    both.same(&line);
}

#[test]
fn who_is_refused_is_told_in_qemus_words() {
    let (made, both) = (Certificates::new(), Both::new());
    let [(server, client), (keyed, _), _] = made.kinds();
    made.certificate("stranger", CLIENT, "other");
    let strange = made.folder("strange", &[("ca-cert.pem", "other")]);
    let other_keys = made.keys("other-keys", "bob:ffeeddccbbaa99887766554433221100\n");
    let creds = |options: &str, id: &str| format!("--object {options},id={id},endpoint=client");
    let client = creds(&client, "c");
    let strange = creds(&format!("tls-creds-x509,dir={strange}"), "c");
    let lax = client.replace("tls-creds-x509", "tls-creds-x509,verify-peer=off");
    let image = "--image-opts driver=nbd,path=SOCKET,export=disk,tls-creds=c";
    let list = "qemu-nbd -L -k SOCKET --tls-creds=c";

    let inside = serving(oracle(), &server);
    let place = socket(&inside);
    for line in [
        format!("qemu-img info {client} {image},tls-hostname=localhost"),
        format!("qemu-img info {client} {image},tls-hostname=127.0.0.1"),
        format!("qemu-img info {lax} {image}"),
        format!("qemu-img info {client} {image},tls-hostname=elsewhere"),
        format!("qemu-img info {client} {image},tls-hostname=127.0.0.2"),
        format!("qemu-img info {client} {image}"),
        format!("qemu-img info {strange} {image},tls-hostname=localhost"),
        format!("qemu-img info {}", image.replace("tls-creds=c", "tls-creds=none")),
        format!(
            "qemu-img info {} {image}",
            client.replace("endpoint=client", "endpoint=server")
        ),
        "qemu-img info nbd+unix:///disk?socket=SOCKET".to_owned(),
        format!("{list} {client} --tls-hostname=localhost"),
        format!("{list} {client} --tls-hostname=elsewhere"),
        format!("{list} {client}"),
        format!("{list} {strange} --tls-hostname=localhost"),
        "qemu-nbd -L -k SOCKET".to_owned(),
    ] {
        same(&both, &place, &line);
    }
    inside.quit();

    let plain = daemon().nbd_unix().start();
    for line in [format!("qemu-img info {lax} {image}"), format!("{list} {lax}")] {
        same(&both, &socket(&plain), &line);
    }
    plain.quit();

    // What either library says of a key that the server does not know is its own.
    let by_key = serving(oracle(), &keyed);
    let wrong = creds(&format!("tls-creds-psk,dir={other_keys},username=bob"), "c");
    let line =
        format!("qemu-img info {wrong} {image}").replace("SOCKET", &socket(&by_key).display().to_string());
    let words: Vec<&str> = line.split(' ').collect();
    let run = both.run(Side::Ours, &words);
    assert!(
        run.code == Some(1) && run.stderr.contains("TLS handshake failed: "),
        "{}",
        run.stderr
    );
    by_key.quit();
}

/// A node that is the disk of a server, inside TLS.
fn inside(server: &Daemon, more: Value) -> Value {
    let mut options = json!({
        "driver": "nbd", "node-name": "disk", "export": "disk", "tls-creds": "c", "tls-hostname": "localhost",
        "server": { "type": "unix", "path": socket(server) },
    });
    for (name, value) in more.as_object().into_iter().flatten() {
        options[name] = value.clone();
    }
    options
}

#[test]
fn a_disk_inside_tls_moves_between_iothreads_under_load() {
    let made = Certificates::new();
    let [(server, client), ..] = made.kinds();
    let server = serving(oracle(), &server);
    let mut daemon = daemon()
        .option("--object", format!("{client},id=c,endpoint=client"))
        .option("--object", "iothread,id=one")
        .option("--object", "iothread,id=two")
        .nbd_unix()
        .blockdev(inside(&server, json!({})))
        .export("disk")
        .start();
    let mut session = daemon.session("disk");
    for round in 0..20_u64 {
        for n in 0..8 {
            let request = Request::write(n * 65_536, vec![round as u8 + 1; 65_536]);
            session.submit(&request).expect("a request is taken");
        }
        let iothread = if round % 2 == 0 { "one" } else { "two" };
        let place = json!({"node-name": "disk", "iothread": iothread, "force": true});
        daemon.qmp.ok("x-blockdev-set-iothread", place);
        for _ in 0..8 {
            assert_eq!(session.complete().expect("an answer").error, 0);
        }
        assert!(
            session
                .read(0, 8 * 65_536)
                .iter()
                .all(|byte| *byte == round as u8 + 1)
        );
    }
    session.disconnect().expect("a goodbye");
    daemon.quit();
    server.quit();
}

/// A server that takes STARTTLS, and does the rest as it likes.
fn cheat(path: &Path, rest: fn(&mut std::os::unix::net::UnixStream)) -> thread::JoinHandle<()> {
    let listener = UnixListener::bind(path).expect("a socket");
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        let mut hello = MAGIC.to_be_bytes().to_vec();
        hello.extend(OPTION_MAGIC.to_be_bytes());
        hello.extend((FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).to_be_bytes());
        stream.write_all(&hello).expect("it listens");
        let mut asked = [0; 4 + 16];
        stream.read_exact(&mut asked).expect("an option");
        assert_eq!(asked[12..16], OPT_STARTTLS.to_be_bytes());
        rest(&mut stream);
    })
}

fn ack() -> Vec<u8> {
    let mut bytes = OPTION_REPLY_MAGIC.to_be_bytes().to_vec();
    for word in [OPT_STARTTLS, REP_ACK, 0] {
        bytes.extend(word.to_be_bytes());
    }
    bytes
}

#[test]
fn servers_that_cheat_with_tls_are_refused() {
    let made = Certificates::new();
    let [(_, client), ..] = made.kinds();
    type Rest = fn(&mut std::os::unix::net::UnixStream);
    let tales: [(&str, Rest); 3] = [
        // In the clear, to be taken for what was said inside.
        (
            "Server has sent something behind its answer to STARTTLS",
            |stream| {
                let twice = [ack(), ack()].concat();
                stream.write_all(&twice).expect("it listens");
                // Until the client has gone.
                drop(stream.read_to_end(&mut Vec::new()));
            },
        ),
        ("TLS handshake failed: ", |stream| {
            stream.write_all(&ack()).expect("it listens");
            stream.read_exact(&mut [0; 5]).expect("the client begins");
            stream.write_all(&[0x55; 4096]).expect("it listens");
            drop(stream.read_to_end(&mut Vec::new()));
        }),
        ("TLS handshake failed: ", |stream| {
            stream.write_all(&ack()).expect("it listens");
            stream.read_exact(&mut [0; 5]).expect("the client begins");
        }),
    ];
    for (told, rest) in tales {
        let dir = scratch();
        let path = dir.path().join("socket");
        let server = cheat(&path, rest);
        let mut daemon = daemon()
            .option("--object", format!("{client},id=c,endpoint=client"))
            .start();
        let options = json!({
            "driver": "nbd", "node-name": "disk", "tls-creds": "c", "tls-hostname": "localhost",
            "server": { "type": "unix", "path": path },
        });
        let refused = daemon
            .qmp
            .execute("blockdev-add", options)
            .expect_err("a refusal");
        assert!(refused.desc.contains(told), "{}", refused.desc);
        daemon.quit();
        server.join().expect("the server ends");
    }
}
