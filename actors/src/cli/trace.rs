//! Logging: what `-T` turns on, and where `--log` has it go.

use super::filters::Filters;
use crate::log::{self, Format, LogOptions, Target};
use std::io::{self, IsTerminal};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

/// What `-T help` prints.
pub const HELP: &str = "\
-T [[enable=]FILTER][,events=FILE][,file=FILE] (may be given several times)
  enable=FILTER          log more; `enable=` may be left out
  events=FILE            read filters from a file, one per line; # begins a
                         comment, and - before a filter turns it off
  file=FILE              append the log to a file instead of standard error

A FILTER is
  LEVEL                  error, warn, info, debug or trace, for everything
  TARGET=LEVEL           for one part of the program, and all parts below it
  TARGET[SPAN]=LEVEL     only inside a span

Targets:
  millpond::monitor          monitors and their clients
  millpond::export           exports and their clients
  millpond::graph            changes of the graph
  millpond::check            what checks of images find
  millpond_engine::node      requests, from admission to completion
  millpond_engine::iothread  iothreads
  millpond_drivers           drivers, one target below it for each
  millpond_ring              operations submitted to the kernel
";

/// Whether a value of `-T` asks for help.
pub fn is_help(value: &str) -> bool {
    matches!(value, "help" | "?")
}

/// Starts logging warnings, and what the filters ask for, to where `options` say, or to the filters' file. Control characters
/// in what users chose, such as names of nodes, are written as escapes.
///
/// # Errors
/// The log cannot be opened, or there is no descriptor or thread left for it.
pub fn start(program: &str, filters: Filters, mut options: LogOptions) -> Result<(), String> {
    let Filters {
        directives,
        file,
        mut warnings,
    } = filters;
    if let Some(path) = file {
        options.target = Target::File(path);
    }
    let output = log::open(program, &options).map_err(|error| match &options.target {
        Target::Stderr => format!("the log cannot be started: {error}"),
        Target::File(path) | Target::Syslog(path) | Target::Journald(path) => format!(
            "the log cannot be started: {}: {}",
            path.display(),
            log::why(&error)
        ),
    })?;
    let mut filter = EnvFilter::new("warn");
    for text in directives {
        match text.parse() {
            Ok(directive) => filter = filter.add_directive(directive),
            Err(error) => warnings.push(format!(" -T {text}: warning: {error}")),
        }
    }
    for warning in warnings {
        log::tell(&format!("{program}:{warning}"));
    }
    let is_service = output.is_service();
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(options.target == Target::Stderr && io::stderr().is_terminal())
        .with_writer(output);
    // An embedder may have started logging already: then its choice stands.
    let _ = match (options.format, is_service) {
        (Format::Json, _) => log.json().flatten_event(true).finish().try_init(),
        // A service has the time and the level of each message from elsewhere.
        (Format::Text, true) => log.without_time().with_level(false).finish().try_init(),
        (Format::Text, false) => log.finish().try_init(),
    };
    Ok(())
}
