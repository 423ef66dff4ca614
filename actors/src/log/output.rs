//! The log itself: each message framed for where it goes, and on its way there.

use super::datagram::{Datagrams, for_journald, for_syslog};
use super::file::{LogFile, Reopen};
use super::{Lines, LogOptions, Target};
use std::io::{self, Write};
use std::sync::Arc;
use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

/// Where log messages go, each as one line.
#[derive(Debug, Clone)]
pub struct Output {
    lines: Lines,
    frame: Frame,
    /// The program's name, for logs that many programs write to.
    program: Arc<str>,
}

/// What a message has around it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Frame {
    /// The bytes that end a line.
    Line,
    Syslog,
    Journald,
}

impl Output {
    /// Begins to write to where `options` say, by a thread of its own; for a file also how it is opened anew. Standard error
    /// has a thread already, which is `stderr`.
    ///
    /// # Errors
    /// The file or socket cannot be opened, or there is no thread left.
    pub(super) fn open(
        program: &str,
        options: &LogOptions,
        stderr: &Lines,
    ) -> io::Result<(Self, Option<Reopen>)> {
        let (lines, frame, reopen) = match &options.target {
            Target::Stderr => (stderr.clone(), Frame::Line, None),
            Target::File(path) => {
                let (file, reopen) = LogFile::open(path)?;
                (Lines::start("log file", file)?, Frame::Line, Some(reopen))
            }
            Target::Syslog(path) => (
                Lines::start("log syslog", Datagrams::connect(path)?)?,
                Frame::Syslog,
                None,
            ),
            Target::Journald(path) => (
                Lines::start("log journald", Datagrams::connect(path)?)?,
                Frame::Journald,
                None,
            ),
        };
        let output = Self {
            lines,
            frame,
            program: program.into(),
        };
        Ok((output, reopen))
    }

    /// The way that messages take.
    pub(super) fn lines(&self) -> &Lines {
        &self.lines
    }

    /// Whether whoever takes the messages has a time and a level for each.
    #[must_use]
    pub fn is_service(&self) -> bool {
        self.frame != Frame::Line
    }

    fn send(&self, level: Level, target: &str, message: &[u8]) {
        let mut line = one_line(message);
        let framed = match self.frame {
            Frame::Line => {
                line.push(b'\n');
                line
            }
            Frame::Syslog => for_syslog(&self.program, level, &line),
            Frame::Journald => for_journald(&self.program, level, target, &line),
        };
        self.lines.push(framed);
    }
}

/// A message as one line, so that no name in it can begin a line of its own.
fn one_line(message: &[u8]) -> Vec<u8> {
    let message = message.strip_suffix(b"\n").unwrap_or(message);
    let mut line = Vec::with_capacity(message.len() + 1);
    for byte in message {
        match byte {
            b'\n' => line.extend(b"\\n"),
            b'\r' => line.extend(b"\\r"),
            _ => line.push(*byte),
        }
    }
    line
}

/// A message that is being written, whole by one call.
pub struct Message<'a> {
    output: &'a Output,
    level: Level,
    /// The part of the program that it comes from, where that is told.
    target: String,
}

impl Write for Message<'_> {
    fn write(&mut self, message: &[u8]) -> io::Result<usize> {
        self.output.send(self.level, &self.target, message);
        Ok(message.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Output {
    type Writer = Message<'a>;

    fn make_writer(&'a self) -> Message<'a> {
        Message {
            output: self,
            level: Level::INFO,
            target: String::new(),
        }
    }

    fn make_writer_for(&'a self, about: &Metadata<'_>) -> Message<'a> {
        Message {
            output: self,
            level: *about.level(),
            target: if self.frame == Frame::Journald {
                about.target().to_owned()
            } else {
                String::new()
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line() {
        assert_eq!(one_line(b"a name\r\nforged\n"), b"a name\\r\\nforged");
        assert_eq!(one_line(b"next"), b"next");
    }
}
