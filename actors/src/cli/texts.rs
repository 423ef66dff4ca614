//! What the program tells the person at its command line.

use crate::log::tell;
use std::process::ExitCode;

/// What all parts of the program tell as their version, behind their name.
pub const VERSION: &str = concat!("version ", env!("CARGO_PKG_VERSION"));

/// What the tools tell as their version: that of QEMU's whose place they take, which scripts look at, and their own.
pub const TOOL_VERSION: &str = concat!("version 10.0.2 (Millpond ", env!("CARGO_PKG_VERSION"), ")");

/// Prints what is to be said of a command line that is wrong, or asks for help.
pub fn usage(error: &clap::Error) -> ExitCode {
    // Nothing can be said if saying it fails.
    let _ = error.print();
    if error.use_stderr() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

/// A text as a terminal may see it. Errors tell names that come from images: they shall move no cursor and change no colour.
pub fn printable(text: &impl ToString) -> String {
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

/// Tells that the program has failed, and why, behind its name.
pub fn failure(program: &str, why: &impl ToString) -> ExitCode {
    failed(&format!("{program}: {}", why.to_string()))
}

/// Tells that the program has failed, in these words.
pub fn failed(text: &str) -> ExitCode {
    tell(&printable(&text));
    ExitCode::FAILURE
}
