//! What the tests of this crate can do by hand: runs of seeds, one after the other, for as long as one likes.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use millpond_tests::sim;

#[derive(Parser)]
#[command(about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The whole daemon on one thread, from one seed.
    Sim(sim::Options),
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Sim(options) => sim::run(&options),
    }
}
