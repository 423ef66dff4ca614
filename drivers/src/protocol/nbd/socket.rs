//! The socket of a connection to a server: its bytes, plain or inside TLS.

use std::io;
use std::rc::Rc;

use millpond_ring::buffer::{Buffer, Buffers};
use millpond_ring::{Fd, Ring};
use rustix::net::{Shutdown, shutdown};

use crate::tls::{RECEIVE_RECORD, TlsError, TlsLuggage, TlsSession, TlsStream, room};

/// A socket that leads to a server. Clones are the same socket.
#[derive(Clone)]
pub(super) struct ServerSocket {
    ring: Ring,
    fd: Fd,
    tls: Option<Rc<TlsStream<dyn TlsSession>>>,
}

/// A socket on its way to another iothread.
pub(super) struct ServerSocketLuggage {
    fd: Fd,
    tls: Option<TlsLuggage<dyn TlsSession>>,
}

impl ServerSocketLuggage {
    /// Goes on on the iothread of `ring`.
    pub(super) fn here(self, ring: Ring) -> ServerSocket {
        ServerSocket {
            tls: self.tls.map(|tls| Rc::new(tls.here(&ring))),
            fd: self.fd,
            ring,
        }
    }
}

impl ServerSocket {
    /// A socket whose bytes are plain.
    pub(super) const fn plain(ring: Ring, fd: Fd) -> Self {
        Self { ring, fd, tls: None }
    }

    pub(super) const fn ring(&self) -> &Ring {
        &self.ring
    }

    /// Receives some bytes to the front of `room`, none if the server has left; gives it back.
    pub(super) async fn recv(&self, mut room: Buffer) -> (io::Result<usize>, Buffer) {
        match &self.tls {
            None => self.ring.recv(&self.fd, room).await,
            Some(tls) => (tls.receive(&mut room, 1).await, room),
        }
    }

    /// Receives until `room` is full or the server has left; gives it back.
    pub(super) async fn recv_exact(&self, mut room: Buffer) -> (io::Result<usize>, Buffer) {
        match &self.tls {
            None => self.ring.recv_exact(&self.fd, room).await,
            Some(tls) => {
                let all = room.len();
                (tls.receive(&mut room, all).await, room)
            }
        }
    }

    /// Sends all of `bytes`, and gives them back. Nothing else is sent meanwhile.
    pub(super) async fn send(&self, bytes: Buffers) -> (io::Result<usize>, Buffers) {
        match &self.tls {
            None => self.ring.send(&self.fd, bytes).await,
            Some(tls) => (tls.send(&bytes).await, bytes),
        }
    }

    /// Ends the connection: what waits to be received or sent ends with an error.
    pub(super) fn shut_down(&self) {
        // An error says that there is no connection any more.
        let _gone = shutdown(&*self.fd, Shutdown::Both);
    }

    /// Tells the server that nothing more comes, if that is not clear by the connection's end. Nothing is in flight.
    pub(super) fn farewell(&self) {
        if let Some(tls) = &self.tls {
            tls.farewell();
        }
    }

    /// What is left for another iothread to go on with. Nothing is in flight.
    pub(super) fn depart(&self) -> ServerSocketLuggage {
        ServerSocketLuggage {
            fd: self.fd.clone(),
            tls: self.tls.as_ref().map(|tls| tls.leave()),
        }
    }

    /// Goes on inside TLS, once `session` has come to an agreement with the server. Its arithmetic is for threads that nobody
    /// waits for.
    ///
    /// # Errors
    /// They do not agree; the server is told why.
    pub(super) async fn start_tls(&mut self, mut session: Box<dyn TlsSession>) -> Result<(), TlsError> {
        loop {
            let calculate = move || {
                let over = session.handshake();
                (session, over)
            };
            let over;
            (session, over) = self.ring.blocking(calculate).await;
            let produced = session.produced();
            if !produced.is_empty() {
                let (sent, _) = self.ring.send(&self.fd, produced.into()).await;
                // What is wrong with the session is told rather than what became of the connection.
                if over.is_ok() {
                    sent.map_err(|_| TlsError::cut_off())?;
                }
            }
            if over? {
                break;
            }
            let cipher = room(&mut *session, RECEIVE_RECORD);
            let (received, cipher) = self.ring.recv(&self.fd, cipher).await;
            match received.map_err(|_| TlsError::cut_off())? {
                0 => return Err(TlsError::cut_off()),
                len => session.feed(cipher, len),
            }
        }
        let luggage = TlsLuggage {
            socket: self.fd.clone(),
            session: Some(session),
            unsent: Vec::new(),
        };
        self.tls = Some(Rc::new(luggage.here(&self.ring)));
        Ok(())
    }
}
