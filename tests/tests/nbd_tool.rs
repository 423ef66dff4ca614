//! `millpond nbd` beside `qemu-nbd`.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use millpond_tests::PATIENCE;
use millpond_tests::tool::{Run, run, try_run};
use millpond_tests::tools::{Both, Side};
use rustix::process::{Pid, Signal, kill_process};

/// A server in the background, in the folder of one of the two; killed when this is dropped.
struct Server {
    socket: String,
    pid: Pid,
}

impl Server {
    /// Starts a server with these options, which end with the image.
    #[track_caller]
    fn start(both: &Both, side: Side, options: &[&str]) -> Self {
        let folder = both.folder(side);
        let socket = folder.join("s").display().to_string();
        let mut words = vec!["qemu-nbd", "--fork", "--pid-file=pid", "-k", &socket];
        words.extend(options);
        let begun = both.run(side, &words);
        assert_eq!(begun.code, Some(0), "{words:?}: {}", begun.stderr);
        assert_eq!(
            (begun.stdout.as_str(), begun.stderr.as_str()),
            ("", ""),
            "{words:?}"
        );
        let pid = fs::read_to_string(folder.join("pid")).expect("the server has written its id");
        let pid = pid.trim().parse().ok().and_then(Pid::from_raw);
        Self {
            socket,
            pid: pid.expect("a process id"),
        }
    }

    fn uri(&self, name: &str) -> String {
        format!("nbd+unix:///{name}?socket={}", self.socket)
    }

    /// Whether it runs. It is no child of the test: who has ended is there until some other process has looked.
    fn lives(&self) -> bool {
        let status = fs::read_to_string(format!("/proc/{}/stat", self.pid.as_raw_nonzero()));
        status.is_ok_and(|status| !status.contains(") Z "))
    }

    /// Waits until the server has ended by itself.
    #[track_caller]
    fn wait(&self) {
        wait_until("the server has ended", || !self.lives());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // One that has ended already cannot be, and need not.
        let _ = kill_process(self.pid, Signal::TERM);
        self.wait();
    }
}

/// Waits until something holds, which must be soon.
#[track_caller]
fn wait_until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: it is not so");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// An image with a snapshot and a bitmap, and a raw one.
fn images() -> Both {
    let both = Both::new();
    both.prepare("qemu-img create -q -f qcow2 x 1M");
    both.prepare("qemu-img create -q -f raw r 1M");
    both.prepare("qemu-img bitmap --add x b0");
    both.prepare("qemu-img snapshot -c s1 x");
    both
}

#[test]
fn options_are_refused_as_qemu_does() {
    let both = images();
    for line in [
        "",
        "a b",
        "-x",
        "--foo x",
        "-z x",
        "-P 1 x",
        "-p x x",
        "-k s x",
        "-e x x",
        "-e -1 x",
        "-o x x",
        "-o 2M x",
        "--cache=foo x",
        "--cache=none -n x",
        "-n -n x",
        "--aio=foo x",
        "--aio=threads --aio=threads x",
        "--discard=foo x",
        "--discard=unmap --discard=unmap x",
        "--detect-zeroes=foo x",
        "--discard=ignore --detect-zeroes=unmap x",
        "-l snapshot.foo=1 x",
        "--image-opts -f raw x",
        "--tls-creds=t x",
        "--tls-authz=t x",
        "--tls-hostname=t x",
        "--handshake-limit=x x",
        "--handshake-limit=-1 x",
        "-L x",
        "-L -c x",
        "-L -B x",
        "-L --fork",
        "-L --tls-authz=t",
        "-L --tls-hostname=t",
        "-L -p 1",
        "-L -k /nonexistent/socket",
        "--object foo x",
    ] {
        both.same(&format!("qemu-nbd {line}"));
    }
}

#[test]
fn images_that_cannot_be_served_are_refused_as_qemu_does() {
    let both = images();
    for line in [
        "-o -1 x",
        "-l s2 x",
        "-f foo x",
        "nothere",
        "-B nope x",
        "--image-opts driver=foo,file=x",
    ] {
        // Each tool listens in its own folder.
        let said = [Side::Ours, Side::Theirs].map(|side| {
            let socket = both.folder(side).join("s").display().to_string();
            let mut words = vec!["qemu-nbd", "-k", &socket];
            words.extend(line.split_whitespace());
            let Run {
                code, stdout, stderr, ..
            } = both.run(side, &words);
            (code, stdout, stderr)
        });
        assert_eq!(said[0], said[1], "{line}: left is ours, right is QEMU's");
        assert_eq!(said[0].0, Some(1), "{line}");
    }
}

#[test]
fn exports_are_shown_as_qemu_s_are() {
    let both = images();
    for options in [
        &["-t", "-f", "raw", "r"][..],
        &[
            "-t", "-r", "-e", "0", "-x", "foo", "-D", "a text", "-B", "b0", "-A", "x",
        ],
        &["-t", "-o", "512", "-f", "raw", "r"],
        &["-t", "-s", "x"],
        &["-t", "-l", "s1", "x"],
        &["-t", "-l", "snapshot.name=s1", "x"],
        &["-t", "--image-opts", "driver=raw,file.filename=r"],
        &[
            "-t",
            "--cache=writethrough",
            "--discard=ignore",
            "--aio=threads",
            "x",
        ],
    ] {
        let shown = [Side::Ours, Side::Theirs].map(|side| {
            let server = Server::start(&both, side, options);
            let by_qemu = run("qemu-nbd", &["-L", "-k", &server.socket]);
            // Our list of the same server says the same.
            let by_us = both.run(Side::Ours, &["qemu-nbd", "-L", "-k", &server.socket]);
            assert_eq!(
                by_us.stdout, by_qemu,
                "{options:?}: left is ours, right is QEMU's"
            );
            by_qemu
        });
        assert_eq!(shown[0], shown[1], "{options:?}: left is ours, right is QEMU's");
    }
}

#[test]
fn the_server_ends_with_its_last_client_unless_it_is_to_stay() {
    let both = images();
    for side in [Side::Ours, Side::Theirs] {
        let server = Server::start(&both, side, &["-f", "raw", "r"]);
        // Who only asks has not been a client.
        run("qemu-nbd", &["-L", "-k", &server.socket]);
        assert!(server.lives(), "{side:?}");
        run(
            "qemu-io",
            &["-f", "raw", "-c", "write -P 7 0 512", &server.uri("")],
        );
        server.wait();
        let staying = Server::start(&both, side, &["-t", "-f", "raw", "r"]);
        run(
            "qemu-io",
            &["-f", "raw", "-c", "read -P 7 0 512", &staying.uri("")],
        );
        assert!(staying.lives(), "{side:?}");
    }
    both.assert_same_bytes("r");
}

#[test]
fn zeroes_that_are_written_make_holes_where_that_is_asked_for() {
    let both = images();
    for side in [Side::Ours, Side::Theirs] {
        let server = Server::start(
            &both,
            side,
            &["-f", "raw", "--discard=unmap", "--detect-zeroes=unmap", "r"],
        );
        let commands = [
            "-c",
            "write -P 1 0 1M",
            "-c",
            "write -P 0 64k 512k",
            "-c",
            "flush",
        ];
        let uri = server.uri("");
        let words: Vec<&str> = ["-f", "raw"]
            .into_iter()
            .chain(commands)
            .chain([uri.as_str()])
            .collect();
        run("qemu-io", &words);
        server.wait();
        assert_has_hole(&both.folder(side).join("r"));
    }
    both.assert_same_bytes("r");
}

#[track_caller]
fn assert_has_hole(path: &Path) {
    let path = path.display().to_string();
    let map = run("qemu-img", &["map", "--output=json", "-f", "raw", &path]);
    assert!(
        map.contains(r#""start": 65536, "length": 524288, "depth": 0, "present": true, "zero": true"#),
        "{map}"
    );
}

#[test]
fn a_socket_that_a_service_manager_passes_is_served() {
    let both = images();
    let folder = both.folder(Side::Ours);
    let (socket, image) = (folder.join("passed"), folder.join("r"));
    let (socket, image) = (socket.display().to_string(), image.display().to_string());
    let program = both.program(Side::Ours, "qemu-nbd").display().to_string();
    let mut manager = std::process::Command::new("systemd-socket-activate")
        .args(["-l", &socket, &program, "-f", "raw", &image])
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("systemd-socket-activate is installed");
    wait_until("the socket is there", || Path::new(&socket).exists());
    let uri = format!("nbd+unix:///?socket={socket}");
    let read = try_run("qemu-io", &["-f", "raw", "-c", "read -P 0 0 512", &uri]);
    assert_eq!(read.code, Some(0), "{}", read.stdout);
    // It has become the server, which has ended with its client.
    assert!(manager.wait().expect("it can be waited for").success());
}
