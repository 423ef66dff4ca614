//! `millpond img`: images made, looked at, changed and copied, with `qemu-img`'s commands, options and texts.
//!
//! A command is a file here and a row of [`COMMANDS`].

mod bench;
mod chain;
mod commit;
mod compare;
mod convert;
mod copy;
mod dd;
mod diff;
mod du;
mod form;
mod options;
mod pace;
mod progress;
mod rebase;
mod resize;

use super::getopt::{self, Row};
use super::texts::TOOL_VERSION;
use super::tool::{Failure, Program, print};
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
        name: "bench",
        does: "Run simple image benchmark",
        run: bench::run,
    },
    Command {
        name: "commit",
        does: "Commit image to its backing file",
        run: commit::run,
    },
    Command {
        name: "compare",
        does: "Check if two images have the same contents",
        run: compare::run,
    },
    Command {
        name: "convert",
        does: "Copy one image to another with optional format conversion",
        run: convert::run,
    },
    Command {
        name: "dd",
        does: "Copy input to output with optional format conversion",
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
        name: "rebase",
        does: "Change backing file of the image",
        run: rebase::run,
    },
    Command {
        name: "resize",
        does: "Resize the image",
        run: resize::run,
    },
];

/// An option before the command.
#[derive(Clone, Copy)]
enum Name {
    Help,
    Version,
}

const OPTIONS: &[Row<Name>] = &[
    Row::flag("help", Some('h'), Name::Help),
    Row::flag("version", Some('V'), Name::Version),
];

/// Runs the tool; `name` is the program's, for its texts.
pub fn run(name: &str, arguments: &[String]) -> ExitCode {
    let program = Program(name);
    command(program, arguments).unwrap_or_else(|failure| failure.tell(program))
}

fn command(program: Program<'_>, arguments: &[String]) -> Result<ExitCode, Failure> {
    let usage = |text: String| Failure::usage(program, "", text);
    let cut = getopt::parse_leading(OPTIONS, arguments);
    if let Some(first) = cut.arguments.into_iter().next() {
        let text = match first.map_err(usage)?.name {
            Some(Name::Help) => help(program),
            Some(Name::Version) | None => format!("{} {TOOL_VERSION}\n", program.0),
        };
        print(&text);
        return Ok(ExitCode::SUCCESS);
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
        "Usage: {0} [-h] [-V] COMMAND [ARGUMENT]...\n\nMakes, looks at, changes and copies disk images.\n\n\
        Options:\n  -h, --help     Print this\n  -V, --version  Print the version\n\n\
        Commands, each with its own --help:\n{commands}",
        program.0
    )
}
