//! `millpond-bench`: loads an NBD server and reports how it did, or runs Millpond and its peer in turn and compares.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use millpond_bench::{ceiling, compare, flat, load};

/// Loads NBD servers and compares them.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Loads one server, or a node in this process, and prints rates, latencies and costs
    Load(Box<load::LoadArguments>),
    /// Runs Millpond and its peers in turn, and prints and writes the table of ratios
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
