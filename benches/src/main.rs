//! `millpond-bench`: loads an NBD server and reports how it did, or runs Millpond and its peer in turn and compares.

#![forbid(unsafe_code)]

mod ceiling;
mod compare;
mod connection;
mod flat;
mod load;
mod process;
mod qmp;
mod server;

use std::error::Error;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// What can go wrong in a benchmark ends it, with a message for the person who runs it.
type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Loads NBD servers and compares them.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Loads one server and prints requests a second, latencies and the server's CPU time
    Load(load::LoadArguments),
    /// Runs Millpond and qemu-storage-daemon in turn and prints the ratios
    Compare(compare::CompareArguments),
    /// Answers reads and writes with nothing behind them, on a unix socket: what the load client alone can do
    Ceiling(ceiling::CeilingArguments),
    /// Times adding and removing nodes beside many others, and queries of many, in Millpond and qemu-storage-daemon
    Flat(flat::FlatArguments),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Load(arguments) => load::main(&arguments),
        Command::Compare(arguments) => compare::main(&arguments),
        Command::Ceiling(arguments) => ceiling::main(&arguments),
        Command::Flat(arguments) => flat::main(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("millpond-bench: {error}");
            ExitCode::FAILURE
        }
    }
}
