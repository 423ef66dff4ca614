//! What the commands' options have in common.

use crate::cli::getopt::{self, Row};
use crate::cli::tool::{Failure, Program, print};
use std::process::ExitCode;

/// An option with its value, or a word that is none.
pub type Given<N> = (Option<N>, String);

/// Cuts the arguments of `command`, as far as they are right.
pub fn cut<N: Copy>(
    program: Program<'_>,
    command: &str,
    rows: &[Row<N>],
    arguments: &[String],
) -> impl Iterator<Item = Result<Given<N>, Failure>> {
    let cut = getopt::parse(rows, arguments);
    let given = cut.arguments.into_iter().map(move |argument| match argument {
        Ok(argument) => Ok((argument.name, argument.value)),
        Err(why) => Err(Failure::misspelt(program, command, why)),
    });
    let words = cut.rest.into_iter().map(|word| Ok((None, word)));
    given.collect::<Vec<_>>().into_iter().chain(words)
}

/// Prints a command's help, in which `{program}` stands for the program's name.
pub fn explain(program: Program<'_>, text: &str) -> ExitCode {
    print(&text.replace("{program}", program.0));
    ExitCode::SUCCESS
}
