//! A connection inside TLS: the same three types as a plain one has, around a session.
//!
//! The handshake's arithmetic, and the files that it needs, are a worker's: neither the control thread nor an iothread waits
//! for them. On an iothread what is received is decrypted to where it is wanted, and what is sent is encrypted a stretch at a
//! time, so that a client holds little more memory than a plain one.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use millpond_drivers::by_id::ById;
use millpond_messages::Result;
use millpond_messages::qapi::NbdServerOptions;
use millpond_messages::qapi::schema::QCryptoTLSCredsEndpoint;
use millpond_ring::buffer::{Buffer, Buffers};
use millpond_ring::{Fd, Pending, Polled, Ring};
use rustix::net::{SendFlags, send};
use tokio::sync::Semaphore;

use super::handshake::Tls;
use super::transport::{Channel, Link, PlainChannel, PlainTransport, Transport};
use crate::tls::{Authorizer, Credentials, Got, OpensslSession, Session, TlsError, TlsRegistry};

/// Cipher bytes received at a time during the handshake: a record.
const RECEIVE_RECORD: usize = 17 * 1024;
/// Cipher bytes received at a time on an iothread: what a plain connection receives at a time.
const RECEIVE: usize = 64 * 1024;
/// Plain bytes of a record, at most.
const RECORD: usize = 16 * 1024;
/// Plain bytes that are encrypted before they are sent.
const STRETCH: usize = 256 * 1024;
/// Sent as far as the socket takes it, and not waited for.
const NOW: SendFlags = SendFlags::DONTWAIT.union(SendFlags::NOSIGNAL);
/// Handshakes that are calculated at the same time, so that many clients do not take all processors.
const WORKERS: usize = 2;

/// What a server needs to go on inside TLS with its clients. Clones share the workers.
#[derive(Debug, Clone)]
pub struct TlsServer {
    credentials: Arc<Credentials>,
    authorizer: Option<(String, ById<Authorizer>)>,
    workers: Arc<Semaphore>,
}

impl TlsServer {
    /// What the options of a server name; `None` if it is one without TLS.
    ///
    /// # Errors
    /// QEMU's texts: there are no such credentials, or they are for those who connect.
    pub(super) fn find(options: &NbdServerOptions, registry: &TlsRegistry) -> Result<Option<Self>> {
        let Some(id) = &options.tls_creds else {
            return Ok(None);
        };
        let credentials = registry.credentials_for(id, QCryptoTLSCredsEndpoint::Server)?;
        let authorizer = options.tls_authz.clone();
        Ok(Some(Self {
            credentials,
            authorizer: authorizer.map(|id| (id, registry.authorizers.clone())),
            workers: Arc::new(Semaphore::new(WORKERS)),
        }))
    }

    /// Does `work` on a thread that nobody waits for.
    async fn on_worker<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        let worker = Arc::clone(&self.workers).acquire_owned().await;
        let worker = worker.map_err(io::Error::other)?;
        let task = move || {
            let done = work();
            drop(worker);
            done
        };
        tokio::task::spawn_blocking(task).await.map_err(io::Error::other)
    }
}

/// A connection that is to go on inside TLS, on the control thread.
pub(super) struct TlsChannel {
    plain: PlainChannel,
    server: TlsServer,
    /// Once TLS has begun.
    session: Option<Box<OpensslSession>>,
}

impl TlsChannel {
    /// A connection over a socket that does not block.
    ///
    /// # Errors
    /// The control thread's reactor cannot wait for it.
    pub(super) fn new(socket: Fd, server: TlsServer) -> io::Result<Self> {
        Ok(Self {
            plain: PlainChannel::new(socket)?,
            server,
            session: None,
        })
    }

    /// The handshake from its beginning to its end, in turns: a worker calculates, and this waits for the client.
    async fn agree(&mut self) -> io::Result<Box<OpensslSession>> {
        let TlsServer {
            credentials,
            authorizer,
            ..
        } = self.server.clone();
        let begin = move || OpensslSession::accept(&credentials, authorizer).map(Box::new);
        let mut session = self.server.on_worker(begin).await??;
        loop {
            let calculate = move || {
                let over = session.handshake();
                (session, over)
            };
            let (calculated, over) = self.server.on_worker(calculate).await?;
            session = calculated;
            let over = match over {
                Ok(over) => over,
                Err(error) => {
                    say_farewell(&mut self.plain, &mut session).await;
                    return Err(error.into());
                }
            };
            self.plain.send(&session.produced()).await?;
            if over {
                return Ok(session);
            }
            receive_cipher(&mut self.plain, &mut session).await?;
        }
    }
}

/// Tells the client that the session ends, and why; one that has left by itself need not be told.
async fn say_farewell(plain: &mut PlainChannel, session: &mut OpensslSession) {
    session.close();
    let _ = plain.send(&session.produced()).await;
}

/// Feeds a hungry session. What it has ready by then, unasked, is sent first: the client may wait for that.
async fn receive_cipher(plain: &mut PlainChannel, session: &mut OpensslSession) -> io::Result<()> {
    plain.send(&session.produced()).await?;
    let mut cipher = room(session, RECEIVE_RECORD);
    match plain.receive(&mut cipher).await? {
        0 => Err(TlsError::Truncated.into()),
        n => {
            session.feed(cipher, n);
            Ok(())
        }
    }
}

/// Room for cipher bytes: the session's own if that is large enough.
fn room(session: &mut impl Session, len: usize) -> Buffer {
    let spare = session.spare();
    if spare.len() < len {
        Buffer::alloc(len)
    } else {
        spare
    }
}

impl Channel for TlsChannel {
    type Link = TlsLink<OpensslSession>;

    fn tls(&self) -> Tls {
        Tls::Required
    }

    async fn start_tls(&mut self) -> io::Result<()> {
        self.session = Some(self.agree().await?);
        Ok(())
    }

    async fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(session) = &mut self.session else {
            return self.plain.receive(buffer).await;
        };
        loop {
            match session.read(buffer) {
                Ok(Got::Plain(n)) => return Ok(n),
                Ok(Got::Closed) => return Ok(0),
                Ok(Got::Hungry) => receive_cipher(&mut self.plain, session).await?,
                Err(error) => {
                    say_farewell(&mut self.plain, session).await;
                    return Err(error.into());
                }
            }
        }
    }

    async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(session) = &mut self.session else {
            return self.plain.send(bytes).await;
        };
        session.write(bytes)?;
        self.plain.send(&session.produced()).await
    }

    fn leave(self) -> io::Result<Self::Link> {
        Ok(TlsLink {
            socket: self.plain.leave()?,
            session: self.session,
            unsent: Vec::new(),
        })
    }
}

/// A connection inside TLS on its way to an iothread.
pub struct TlsLink<S> {
    socket: Fd,
    session: Option<Box<S>>,
    unsent: Vec<u8>,
}

impl<S: Session> Link for TlsLink<S> {
    type Transport = TlsTransport<S>;

    fn here(self, ring: &Ring) -> TlsTransport<S> {
        let Self {
            socket,
            session,
            unsent,
        } = self;
        TlsTransport(Rc::new(Inside {
            plain: socket.clone().here(ring),
            ring: ring.clone(),
            socket,
            session: RefCell::new(session),
            is_sending: Cell::new(false),
            unsent: RefCell::new(unsent),
        }))
    }
}

/// A connection inside TLS on an iothread.
pub struct TlsTransport<S>(Rc<Inside<S>>);

struct Inside<S> {
    plain: PlainTransport,
    ring: Ring,
    socket: Fd,
    /// Gone once the connection has gone elsewhere.
    session: RefCell<Option<Box<S>>>,
    /// A stretch is going out.
    is_sending: Cell<bool>,
    /// What must go out before anything else: the rest of what a client asked for that did not take it all at once.
    unsent: RefCell<Vec<u8>>,
}

impl<S> Clone for TlsTransport<S> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<S: Session> Inside<S> {
    fn session<T>(&self, act: impl FnOnce(&mut S) -> std::result::Result<T, TlsError>) -> io::Result<T> {
        let mut session = self.session.borrow_mut();
        let session = session.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        Ok(act(session)?)
    }

    /// Receives plain bytes: at least so many, unless the client leaves, and what else there is by then.
    async fn receive(&self, room: &mut [u8], least: usize) -> io::Result<usize> {
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
    async fn send(&self, bytes: &Buffers) -> io::Result<usize> {
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

    /// What goes out next: what the client has not taken yet, before anything new. Nothing of it is copied.
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
        // Not after a failure: the client has part of a record, and nothing must follow that.
        self.is_sending.set(false);
        Ok(())
    }

    /// Sends what the session has ready unasked (the refusal of a new agreement, say), as far as the client takes it at
    /// once. While a stretch is going out, that is followed by it.
    fn send_unasked(&self) {
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
}

impl<S: Session> Transport for TlsTransport<S> {
    type Link = TlsLink<S>;
    type HangUp = Pending<Polled>;

    fn receive(&self, mut room: Buffer) -> impl Future<Output = (io::Result<usize>, Buffer)> {
        let inside = Rc::clone(&self.0);
        async move {
            let received = inside.receive(&mut room, 1).await;
            (received, room)
        }
    }

    fn receive_exact(&self, mut room: Buffer) -> impl Future<Output = (io::Result<usize>, Buffer)> {
        let inside = Rc::clone(&self.0);
        async move {
            let all = room.len();
            let received = inside.receive(&mut room, all).await;
            (received, room)
        }
    }

    fn send(&self, bytes: Buffers) -> impl Future<Output = (io::Result<usize>, Buffers)> {
        let inside = Rc::clone(&self.0);
        async move {
            let sent = inside.send(&bytes).await;
            (sent, bytes)
        }
    }

    fn hang_up(&self) -> Self::HangUp {
        self.0.plain.hang_up()
    }

    fn shut_down(&self) {
        self.0.plain.shut_down();
    }

    /// Says goodbye, or why the session ends. It is a few bytes, and not worth waiting for a client that does not read.
    fn farewell(&self) {
        // One that has ended by itself has said why already.
        let _ = self.0.session(|session| {
            session.close();
            Ok(())
        });
        self.0.send_unasked();
    }

    fn leave(self) -> TlsLink<S> {
        TlsLink {
            socket: self.0.socket.clone(),
            session: self.0.session.take(),
            unsent: self.0.unsent.take(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::thread;

    use millpond_ring::{RingConfig, Wake};

    use super::*;

    /// A session that has something to say unasked.
    struct Says(Vec<u8>);

    impl Session for Says {
        fn handshake(&mut self) -> std::result::Result<bool, TlsError> {
            Ok(true)
        }

        fn feed(&mut self, _: Buffer, _: usize) {}

        fn spare(&mut self) -> Buffer {
            Buffer::new()
        }

        fn read(&mut self, _: &mut [u8]) -> std::result::Result<Got, TlsError> {
            Ok(Got::Hungry)
        }

        fn write(&mut self, plain: &[u8]) -> std::result::Result<(), TlsError> {
            self.0.extend_from_slice(plain);
            Ok(())
        }

        fn produced(&mut self) -> Vec<u8> {
            std::mem::take(&mut self.0)
        }

        fn close(&mut self) {}
    }

    fn ring() -> Ring {
        let wake = Arc::new(Wake::new().unwrap());
        Ring::new(RingConfig::new(wake)).unwrap()
    }

    #[test]
    fn what_a_client_has_not_taken_goes_with_it_to_another_iothread() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let said: Vec<u8> = (0..4 << 20)
            .map(|at: u32| at.to_le_bytes()[at as usize % 4])
            .collect();
        let (first, second) = (ring(), ring());
        let link = TlsLink {
            socket: Arc::new(OwnedFd::from(ours)),
            session: Some(Box::new(Says(said.clone()))),
            unsent: Vec::new(),
        };
        let transport = link.here(&first);
        transport.0.send_unasked();
        let left = transport.0.unsent.borrow().len();
        assert!(0 < left && left < said.len(), "{left} bytes are left");
        let transport = transport.leave().here(&second);
        let client = thread::spawn(move || {
            let mut heard = Vec::new();
            theirs.read_to_end(&mut heard).map(|_| heard)
        });
        loop {
            transport.0.send_unasked();
            if transport.0.unsent.borrow().is_empty() {
                break;
            }
            thread::yield_now();
        }
        drop(transport);
        assert!(
            client.join().unwrap().unwrap() == said,
            "every byte comes, in order"
        );
    }
}
