//! tmp
use clap::Parser;
#[derive(Parser)]
enum Cli {
    Crash(millpond_tests::crash::Options),
    Nth(millpond_tests::nth::Options),
}
fn main() -> std::process::ExitCode {
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .with_writer(std::io::stderr)
        .init();
    match Cli::parse() {
        Cli::Crash(o) => millpond_tests::crash::run(&o),
        Cli::Nth(o) => millpond_tests::nth::run(&o),
    }
}
