//! TLS as drivers and exports know it: sessions as machines without I/O, and credentials that make one.
//!
//! ```text
//!   socket -- feed --> session -- read ---> what the peer says
//!   socket <-- produced -- session <-- write -- what the peer is told
//! ```
//! Whoever owns a session moves its bytes. It asks for cipher bytes by being [hungry](Got::Hungry), and takes no more of them
//! before it has used up what it was fed, so it never holds more than was fed at once, and a record.

use std::fmt::Debug;
use std::io;

use millpond_messages::Result;
use millpond_ring::buffer::Buffer;

use crate::by_id::ById;

/// Why a session cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
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
    #[error("Cannot read from TLS channel: The TLS connection was non-properly terminated.")]
    Truncated,
}

impl TlsError {
    /// What is told where the connection ends before the two sides have agreed.
    #[must_use]
    pub fn cut_off() -> Self {
        Self::Handshake("The TLS connection was non-properly terminated.".to_owned())
    }
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
pub enum Got {
    /// So many plain bytes, at least one.
    Plain(usize),
    /// Nothing, before the session is fed.
    Hungry,
    /// Nothing any more: the peer has said goodbye.
    Closed,
}

/// A TLS session, for either side.
pub trait TlsSession: Send + 'static {
    /// Goes on with the handshake, which takes arithmetic; whether it is over. If not, the session is hungry.
    ///
    /// # Errors
    /// The two sides do not come to an agreement. What is produced tells the peer why.
    fn handshake(&mut self) -> std::result::Result<bool, TlsError>;

    /// Takes the first `len` bytes of `cipher` from the peer. The session must be hungry.
    fn feed(&mut self, cipher: Buffer, len: usize);

    /// Memory for what the session is fed next: what it was fed last, if it was fed.
    fn spare(&mut self) -> Buffer;

    /// Reads plain bytes to the front of `room`.
    ///
    /// # Errors
    /// What came is not what the peer has sent, or the peer breaks the rules.
    fn read(&mut self, room: &mut [u8]) -> std::result::Result<Got, TlsError>;

    /// Makes cipher bytes of all of `plain`.
    ///
    /// # Errors
    /// The session has ended.
    fn write(&mut self, plain: &[u8]) -> std::result::Result<(), TlsError>;

    /// Takes the cipher bytes for the peer that there are.
    fn produced(&mut self) -> Vec<u8>;

    /// Says goodbye to the peer.
    fn close(&mut self);
}

/// Credentials of those who connect to a server.
pub trait ClientCredentials: Debug + Send + Sync {
    /// Looks whether they are for those who connect.
    ///
    /// # Errors
    /// They are for servers.
    fn check(&self) -> Result<()>;

    /// Begins a session with a server, which has to prove that it has this name where the credentials are certificates. Files
    /// may be read for it, so not on a thread that others wait for.
    ///
    /// # Errors
    /// There cannot be one.
    fn connect(&self, hostname: Option<&str>) -> std::result::Result<Box<dyn TlsSession>, TlsError>;
}

/// Credentials by their ids, which drivers may need. They can be made and removed at any time.
pub type ClientCredentialsById = ById<dyn ClientCredentials>;
