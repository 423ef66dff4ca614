//! A connection inside TLS on an iothread: what is received is decrypted to where it is wanted, and what is sent is encrypted
//! a stretch at a time, so that a connection holds little more memory than a plain one.

use std::cell::{Cell, RefCell};
use std::io;

use millpond_ring::buffer::{Buffer, Buffers};
use millpond_ring::{Fd, Ring};
use rustix::net::{SendFlags, send};

use super::session::{Got, TlsError, TlsSession};

/// Cipher bytes received at a time while a session begins: a record.
pub const RECEIVE_RECORD: usize = 17 * 1024;
/// Cipher bytes received at a time: what a plain connection receives at a time.
const RECEIVE: usize = 64 * 1024;
/// Plain bytes of a record, at most.
const RECORD: usize = 16 * 1024;
/// Plain bytes that are encrypted before they are sent.
const STRETCH: usize = 256 * 1024;
/// Sent as far as the socket takes it, and not waited for.
const NOW: SendFlags = SendFlags::DONTWAIT.union(SendFlags::NOSIGNAL);

/// A connection inside TLS on its way to an iothread.
pub struct TlsLuggage<S: ?Sized> {
    /// The socket that cipher bytes go over.
    pub socket: Fd,
    /// The session; none once it has gone elsewhere.
    pub session: Option<Box<S>>,
    /// Cipher bytes that must go out before anything else.
    pub unsent: Vec<u8>,
}

/// A connection inside TLS on an iothread.
pub struct TlsStream<S: ?Sized> {
    ring: Ring,
    socket: Fd,
    /// Gone once the connection has gone elsewhere.
    session: RefCell<Option<Box<S>>>,
    /// A stretch is going out.
    is_sending: Cell<bool>,
    /// What must go out before anything else: the rest of what was sent to a peer that did not take it all at once.
    unsent: RefCell<Vec<u8>>,
}

/// Room for cipher bytes: the session's own if that is large enough.
pub fn room(session: &mut (impl TlsSession + ?Sized), len: usize) -> Buffer {
    let spare = session.spare();
    if spare.len() < len {
        Buffer::alloc(len)
    } else {
        spare
    }
}

impl<S: ?Sized> TlsLuggage<S> {
    /// Ends its way on the iothread of `ring`.
    pub fn here(self, ring: &Ring) -> TlsStream<S> {
        TlsStream {
            ring: ring.clone(),
            socket: self.socket,
            session: RefCell::new(self.session),
            is_sending: Cell::new(false),
            unsent: RefCell::new(self.unsent),
        }
    }
}

impl<S: TlsSession + ?Sized> TlsStream<S> {
    fn session<T>(&self, act: impl FnOnce(&mut S) -> std::result::Result<T, TlsError>) -> io::Result<T> {
        let mut session = self.session.borrow_mut();
        let session = session.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        Ok(act(session)?)
    }

    /// Receives plain bytes: at least so many, unless the peer leaves, and what else there is by then.
    ///
    /// # Errors
    /// The socket or the session failed.
    pub async fn receive(&self, room: &mut [u8], least: usize) -> io::Result<usize> {
        let mut received = 0;
        loop {
            while let Some(rest) = room.get_mut(received..).filter(|rest| !rest.is_empty()) {
                match self.session(|session| session.read(rest))? {
                    Got::Plain(n) => received += n,
                    Got::Hungry => break,
                    Got::Closed => return Ok(received),
                }
            }
            if received >= least.min(room.len()) {
                return Ok(received);
            }
            self.receive_cipher().await?;
        }
    }

    async fn receive_cipher(&self) -> io::Result<()> {
        self.send_unasked();
        let cipher = self.session(|session| Ok(room(session, RECEIVE)))?;
        let (received, cipher) = self.ring.recv(&self.socket, cipher).await;
        match received? {
            0 => Err(TlsError::Truncated.into()),
            n => self.session(|session| {
                session.feed(cipher, n);
                Ok(())
            }),
        }
    }

    /// Sends plain bytes in records that are as full as they can be.
    ///
    /// # Errors
    /// The socket or the session failed.
    pub async fn send(&self, bytes: &Buffers) -> io::Result<usize> {
        let mut record = Vec::new();
        let mut unsent = 0;
        for piece in bytes.iter() {
            let mut rest: &[u8] = piece;
            while !rest.is_empty() {
                let n = rest.len().min(RECORD - record.len());
                let (next, behind) = rest.split_at(n);
                rest = behind;
                if record.is_empty() && n == RECORD {
                    self.session(|session| session.write(next))?;
                } else {
                    record.extend_from_slice(next);
                    if record.len() == RECORD {
                        self.session(|session| session.write(&record))?;
                        record.clear();
                    }
                }
                unsent += n;
                if unsent >= STRETCH {
                    self.send_cipher().await?;
                    unsent = 0;
                }
            }
        }
        self.session(|session| session.write(&record))?;
        self.send_cipher().await?;
        Ok(bytes.len())
    }

    /// What goes out next: what the peer has not taken yet, before anything new. Nothing of it is copied.
    fn next_cipher(&self) -> io::Result<Vec<u8>> {
        let unsent = self.unsent.take();
        if !unsent.is_empty() {
            return Ok(unsent);
        }
        self.session(|session| Ok(session.produced()))
    }

    async fn send_cipher(&self) -> io::Result<()> {
        self.is_sending.set(true);
        loop {
            let cipher = self.next_cipher()?;
            if cipher.is_empty() {
                break;
            }
            let (sent, _) = self.ring.send(&self.socket, cipher.into()).await;
            sent?;
        }
        // Not after a failure: the peer has part of a record, and nothing must follow that.
        self.is_sending.set(false);
        Ok(())
    }

    /// Sends what the session has ready unasked (the refusal of a new agreement, say), as far as the peer takes it at
    /// once. While a stretch is going out, that is followed by it.
    pub fn send_unasked(&self) {
        if self.is_sending.get() {
            return;
        }
        // A session that has gone has nothing to say.
        let mut cipher = self.next_cipher().unwrap_or_default();
        if cipher.is_empty() {
            return;
        }
        // A socket that has failed is found to have by who receives.
        let sent = send(&self.socket, &cipher, NOW).unwrap_or(0);
        self.unsent.replace(cipher.split_off(sent.min(cipher.len())));
    }

    /// Says goodbye, or why the session ends. It is a few bytes, and not worth waiting for a peer that does not read.
    pub fn farewell(&self) {
        // One that has ended by itself has said why already.
        let _ = self.session(|session| {
            session.close();
            Ok(())
        });
        self.send_unasked();
    }

    /// How many bytes must go out before anything else.
    pub fn unsent(&self) -> usize {
        self.unsent.borrow().len()
    }

    /// Goes away, to go on elsewhere. Nothing is in flight.
    pub fn leave(&self) -> TlsLuggage<S> {
        TlsLuggage {
            socket: self.socket.clone(),
            session: self.session.take(),
            unsent: self.unsent.take(),
        }
    }
}
