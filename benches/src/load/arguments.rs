//! The command line of `millpond-bench load`.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};

use clap::Args;

use super::actions::{self, Action};
use super::choice::Choice;
use super::output::{self, Format};
use super::running::start;
use super::spec::{Kind, Pattern, Size, Spec};
use super::stamp::mixed;
use super::target::Target;
use super::{plot, progress};
use crate::Outcome;

const EXAMPLES: &str = "\
Latencies are told in microseconds, and count from when a request was to be sent: in a closed loop (no --rate) that is when
an earlier one was answered; in an open loop (--rate) it is the request's time, however late the target let it be sent.

Sizes and offsets are in bytes, with an optional suffix k, M, G or T (powers of 1024). Offsets are multiples of the greatest
common divisor of all sizes.

With --verify each connection has its own part of the span, and no request overlaps a change in flight. What was trimmed is
not checked until it is written again. In the end everything that was written is read once more. The first wrong byte ends
the load with an error.

Examples:
  Random reads of 4 KiB from an export, 128 in flight, with the server's costs:
    millpond-bench load 'nbd+unix:///disk?socket=/tmp/nbd.sock' --depth 128 --pid $(pidof millpond)
  A mix that is checked while a snapshot is taken after two seconds, with a picture of it:
    millpond-bench load 'nbd+unix:///disk?socket=/tmp/nbd.sock' --mix read:60,write:30,zero:5,trim:4,flush:1 \\
        --sizes 4k:8,64k:1 --verify --qmp /tmp/qmp.sock --plot snapshot.svg --at \\
        '2:{\"execute\": \"blockdev-snapshot\", \"arguments\": {\"node\": \"disk\", \"overlay\": \"top\"}}'
  20000 requests a second over TCP, whether they are answered in time or not, as JSON:
    millpond-bench load nbd://localhost:10809/disk --rate 20000 --pattern zipf:1.1 --format json
  A qcow2 image in this process, without NBD:
    millpond-bench load qcow2:/dev/shm/disk.qcow2 --mix write";

/// The options of `millpond-bench load`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct LoadArguments {
    /// What to load: nbd+unix:///NAME?socket=PATH or nbd://HOST:PORT/NAME; or a node in this process: null, raw:PATH,
    /// qcow2:PATH, or blockdev-add's options in JSON
    target: Target,
    /// Kinds of requests: read, write, zero, trim and flush with their weights, such as read:70,write:30
    #[arg(long, default_value = "read", value_name = "KINDS", help_heading = "Requests")]
    mix: Choice<Kind>,
    /// Bytes a request: a size, or sizes with weights such as 4k:3,64k:1
    #[arg(long, default_value = "4k", value_name = "SIZES", help_heading = "Requests")]
    sizes: Choice<Size>,
    /// Where requests go: sequential, random, or zipf:THETA (the n-th most frequent place in proportion to 1/n^THETA)
    #[arg(long, default_value_t = Pattern::Random, help_heading = "Requests")]
    pattern: Pattern,
    /// Use only so many bytes at the front, such as 256M [default: all]
    #[arg(long, value_name = "BYTES", help_heading = "Requests")]
    span: Option<Size>,
    /// Makes the sequence of requests; it is printed [default: another each time]
    #[arg(long, value_name = "NUMBER", help_heading = "Requests")]
    seed: Option<u64>,
    /// Check every byte that was written, also in a last read of everything
    #[arg(long, help_heading = "Requests")]
    verify: bool,
    /// Requests in flight on each connection at the most
    #[arg(
        long,
        default_value_t = 32,
        value_name = "REQUESTS",
        help_heading = "Intensity"
    )]
    depth: u32,
    /// Connections, each with a thread of its own
    #[arg(long, default_value_t = 1, value_name = "NUMBER", help_heading = "Intensity")]
    connections: u16,
    /// Requests a second on all connections together, sent at their times [default: each when another was answered]
    #[arg(long, value_name = "REQUESTS", help_heading = "Intensity")]
    rate: Option<f64>,
    /// Seconds to measure
    #[arg(long, default_value_t = 5.0, help_heading = "Intensity")]
    seconds: f64,
    /// Seconds before that which do not count
    #[arg(
        long,
        default_value_t = 0.3,
        value_name = "SECONDS",
        help_heading = "Intensity"
    )]
    warm_up: f64,
    /// Over NBD: negotiate structured replies
    #[arg(long, help_heading = "Target")]
    structured: bool,
    /// With a node in this process: send from the iothread where the node lives, by direct calls
    #[arg(long, help_heading = "Target")]
    home: bool,
    /// The server's process, to tell what it uses of the machine
    #[arg(long, value_name = "PID", help_heading = "Target")]
    pid: Option<u32>,
    /// The daemon's QMP monitor, a unix socket, for --at
    #[arg(long, value_name = "SOCKET", requires = "at", help_heading = "Target")]
    qmp: Option<PathBuf>,
    /// Send a QMP command when so many seconds were measured; may be given several times
    #[arg(long, value_name = "SECONDS:JSON", requires = "qmp", help_heading = "Target")]
    at: Vec<Action>,
    /// How to print the result
    #[arg(long, value_enum, default_value_t = Format::Human, help_heading = "Output")]
    format: Format,
    /// Draw latencies over time, with the times of QMP commands, as SVG
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    plot: Option<PathBuf>,
    /// Tell once a second how it goes, also where standard error is no terminal
    #[arg(long, help_heading = "Output")]
    progress: bool,
    /// Do not count system calls and instructions: to count them slows every system call of the machine a little
    #[arg(long, help_heading = "Output")]
    no_counters: bool,
}

impl LoadArguments {
    fn spec(&self) -> Outcome<Spec> {
        Ok(Spec {
            target: self.target.clone(),
            mix: self.mix.clone(),
            sizes: self.sizes.clone(),
            depth: self.depth,
            connections: self.connections,
            pattern: self.pattern,
            rate: self.rate,
            span: self.span.map(|span| span.0),
            verify: self.verify,
            structured: self.structured,
            warm_up: Duration::try_from_secs_f64(self.warm_up)?,
            duration: Duration::try_from_secs_f64(self.seconds)?,
            seed: self.seed.map_or_else(some_seed, Ok)?,
            server: self.pid,
            home: self.home,
            counters: !self.no_counters,
        })
    }
}

/// A seed that differs from run to run, short enough to be typed again.
fn some_seed() -> Outcome<u64> {
    Ok(mixed(UNIX_EPOCH.elapsed()?.as_nanos() as u64) >> 40)
}

/// Runs `millpond-bench load`.
///
/// # Errors
/// The load could not be run to its end, or verification found something wrong.
pub fn main(arguments: &LoadArguments) -> Outcome<()> {
    if let Some(action) = arguments
        .at
        .iter()
        .find(|action| action.at.as_secs_f64() >= arguments.seconds)
    {
        let at = action.at.as_secs_f64();
        return Err(format!(
            "a command at {at} s comes after the load's {} s",
            arguments.seconds
        )
        .into());
    }
    let running = start(&arguments.spec()?)?;
    let show = arguments.progress || std::io::stderr().is_terminal();
    let acted = std::thread::scope(|scope| {
        let shown = show.then(|| scope.spawn(|| progress::show(&running)));
        let acted = match &arguments.qmp {
            Some(socket) => actions::perform(&running, socket, &arguments.at),
            None => Ok(()),
        };
        if acted.is_err() {
            running.give_up();
        }
        match shown.map(|thread| thread.join()) {
            Some(Ok(shown)) => acted.and(shown),
            Some(Err(_)) => Err("the progress's thread panicked".into()),
            None => acted,
        }
    });
    let report = running.finish();
    acted?;
    let report = report?;
    if report.all.requests == 0 {
        return Err(format!(
            "no request was answered in {} s: that is no result. A longer load (--seconds) may show one; if not, the \
             target does not answer",
            arguments.seconds
        )
        .into());
    }
    output::print(&report, arguments.format)?;
    if let Some(path) = &arguments.plot {
        plot::draw(&report, path)?;
    }
    Ok(())
}
