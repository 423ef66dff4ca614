//! Logging: what `-T` turns on.

use crate::log;
use std::io::{self, IsTerminal, Write};
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
///
/// # Errors
/// There is no descriptor or thread left for it.
pub fn start(program: &str, filters: &[String]) -> io::Result<()> {
    let lines = log::start()?;
    let mut filter = EnvFilter::new("warn");
    for text in filters.iter().flat_map(|text| text.split(',')) {
        let text = text.strip_prefix("enable=").unwrap_or(text);
        if text.is_empty() {
            continue;
        }
        match text.parse() {
            Ok(directive) => filter = filter.add_directive(directive),
            Err(_) => log::tell(&format!(
                "{program}: -T {text}: warning: trace event '{text}' does not exist"
            )),
        }
    }
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(move || OneLine(lines.clone()));
    // An embedder may have started logging already: then its choice stands.
    let _ = subscriber.try_init();
    Ok(())
}

/// Writes each message as one line, so that no name in it can begin a line of its own.
struct OneLine<W>(W);

impl<W: Write> Write for OneLine<W> {
    fn write(&mut self, message: &[u8]) -> io::Result<usize> {
        let (line, end) = match message.split_last() {
            Some((b'\n', line)) => (line, &b"\n"[..]),
            _ => (message, &b""[..]),
        };
        let mut escaped = Vec::with_capacity(message.len());
        for byte in line {
            match byte {
                b'\n' => escaped.extend(b"\\n"),
                b'\r' => escaped.extend(b"\\r"),
                _ => escaped.push(*byte),
            }
        }
        escaped.extend(end);
        self.0.write_all(&escaped)?;
        Ok(message.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line() {
        let mut written = Vec::new();
        let mut one_line = OneLine(&mut written);
        one_line.write_all(b"a name\r\nforged\n").unwrap();
        one_line.write_all(b"next\n").unwrap();
        assert_eq!(written, b"a name\\r\\nforged\nnext\n");
    }
}
