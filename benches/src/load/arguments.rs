//! The command line of `millpond-bench load`.

use std::time::{Duration, UNIX_EPOCH};

use clap::Args;

use super::choice::Choice;
use super::running;
use super::spec::{Kind, Pattern, Size, Spec};
use super::stamp::mixed;
use super::target::Target;
use crate::Outcome;

/// The options of `millpond-bench load`.
#[derive(Debug, Args)]
pub struct LoadArguments {
    /// What to load: nbd+unix:///NAME?socket=PATH or nbd://HOST:PORT/NAME; or a node in this process: null, raw:PATH,
    /// qcow2:PATH, or blockdev-add's options in JSON
    target: Target,
    /// Kinds of requests (read, write, zero, trim, flush) with their weights, such as read:70,write:30
    #[arg(long, default_value = "read", value_name = "KINDS")]
    mix: Choice<Kind>,
    /// Bytes a request: a size, or sizes with weights such as 4k:3,64k:1
    #[arg(long, default_value = "4k", value_name = "SIZES")]
    sizes: Choice<Size>,
    /// Requests in flight on each connection at the most
    #[arg(long, default_value_t = 32)]
    depth: u32,
    /// Connections, each with a thread of its own
    #[arg(long, default_value_t = 1)]
    connections: u16,
    /// Where requests go: sequential, random, or zipf:THETA
    #[arg(long, default_value_t = Pattern::Random)]
    pattern: Pattern,
    /// Requests a second on all connections together (an open loop)
    #[arg(long, value_name = "REQUESTS")]
    rate: Option<f64>,
    /// Use only so many bytes at the front, such as 256M
    #[arg(long, value_name = "BYTES")]
    span: Option<Size>,
    /// Check every byte that was written
    #[arg(long)]
    verify: bool,
    /// Negotiate structured replies
    #[arg(long)]
    structured: bool,
    /// Seconds to measure
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Seconds before that which do not count
    #[arg(long, default_value_t = 0.3, value_name = "SECONDS")]
    warm_up: f64,
    /// Makes the sequence of requests; a random one if none is given
    #[arg(long)]
    seed: Option<u64>,
    /// The server's process, to tell what it uses of the machine
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
    /// With a node in this process: send from the iothread where the node lives
    #[arg(long)]
    home: bool,
    /// Do not count system calls and instructions
    #[arg(long)]
    no_counters: bool,
}

impl LoadArguments {
    fn spec(&self) -> Outcome<Spec> {
        Ok(Spec {
            target: self.target.clone(),
            mix: self.mix.clone(),
            sizes: self.sizes.clone(),
            depth: self.depth,
            connections: self.connections,
            pattern: self.pattern,
            rate: self.rate,
            span: self.span.map(|span| span.0),
            verify: self.verify,
            structured: self.structured,
            warm_up: Duration::try_from_secs_f64(self.warm_up)?,
            duration: Duration::try_from_secs_f64(self.seconds)?,
            seed: self.seed.map_or_else(some_seed, Ok)?,
            server: self.pid,
            home: self.home,
            counters: !self.no_counters,
        })
    }
}

/// A seed that differs from run to run, short enough to be typed again.
fn some_seed() -> Outcome<u64> {
    Ok(mixed(UNIX_EPOCH.elapsed()?.as_nanos() as u64) >> 40)
}

/// Runs `millpond-bench load`.
///
/// # Errors
/// The load could not be run to its end, or verification found something wrong.
pub fn main(arguments: &LoadArguments) -> Outcome<()> {
    let report = running::run(&arguments.spec()?)?;
    println!("{:.0}/s", report.rate());
    Ok(())
}
