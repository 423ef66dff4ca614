//! A storage daemon in a folder of its own: started with monitors and, if asked for, an NBD server; killed on drop.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::PATIENCE;
use crate::nbd::{Address, Connect, Session};
use crate::program::{Program, under_test};
use crate::qmp::{self, Qmp};

/// What to start. Arguments are passed in the order in which they were given, as the daemon takes them.
#[derive(Debug)]
pub struct Builder {
    program: Program,
    dir: Folder,
    args: Vec<String>,
    monitors: usize,
    address: Option<Address>,
    errors: Option<Stdio>,
}

/// A folder for sockets and images: made for one daemon, or shared by several that follow each other.
#[derive(Debug)]
enum Folder {
    Own(TempDir),
    Shared(PathBuf),
}

impl Folder {
    fn path(&self) -> &Path {
        match self {
            Folder::Own(dir) => dir.path(),
            Folder::Shared(path) => path,
        }
    }
}

/// A running daemon.
#[derive(Debug)]
pub struct Daemon {
    /// The first monitor.
    pub qmp: Qmp,
    child: Child,
    dir: Folder,
    log: PathBuf,
    address: Option<Address>,
}

/// Why a daemon did not come up.
#[derive(Debug)]
pub struct Failure {
    /// Its exit status.
    pub status: Option<ExitStatus>,
    /// Everything it wrote to standard output and standard error.
    pub log: String,
}

/// Starts describing a daemon of the program under test in a new folder.
pub fn daemon() -> Builder {
    Builder::new(under_test().clone(), Folder::Own(scratch()))
}

/// The same in a folder that outlives the daemon.
pub fn daemon_in(dir: &Path) -> Builder {
    Builder::new(under_test().clone(), Folder::Shared(dir.to_owned()))
}

/// A folder that is deleted when the value is dropped.
pub fn scratch() -> TempDir {
    tempfile::Builder::new()
        .prefix("millpond-")
        .tempdir()
        .expect("a temporary folder can be made")
}

impl Builder {
    fn new(program: Program, dir: Folder) -> Builder {
        Builder {
            program,
            dir,
            args: Vec::new(),
            monitors: 1,
            address: None,
            errors: None,
        }
    }

    /// Runs another program in place of the one under test.
    pub fn program(mut self, program: Program) -> Builder {
        self.program = program;
        self
    }

    /// The daemon's folder, for images that must exist before it starts.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Appends one argument.
    pub fn arg(mut self, arg: impl Into<String>) -> Builder {
        self.args.push(arg.into());
        self
    }

    /// Appends an option and its value.
    pub fn option(self, name: &str, value: impl Into<String>) -> Builder {
        self.arg(name).arg(value)
    }

    /// Appends `--blockdev` with JSON.
    pub fn blockdev(self, options: Value) -> Builder {
        self.option("--blockdev", options.to_string())
    }

    /// Appends a writable NBD export of `node` under the name `node`.
    pub fn export(self, node: &str) -> Builder {
        self.option(
            "--export",
            format!("nbd,id=exp-{node},node-name={node},name={node},writable=on"),
        )
    }

    /// Appends an NBD export of `node` under the name `node` that cannot be written.
    pub fn export_read_only(self, node: &str) -> Builder {
        self.option(
            "--export",
            format!("nbd,id=exp-{node},node-name={node},name={node}"),
        )
    }

    /// How many monitors to open; one unless told.
    pub fn monitors(mut self, count: usize) -> Builder {
        self.monitors = count.max(1);
        self
    }

    /// Sends standard error somewhere else than to the log.
    pub fn errors_to(mut self, errors: impl Into<Stdio>) -> Builder {
        self.errors = Some(errors.into());
        self
    }

    /// Appends an NBD server on a unix socket in the daemon's folder.
    pub fn nbd_unix(self) -> Builder {
        self.nbd_unix_with("")
    }

    /// The same with further options of `--nbd-server`, such as `,max-connections=2`.
    pub fn nbd_unix_with(mut self, more: &str) -> Builder {
        let path = self.dir().join("nbd.sock");
        self.address = Some(Address::Unix(path.clone()));
        self.option(
            "--nbd-server",
            format!("addr.type=unix,addr.path={}{more}", path.display()),
        )
    }

    /// Appends an NBD server on TCP, on a loopback address that no other test uses.
    pub fn nbd_tcp(mut self) -> Builder {
        let address = unused_loopback();
        self.address = Some(Address::Tcp(address));
        let (host, port) = (address.ip(), address.port());
        self.option(
            "--nbd-server",
            format!("addr.type=inet,addr.host={host},addr.port={port}"),
        )
    }

    /// Starts the daemon and waits until its first monitor greets, which is after all options have been processed.
    #[track_caller]
    pub fn start(self) -> Daemon {
        match self.try_start() {
            Ok(daemon) => daemon,
            Err(failure) => panic!(
                "the daemon did not start ({:?}):\n{}",
                failure.status, failure.log
            ),
        }
    }

    /// Starts the daemon, or says how it ended.
    pub fn try_start(mut self) -> Result<Daemon, Failure> {
        let first = self.attempt();
        let attempted = match first {
            // QEMU's daemon may wait forever for a second client of its monitor, if the first comes while it starts.
            Err(failure) if !self.program.is_under_test() && failure.log.contains(qmp::SILENCE) => {
                self.attempt()
            }
            attempted => attempted,
        };
        let (qmp, child, log) = attempted?;
        Ok(Daemon {
            qmp,
            child,
            dir: self.dir,
            log,
            address: self.address,
        })
    }

    /// Starts the daemon once: its monitor, its process and its log.
    fn attempt(&mut self) -> Result<(Qmp, Child, PathBuf), Failure> {
        let log = unused_name(self.dir.path(), "log");
        let mut child = self.spawn(&log);
        let status = std::cell::Cell::new(None);
        let alive = || match child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(ended)) => {
                status.set(Some(ended));
                Err(format!("ended with {ended}"))
            }
            Err(error) => Err(error.to_string()),
        };
        match Qmp::connect(&monitor_path(self.dir.path(), 0), alive) {
            Ok(qmp) => Ok((qmp, child, log)),
            Err(reason) => {
                if status.get().is_none() {
                    let _ = child.kill();
                    status.set(child.wait().ok());
                }
                let text = std::fs::read_to_string(&log).unwrap_or_default();
                Err(Failure {
                    status: status.get(),
                    log: format!("{text}({reason})"),
                })
            }
        }
    }

    /// Starts the daemon expecting it to refuse, and returns what it wrote.
    #[track_caller]
    pub fn refused(self) -> String {
        match self.try_start() {
            Ok(_) => panic!("the daemon started although it should have refused"),
            Err(Failure {
                status: Some(status),
                log,
            }) => {
                assert_eq!(
                    status.code(),
                    Some(1),
                    "a refusal ends with status 1, not {status}: {log}"
                );
                log
            }
            Err(Failure { status: None, log }) => panic!("the daemon's status is unknown: {log}"),
        }
    }

    fn spawn(&mut self, log: &Path) -> Child {
        let mut command = self.program.command();
        for index in 0..self.monitors {
            let path = monitor_path(self.dir.path(), index);
            // A daemon that was killed leaves its socket behind.
            let _ = std::fs::remove_file(&path);
            command.arg("--chardev");
            command.arg(format!(
                "socket,id=qmp{index},path={},server=on,wait=off",
                path.display()
            ));
            command
                .arg("--monitor")
                .arg(format!("chardev=qmp{index},mode=control"));
        }
        let output = File::create(log).expect("the daemon's log can be made");
        let errors = self.errors.take();
        let errors = errors.unwrap_or_else(|| output.try_clone().expect("a file can be opened twice").into());
        command
            .args(&self.args)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors);
        let path = self.program.path().display().to_string();
        command
            .spawn()
            .unwrap_or_else(|error| panic!("cannot run {path}: {error}{}", crate::tool::hint(&path)))
    }
}

impl Daemon {
    /// The daemon's folder.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A file in the daemon's folder.
    pub fn path(&self, name: &str) -> String {
        self.dir().join(name).display().to_string()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Connects to a further monitor, counted from 0; the first is already taken.
    pub fn monitor(&self, index: usize) -> Qmp {
        let path = monitor_path(self.dir(), index);
        Qmp::connect(&path, || Ok(())).unwrap_or_else(|error| panic!("monitor {index}: {error}"))
    }

    /// Where its NBD server listens.
    pub fn address(&self) -> Address {
        self.address
            .clone()
            .expect("this daemon was started without an NBD server")
    }

    /// The URI of one export.
    pub fn uri(&self, export: &str) -> String {
        self.address().uri(export)
    }

    /// A session with structured replies and `base:allocation`, as most clients negotiate it.
    pub fn session(&self, export: &str) -> Session {
        Connect::default().open(&self.address(), export)
    }

    /// Starts an NBD server on a unix socket by QMP.
    pub fn start_nbd_server(&mut self) {
        let path = self.path("nbd.sock");
        self.address = Some(Address::Unix(PathBuf::from(&path)));
        self.qmp.ok(
            "nbd-server-start",
            json!({ "addr": { "type": "unix", "data": { "path": path } } }),
        );
    }

    /// Resident memory in KiB, as the kernel counts it now.
    pub fn resident_kib(&self) -> u64 {
        let path = format!("/proc/{}/status", self.pid());
        let status = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .expect("a process has VmRSS");
        line.trim()
            .trim_end_matches(" kB")
            .parse()
            .expect("VmRSS is a number")
    }

    /// Everything it wrote to standard output and standard error so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until the daemon has written something, which it may do a little later than what a test sees of it.
    #[track_caller]
    pub fn wait_for_log(&self, wanted: &str) {
        let deadline = std::time::Instant::now() + crate::PATIENCE;
        while !self.log().contains(wanted) {
            assert!(
                std::time::Instant::now() < deadline,
                "'{wanted}' is not in: {}",
                self.log()
            );
            std::thread::yield_now();
        }
    }

    /// Fails unless the process still runs.
    #[track_caller]
    pub fn assert_running(&mut self) {
        if let Ok(Some(status)) = self.child.try_wait() {
            panic!("the daemon ended with {status}:\n{}", self.log());
        }
    }

    /// Sends a signal to the process.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("the daemon can be signalled");
    }

    /// Kills the process as a power cut would: nothing is flushed or closed.
    pub fn kill(&mut self) {
        self.child.kill().expect("the daemon can be killed");
        self.child.wait().expect("a killed daemon can be reaped");
    }

    /// Ends the daemon by QMP and requires a clean exit.
    #[track_caller]
    pub fn quit(mut self) {
        self.qmp.quit();
        self.expect_clean_exit();
    }

    /// Waits for the process to end and requires status 0.
    #[track_caller]
    pub fn expect_clean_exit(&mut self) {
        let status = self.wait();
        assert!(
            status.success(),
            "the daemon ended with {status}:\n{}",
            self.log()
        );
    }

    /// Waits for the process to end.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        wait_for(&mut self.child).unwrap_or_else(|| panic!("the daemon did not end:\n{}", self.log()))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Both fail only when the process has already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- the daemon's log:\n{}---", self.log());
        }
    }
}

/// Waits for a child with a deadline. The standard library offers only a wait without one, so this asks again every
/// few milliseconds.
pub fn wait_for(child: &mut Child) -> Option<ExitStatus> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    None
}

/// Where monitor `index` of a daemon in `dir` listens.
pub fn monitor_path(dir: &Path, index: usize) -> PathBuf {
    dir.join(format!("qmp{index}.sock"))
}

/// A name in `dir` that no earlier call in this process gave out.
fn unused_name(dir: &Path, stem: &str) -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    dir.join(format!("{stem}-{}", COUNT.fetch_add(1, Ordering::Relaxed)))
}

/// An address in 127.0.0.0/8 made of the process id and a count: tests in other processes and threads take others, so
/// the port is free without having been asked for.
pub fn unused_loopback() -> SocketAddr {
    static COUNT: AtomicU32 = AtomicU32::new(1);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let port = 20000 + (count % 20000) as u16;
    SocketAddr::from(([127, 1 + (std::process::id() >> 16) as u8 % 100, high, low], port))
}
