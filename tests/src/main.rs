//! What the tests of this crate do, by hand: seeds, crashes and failing requests, as many as one likes.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use millpond_tests::{crash, nth, sim};

#[derive(Parser)]
#[command(name = "millpond-tests", about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the whole daemon on one thread, from one seed after the other.
    Sim(sim::Options),
    /// Examine the images that a crash can leave, at every moment of a workload.
    Crash(crash::Options),
    /// Fail the n-th request of each kind to the storage, for all n.
    Nth(nth::Options),
}

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::ERROR)
        .with_writer(std::io::stderr)
        .init();
    match Arguments::parse().command {
        Command::Sim(options) => sim::run(&options),
        Command::Crash(options) => crash::run(&options),
        Command::Nth(options) => nth::run(&options),
    }
}
