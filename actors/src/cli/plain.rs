//! `millpond IMAGE`: serves one image, and says what can be done with it.

use super::filters::Filters;
use super::foreign;
use super::notify;
use super::signals::{ENDED_AT_ONCE, Signals};
use super::{control_thread, printable, trace};
use crate::daemon::Daemon;
use crate::image::NewImage;
use crate::log::{LogOptions, tell};
use crate::monitor::chardev::{Address, Backend, ChardevOptions, Socket};
use crate::qmp::{self, Commands};
use crate::socket::{OwnFile, activation};
use clap::Parser;
use millpond_messages::graph::{FindNode, NodeFacts, Open, OpenImage, Probing};
use millpond_messages::qapi::schema::{
    BlockExportOptions, MonitorOptions, ObjectOptions, SocketAddress, UnixSocketAddress,
};
use millpond_messages::qapi::{Object, QmpError, parse_size};
use millpond_messages::{IoError, OpenFlags};
use rustix::io::Errno;
use serde_json::{Value, json};
use std::fmt::Write;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The node that is served.
const NODE: &str = "disk";
/// The end of the graph's text for an image that may be raw or not.
const UNKNOWN_FORMAT: &str = "if it is a raw image, that must be said";
/// The formats there are: also what names of their images end in.
const FORMATS: &[&str] = &["qcow2", "raw"];
/// Where this program finds what it is to listen on among what the service manager passed: the rest is for NBD.
const PASSED_MONITOR: &str = "qmp";
/// The iothread it lives in, if it has one of its own.
const IOTHREAD: &str = "iothread0";

/// Serves a disk image over NBD, and lets it be changed meanwhile.
#[derive(Debug, Parser)]
#[command(name = "millpond", version = super::VERSION, after_help = "\
Other uses:
  millpond serve OPTIONS...                  a storage daemon, with the options of qemu-storage-daemon
  millpond qmp SOCKET COMMAND KEY=VALUE...   send a command to a running daemon
  millpond flight FILE                       print a flight record
  millpond help serve|qmp|flight|trace|drivers")]
struct Plain {
    /// The image; one in the current folder that is called as a subcommand is given as ./NAME.
    image: PathBuf,
    /// Make the image first, of this size: a number of bytes, or with K, M, G or T.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    create: Option<u64>,
    /// The image's format. A new image is qcow2 unless its name ends in .raw or .img.
    #[arg(long, value_parser = ["qcow2", "raw"])]
    format: Option<String>,
    /// Refuse writes, and open the image read-only.
    #[arg(long, conflicts_with = "create")]
    read_only: bool,
    /// Keep writes in a temporary file, and forget them at the end.
    #[arg(long, conflicts_with_all = ["create", "read_only"])]
    snapshot: bool,
    /// The unix socket to listen on.
    #[arg(long, value_name = "PATH", conflicts_with = "port")]
    socket: Option<PathBuf>,
    /// Listen on this TCP port of 127.0.0.1 instead; 0 for one that is free.
    #[arg(long, value_name = "N")]
    port: Option<u16>,
    /// The name that clients ask for the export by.
    #[arg(long, default_value = "")]
    name: String,
    /// Take QMP commands on this unix socket.
    #[arg(long, value_name = "PATH")]
    qmp: Option<PathBuf>,
    /// Give the image a thread of its own.
    #[arg(long)]
    iothread: bool,
    /// Log more, or to a file; `-T help` tells what.
    #[arg(short = 'T', long = "trace", value_name = "FILTER")]
    trace: Vec<String>,
    /// Log elsewhere than to standard error: file=PATH, syslog or journald; `--log help` tells more.
    #[arg(
        long,
        value_name = "WHERE",
        default_value = "stderr",
        hide_default_value = true
    )]
    log: String,
}

fn size(text: &str) -> Result<u64, String> {
    let number = text.trim_end_matches(|unit: char| "bkmgtpe".contains(unit.to_ascii_lowercase()));
    // A number and a unit, also if they are more than fits.
    let is_size = text.len() <= number.len() + 1 && number.parse().is_ok_and(|number: f64| number >= 1.0);
    match parse_size(text) {
        Some(size) if i64::try_from(size).is_ok() => Ok(size),
        None if !is_size => Err("not a size such as 512M or 10G".into()),
        _ => Err("too large: an image is smaller than 8 EiB".into()),
    }
}

/// Prints the help of the plain mode.
pub fn help() -> ExitCode {
    use clap::CommandFactory;
    match Plain::command().print_help() {
        Ok(()) => ExitCode::SUCCESS,
        // Nothing can be said if saying it fails.
        Err(_) => ExitCode::FAILURE,
    }
}

/// Serves the image that `arguments`, the program's name first, describe.
pub fn serve_image(
    program: &str,
    arguments: &[String],
    start: impl FnOnce() -> io::Result<Daemon>,
) -> ExitCode {
    let plain = match Plain::try_parse_from(arguments) {
        Ok(plain) => plain,
        Err(error) => return super::usage(&error),
    };
    if plain.trace.iter().any(|filter| trace::is_help(filter)) {
        print!("{}", trace::HELP);
        return ExitCode::SUCCESS;
    }
    if LogOptions::is_help(&plain.log) {
        print!("{}", LogOptions::HELP);
        return ExitCode::SUCCESS;
    }
    let values = plain.trace.iter();
    let filters = match Filters::parse(values.map(|value| (format!("-T {value}"), value.clone()))) {
        Ok(filters) => filters,
        Err(why) => {
            tell(&format!("{program}:{}", printable(&why)));
            return ExitCode::FAILURE;
        }
    };
    let options = LogOptions::parse(&plain.log).map_err(|why| format!("--log {}: {why}", plain.log));
    if let Err(why) = options.and_then(|options| trace::start(program, filters, options)) {
        tell(&format!("{program}: {}", printable(&why)));
        return ExitCode::FAILURE;
    }
    let system = match control_thread() {
        Ok(system) => system,
        Err(error) => {
            tell(&format!(
                "{program}: the control thread cannot be started: {error}"
            ));
            return ExitCode::FAILURE;
        }
    };
    system.block_on(async {
        match plain.run(start).await {
            Ok(false) => ExitCode::SUCCESS,
            Ok(true) => ExitCode::FAILURE,
            Err(why) => {
                tell(&format!("{program}: {}", printable(&why)));
                ExitCode::FAILURE
            }
        }
    })
}

/// The text of an error with what helps to understand it.
fn with_hint(error: QmpError) -> String {
    match error.hint {
        Some(hint) => format!("{}\n{hint}", error.desc),
        None => error.desc,
    }
}

/// An object that is known to be one.
fn object(value: Value) -> Object {
    match value {
        Value::Object(object) => object,
        _ => Object::new(),
    }
}

impl Plain {
    /// Serves the image until the end; true if something went wrong that was told already.
    async fn run(&self, start: impl FnOnce() -> io::Result<Daemon>) -> Result<bool, String> {
        let daemon = start().map_err(|error| format!("the main iothread cannot be started: {error}"))?;
        let uncaught = |error| format!("signals cannot be caught: {error}");
        let mut signals = Signals::catch().map_err(uncaught)?;
        let result = self.live(&daemon, &mut signals).await;
        let closed = tokio::select! {
            closed = daemon.shut_down() => closed.map_err(|error| error.to_string()),
            () = signals.second() => Err(ENDED_AT_ONCE.to_owned()),
        };
        result.and(closed).map(|()| daemon.has_failed())
    }

    async fn live(&self, daemon: &Daemon, signals: &mut Signals) -> Result<(), String> {
        self.check_image()?;
        let node_name = tokio::select! {
            done = self.set_up(daemon) => done.map_err(with_hint)?,
            () = signals.next() => return Ok(()),
        };
        let facts = daemon.graph(FindNode { node_name }).await;
        let addresses = daemon.exports().server_addresses().unwrap_or_default();
        let uris: Vec<String> = addresses.iter().map(|address| self.uri(address)).collect();
        if let Ok(facts) = facts {
            // Who read it may have gone once it knew enough: that is no reason not to serve.
            let told = format!("{}\n", self.greeting(&facts, &uris));
            let _ = io::Write::write_all(&mut io::stdout(), told.as_bytes());
        }
        let status = format!("Serving {} at {}", self.image.display(), uris.join(", "));
        notify::ready(daemon, status, false).await;
        tokio::select! {
            () = signals.next() => {}
            () = daemon.asked_to_quit() => {}
        }
        notify::stopping().await;
        Ok(())
    }

    /// What can be told of the image before anything is started.
    fn check_image(&self) -> Result<(), String> {
        let image = self.image.display();
        if self.create.is_some() {
            self.check_suffix()?;
        }
        match (self.create.is_some(), self.image.try_exists()) {
            (true, Ok(true)) => Err(self.exists_already()),
            (false, Ok(false)) => Err(format!(
                "{image} cannot be opened: No such file or directory; with --create SIZE it is made"
            )),
            _ => Ok(()),
        }
    }

    /// Refuses to make an image whose name says another format than it would have.
    fn check_suffix(&self) -> Result<(), String> {
        let suffix = self.image.extension().and_then(|suffix| suffix.to_str());
        let suffix = suffix.unwrap_or_default().to_ascii_lowercase();
        let named = match suffix.as_str() {
            // Any format may be in it.
            "img" => return Ok(()),
            own if FORMATS.contains(&own) => own,
            other => match foreign::format(other) {
                Some(format) => format,
                None => return Ok(()),
            },
        };
        let made = self.new_format();
        let image = self.image.display();
        if named == made {
            return Ok(());
        }
        Err(if FORMATS.contains(&named) {
            format!(
                "{image} would be a {made} image by the name of a {named} one; choose another name, or --format {named}"
            )
        } else {
            format!("{image} has a name of {named}, which cannot be made; choose another name")
        })
    }

    /// The format of an image that is to be made.
    fn new_format(&self) -> &str {
        if let Some(format) = &self.format {
            return format;
        }
        let extension = self.image.extension().and_then(|extension| extension.to_str());
        match extension {
            Some("raw" | "img") => "raw",
            _ => "qcow2",
        }
    }

    /// Opens the image; answers the name of the node to serve.
    ///
    /// An image that begins with nothing known is not served writable: its user could write the beginning
    /// of another format, and have files of the host opened the next time.
    async fn open_image(&self, daemon: &Daemon) -> Result<String, QmpError> {
        let mut options = object(json!({"node-name": NODE}));
        let format = self.format.as_deref().or(self.create.map(|_| self.new_format()));
        if let Some(format) = format {
            options.insert("driver".into(), format.into());
        }
        let mut flags = OpenFlags::empty();
        flags.set(OpenFlags::RDWR, !self.read_only);
        flags.set(OpenFlags::SNAPSHOT, self.snapshot);
        let image = OpenImage {
            // A path and nothing else, whatever colons are in it.
            filename: Some(self.path()?),
            options,
            flags,
            probing: Probing::Formats,
            ..OpenImage::default()
        };
        let opened = daemon.graph(Open(Box::new(image))).await;
        opened.map_err(|error| match error.desc.ends_with(UNKNOWN_FORMAT) {
            true => QmpError::generic(format!("{}: say so with --format raw", error.desc)),
            false => error,
        })
    }

    /// The image's path, such that nothing in it is taken for a protocol.
    fn path(&self) -> Result<String, QmpError> {
        let path = self
            .image
            .to_str()
            .ok_or_else(|| QmpError::generic(format!("{} is not UTF-8", self.image.display())))?;
        let is_plain = self.image.is_absolute() || path.starts_with("./") || path.starts_with("../");
        Ok(if is_plain {
            path.to_owned()
        } else {
            format!("./{path}")
        })
    }

    async fn set_up(&self, daemon: &Daemon) -> Result<String, QmpError> {
        if self.iothread {
            let iothread = object(json!({"qom-type": "iothread", "id": IOTHREAD}));
            qmp::object::add(daemon.clone(), ObjectOptions(iothread)).await?;
        }
        if let Some(size) = self.create {
            self.make_image(daemon, self.new_format(), size).await?;
        }
        let node = self.open_image(daemon).await?;
        let address = self.address()?;
        let server = serde_json::from_value(json!({"addr": address}))
            .map_err(|error| QmpError::generic(error.to_string()))?;
        // Who connects at once, as the client does for whom a service manager starts us, must find the export.
        daemon.exports().hold_clients(true);
        daemon.exports().start_server(&server).await?;
        let export = BlockExportOptions {
            iothread: self.iothread.then(|| IOTHREAD.to_owned()),
            writable: Some(!self.read_only),
            ..BlockExportOptions::nbd(NODE, &node, &self.name)
        };
        qmp::export::add(daemon.clone(), export).await?;
        daemon.exports().hold_clients(false);
        self.open_monitor(daemon).await?;
        Ok(node)
    }

    /// What to listen on: what the service manager passed, if it passed something.
    fn address(&self) -> Result<Value, QmpError> {
        let passed = activation::all()
            .iter()
            .filter(|passed| passed.name != PASSED_MONITOR);
        let mut names: Vec<&str> = passed.clone().map(|passed| passed.name.as_str()).collect();
        names.dedup();
        match (names.as_slice(), self.port) {
            ([], Some(port)) => Ok(json!({"type": "inet", "host": "127.0.0.1", "port": port.to_string()})),
            ([], None) => {
                let path = self.socket_path();
                check_unused(&path, "--socket")?;
                Ok(json!({"type": "unix", "path": path}))
            }
            _ if self.port.is_some() || self.socket.is_some() => Err(QmpError::generic(
                "--socket and --port are of no use beside a socket that the service manager passes",
            )),
            ([name], None) => Ok(json!({"type": "fd", "str": name})),
            _ => Err(QmpError::generic(format!(
                "The service manager passes sockets of several names ({}): name all for NBD alike, and that of the \
                 monitor {PASSED_MONITOR}",
                names.join(", ")
            ))),
        }
    }

    async fn make_image(&self, daemon: &Daemon, format: &str, size: u64) -> Result<(), QmpError> {
        let ours = self.new_file().map_err(QmpError::generic)?;
        let image = NewImage {
            filename: self.path()?,
            format: format.to_owned(),
            size: Some(size),
            quiet: true,
            ..NewImage::default()
        };
        daemon.create_image(image).await.map(drop).map_err(|error| {
            // Half an image helps nobody, where it has not gone yet.
            ours.remove();
            let (image, size) = (self.image.display(), human_size(size));
            QmpError::generic(format!("{image} cannot be made with {size}: {}", error.desc))
        })
    }

    /// Makes the image's file, so that nobody else's is taken for it.
    fn new_file(&self) -> Result<OwnFile, String> {
        let mut options = OpenOptions::new();
        let made = options.write(true).create_new(true).mode(0o644).open(&self.image);
        let made = made.and_then(|file| OwnFile::of(&self.image, &file.metadata()?));
        made.map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => self.exists_already(),
            _ => format!(
                "{} cannot be made: {}",
                self.image.display(),
                IoError::from(error)
            ),
        })
    }

    fn exists_already(&self) -> String {
        format!(
            "{} exists already; leave out --create to serve it",
            self.image.display()
        )
    }

    fn socket_path(&self) -> PathBuf {
        self.socket.clone().unwrap_or_else(|| {
            let folder = std::env::var_os("XDG_RUNTIME_DIR").map_or_else(|| "/tmp".into(), PathBuf::from);
            let name = self.image.file_name().unwrap_or_default().to_string_lossy();
            folder.join(format!("millpond-{name}.sock"))
        })
    }

    async fn open_monitor(&self, daemon: &Daemon) -> Result<(), QmpError> {
        let is_passed = activation::all()
            .iter()
            .any(|passed| passed.name == PASSED_MONITOR);
        let address = match &self.qmp {
            Some(_) if is_passed => {
                return Err(QmpError::generic(
                    "--qmp is of no use beside a socket for it that the service manager passes",
                ));
            }
            Some(path) => {
                check_unused(path, "--qmp")?;
                Address::Unix {
                    path: path.to_string_lossy().into_owned(),
                    is_abstract: false,
                    tight: true,
                }
            }
            None if is_passed => Address::Fd(PASSED_MONITOR.to_owned()),
            None => return Ok(()),
        };
        let socket = Socket {
            address,
            server: true,
            wait: false,
            reconnect: None,
        };
        let options = ChardevOptions {
            id: "qmp".into(),
            backend: Backend::Socket(socket),
        };
        daemon.add_chardev(options, |_| {}).await?;
        daemon.add_monitor(&MonitorOptions::on("qmp"), Commands::of(daemon))?;
        daemon.open_monitors();
        Ok(())
    }

    /// Where clients find the image, on a server that listens at `address`.
    fn uri(&self, address: &SocketAddress) -> String {
        let name = escaped(&self.name);
        match address {
            SocketAddress::Unix(UnixSocketAddress {
                path,
                is_abstract: Some(true),
                ..
            }) => {
                format!("the abstract socket {path}, export '{name}'")
            }
            SocketAddress::Unix(unix) => format!("nbd+unix:///{name}?socket={}", escaped(&unix.path)),
            SocketAddress::Inet(inet) => {
                let host = match inet.host.as_str() {
                    "0.0.0.0" | "::" => "localhost".to_owned(),
                    host if host.contains(':') => format!("[{host}]"),
                    host => host.to_owned(),
                };
                format!("nbd://{host}:{}/{name}", inet.port)
            }
            // A server tells the real address of what it was passed, and listens on nothing else.
            SocketAddress::Fd(_) | SocketAddress::Vsock(_) => String::new(),
        }
    }

    /// What a person is told when all is set up.
    fn greeting(&self, facts: &NodeFacts, uris: &[String]) -> String {
        let uri = uris.first().map_or("", String::as_str);
        let access = if facts.read_only {
            "read-only"
        } else if self.snapshot {
            "writes are forgotten at the end"
        } else {
            "read-write"
        };
        let mut text = format!(
            "Serving {} ({}, {}, {access}) at\n\n    {}\n\nTry in another terminal:\n\n",
            self.image.display(),
            facts.driver,
            human_size(facts.size),
            uris.join("\n    "),
        );
        for command in [format!("nbdinfo '{uri}'"), format!("qemu-img info '{uri}'")] {
            // Writing to a string does not fail.
            let _ = writeln!(text, "    {command}");
        }
        let _ = writeln!(text, "    nbdcopy '{uri}' copy.raw");
        match &self.qmp {
            Some(qmp) => text.push_str(&self.snapshot_example(qmp, facts)),
            None => text.push_str("\nWith --qmp PATH the image can be changed while it is served.\n"),
        }
        text.push_str("\nCtrl-C ends it.");
        text
    }

    fn snapshot_example(&self, qmp: &Path, facts: &NodeFacts) -> String {
        let (image, qmp) = (self.image.display(), qmp.display());
        format!(
            "\nTake a snapshot while clients go on: make an overlay,\n\n    \
             qemu-img create -f qcow2 -u -b {image} -F {driver} overlay.qcow2 {size}\n\n\
             and put it on top:\n\n    \
             millpond qmp {qmp} blockdev-add driver=qcow2 node-name=overlay backing=null \
             file.driver=file file.filename=overlay.qcow2\n    \
             millpond qmp {qmp} blockdev-snapshot node={NODE} overlay=overlay\n",
            driver = facts.driver,
            size = facts.size,
        )
    }
}

/// Refuses a socket that somebody listens on; `option` is what chooses another.
fn check_unused(path: &Path, option: &str) -> Result<(), QmpError> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
    // A path that is no address is refused where it is listened on.
    let Ok(address) = SocketAddrUnix::new(path) else {
        return Ok(());
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None);
    match socket.and_then(|socket| connect(&socket, &address)) {
        // It takes us, or has too many that it did not take yet, or takes no streams.
        Ok(()) | Err(Errno::AGAIN | Errno::PROTOTYPE) => Err(QmpError::generic(format!(
            "{} is in use by another server; choose another with {option}",
            path.display()
        ))),
        Err(_) => Ok(()),
    }
}

/// `text` as a part of a URI.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            let _ = write!(escaped, "%{byte:02X}");
        }
    }
    escaped
}

/// `bytes` with the largest unit that leaves a whole number or one decimal.
fn human_size(bytes: u64) -> String {
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    for (shift, unit) in units {
        let whole = bytes >> shift;
        if whole > 0 {
            let rest = bytes & ((1 << shift) - 1);
            let tenth = (rest >> (shift - 10)) * 10 / 1024;
            return if tenth == 0 {
                format!("{whole} {unit}")
            } else {
                format!("{whole}.{tenth} {unit}")
            };
        }
    }
    format!("{bytes} bytes")
}

#[cfg(test)]
mod tests {
    use super::*;
    use millpond_messages::qapi::InetSocketAddress;

    fn plain(arguments: &[&str]) -> Plain {
        Plain::try_parse_from([&["millpond"], arguments].concat()).unwrap()
    }

    #[test]
    fn uris_name_the_socket_and_the_export() {
        let image = plain(&["a b.qcow2", "--name", "x?y"]);
        let unix = SocketAddress::Unix(UnixSocketAddress {
            path: "/tmp/a b".into(),
            ..UnixSocketAddress::default()
        });
        assert_eq!(image.uri(&unix), "nbd+unix:///x%3Fy?socket=/tmp/a%20b");
        let tcp = |host: &str| {
            let (host, port) = (host.into(), "10809".into());
            SocketAddress::Inet(InetSocketAddress {
                host,
                port,
                ..InetSocketAddress::default()
            })
        };
        assert_eq!(plain(&["x"]).uri(&tcp("127.0.0.1")), "nbd://127.0.0.1:10809/");
        assert_eq!(plain(&["x"]).uri(&tcp("::")), "nbd://localhost:10809/");
        assert_eq!(plain(&["x"]).uri(&tcp("::1")), "nbd://[::1]:10809/");
    }

    #[test]
    fn sizes_for_people() {
        for (bytes, text) in [
            (512, "512 bytes"),
            (10 << 30, "10 GiB"),
            (1536, "1.5 KiB"),
            (u64::MAX, "16777215.9 TiB"),
        ] {
            assert_eq!(human_size(bytes), text);
        }
    }

    #[test]
    fn what_is_there_and_what_is_not_is_told_before_anything_starts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, b"something").unwrap();
        let path = path.to_str().unwrap();
        assert_eq!(plain(&[path]).check_image(), Ok(()));
        let exists = plain(&[path, "--create", "1M"]).check_image().unwrap_err();
        assert!(exists.contains("exists"), "{exists}");
        let absent = dir.path().join("absent.img");
        let absent = absent.to_str().unwrap();
        let refused = plain(&[absent]).check_image().unwrap_err();
        assert!(refused.contains("--create"), "{refused}");
        assert_eq!(plain(&[absent, "--create", "1M"]).check_image(), Ok(()));
    }

    #[test]
    fn new_images_are_of_the_format_that_their_names_say() {
        for (name, format) in [
            ("x.img", "raw"),
            ("x.raw", "raw"),
            ("x", "qcow2"),
            ("x.qcow2", "qcow2"),
        ] {
            assert_eq!(plain(&[name, "--create", "1M"]).new_format(), format);
        }
        assert_eq!(
            plain(&["x.img", "--create", "1M", "--format", "qcow2"]).new_format(),
            "qcow2"
        );
    }

    #[test]
    fn a_suffix_that_names_another_format_is_refused() {
        for (name, format, is_good) in [
            ("x.vmdk", None, false),
            ("x.VHDX", Some("raw"), false),
            ("x.qcow", None, false),
            ("x.raw", Some("qcow2"), false),
            ("x.qcow2", Some("raw"), false),
            ("x.img", Some("qcow2"), true),
            ("x.raw", None, true),
            ("x.disk", None, true),
            ("x", Some("raw"), true),
        ] {
            let mut arguments = vec![name, "--create", "1M"];
            arguments.extend(format.iter().flat_map(|format| ["--format", format]));
            assert_eq!(
                plain(&arguments).check_suffix().is_ok(),
                is_good,
                "{name} {format:?}"
            );
        }
    }

    #[test]
    fn sizes_that_are_none_and_those_that_are_too_large() {
        assert_eq!(size("10G"), Ok(10 << 30));
        assert_eq!(size("7E"), Ok(7 << 60));
        for text in ["8E", "16E", "99999999999999999999", "9000000T"] {
            let refused = size(text).unwrap_err();
            assert!(refused.contains("too large"), "{text}: {refused}");
        }
        for text in ["", "G", "1X", "1GB", "-1"] {
            let refused = size(text).unwrap_err();
            assert!(refused.contains("not a size"), "{text}: {refused}");
        }
    }

    #[test]
    fn a_colon_in_a_path_is_no_protocol() {
        for (name, path) in [
            ("a:b", "./a:b"),
            ("/a:b", "/a:b"),
            ("../x", "../x"),
            ("x/y", "./x/y"),
        ] {
            assert_eq!(plain(&[name]).path().unwrap(), path);
        }
    }
}
