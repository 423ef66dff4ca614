//! NBD inside TLS when things change or go wrong: clients that stall, die and lie, credentials that are replaced, exports that
//! move and go.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use millpond_tests::PATIENCE;
use millpond_tests::daemon::{Builder, Daemon, daemon, wait_for};
use millpond_tests::tls::{
    CLIENT, Certificates, SERVER, SIZE, begin_tls, cut_after, qemu_client, qemu_io_inside, serve, socket,
};
use millpond_tests::tool::{run, try_run};
use serde_json::{Value, json};

/// Certificates, and a daemon with the export `disk` that wants one of them.
struct World {
    made: Certificates,
    /// The credentials of a client that is let in.
    client: String,
}

impl World {
    fn new() -> Self {
        let made = Certificates::new();
        made.certificate("server", SERVER, "ca")
            .certificate("client", CLIENT, "ca");
        made.server("server-dir", "server");
        let client = format!("tls-creds-x509,dir={}", made.client("client-dir", "client"));
        Self { made, client }
    }

    fn daemon(&self, options: &str) -> Builder {
        let dir = self.made.path("server-dir");
        let credentials = format!("tls-creds-x509,dir={}", dir.display());
        serve(daemon().monitors(2), &credentials, options)
    }

    /// A well-behaved client, which must be served.
    #[track_caller]
    fn served(&self, daemon: &Daemon) {
        let commands = ["write -P 7 1M 64k", "read -P 7 1M 64k"];
        let run = qemu_io_inside(&socket(daemon), &self.client, &commands);
        let failed = run.code != Some(0) || run.stdout.contains("failed");
        assert!(!failed, "{}{}\n{}", run.stdout, run.stderr, daemon.log());
    }

    /// The URI by which libnbd comes as the client that is let in.
    fn uri(&self, daemon: &Daemon) -> String {
        let certificates = self.made.path("client-dir").display().to_string();
        let socket = socket(daemon).display().to_string();
        format!("nbds+unix:///disk?socket={socket}&tls-certificates={certificates}")
    }

    /// A client that writes inside TLS without end.
    fn writer(&self, daemon: &Daemon) -> Child {
        let certificates = self.made.path("client-dir").display().to_string();
        let socket = socket(daemon).display().to_string();
        let script = format!(
            "h.set_tls(nbd.TLS_REQUIRE)\nh.set_tls_certificates('{certificates}')\nh.set_export_name('disk')\n\
             h.connect_unix('{socket}')\nwhile True: h.pwrite(b'x' * 65536, 0)"
        );
        // The module belongs to the distribution's python3, and not to another one of the path.
        Command::new("nbdsh")
            .env("PATH", "/usr/bin:/bin")
            .args(["-c", &script])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("nbdsh is installed (install the Debian package libnbd-bin)")
    }
}

fn connect(daemon: &Daemon) -> UnixStream {
    let stream = UnixStream::connect(socket(daemon)).expect("the server listens");
    stream
        .set_read_timeout(Some(PATIENCE))
        .expect("a socket takes a time limit");
    stream
}

/// The server closes the connection, whatever it still says before.
#[track_caller]
fn is_closed(stream: &mut UnixStream) {
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}"),
    }
}

#[test]
fn clients_that_stall_in_the_handshake_hold_up_nobody_and_are_closed() {
    let world = World::new();
    let mut daemon = world.daemon(",handshake-max-seconds=2").start();
    // One says nothing, one says half of a hello, and one that it has more to say than it has.
    let mut stalled: Vec<UnixStream> = Vec::new();
    for said in [
        &[][..],
        &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3],
        &[0x16, 3, 1, 0x3f, 0xff, 1, 0, 0xff, 0xff],
    ] {
        let mut stream = connect(&daemon);
        begin_tls(&mut stream);
        stream.write_all(said).expect("the server listens");
        stalled.push(stream);
    }
    let begun = Instant::now();
    daemon.qmp.ok("query-block-exports", json!({}));
    world.served(&daemon);
    stalled.iter_mut().for_each(is_closed);
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    world.served(&daemon);
    daemon.quit();
}

#[test]
fn the_server_stops_beside_handshakes_under_way() {
    let world = World::new();
    let mut daemon = world.daemon(",handshake-max-seconds=0").start();
    let mut stream = connect(&daemon);
    begin_tls(&mut stream);
    daemon.qmp.ok("nbd-server-stop", json!({}));
    is_closed(&mut stream);
    daemon.quit();
}

#[test]
fn clients_that_lie_inside_tls_hurt_only_themselves() {
    let world = World::new();
    let mut daemon = world.daemon("").start();
    let mut hello = vec![0x16, 3, 1, 0, 4, 1, 0, 0, 0];
    hello.extend([0; 64]);
    let long = [&[0x16, 3, 1, 0xff, 0xff][..], &[0; 70_000]].concat();
    let plain = [&b"IHAVEOPT"[..], &[0, 0, 0, 3, 0, 0, 0, 0]].concat();
    for lie in [
        &hello[..],
        &long,
        &plain,
        &[0xff; 100],
        &[0x17, 3, 3, 0, 1, 0],
        &[0x15, 3, 3, 0, 2, 2, 0],
    ] {
        let mut stream = connect(&daemon);
        begin_tls(&mut stream);
        // The server may have had enough before all of it was said.
        let _ = stream.write_all(lie);
        is_closed(&mut stream);
    }
    // What is said in the clear behind STARTTLS is not taken for what comes inside TLS.
    let mut stream = connect(&daemon);
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).expect("a greeting");
    let begin = [&[0, 0, 0, 3][..], b"IHAVEOPT", &[0, 0, 0, 5, 0, 0, 0, 0]].concat();
    let injected = [&begin[..], b"IHAVEOPT", &[0, 0, 0, 8, 0, 0, 0, 0]].concat();
    stream.write_all(&injected).expect("the server listens");
    is_closed(&mut stream);
    daemon.assert_running();
    world.served(&daemon);
    daemon.quit();
}

#[test]
fn clients_that_die_after_any_part_of_what_they_say() {
    let world = World::new();
    let mut daemon = world.daemon("").start();
    let lengths = (0..400)
        .step_by(40)
        .chain((400..6000).step_by(280))
        .chain([20_000, 70_000, 200_000]);
    for (number, most) in lengths.enumerate() {
        let proxy = PathBuf::from(daemon.path(&format!("proxy{number}")));
        let passing = cut_after(&proxy, &socket(&daemon), most);
        let run = qemu_io_inside(&proxy, &world.client, &["write -P 9 0 1M", "read -P 9 0 1M"]);
        assert_ne!(run.code, Some(0), "{most} bytes are not all that it says");
        passing.join().expect("the proxy ends");
    }
    daemon.assert_running();
    world.served(&daemon);
    // All are gone: the export has no client that a safe removal would spare.
    let gone = Instant::now() + PATIENCE;
    let removal = json!({"id": "exp-disk", "mode": "safe"});
    while let Err(error) = daemon.qmp.execute("block-export-del", removal.clone()) {
        assert!(Instant::now() < gone, "{error:?}");
        thread::yield_now();
    }
    daemon.quit();
}

/// Takes one TCP client, and goes up to STARTTLS on its behalf, so that a program that knows TLS and not NBD can go on.
fn for_any_client(daemon: &Daemon) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let port = listener.local_addr().expect("a port").port();
    let socket = socket(daemon);
    thread::spawn(move || {
        let (client, _) = listener.accept().expect("a client comes");
        let mut server = UnixStream::connect(socket).expect("the server listens");
        begin_tls(&mut server);
        let (mut from, mut to) = (
            server.try_clone().expect("a second handle"),
            client.try_clone().expect("a second handle"),
        );
        let back = thread::spawn(move || {
            let _ = std::io::copy(&mut from, &mut to);
            let _ = to.shutdown(std::net::Shutdown::Both);
        });
        let _ = std::io::copy(&mut &client, &mut server);
        let _ = server.shutdown(std::net::Shutdown::Both);
        back.join().expect("the way back ends");
    });
    port
}

/// What OpenSSL's own client says, given more arguments and told to say something inside TLS.
fn openssl_client(world: &World, daemon: &Daemon, arguments: &[&str], says: &str) -> String {
    let port = for_any_client(daemon);
    let (certificate, key) = (world.made.path("client"), world.made.path("key"));
    let mut client = Command::new("timeout")
        .args(["--kill-after=5", "60", "openssl", "s_client", "-connect"])
        .arg(format!("127.0.0.1:{port}"))
        .arg("-cert")
        .arg(certificate)
        .arg("-key")
        .arg(key)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("openssl is installed (install the Debian package openssl)");
    let mut stdin = client.stdin.take().expect("standard input");
    // A client that was refused does not listen.
    let _ = stdin.write_all(says.as_bytes());
    let output = client.wait_with_output().expect("the client ends");
    drop(stdin);
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn old_protocols_and_new_agreements_are_refused_and_nothing_is_resumed() {
    let world = World::new();
    let daemon = world.daemon("").start();
    let old = ["-tls1_1", "-cipher", "DEFAULT:@SECLEVEL=0"];
    let told = openssl_client(&world, &daemon, &old, "");
    assert!(told.contains("alert protocol version"), "{told}");
    let told = openssl_client(&world, &daemon, &["-tls1_2"], "R\n");
    assert!(told.contains("no renegotiation"), "{told}");
    assert!(!told.contains("TLS session ticket:"), "{told}");
    // What is no option of NBD's ends the connection; until then this is an ordinary client of TLS 1.3.
    let told = openssl_client(&world, &daemon, &["-tls1_3"], "no option of any kind\n");
    assert!(
        told.contains("TLSv1.3") && !told.contains("New Session Ticket"),
        "{told}"
    );
    world.served(&daemon);
    daemon.quit();
}

#[test]
fn certificates_are_read_again_for_new_clients() {
    let world = World::new();
    let daemon = world.daemon("").start();
    world.served(&daemon);
    // A certificate for another host: the client minds, so it is the new one.
    let elsewhere = SERVER.replace("localhost", "elsewhere");
    world.made.certificate("elsewhere", &elsewhere, "ca");
    let put = |from: &str| {
        let (next, place) = (
            world.made.path("next"),
            world.made.path("server-dir/server-cert.pem"),
        );
        fs::copy(world.made.path(from), &next).expect("a file can be copied");
        fs::rename(next, place).expect("a file can be replaced");
    };
    put("elsewhere");
    let run = qemu_io_inside(&socket(&daemon), &world.client, &["read 0 512"]);
    let minds = "Certificate does not match the hostname localhost";
    assert!(run.stderr.contains(minds), "{}", run.stderr);
    put("server");
    world.served(&daemon);
    // One that is no use leaves the server with the one before.
    put("other-key");
    world.served(&daemon);
    daemon.wait_for_log("TLS credentials have changed and cannot be used");
    // A client that is revoked now is refused from now on.
    put("server");
    world.made.revoked("list", "client");
    fs::copy(world.made.path("list"), world.made.path("server-dir/ca-crl.pem")).expect("a copy");
    let run = qemu_io_inside(&socket(&daemon), &world.client, &["read 0 512"]);
    assert_ne!(run.code, Some(0));
    daemon.wait_for_log("The certificate has been revoked");
    daemon.quit();
}

#[test]
fn drains_and_moves_under_clients_inside_tls_lose_nothing() {
    let world = World::new();
    let mut daemon = world.daemon("").start();
    let (data, back) = (
        world.made.path("data.raw"),
        world.made.path("back.raw").display().to_string(),
    );
    let uri = world.uri(&daemon);
    let copies = thread::spawn(move || {
        for round in 0..6_u64 {
            let bytes: Vec<u8> = (0..SIZE)
                .map(|at| (at / 512 * 31 + at % 13 + round) as u8)
                .collect();
            fs::write(&data, &bytes).expect("data is written");
            run("nbdcopy", &[data.display().to_string(), uri.clone()]);
            run("nbdcopy", &[uri.clone(), back.clone()]);
            assert!(fs::read(&back).expect("a copy") == bytes, "round {round}");
        }
    });
    let mut rounds = 0;
    while !copies.is_finished() {
        let id = format!("io{rounds}");
        daemon
            .qmp
            .ok("object-add", json!({"qom-type": "iothread", "id": id}));
        let place = |iothread: Value| json!({"node-name": "disk", "iothread": iothread, "force": true});
        daemon.qmp.ok("x-blockdev-set-iothread", place(json!(id)));
        let reopen = json!({"driver": "raw", "node-name": "disk", "file": "file"});
        daemon.qmp.ok("blockdev-reopen", json!({ "options": [reopen] }));
        daemon.qmp.ok("x-blockdev-set-iothread", place(Value::Null));
        daemon.qmp.ok("object-del", json!({ "id": id }));
        rounds += 1;
    }
    copies.join().expect("every byte is as it was written");
    assert!(rounds > 10, "{rounds} rounds are no load on the graph");
    daemon.quit();
}

#[test]
fn an_export_is_removed_from_clients_inside_tls_safely_or_at_once() {
    let world = World::new();
    let mut daemon = world.daemon("").start();
    let mut writer = world.writer(&daemon);
    let used = Instant::now() + PATIENCE;
    let written = |path: &str| fs::read(path).expect("an image").iter().any(|byte| *byte != 0);
    while !written(&daemon.path("disk.raw")) {
        assert!(Instant::now() < used, "nothing is written");
    }
    let safe = daemon.qmp.refused("block-export-del", json!({"id": "exp-disk"}));
    assert_eq!(safe.desc, "export 'exp-disk' still in use");
    daemon
        .qmp
        .ok("block-export-del", json!({"id": "exp-disk", "mode": "hard"}));
    daemon.qmp.wait_event("BLOCK_EXPORT_DELETED");
    let ended = wait_for(&mut writer).expect("a client ends without its disk");
    assert!(!ended.success());
    let add = json!({"type": "nbd", "id": "again", "node-name": "disk", "name": "disk", "writable": true});
    daemon.qmp.ok("block-export-add", add);
    world.served(&daemon);
    daemon.quit();
}

#[test]
fn a_client_that_wants_tls_of_a_plain_server_is_told_that_there_is_none() {
    let world = World::new();
    let image = world.made.path("disk.raw");
    fs::write(&image, [0; 4096]).expect("an image");
    let daemon = daemon()
        .blockdev(json!({"driver": "file", "node-name": "disk", "filename": image}))
        .nbd_unix()
        .export("disk")
        .start();
    let args = [
        vec!["info".to_owned()],
        qemu_client(Path::new(&socket(&daemon)), &world.client),
    ]
    .concat();
    let run = try_run("qemu-img", &args);
    assert!(
        run.stderr.contains("server reported: TLS not configured"),
        "{}",
        run.stderr
    );
    daemon.quit();
}
