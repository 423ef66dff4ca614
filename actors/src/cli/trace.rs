//! Logging: what `-T` turns on.

use super::filters::Filters;
use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

/// What `-T help` prints.
pub const HELP: &str = "\
-T [[enable=]FILTER][,events=FILE][,file=FILE], also several times:
  enable=FILTER          log more; the key may be left out
  events=FILE            the same for each line of a file; # begins a comment,
                         and - before a filter turns it off
  file=FILE              append the log to a file, in place of standard error

A FILTER is
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

/// Starts logging warnings, and what the filters ask for, to standard error or the filters' file. Control characters in
/// what users chose, such as names of nodes, are written as escapes.
pub fn start(program: &str, filters: Filters) {
    let Filters {
        directives,
        file,
        mut warnings,
    } = filters;
    let mut filter = EnvFilter::new("warn");
    for text in directives {
        match text.parse() {
            Ok(directive) => filter = filter.add_directive(directive),
            Err(error) => warnings.push(format!(" -T {text}: warning: {error}")),
        }
    }
    for warning in warnings {
        eprintln!("{program}:{warning}");
    }
    let is_terminal = file.is_none() && io::stderr().is_terminal();
    let writer = match file {
        Some(file) => {
            let file = Arc::new(file);
            BoxMakeWriter::new(move || OneLine(Arc::clone(&file)))
        }
        None => BoxMakeWriter::new(|| OneLine(io::stderr())),
    };
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(is_terminal)
        .with_writer(writer);
    // An embedder may have started logging already: then its choice stands.
    let _ = subscriber.try_init();
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
