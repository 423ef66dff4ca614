//! The command line.

mod arguments;
mod background;
mod filters;
mod flight;
mod foreign;
mod getopt;
mod help;
mod img;
mod io;
mod nbd;
mod notify;
mod objects;
mod pidfile;
mod plain;
mod qmp;
mod runtime;
mod serve;
mod signals;
mod subcommands;
mod texts;
mod tool;
mod trace;

use crate::log;
use crate::socket::activation;
use millpond_ring::os::process::ignore_file_size_signal;
use runtime::start;
use std::path::Path;
use std::process::ExitCode;
use texts::failure;

/// The name under which the program takes a storage daemon's options only, as the one that has it does.
const STORAGE_DAEMON: &str = "qemu-storage-daemon";

/// The name under which the program is `millpond img`.
const IMAGE_TOOL: &str = "qemu-img";

/// The name under which the program is `millpond io`.
const REQUEST_TOOL: &str = "qemu-io";

/// The name under which the program is `millpond nbd`.
const SERVING_TOOL: &str = "qemu-nbd";

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
        let why = format!("the sockets that the service manager passed cannot be taken over: {error}");
        return failure(&program, &why);
    }
    let is_serve_only = |argument: &String| {
        let name = argument
            .split_once('=')
            .map_or(argument.as_str(), |(name, _)| name);
        SERVE_ONLY.contains(&name)
    };
    match &*program {
        STORAGE_DAEMON => return serve::serve(&program, arguments, start),
        IMAGE_TOOL => return img::run(&program, arguments),
        REQUEST_TOOL => return io::run(&program, arguments),
        SERVING_TOOL => return nbd::run(&program, arguments),
        _ => {}
    }
    if let Some(code) = subcommands::run(&program, arguments) {
        return code;
    }
    if let (Some(meant), Some(first)) = (subcommands::meant(arguments), arguments.first()) {
        let why = format!("'{first}' is neither an image nor a subcommand; did you mean '{meant}'?");
        return failure(&program, &why);
    }
    if arguments.iter().any(is_serve_only) {
        return serve::serve(&program, arguments, start);
    }
    plain::serve_image(&program, &all, start)
}

/// Sees to it, however the program ends, that what it told last is written.
struct LastLines;

impl Drop for LastLines {
    fn drop(&mut self) {
        log::finish();
    }
}
