//! Telnet's protocol (RFC 854), as far as a server of bytes needs it: it asks for binary transmission, and takes commands
//! out of what clients send.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};

use super::connection::Connection;

const SE: u8 = 240;
const SB: u8 = 250;
const WILL: u8 = 251;
const DO: u8 = 253;
const DONT: u8 = 254;
const IAC: u8 = 255;

const BINARY: u8 = 0;
const ECHO: u8 = 1;
const SUPPRESS_GO_AHEAD: u8 = 3;
const TERMINAL_TYPE: u8 = 24;
const END_OF_RECORD: u8 = 25;
/// Asks for the value of an option.
const SEND: u8 = 1;

/// What a client of a plain terminal is sent first.
const GREETING: &[u8] = &[
    IAC,
    WILL,
    ECHO,
    IAC,
    WILL,
    SUPPRESS_GO_AHEAD,
    IAC,
    WILL,
    BINARY,
    IAC,
    DO,
    BINARY,
];

/// What a client of a mainframe's terminal is sent first.
const GREETING_3270: &[u8] = &[
    IAC,
    DO,
    END_OF_RECORD,
    IAC,
    WILL,
    END_OF_RECORD,
    IAC,
    DO,
    BINARY,
    IAC,
    WILL,
    BINARY,
    IAC,
    DO,
    TERMINAL_TYPE,
    IAC,
    SB,
    TERMINAL_TYPE,
    SEND,
    IAC,
    SE,
];

/// Greets a client; the connection from then on has no commands in its input.
///
/// # Errors
/// The client is gone.
pub async fn greet(mut connection: Connection, is_3270: bool) -> io::Result<Connection> {
    let greeting = if is_3270 { GREETING_3270 } else { GREETING };
    connection.writer.write_all(greeting).await?;
    connection.writer.flush().await?;
    let reader = WithoutCommands {
        reader: connection.reader,
        filter: Filter::Data,
    };
    Ok(Connection::new(reader, connection.writer))
}

/// Where in the input a filter stands.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Filter {
    /// Among what is for the user.
    #[default]
    Data,
    /// Behind the byte that begins commands.
    Command,
    /// Before the option that a command is about.
    Option,
    /// In a value of an option.
    Value,
    /// Behind the byte that ends such a value.
    ValueEnd,
}

impl Filter {
    /// The byte, if it is for the user.
    fn pass(&mut self, byte: u8) -> Option<u8> {
        let (next, passed) = match (*self, byte) {
            (Self::Data, IAC) => (Self::Command, None),
            (Self::Data, _) => (Self::Data, Some(byte)),
            (Self::Command, IAC) => (Self::Data, Some(byte)),
            (Self::Command, WILL..=DONT) => (Self::Option, None),
            (Self::Command, SB) => (Self::Value, None),
            (Self::Command | Self::Option, _) => (Self::Data, None),
            (Self::Value, IAC) => (Self::ValueEnd, None),
            (Self::ValueEnd, SE) => (Self::Data, None),
            (Self::Value | Self::ValueEnd, _) => (Self::Value, None),
        };
        *self = next;
        passed
    }
}

/// Input without its commands.
struct WithoutCommands {
    reader: Box<dyn AsyncRead + Unpin>,
    filter: Filter,
}

impl AsyncRead for WithoutCommands {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut bytes = [0; 1024];
        let most = bytes.len().min(buffer.remaining());
        loop {
            let mut read = ReadBuf::new(bytes.get_mut(..most).unwrap_or_default());
            ready!(Pin::new(&mut self.reader).poll_read(context, &mut read))?;
            let filter = &mut self.filter;
            let passed: Vec<u8> = read
                .filled()
                .iter()
                .filter_map(|byte| filter.pass(*byte))
                .collect();
            if !passed.is_empty() || read.filled().is_empty() {
                buffer.put_slice(&passed);
                return Poll::Ready(Ok(()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_taken_out_wherever_the_input_is_cut() {
        let input = [
            b'a',
            IAC,
            DO,
            BINARY,
            b'b',
            IAC,
            241,
            IAC,
            IAC,
            IAC,
            SB,
            TERMINAL_TYPE,
            b'x',
            IAC,
            5,
            b'y',
            IAC,
            SE,
            b'c',
        ];
        let mut filter = Filter::default();
        let passed: Vec<u8> = input.iter().filter_map(|byte| filter.pass(*byte)).collect();
        assert_eq!(passed, [b'a', b'b', IAC, b'c']);
        assert_eq!(filter, Filter::Data);
    }
}
