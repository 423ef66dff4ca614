//! One TLS session as a machine without I/O: cipher bytes in and out, plain bytes in and out.
//!
//! ```text
//!   socket -- feed --> session -- read ---> what the peer says
//!   socket <-- produced -- session <-- write -- what the peer is told
//! ```
//! Whoever owns a session moves its bytes. It asks for cipher bytes by being [hungry](Got::Hungry), and takes no more of them
//! before it has used up what it was fed, so it never holds more than was fed at once, and a record.

use std::io::{self, Read, Write};

use millpond_drivers::by_id::ById;
use millpond_ring::buffer::Buffer;
use openssl::ssl::{ErrorCode, Ssl, SslStream};

use super::authz::Authorizer;
use super::credentials::Credentials;
use super::verify::{Refusal, ask_for_certificate};
use super::x509::name_of;

/// Cipher bytes that a session may have ready without being asked to say anything: answers to a peer that only ever asks
/// for other keys pile up no further.
const MOST_UNASKED: usize = 64 * 1024;

/// Why a session cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    /// The two sides do not come to an agreement.
    #[error("TLS handshake failed: {0}")]
    Handshake(String),
    /// They do, but the peer is not one that may connect.
    #[error("{0}")]
    Refused(String),
    /// What came is not what the peer has sent.
    #[error("TLS failed: {0}")]
    Record(String),
    /// The connection ended, and the peer has not said so.
    #[error("the TLS connection was not properly terminated")]
    Truncated,
}

impl From<TlsError> for io::Error {
    fn from(error: TlsError) -> Self {
        let kind = match error {
            TlsError::Truncated => io::ErrorKind::UnexpectedEof,
            TlsError::Refused(_) => io::ErrorKind::PermissionDenied,
            TlsError::Handshake(_) | TlsError::Record(_) => io::ErrorKind::InvalidData,
        };
        Self::new(kind, error)
    }
}

/// What there was to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Got {
    /// So many plain bytes, at least one.
    Plain(usize),
    /// Nothing, before the session is fed.
    Hungry,
    /// Nothing any more: the peer has said goodbye.
    Closed,
}

/// A TLS session, for either side.
pub(crate) trait Session: Send + 'static {
    /// Goes on with the handshake, which takes arithmetic; whether it is over. If not, the session is hungry.
    ///
    /// # Errors
    /// The two sides do not come to an agreement. What is produced tells the peer why.
    fn handshake(&mut self) -> Result<bool, TlsError>;

    /// Takes the first `len` bytes of `cipher` from the peer. The session must be hungry.
    fn feed(&mut self, cipher: Buffer, len: usize);

    /// Memory for what the session is fed next: what it was fed last, if it was fed.
    fn spare(&mut self) -> Buffer;

    /// Reads plain bytes to the front of `room`.
    ///
    /// # Errors
    /// What came is not what the peer has sent, or the peer breaks the rules.
    fn read(&mut self, room: &mut [u8]) -> Result<Got, TlsError>;

    /// Makes cipher bytes of all of `plain`.
    ///
    /// # Errors
    /// The session has ended.
    fn write(&mut self, plain: &[u8]) -> Result<(), TlsError>;

    /// Takes the cipher bytes for the peer that there are.
    fn produced(&mut self) -> Vec<u8>;

    /// Says goodbye to the peer.
    fn close(&mut self);
}

/// The cipher bytes of a session, as OpenSSL reads and writes them.
#[derive(Debug, Default)]
struct Pipe {
    input: Buffer,
    at: usize,
    end: usize,
    output: Vec<u8>,
}

impl Read for Pipe {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let there = self.input.get(self.at..self.end).unwrap_or_default();
        if there.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let n = there.len().min(room.len());
        room[..n].copy_from_slice(&there[..n]);
        self.at += n;
        Ok(n)
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.output.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How a server knows who a client is.
#[derive(Debug)]
struct Asked {
    /// Why the certificate was not taken.
    refusal: Refusal,
    /// The id of what says whether the client may connect, and where that is found.
    authorizer: Option<(String, ById<Authorizer>)>,
}

/// A session of OpenSSL's.
pub(crate) struct OpensslSession {
    stream: SslStream<Pipe>,
    asked: Option<Asked>,
}

impl OpensslSession {
    /// A server's session that begins. Files may be read for it, so not on a thread that others wait for.
    ///
    /// `authorizer` says who may connect, of those who have a certificate.
    ///
    /// # Errors
    /// There cannot be one.
    pub(crate) fn accept(
        credentials: &Credentials,
        authorizer: Option<(String, ById<Authorizer>)>,
    ) -> Result<Self, TlsError> {
        let failed = |error: &dyn std::fmt::Display| TlsError::Handshake(error.to_string());
        let context = credentials.for_session().map_err(|error| failed(&error))?;
        let mut ssl = Ssl::new(&context).map_err(|error| failed(&error))?;
        ssl.set_accept_state();
        let asked = credentials.asks_for_certificate().then(|| Asked {
            refusal: ask_for_certificate(&mut ssl),
            authorizer,
        });
        let stream = SslStream::new(ssl, Pipe::default()).map_err(|error| failed(&error))?;
        Ok(Self { stream, asked })
    }

    /// Whether the client has a certificate, and may connect with it.
    fn check_client(&self) -> Result<(), TlsError> {
        let Some(asked) = &self.asked else { return Ok(()) };
        let Some(certificate) = self.stream.ssl().peer_certificate() else {
            return Err(TlsError::Refused(
                "Verify failed: No certificate was found.".to_owned(),
            ));
        };
        let Some((id, authorizers)) = &asked.authorizer else {
            return Ok(());
        };
        let Some(name) = name_of(&certificate) else {
            return Err(TlsError::Refused(
                "Cannot get client distinguished name: The requested data were not available.".to_owned(),
            ));
        };
        let Some(authorizer) = authorizers.find(id) else {
            return Err(TlsError::Refused(format!("Cannot find QAuthZ object ID {id}")));
        };
        if !authorizer.allows(&name) {
            return Err(TlsError::Refused(format!(
                "TLS x509 authz check for {name} is denied"
            )));
        }
        Ok(())
    }

    fn why(&self, error: &openssl::ssl::Error) -> TlsError {
        let refusal = self.asked.as_ref().and_then(|asked| asked.refusal.get());
        match refusal {
            Some(refusal) => TlsError::Refused(refusal.clone()),
            None => TlsError::Handshake(reason(error)),
        }
    }
}

/// What OpenSSL says, in as few words as possible.
fn reason(error: &openssl::ssl::Error) -> String {
    let first = error.ssl_error().and_then(|stack| stack.errors().first());
    let reason = first.and_then(openssl::error::Error::reason);
    reason.map_or_else(|| error.to_string(), str::to_owned)
}

impl Session for OpensslSession {
    fn handshake(&mut self) -> Result<bool, TlsError> {
        match self.stream.do_handshake() {
            Ok(()) => self.check_client().map(|()| true),
            Err(error) if error.code() == ErrorCode::WANT_READ => Ok(false),
            Err(error) => Err(self.why(&error)),
        }
    }

    fn feed(&mut self, cipher: Buffer, len: usize) {
        let pipe = self.stream.get_mut();
        debug_assert!(pipe.at >= pipe.end, "a session is fed when it is hungry");
        pipe.end = len.min(cipher.len());
        pipe.at = 0;
        pipe.input = cipher;
    }

    fn spare(&mut self) -> Buffer {
        std::mem::take(&mut self.stream.get_mut().input)
    }

    fn read(&mut self, room: &mut [u8]) -> Result<Got, TlsError> {
        let got = match self.stream.ssl_read(room) {
            Ok(n) => Got::Plain(n),
            Err(error) if error.code() == ErrorCode::WANT_READ => Got::Hungry,
            Err(error) if error.code() == ErrorCode::ZERO_RETURN => Got::Closed,
            Err(error) => return Err(TlsError::Record(reason(&error))),
        };
        if self.stream.get_ref().output.len() > MOST_UNASKED {
            return Err(TlsError::Record("the peer asks for too much".to_owned()));
        }
        Ok(got)
    }

    fn write(&mut self, mut plain: &[u8]) -> Result<(), TlsError> {
        while !plain.is_empty() {
            let written = self.stream.ssl_write(plain);
            let n = written.map_err(|error| TlsError::Record(reason(&error)))?;
            plain = plain.get(n..).unwrap_or_default();
        }
        Ok(())
    }

    fn produced(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.stream.get_mut().output)
    }

    fn close(&mut self) {
        // One that has failed cannot, and need not.
        let _ = self.stream.shutdown();
    }
}
