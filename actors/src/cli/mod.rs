//! The command line.

mod arguments;
mod background;
mod flight;
mod help;
mod pidfile;
mod plain;
mod serve;
mod signals;
mod trace;

use crate::daemon::Daemon;
use crate::socket::activation;
use drivers::builtin::builtin;
use std::io;
use std::path::Path;
use std::process::ExitCode;

/// The name under which the program takes a storage daemon's options only, as the one that has it does.
const STORAGE_DAEMON: &str = "qemu-storage-daemon";

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
    match arguments.split_first() {
        _ if program == STORAGE_DAEMON => serve::serve(&program, arguments, start),
        Some((first, rest)) if first == "serve" => serve::serve(&program, rest, start),
        Some((first, rest)) if first == "flight" => flight::print(&program, rest),
        _ if arguments.iter().any(is_serve_only) => serve::serve(&program, arguments, start),
        _ => plain::serve_image(&program, &all, start),
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
