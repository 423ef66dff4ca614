//! Logs that take messages over a socket: the system's log, and systemd's journal.

use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use tracing::Level;

/// The most bytes of one message. Both services take more, but a datagram of any length need not fit into a socket's buffer.
const MOST: usize = 32 << 10;

/// The facility of daemons, as syslog numbers them, in a message's priority.
const DAEMON: u8 = 3 << 3;

/// A socket that takes messages, for the one thread that sends them.
#[derive(Debug)]
pub(super) struct Datagrams {
    path: PathBuf,
    socket: Option<UnixDatagram>,
}

impl Datagrams {
    /// Connects to the service at `path`.
    pub(super) fn connect(path: &Path) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            socket: Some(connect(path)?),
        })
    }

    fn send(&mut self, message: &[u8]) -> io::Result<usize> {
        match &self.socket {
            Some(socket) => socket.send(message),
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

fn connect(path: &Path) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(path)?;
    Ok(socket)
}

/// Each call is a message.
impl Write for Datagrams {
    fn write(&mut self, message: &[u8]) -> io::Result<usize> {
        if self.send(message).is_ok() {
            return Ok(message.len());
        }
        // The service may have been started again since.
        self.socket = Some(connect(&self.path)?);
        self.send(message)?;
        Ok(message.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A level as syslog numbers it.
fn severity(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

/// A message in the form that syslog's local socket takes. Whoever listens there puts the time to it.
pub(super) fn for_syslog(program: &str, level: Level, line: &[u8]) -> Vec<u8> {
    let priority = DAEMON | severity(level);
    let mut message = format!("<{priority}>{program}[{}]: ", std::process::id()).into_bytes();
    message.extend(cut(line));
    message
}

/// A message as fields in the form that the journal's socket takes.
pub(super) fn for_journald(program: &str, level: Level, target: &str, line: &[u8]) -> Vec<u8> {
    let mut fields = Vec::with_capacity(line.len() + 128);
    field(&mut fields, "PRIORITY", severity(level).to_string().as_bytes());
    field(&mut fields, "SYSLOG_FACILITY", b"3");
    field(&mut fields, "SYSLOG_IDENTIFIER", program.as_bytes());
    field(
        &mut fields,
        "SYSLOG_PID",
        std::process::id().to_string().as_bytes(),
    );
    field(&mut fields, "TARGET", target.as_bytes());
    field(&mut fields, "MESSAGE", cut(line));
    fields
}

/// A field. Its length is written out, so that no byte in it ends it.
fn field(fields: &mut Vec<u8>, name: &str, value: &[u8]) {
    fields.extend(name.as_bytes());
    fields.push(b'\n');
    fields.extend((value.len() as u64).to_le_bytes());
    fields.extend(value);
    fields.push(b'\n');
}

fn cut(line: &[u8]) -> &[u8] {
    line.get(..MOST).unwrap_or(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_for_syslog_begins_with_its_priority() {
        let message = for_syslog("millpond", Level::WARN, b"a disk is full");
        let expected = format!("<28>millpond[{}]: a disk is full", std::process::id());
        assert_eq!(String::from_utf8(message).unwrap(), expected);
    }

    #[test]
    fn a_field_for_the_journal_holds_any_bytes() {
        let message = for_journald("m", Level::ERROR, "t", b"one\ntwo");
        assert!(message.starts_with(b"PRIORITY\n\x01\0\0\0\0\0\0\x003\n"));
        assert!(message.ends_with(b"MESSAGE\n\x07\0\0\0\0\0\0\0one\ntwo\n"));
    }

    #[test]
    fn a_service_that_was_started_again_gets_what_comes_later() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let first = UnixDatagram::bind(&path).unwrap();
        let mut log = Datagrams::connect(&path).unwrap();
        log.write_all(b"one").unwrap();
        let mut bytes = [0; 8];
        assert_eq!(first.recv(&mut bytes).unwrap(), 3);
        drop(first);
        std::fs::remove_file(&path).unwrap();
        assert!(log.write_all(b"lost").is_err());
        let second = UnixDatagram::bind(&path).unwrap();
        log.write_all(b"four").unwrap();
        assert_eq!(second.recv(&mut bytes).unwrap(), 4);
    }
}
