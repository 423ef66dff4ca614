//! The sessions of OpenSSL, over memory in the place of a socket.

use std::io::{self, Read, Write};

use millpond_drivers::by_id::ById;
use millpond_drivers::tls::{Got, TlsError, TlsSession};
use millpond_messages::qapi::schema::QCryptoTLSCredsEndpoint;
use millpond_ring::buffer::Buffer;
use openssl::ssl::{ErrorCode, Ssl, SslStream};

use super::authz::Authorizer;
use super::credentials::Credentials;
use super::verify::{Refusal, ask_for_certificate};
use super::x509::name_of;

/// Cipher bytes that a session may have ready without being asked to say anything: answers to a peer that only ever asks
/// for other keys pile up no further.
const MOST_UNASKED: usize = 64 * 1024;

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

/// How one side knows who the other is.
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
        let context = credentials
            .for_session(QCryptoTLSCredsEndpoint::Server)
            .map_err(|error| failed(&error))?;
        let mut ssl = Ssl::new(&context).map_err(|error| failed(&error))?;
        ssl.set_accept_state();
        let asked = credentials.asks_for_certificate().then(|| Asked {
            refusal: ask_for_certificate(&mut ssl, None),
            authorizer,
        });
        let stream = SslStream::new(ssl, Pipe::default()).map_err(|error| failed(&error))?;
        Ok(Self { stream, asked })
    }

    /// A client's session that begins, with a server that has to prove that it has this name. Files may be read for it, so not
    /// on a thread that others wait for.
    ///
    /// # Errors
    /// There cannot be one, or there is no name to look for in a certificate.
    pub(crate) fn connect(credentials: &Credentials, hostname: Option<&str>) -> Result<Self, TlsError> {
        let failed = |error: &dyn std::fmt::Display| TlsError::Handshake(error.to_string());
        let context = credentials
            .for_session(QCryptoTLSCredsEndpoint::Client)
            .map_err(|error| failed(&error))?;
        let mut ssl = Ssl::new(&context).map_err(|error| failed(&error))?;
        ssl.set_connect_state();
        let asked = match (credentials.asks_for_certificate(), hostname) {
            (false, _) => None,
            (true, None) => {
                let text = "No hostname for certificate validation";
                return Err(TlsError::Refused(text.to_owned()));
            }
            (true, Some(hostname)) => {
                let parameters = ssl.param_mut();
                let set = match hostname.parse() {
                    Ok(address) => parameters.set_ip(address),
                    Err(_) => parameters.set_host(hostname),
                };
                set.map_err(|error| failed(&error))?;
                Some(Asked {
                    refusal: ask_for_certificate(&mut ssl, Some(hostname.to_owned())),
                    authorizer: None,
                })
            }
        };
        let stream = SslStream::new(ssl, Pipe::default()).map_err(|error| failed(&error))?;
        Ok(Self { stream, asked })
    }

    /// Whether the peer has a certificate, and may connect with it.
    fn check_peer(&self) -> Result<(), TlsError> {
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
    match first.and_then(openssl::error::Error::reason) {
        // Whatever it is called, the other side has said why it does not go on.
        Some(reason) if reason.contains(" alert ") => "A TLS fatal alert has been received.".to_owned(),
        Some(reason) => reason.to_owned(),
        None => error.to_string(),
    }
}

impl TlsSession for OpensslSession {
    fn handshake(&mut self) -> Result<bool, TlsError> {
        match self.stream.do_handshake() {
            Ok(()) => self.check_peer().map(|()| true),
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
