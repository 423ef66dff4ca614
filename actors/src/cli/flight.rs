//! `millpond flight FILE`: prints a flight record.

use crate::flight::{FlightError, Printed};
use std::fs::File;
use std::io::{self, Read, Write};
use std::process::ExitCode;

/// No flight record is longer: what is read of a file that is none stays bounded.
const LONGEST: u64 = 256 << 20;

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
    let [path] = arguments else {
        eprintln!("Usage: {program} flight FILE");
        return ExitCode::FAILURE;
    };
    match read_and_print(path) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{program}: {path}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn read_and_print(path: &str) -> Result<(), Failure> {
    let mut bytes = Vec::new();
    File::open(path)?.take(LONGEST).read_to_end(&mut bytes)?;
    let text = Printed::read(&bytes)?.to_string();
    match io::stdout().lock().write_all(text.as_bytes()) {
        // Whoever reads has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}
