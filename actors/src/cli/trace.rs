//! Logging: what `-T` turns on.

use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

/// What `-T help` prints.
pub const HELP: &str = "\
-T takes filters, separated by commas, or several times:
  LEVEL                  error, warn, info, debug or trace, for everything
  TARGET=LEVEL           for one part of the program and what is below it
  TARGET[SPAN]=LEVEL     only inside a span

Targets:
  millpond::monitor      monitors and their clients
  millpond::export       exports and their clients
  millpond::graph        changes of the graph
  millpond::node         requests, from their admission to their answer
  millpond::iothread     iothreads
  drivers                drivers, one target below it for each
  drivers::ring          operations handed to the kernel
";

/// Whether a value of `-T` asks for help.
pub fn is_help(value: &str) -> bool {
    matches!(value, "help" | "?")
}

/// Starts logging to standard error: warnings, and what the filters ask for. Control characters in what
/// users chose, such as names of nodes, are written as escapes.
pub fn start(program: &str, filters: &[String]) {
    let mut filter = EnvFilter::new("warn");
    for text in filters.iter().flat_map(|text| text.split(',')) {
        let text = text.strip_prefix("enable=").unwrap_or(text);
        if text.is_empty() {
            continue;
        }
        match text.parse() {
            Ok(directive) => filter = filter.add_directive(directive),
            Err(_) => eprintln!("{program}: -T {text}: warning: trace event '{text}' does not exist"),
        }
    }
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    // An embedder may have started logging already: then its choice stands.
    let _ = subscriber.try_init();
}
