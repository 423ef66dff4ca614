//! `millpond IMAGE`: serves one image, and says what can be done with it.

mod greeting;
mod image;
mod sockets;

use super::filters::Filters;
use super::runtime::control_thread;
use super::signals::{ENDED_AT_ONCE, Signals};
use super::texts::{VERSION, failed, failure, usage};
use super::{notify, trace};
use crate::daemon::Daemon;
use crate::log::LogOptions;
use crate::qmp;
use clap::Parser;
use millpond_messages::graph::FindNode;
use millpond_messages::qapi::schema::{BlockExportIothreads, BlockExportOptions, ObjectOptions};
use millpond_messages::qapi::{Object, QmpError, parse_size};
use serde_json::{Value, json};
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

/// The node that is served.
const NODE: &str = "disk";
/// The iothread it lives in, if it has one of its own.
const IOTHREAD: &str = "iothread0";

/// Serves a disk image over NBD, and lets it be changed meanwhile.
#[derive(Debug, Parser)]
#[command(name = "millpond", version = VERSION, after_help = "\
Other uses:
  millpond serve OPTIONS...                  a storage daemon, with the options of qemu-storage-daemon
  millpond qmp SOCKET COMMAND KEY=VALUE...   send a command to a running daemon
  millpond flight FILE                       print a daemon's flight record: its last messages
  millpond img COMMAND [ARGUMENT]...         make, look at, change and copy images, as qemu-img does
  millpond io [OPTION]... [IMAGE]            exercise an image with single requests, as qemu-io does
  millpond nbd [OPTION]... IMAGE             serve an image to NBD clients, as qemu-nbd does
  millpond help serve|img|io|nbd|qmp|flight|trace|drivers")]
struct Plain {
    /// The image to serve; write ./NAME for one that is named like a subcommand.
    image: PathBuf,
    /// Create the image first, with this size: a number of bytes, or one with K, M, G or T.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    create: Option<u64>,
    /// The image's format. A new image is qcow2 unless its name ends in .raw or .img.
    #[arg(long, value_parser = ["qcow2", "raw"])]
    format: Option<String>,
    /// Refuse writes, and open the image read-only.
    #[arg(long, conflicts_with = "create")]
    read_only: bool,
    /// Keep writes in a temporary file, and discard them at the end.
    #[arg(long, conflicts_with_all = ["create", "read_only"])]
    snapshot: bool,
    /// The Unix socket to listen on; by default millpond-IMAGE.sock in $XDG_RUNTIME_DIR or /tmp.
    #[arg(long, value_name = "PATH", conflicts_with = "port")]
    socket: Option<PathBuf>,
    /// Listen on this TCP port of 127.0.0.1 instead; 0 picks a free one.
    #[arg(long, value_name = "N")]
    port: Option<u16>,
    /// The export name that clients ask for.
    #[arg(long, default_value = "")]
    name: String,
    /// Accept QMP commands on this Unix socket.
    #[arg(long, value_name = "PATH")]
    qmp: Option<PathBuf>,
    /// Serve the image in a thread of its own.
    #[arg(long)]
    iothread: bool,
    /// Log more, or log to a file; see `-T help`.
    #[arg(short = 'T', long = "trace", value_name = "FILTER")]
    trace: Vec<String>,
    /// Where to log instead of standard error: file=PATH, syslog or journald; see `--log help`.
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
        Err(error) => return usage(&error),
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
        Err(why) => return failed(&format!("{program}:{why}")),
    };
    let options = LogOptions::parse(&plain.log).map_err(|why| format!("--log {}: {why}", plain.log));
    if let Err(why) = options.and_then(|options| trace::start(program, filters, options)) {
        return failure(program, &why);
    }
    let system = match control_thread() {
        Ok(system) => system,
        Err(why) => return failure(program, &why),
    };
    system.block_on(async {
        match plain.run(start).await {
            Ok(false) => ExitCode::SUCCESS,
            Ok(true) => ExitCode::FAILURE,
            Err(why) => failure(program, &why),
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

    /// Makes all that is served and listened on; answers the name of the node that is served.
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
            iothread: self
                .iothread
                .then(|| BlockExportIothreads::Single(IOTHREAD.to_owned())),
            writable: Some(!self.read_only),
            ..BlockExportOptions::nbd(NODE, &node, &self.name)
        };
        qmp::export::add(daemon.clone(), export).await?;
        daemon.exports().hold_clients(false);
        self.open_monitor(daemon).await?;
        Ok(node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
