//! `millpond flight FILE`: prints a flight record.

use clap::Parser;
use millpond_engine::flight::{FlightError, Printed};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// No flight record is longer: what is read of a file that is none stays bounded.
const LONGEST: u64 = 256 << 20;

/// Prints a flight record: what was unanswered, and the last messages of each thread.
///
/// The QMP command x-millpond-flight-record, the signal SIGUSR1 and a panic write one.
#[derive(Debug, Parser)]
#[command(name = "millpond", bin_name = "millpond flight", version = super::texts::VERSION)]
struct Arguments {
    /// The flight record to print.
    file: PathBuf,
}

/// Why a record cannot be printed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Flight(#[from] FlightError),
}

/// Prints the record that the one argument names.
pub fn print(program: &str, arguments: &[String]) -> ExitCode {
    let name = "millpond flight".to_owned();
    let arguments = match Arguments::try_parse_from(std::iter::once(&name).chain(arguments)) {
        Ok(arguments) => arguments,
        Err(error) => return super::texts::usage(&error),
    };
    match read_and_print(&arguments.file) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{program}: {}: {error}", arguments.file.display());
            ExitCode::FAILURE
        }
    }
}

fn read_and_print(path: &Path) -> Result<(), Failure> {
    let mut bytes = Vec::new();
    File::open(path)?.take(LONGEST).read_to_end(&mut bytes)?;
    let text = Printed::read(&bytes)?.to_string();
    match io::stdout().lock().write_all(text.as_bytes()) {
        // Whoever reads has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}
