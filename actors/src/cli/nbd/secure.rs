//! A stream inside TLS, for the one connection of a command that does nothing else: it is waited for.

use millpond_drivers::tls::{Got, RECEIVE_RECORD, TlsError, TlsSession};
use millpond_ring::buffer::Buffer;
use std::io::{self, Read, Write};

/// A stream whose bytes go through a session.
pub struct InsideTls<'a, S> {
    plain: &'a mut S,
    session: Box<dyn TlsSession>,
}

impl<'a, S: Read + Write> InsideTls<'a, S> {
    /// Comes to an agreement with the other side, which is told if there is none.
    ///
    /// # Errors
    /// There is none.
    pub fn begin(plain: &'a mut S, session: Box<dyn TlsSession>) -> Result<Self, TlsError> {
        let mut inside = Self { plain, session };
        loop {
            let over = inside.session.handshake();
            let sent = inside.send();
            if over? {
                return Ok(inside);
            }
            sent.and_then(|()| inside.receive())
                .map_err(|_| TlsError::cut_off())?;
        }
    }

    fn send(&mut self) -> io::Result<()> {
        self.plain.write_all(&self.session.produced())
    }

    /// Feeds the session, which is hungry.
    fn receive(&mut self) -> io::Result<()> {
        let mut cipher = Buffer::zeroed(RECEIVE_RECORD);
        match self.plain.read(&mut cipher)? {
            0 => Err(TlsError::Truncated.into()),
            len => {
                self.session.feed(cipher, len);
                Ok(())
            }
        }
    }
}

impl<S: Read + Write> Read for InsideTls<'_, S> {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.session.read(room)? {
                Got::Plain(len) => return Ok(len),
                Got::Closed => return Ok(0),
                Got::Hungry => {
                    self.send()?;
                    self.receive()?;
                }
            }
        }
    }
}

impl<S: Read + Write> Write for InsideTls<'_, S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.session.write(bytes)?;
        self.send()?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
