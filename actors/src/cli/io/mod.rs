//! `millpond io`: exercises an image with single requests, as `qemu-io` does, in its words and reports.
//!
//! ```text
//!   -c, standard input --- words ---> a row of the table ---> a command ---> requests of the image's client
//!                                                                |
//!                                      HeldOutput: reports in the order in which requests end
//! ```

mod aio;
mod breaks;
mod commands;
mod file;
mod help;
mod in_flight;
mod lines;
mod memory;
mod number;
mod process;
mod prompt;
mod report;
mod shell;
mod shown;
mod space;
mod table;
mod transfer;
mod words;

use super::getopt::{self, Row};
use super::texts::TOOL_VERSION;
use super::tool::{Program, Tool, print};
use file::{Opening, add_options, open_image};
use shell::Shell;
use std::process::ExitCode;

/// The options of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Name {
    Help,
    Version,
    Command,
    Format,
    /// What an image is opened with, as `open` has it too.
    Opening(char),
    Misalign,
    Trace,
    Object,
    ImageOptions,
}

/// The table of the program's options.
const ROWS: &[Row<Name>] = &[
    Row::flag("help", Some('h'), Name::Help),
    Row::flag("version", Some('V'), Name::Version),
    Row::value("cmd", Some('c'), Name::Command),
    Row::value("format", Some('f'), Name::Format),
    Row::flag("read-only", Some('r'), Name::Opening('r')),
    Row::flag("snapshot", Some('s'), Name::Opening('s')),
    Row::flag("nocache", Some('n'), Name::Opening('n')),
    Row::flag("copy-on-read", Some('C'), Name::Opening('C')),
    Row::flag("misalign", Some('m'), Name::Misalign),
    Row::flag("native-aio", Some('k'), Name::Opening('k')),
    Row::value("aio", Some('i'), Name::Opening('i')),
    Row::value("discard", Some('d'), Name::Opening('d')),
    Row::value("cache", Some('t'), Name::Opening('t')),
    Row::value("trace", Some('T'), Name::Trace),
    Row::value("object", None, Name::Object),
    Row::flag("image-opts", None, Name::ImageOptions),
    Row::flag("force-share", Some('U'), Name::Opening('U')),
];

/// What the command line asks for.
#[derive(Default)]
struct Plan {
    commands: Vec<String>,
    format: Option<String>,
    opening: Opening,
    objects: Vec<String>,
    is_options: bool,
    files: Vec<String>,
}

/// Runs the tool; `program` is its name in texts.
pub fn run(program: &str, arguments: &[String]) -> ExitCode {
    let program = Program(program);
    let plan = match read(program, arguments) {
        Ok(plan) => plan,
        Err(code) => return code,
    };
    Tool::run(program, &plan.objects, async |tool| Ok(work(tool, &plan).await))
}

/// Reads the command line; an exit code where it ends the program.
fn read(program: Program<'_>, arguments: &[String]) -> Result<Plan, ExitCode> {
    let cut = getopt::parse(ROWS, arguments);
    let mut plan = Plan::default();
    for argument in cut.arguments {
        let argument = argument.map_err(|why| {
            program.tell(&why);
            usage(program);
            ExitCode::FAILURE
        })?;
        let value = argument.value;
        match argument.name {
            None => plan.files.push(value),
            Some(Name::Help) => {
                usage(program);
                return Err(ExitCode::SUCCESS);
            }
            Some(Name::Version) => {
                print(&format!("{} {TOOL_VERSION}\n", program.0));
                return Err(ExitCode::SUCCESS);
            }
            Some(Name::Command) => plan.commands.push(value),
            Some(Name::Format) => plan.format = Some(value),
            Some(Name::Object) => plan.objects.push(value),
            Some(Name::ImageOptions) => plan.is_options = true,
            // Buffers are aligned as the node below asks for, whatever their user has; and there are no such traces.
            Some(Name::Misalign | Name::Trace) => {}
            Some(Name::Opening(option)) => plan.opening.take(option, &value).map_err(|why| {
                program.tell(&why);
                ExitCode::FAILURE
            })?,
        }
    }
    plan.files.extend(cut.rest);
    if plan.files.len() > 1 {
        usage(program);
        return Err(ExitCode::FAILURE);
    }
    if plan.is_options && plan.format.is_some() && !plan.files.is_empty() {
        program.tell("--image-opts and -f are mutually exclusive");
        return Err(ExitCode::FAILURE);
    }
    Ok(plan)
}

/// Opens the image and carries out the commands.
async fn work(tool: &Tool<'_>, plan: &Plan) -> ExitCode {
    let mut shell = Shell::new(tool.program().0, tool.graph().clone());
    if let Some(file) = plan.files.first() {
        let mut opening = plan.opening.clone();
        let opened = if plan.is_options {
            match add_options(&shell, &mut opening.options, file) {
                Ok(()) => open_image(&mut shell, None, opening).await,
                Err(failed) => Err(failed),
            }
        } else {
            if let Some(format) = &plan.format {
                opening
                    .options
                    .insert("driver".to_owned(), format.as_str().into());
            }
            open_image(&mut shell, Some(file), opening).await
        };
        if opened.is_err() {
            return ExitCode::FAILURE;
        }
    }
    let has_failed = match plan.commands.is_empty() {
        true => lines::carry_out(&mut shell).await,
        false => carry_out(&mut shell, &plan.commands).await,
    };
    let ended = commands::finish(&mut shell).await;
    if has_failed || ended.is_err() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

/// Carries out the commands of the command line; whether one has failed.
async fn carry_out(shell: &mut Shell, commands: &[String]) -> bool {
    let mut has_failed = false;
    for command in commands {
        has_failed |= commands::carry_out(shell, command).await.is_err();
        if shell.has_quit {
            break;
        }
    }
    has_failed
}

/// Prints how the program is used.
fn usage(program: Program<'_>) {
    print(&format!("Usage: {} {USAGE}\n", program.0));
}

/// What is behind the program's name.
const USAGE: &str = "[OPTIONS]... [-c STRING]... [file]
Exercises a disk image with single requests

  -c, --cmd STRING     carry out a command; may be given again. Without it, commands
                       are read from standard input
  -f, --format FMT     the format of the image
      --image-opts     the file is a list of options: driver=qcow2,file.filename=...
      --object OBJECT  make an object, such as a secret
  -r, --read-only      open the image read-only
  -s, --snapshot       write to a temporary image on top
  -U, --force-share    let others use the image as they like
  -C, --copy-on-read   keep what is read from a backing image
  -t, --cache MODE     none, writeback, unsafe, directsync or writethrough (default)
  -n, --nocache        the same as -t none
  -i, --aio MODE       threads, native or io_uring
  -k, --native-aio     the same as -i native
  -d, --discard MODE   ignore or unmap (default)
  -m, --misalign       accepted; buffers are aligned as the image asks for
  -T, --trace SPEC     accepted; there are no such traces
  -h, --help           print this
  -V, --version        print the version

'-c help' lists the commands.";
