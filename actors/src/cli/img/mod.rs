//! `millpond img`: images made, looked at, changed and copied, with `qemu-img`'s commands, options and texts.
//!
//! A command is a file here and a row of [`COMMANDS`].

mod amend;
mod bench;
mod bitmap;
mod chain;
mod check;
mod commit;
mod compare;
mod convert;
mod copy;
mod create;
mod dd;
mod described;
mod diff;
mod du;
mod human;
mod info;
mod map;
mod measure;
mod options;
mod output;
mod pace;
mod progress;
mod rebase;
mod resize;
mod snapshot;

use super::filters::Filters;
use super::getopt::{self, Row};
use super::texts::TOOL_VERSION;
use super::tool::{Failure, Program, flush_output, print};
use super::trace;
use crate::log::LogOptions;
use std::process::ExitCode;

/// A command of the tool.
struct Command {
    name: &'static str,
    /// What it does, in a line of the list of commands.
    does: &'static str,
    run: fn(Program<'_>, &[String]) -> Result<ExitCode, Failure>,
}

/// The commands in the order in which they are listed.
const COMMANDS: &[Command] = &[
    Command {
        name: "amend",
        does: "Change options of an image's format in place",
        run: amend::run,
    },
    Command {
        name: "bench",
        does: "Measure how fast an image is",
        run: bench::run,
    },
    Command {
        name: "bitmap",
        does: "Change the dirty bitmaps of an image",
        run: bitmap::run,
    },
    Command {
        name: "check",
        does: "Check the metadata of an image, and repair it",
        run: check::run,
    },
    Command {
        name: "commit",
        does: "Write what an image has of its own to its backing file",
        run: commit::run,
    },
    Command {
        name: "compare",
        does: "Tell whether two images have the same contents",
        run: compare::run,
    },
    Command {
        name: "convert",
        does: "Copy an image, perhaps into another format",
        run: convert::run,
    },
    Command {
        name: "create",
        does: "Make an image",
        run: create::run,
    },
    Command {
        name: "dd",
        does: "Copy blocks from image to image",
        run: dd::run,
    },
    Command {
        name: "diff",
        does: "Show in which ranges two images differ",
        run: diff::run,
    },
    Command {
        name: "du",
        does: "Show what each image of a chain holds",
        run: du::run,
    },
    Command {
        name: "info",
        does: "Show what is known of an image",
        run: info::run,
    },
    Command {
        name: "map",
        does: "Show where the data of an image lies",
        run: map::run,
    },
    Command {
        name: "measure",
        does: "Show how large the file of a new image will be",
        run: measure::run,
    },
    Command {
        name: "rebase",
        does: "Give an image another backing file",
        run: rebase::run,
    },
    Command {
        name: "resize",
        does: "Make the disk of an image longer or shorter",
        run: resize::run,
    },
    Command {
        name: "snapshot",
        does: "List, make, apply or delete snapshots inside an image",
        run: snapshot::run,
    },
];

/// An option before the command.
#[derive(Clone, Copy)]
enum Name {
    Help,
    Trace,
    Version,
}

const OPTIONS: &[Row<Name>] = &[
    Row::flag("help", Some('h'), Name::Help),
    Row::flag("version", Some('V'), Name::Version),
    Row::value("trace", Some('T'), Name::Trace),
];

/// Runs the tool; `name` is the program's, for its texts.
pub fn run(name: &str, arguments: &[String]) -> ExitCode {
    let program = Program(name);
    let code = command(program, arguments).unwrap_or_else(|failure| failure.tell(program));
    flush_output();
    code
}

fn command(program: Program<'_>, arguments: &[String]) -> Result<ExitCode, Failure> {
    let usage = |text: String| Failure::usage(program, "", text);
    let cut = getopt::parse_leading(OPTIONS, arguments);
    let mut traced = Vec::new();
    for argument in cut.arguments {
        let argument = argument.map_err(usage)?;
        let text = match argument.name {
            Some(Name::Help) => help(program),
            Some(Name::Trace) if trace::is_help(&argument.value) => trace::HELP.to_owned(),
            Some(Name::Trace) => {
                traced.push((argument.typed, argument.value));
                continue;
            }
            Some(Name::Version) | None => format!("{} {TOOL_VERSION}\n", program.0),
        };
        print(&text);
        return Ok(ExitCode::SUCCESS);
    }
    if !traced.is_empty() {
        let filters = Filters::parse(traced).map_err(|why| Failure::new(why.trim_start()))?;
        trace::start(program.0, filters, LogOptions::default()).map_err(Failure::new)?;
    }
    let (name, arguments) = cut
        .rest
        .split_first()
        .ok_or_else(|| usage("Not enough arguments".to_owned()))?;
    let command = COMMANDS.iter().find(|command| command.name == name);
    match command {
        Some(command) => (command.run)(program, arguments),
        None => Err(usage(format!("Command not found: {name}"))),
    }
}

fn help(program: Program<'_>) -> String {
    let commands = COMMANDS
        .iter()
        .map(|command| format!("  {:<10} {}\n", command.name, command.does));
    let commands: String = commands.collect();
    format!(
        "Usage: {0} [-h] [-V] [-T FILTER]... COMMAND [ARGUMENT]...\n\nMakes, looks at, changes and copies disk images.\n\n\
        Options:\n  -h, --help          Print this\n  -V, --version       Print the version\n  \
        -T, --trace FILTER  Log more; '-T help' says what\n\n\
        Commands, each with its own --help:\n{commands}",
        program.0
    )
}
