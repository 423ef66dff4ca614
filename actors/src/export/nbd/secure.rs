//! A connection inside TLS: the same three types as a plain one has, around a session.
//!
//! The handshake's arithmetic, and the files that it needs, are a worker's: neither the control thread nor an iothread waits
//! for them.

use std::future::Future;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use millpond_drivers::by_id::ById;
use millpond_drivers::tls::{Got, RECEIVE_RECORD, TlsError, TlsLuggage, TlsSession, TlsStream, room};
use millpond_messages::Result;
use millpond_messages::qapi::NbdServerOptions;
use millpond_messages::qapi::schema::QCryptoTLSCredsEndpoint;
use millpond_ring::buffer::{Buffer, Buffers};
use millpond_ring::{Fd, Pending, Polled, Ring};
use tokio::sync::Semaphore;

use super::handshake::Tls;
use super::transport::{Channel, Link, PlainChannel, PlainTransport, Transport};
use crate::tls::{Authorizer, Credentials, OpensslSession, TlsRegistry};

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
pub type TlsLink<S> = TlsLuggage<S>;

impl<S: TlsSession> Link for TlsLink<S> {
    type Transport = TlsTransport<S>;

    fn here(self, ring: &Ring) -> TlsTransport<S> {
        TlsTransport(Rc::new(Inside {
            plain: self.socket.clone().here(ring),
            stream: TlsLuggage::here(self, ring),
        }))
    }
}

/// A connection inside TLS on an iothread.
pub struct TlsTransport<S>(Rc<Inside<S>>);

struct Inside<S> {
    plain: PlainTransport,
    stream: TlsStream<S>,
}

impl<S> Clone for TlsTransport<S> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<S: TlsSession> Transport for TlsTransport<S> {
    type Link = TlsLink<S>;
    type HangUp = Pending<Polled>;

    fn receive(&self, mut room: Buffer) -> impl Future<Output = (io::Result<usize>, Buffer)> {
        let inside = Rc::clone(&self.0);
        async move {
            let received = inside.stream.receive(&mut room, 1).await;
            (received, room)
        }
    }

    fn receive_exact(&self, mut room: Buffer) -> impl Future<Output = (io::Result<usize>, Buffer)> {
        let inside = Rc::clone(&self.0);
        async move {
            let all = room.len();
            let received = inside.stream.receive(&mut room, all).await;
            (received, room)
        }
    }

    fn send(&self, bytes: Buffers) -> impl Future<Output = (io::Result<usize>, Buffers)> {
        let inside = Rc::clone(&self.0);
        async move {
            let sent = inside.stream.send(&bytes).await;
            (sent, bytes)
        }
    }

    fn hang_up(&self) -> Self::HangUp {
        self.0.plain.hang_up()
    }

    fn shut_down(&self) {
        self.0.plain.shut_down();
    }

    fn farewell(&self) {
        self.0.stream.farewell();
    }

    fn leave(self) -> TlsLink<S> {
        self.0.stream.leave()
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

    impl TlsSession for Says {
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
        let transport = Link::here(link, &first);
        transport.0.stream.send_unasked();
        let left = transport.0.stream.unsent();
        assert!(0 < left && left < said.len(), "{left} bytes are left");
        let transport = Link::here(transport.leave(), &second);
        let client = thread::spawn(move || {
            let mut heard = Vec::new();
            theirs.read_to_end(&mut heard).map(|_| heard)
        });
        loop {
            transport.0.stream.send_unasked();
            if transport.0.stream.unsent() == 0 {
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
