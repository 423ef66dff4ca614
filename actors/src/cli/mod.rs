//! The command line.

mod arguments;
mod background;
mod filters;
mod flight;
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
use crate::socket::activation;
use drivers::builtin::builtin;
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
    if let Err(error) = activation::note() {
        eprintln!("{program}: the sockets that this process was started with cannot be told: {error}");
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
        eprintln!("{program}: there is neither an image nor a subcommand '{first}'; did you mean '{meant}'?");
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

fn start() -> io::Result<Daemon> {
    Daemon::start(builtin(), Vec::new())
}
