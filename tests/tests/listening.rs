//! Where servers listen: families of addresses, services by name, sockets that a service manager passes, and what it is
//! told.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use millpond_tests::PATIENCE;
use millpond_tests::daemon::{daemon, scratch, unused_loopback, wait_for};
use millpond_tests::image;
use millpond_tests::program::{Program, millpond, oracle, under_test};
use millpond_tests::qmp::Qmp;
use serde_json::json;

/// Which of the two loopback addresses take connections on a port.
fn reached(port: u16) -> (bool, bool) {
    let is_open = |address: SocketAddr| TcpStream::connect(address).is_ok();
    (
        is_open((Ipv4Addr::LOCALHOST, port).into()),
        is_open((Ipv6Addr::LOCALHOST, port).into()),
    )
}

/// A port that was free a moment ago, in both families.
fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).expect("a port");
    listener.local_addr().expect("it has one").port()
}

/// What a server of `program` with these options of an address is reached by.
fn families(program: &Program, options: &str) -> (bool, bool) {
    let port = free_port();
    let daemon = daemon()
        .program(program.clone())
        .option(
            "--nbd-server",
            format!("addr.type=inet,addr.port={port},{options}"),
        )
        .start();
    let reached = reached(port);
    daemon.quit();
    reached
}

#[test]
fn an_address_for_all_hosts_is_of_both_families() {
    for (options, expected) in [
        ("addr.host=::", (true, true)),
        ("addr.host=", (true, true)),
        ("addr.host=::,addr.ipv6=on", (false, true)),
        ("addr.host=::,addr.ipv4=off", (false, true)),
        ("addr.host=::,addr.ipv4=on,addr.ipv6=on", (true, true)),
        ("addr.host=0.0.0.0", (true, false)),
        ("addr.host=::1", (false, true)),
        ("addr.host=,addr.ipv4=on", (true, false)),
    ] {
        assert_eq!(families(under_test(), options), expected, "{options}");
        assert_eq!(families(&oracle(), options), expected, "QEMU: {options}");
    }
}

#[test]
fn a_monitor_listens_on_both_families_and_a_service_by_name() {
    let port = free_port();
    let daemon = daemon()
        .option(
            "--chardev",
            format!("socket,id=c,host=,port={port},server=on,wait=off"),
        )
        .start();
    assert_eq!(reached(port), (true, true));
    daemon.quit();
    let host = unused_loopback().ip();
    let named = millpond_tests::daemon::daemon()
        .option(
            "--nbd-server",
            format!("addr.type=inet,addr.host={host},addr.port=nbd"),
        )
        .start();
    TcpStream::connect((host, 10809)).expect("the service nbd has port 10809");
    named.quit();
}

#[test]
fn a_server_listens_to_virtual_machines() {
    assert!(
        Path::new("/dev/vsock").exists(),
        "this test needs sockets of virtual machines: load the module `vsock`"
    );
    let any = u32::MAX;
    let port = 1_000_000_000 + std::process::id();
    let server = |program: &Program, cid: &str, port: &str| {
        daemon().program(program.clone()).option(
            "--nbd-server",
            format!("addr.type=vsock,addr.cid={cid},addr.port={port}"),
        )
    };
    let (cid, port) = (any.to_string(), port.to_string());
    let listening = server(under_test(), &cid, &port).start();
    for (cid, port) in [
        (&*cid, &*port),
        ("5", &*port),
        ("x", "1"),
        ("", "1"),
        ("4294967296", "1"),
        ("1", "y"),
        ("1", "4294967296"),
        ("1", "-1"),
        ("1", "0x10"),
    ] {
        let refused = |program: &Program| {
            let text = server(program, cid, port).refused();
            let text = text.lines().next().unwrap_or_default().to_owned();
            text.split_once("--nbd-server")
                .expect("the option is named")
                .1
                .to_owned()
        };
        assert_eq!(
            refused(under_test()),
            refused(&oracle()),
            "cid {cid}, port {port}"
        );
    }
    listening.quit();
}

/// The keys of a unit file and their values.
fn unit(name: &str) -> HashMap<String, String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../actors/systemd")
        .join(name);
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let pairs = text.lines().filter(|line| !line.starts_with('#'));
    pairs
        .filter_map(|line| line.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

/// A service of actors/systemd, run as its units say, on sockets in `dir`.
struct Service {
    child: Child,
    sockets: Vec<(String, PathBuf)>,
    manager: UnixDatagram,
}

impl Service {
    fn start(dir: &Path, service: &str, instance: &str) -> Service {
        let service = unit(service);
        assert_eq!(service["Type"], "notify");
        let replaced = |text: &str| {
            text.replace("/usr/bin/millpond", &millpond().display().to_string())
                .replace("/var/lib/millpond", &dir.display().to_string())
                .replace("%i", instance)
        };
        let names = &service["Sockets"];
        let mut command = Command::new("systemd-socket-activate");
        let mut sockets = Vec::new();
        for name in names.split(' ') {
            let socket = unit(&name.replace("%i", ""));
            let called = socket["FileDescriptorName"].clone();
            assert!(socket.contains_key("ListenStream"), "{name}");
            let path = dir.join(&called);
            command.arg("-l").arg(&path);
            sockets.push((called, path));
        }
        let called: Vec<&str> = sockets.iter().map(|(name, _)| name.as_str()).collect();
        let manager = dir.join("notify");
        command
            .arg(format!("--fdname={}", called.join(":")))
            .args(["-E", &format!("NOTIFY_SOCKET={}", manager.display())])
            .args(["-E", "WATCHDOG_USEC=200000"])
            .args(replaced(&service["ExecStart"]).split(' '))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let manager = UnixDatagram::bind(manager).expect("a socket can be made");
        manager.set_read_timeout(Some(PATIENCE)).expect("it can be set");
        let mut child = command
            .spawn()
            .unwrap_or_else(|error| panic!("systemd-socket-activate: {error}: it is in the package systemd"));
        let mut told = BufReader::new(child.stderr.take().expect("a pipe"));
        for _ in &sockets {
            let mut line = String::new();
            told.read_line(&mut line).expect("it can be read");
            assert!(line.starts_with("Listening on"), "{line}");
        }
        // Whatever else it says must not fill the pipe.
        std::thread::spawn(move || told.read_to_end(&mut Vec::new()));
        Service {
            child,
            sockets,
            manager,
        }
    }

    fn path(&self, name: &str) -> &Path {
        let (_, path) = self
            .sockets
            .iter()
            .find(|(called, _)| called == name)
            .expect("a socket");
        path
    }

    /// What the service manager is told next that begins so.
    fn told(&self, begin: &str) -> String {
        told(&self.manager, begin)
    }
}

#[track_caller]
fn told(manager: &UnixDatagram, begin: &str) -> String {
    let mut buffer = [0; 4096];
    loop {
        let length = manager
            .recv(&mut buffer)
            .unwrap_or_else(|error| panic!("{begin} is not told: {error}"));
        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
        if text.lines().any(|line| line.starts_with(begin)) {
            return text;
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // Both fail only when it has ended, as it should have.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_unit_of_one_image_serves_it_and_tells_its_life() {
    let dir = scratch();
    image::create(&dir.path().join("disk.qcow2"), "qcow2", "", 1 << 20);
    let mut service = Service::start(dir.path(), "millpond@.service", "disk.qcow2");
    // The first client starts it, and finds what it came for.
    let uri = format!("nbd+unix:///?socket={}", service.path("nbd").display());
    let size = millpond_tests::tool::run("nbdinfo", &["--size", &uri]);
    assert_eq!(size.trim(), "1048576");
    let ready = service.told("READY=1");
    assert!(
        ready.contains(&format!(
            "STATUS=Serving {}",
            dir.path().join("disk.qcow2").display()
        )),
        "{ready}"
    );
    service.told("WATCHDOG=1");
    service.told("WATCHDOG=1");
    let mut qmp = Qmp::connect(service.path("qmp"), || Ok(())).expect("a monitor");
    qmp.ok("query-block-exports", json!({}));
    qmp.quit();
    service.told("STOPPING=1");
    assert!(wait_for(&mut service.child).expect("it ends").success());
    // The sockets are the manager's.
    assert!(service.path("nbd").exists() && service.path("qmp").exists());
}

#[test]
fn the_unit_of_the_storage_daemon_takes_its_sockets_by_name() {
    let dir = scratch();
    let mut service = Service::start(dir.path(), "millpond-serve.service", "none");
    let mut qmp = Qmp::connect(service.path("qmp"), || Ok(())).expect("a monitor");
    service.told("READY=1");
    qmp.ok(
        "blockdev-add",
        json!({ "driver": "null-co", "node-name": "disk", "size": 1 << 20, "read-zeroes": true }),
    );
    let export = json!({ "type": "nbd", "id": "disk", "node-name": "disk" });
    qmp.ok("block-export-add", export.clone());
    let uri = format!("nbd+unix:///disk?socket={}", service.path("nbd").display());
    assert_eq!(
        millpond_tests::tool::run("nbdinfo", &["--size", &uri]).trim(),
        "1048576"
    );
    // The name is good again for a server that is started anew; others are told apart from numbers.
    qmp.ok("nbd-server-stop", json!({}));
    let address = |name: &str| json!({ "addr": { "type": "fd", "data": { "str": name } } });
    let error = qmp.refused("nbd-server-start", address("web"));
    assert_eq!(
        error.desc,
        "Unable to parse FD number web; LISTEN_FDNAMES has nbd, qmp"
    );
    let error = qmp.refused("nbd-server-start", address("99"));
    assert_eq!(error.desc, "File descriptor '99' is not a socket");
    qmp.ok("nbd-server-start", address("nbd"));
    qmp.ok("block-export-add", export);
    assert_eq!(
        millpond_tests::tool::run("nbdinfo", &["--size", &uri]).trim(),
        "1048576"
    );
    qmp.quit();
    assert!(wait_for(&mut service.child).expect("it ends").success());
}

#[test]
fn a_daemon_in_the_background_tells_its_process() {
    let dir = scratch();
    let path = |name: &str| dir.path().join(name);
    let manager = UnixDatagram::bind(path("notify")).expect("a socket can be made");
    manager.set_read_timeout(Some(PATIENCE)).expect("it can be set");
    let output = Command::new(millpond())
        .args([
            "serve",
            "--daemonize",
            "--pidfile",
            &path("pid").display().to_string(),
        ])
        .args([
            "--chardev",
            &format!("socket,id=c,path={},server=on,wait=off", path("qmp").display()),
        ])
        .args(["--monitor", "c"])
        .env("NOTIFY_SOCKET", path("notify"))
        .stdin(Stdio::null())
        .output()
        .expect("it runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let pid = fs::read_to_string(path("pid")).expect("a pidfile");
    let ready = told(&manager, "READY=1");
    assert!(ready.contains(&format!("MAINPID={}", pid.trim())), "{ready}");
    Qmp::connect(&path("qmp"), || Ok(())).expect("a monitor").quit();
    told(&manager, "STOPPING=1");
}

#[test]
fn files_of_a_daemon_in_the_background_are_not_for_everybody() {
    use std::os::unix::fs::PermissionsExt;
    let dir = scratch();
    let path = |name: &str| dir.path().join(name).display().to_string();
    for program in [under_test().clone(), oracle()] {
        let output = program
            .command()
            .args(["--daemonize", "--pidfile", &path("pid")])
            .args([
                "--chardev",
                &format!("socket,id=c,path={},server=on,wait=off", path("qmp")),
            ])
            .args(["--monitor", "c"])
            .args([
                "--nbd-server",
                &format!("addr.type=unix,addr.path={}", path("nbd")),
            ])
            .stdin(Stdio::null())
            .output()
            .expect("it runs");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let mode = |name: &str| {
            let facts = fs::metadata(path(name)).expect("it is there");
            facts.permissions().mode() & 0o777
        };
        assert_eq!((mode("qmp"), mode("nbd"), mode("pid")), (0o750, 0o750, 0o600));
        let mut qmp = Qmp::connect(Path::new(&path("qmp")), || Ok(())).expect("a monitor");
        qmp.quit();
        let deadline = std::time::Instant::now() + PATIENCE;
        while Path::new(&path("pid")).exists() {
            assert!(std::time::Instant::now() < deadline, "the daemon does not end");
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }
}
