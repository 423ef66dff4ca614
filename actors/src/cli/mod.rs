//! The command line.

mod arguments;
mod background;
mod filters;
mod flight;
mod foreign;
mod help;
mod notify;
mod pidfile;
mod plain;
mod qmp;
mod serve;
mod signals;
mod subcommands;
mod trace;

use crate::daemon::Daemon;
use crate::log::{self, tell};
use crate::socket::activation;
use actix_rt::{System, SystemRunner};
use millpond_drivers::builtin::builtin;
use millpond_ring::os::process::ignore_file_size_signal;
use rustix::event::{EventfdFlags, eventfd};
use std::io;
use std::path::Path;
use std::process::ExitCode;

/// The name under which the program takes a storage daemon's options only, as the one that has it does.
const STORAGE_DAEMON: &str = "qemu-storage-daemon";

/// What all parts of the program tell as their version, behind their name.
const VERSION: &str = concat!("version ", env!("CARGO_PKG_VERSION"));

/// Options that only a storage daemon has.
const SERVE_ONLY: &[&str] = &[
    "--blockdev",
    "--chardev",
    "--daemonize",
    "--export",
    "--monitor",
    "--nbd-server",
    "--object",
    "--pidfile",
];

/// Runs the program with the arguments it was started with.
pub fn run() -> ExitCode {
    let all: Vec<String> = std::env::args_os()
        .map(|text| text.to_string_lossy().into_owned())
        .collect();
    let (path, arguments) = all
        .split_first()
        .map_or(("", [].as_slice()), |(first, rest)| (first.as_str(), rest));
    let program = Path::new(path)
        .file_name()
        .map_or("millpond".into(), |name| name.to_string_lossy());
    let _last_lines = LastLines;
    ignore_file_size_signal();
    if let Err(error) = activation::note() {
        tell(&format!(
            "{program}: the sockets that this process was started with cannot be told: {error}"
        ));
        return ExitCode::FAILURE;
    }
    let is_serve_only = |argument: &String| {
        let name = argument
            .split_once('=')
            .map_or(argument.as_str(), |(name, _)| name);
        SERVE_ONLY.contains(&name)
    };
    if program == STORAGE_DAEMON {
        return serve::serve(&program, arguments, start);
    }
    if let Some(code) = subcommands::run(&program, arguments) {
        return code;
    }
    if let (Some(meant), Some(first)) = (subcommands::meant(arguments), arguments.first()) {
        let first = printable(first);
        tell(&format!(
            "{program}: there is neither an image nor a subcommand '{first}'; did you mean '{meant}'?"
        ));
        return ExitCode::FAILURE;
    }
    if arguments.iter().any(is_serve_only) {
        return serve::serve(&program, arguments, start);
    }
    plain::serve_image(&program, &all, start)
}

/// Prints what is to be said of a command line that is wrong, or asks for help.
fn usage(error: &clap::Error) -> ExitCode {
    // Nothing can be said if saying it fails.
    let _ = error.print();
    if error.use_stderr() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

/// Sees to it, however the program ends, that what it told last is written.
struct LastLines;

impl Drop for LastLines {
    fn drop(&mut self) {
        log::finish();
    }
}

/// A text as a terminal may see it. Errors tell names that come from images: they shall move no cursor and change no colour.
fn printable(text: &impl ToString) -> String {
    let text = text.to_string();
    let mut printable = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && c != '\n' && c != '\t' {
            printable.extend(c.escape_default());
        } else {
            printable.push(c);
        }
    }
    printable
}

/// Descriptors that the control thread's runtime needs for itself, and some to spare.
const RUNTIME_DESCRIPTORS: usize = 8;

/// The control thread's runtime. Never dropped: that would wait for threads that nothing can wake, such as the one that reads
/// standard input.
///
/// # Errors
/// There are too few descriptors left.
fn control_thread() -> io::Result<&'static mut SystemRunner> {
    // Where tokio finds none for what handles signals it panics, so that there must be enough before it looks.
    let spare: io::Result<Vec<_>> = (0..RUNTIME_DESCRIPTORS)
        .map(|_| Ok(eventfd(0, EventfdFlags::CLOEXEC)?))
        .collect();
    drop(spare?);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    Ok(Box::leak(Box::new(System::with_tokio_rt(|| runtime))))
}

fn start() -> io::Result<Daemon> {
    Daemon::start(builtin(), Vec::new())
}
