//! One connection in the transmission phase, on the iothread of the node behind its export.
//!
//! Three kinds of task share a `Session`: this one receives and admits requests and begins them, those that the node does
//! not answer at once have a task each, and the sender sends what they queued. Receiving stops while the node is drained,
//! while the client has as much in flight as it may, and for good when either side ends; then the requests in flight are
//! served to their end. A client that has left gives its slot back at once; of one that left without a goodbye, what waits
//! at the gate or in a throttle group is withdrawn. That it has left is noticed also while nothing is received.

use std::rc::Rc;
use std::sync::Arc;

use millpond_ring::Fd;
use millpond_ring::buffer::Buffer;

use super::budget::{Permit, Pool};
use super::delay::Delays;
use super::presence::{Gone, Presence};
use super::receive::{Ended, Receiver};
use super::reply::To;
use super::request::{Header, Limits, Refusal, Request, Verdict, WireError};
use super::serve::cost;
use super::session::{Job, Session};
use super::standing::Standing;
use crate::export::backend::ExportedNode;
use crate::export::nbd::handshake::Negotiated;
use crate::export::nbd::transport::{Link, Transport};
use millpond_engine::iothread::{Local, is_delaying, yield_once};

/// How a connection came to its end on this iothread.
#[derive(Debug)]
pub enum End<L = Fd> {
    /// The connection is over, for this reason.
    Closed(Closing),
    /// The node has moved: the connection is to go on beside it, with these bytes received already. Nothing is in
    /// flight.
    Moved(L, Vec<u8>),
}

/// What a server keeps of one of its clients.
pub trait Account {
    /// What it shares with the server's other clients.
    fn pool(&self) -> &Arc<Pool>;
    /// It has left: another may come in its place, though some of its requests have not ended.
    fn left(&mut self);
    /// Its connection has ended.
    fn ended(self, how: Closing);
}

/// A client without a server, which others share memory with all the same.
impl Account for Arc<Pool> {
    fn pool(&self) -> &Arc<Pool> {
        self
    }

    fn left(&mut self) {}

    fn ended(self, _: Closing) {}
}

/// How a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closing {
    /// Something went wrong: the client broke the rules, or its socket failed or ended in the middle of something.
    pub broken: bool,
    /// Why it ended, for people.
    pub why: String,
}

impl Closing {
    fn orderly(why: &str) -> Self {
        Self {
            broken: false,
            why: why.to_owned(),
        }
    }

    fn broken(why: impl Into<String>) -> Self {
        Self {
            broken: true,
            why: why.into(),
        }
    }
}

impl std::fmt::Display for Closing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.why)
    }
}

/// Why no more requests are received.
enum Stop {
    /// The client said goodbye, or broke the rules.
    Closed(Closing),
    /// It has gone without a word.
    Left(Closing),
    Moved,
}

impl From<Ended> for Stop {
    fn from(ended: Ended) -> Self {
        let broken = !matches!(ended, Ended::Closed);
        Self::Left(Closing {
            broken,
            why: ended.to_string(),
        })
    }
}

impl From<Gone> for Stop {
    fn from(_: Gone) -> Self {
        Self::from(Ended::Closed)
    }
}

/// A client whose handshake is over, as it comes to an iothread.
#[derive(Debug)]
pub struct Arrival<'a, L = Fd> {
    /// What it sends and is sent its bytes over.
    pub link: L,
    /// What was agreed on.
    pub negotiated: &'a Negotiated,
    /// What was received already and not looked at.
    pub received: &'a [u8],
    /// Where it is told from now on where the client stands.
    pub standing: Rc<Standing>,
}

/// Serves a connection until it ends or has to move.
pub async fn serve<B: ExportedNode, L: Link>(
    local: Rc<Local>,
    arrival: Arrival<'_, L>,
    backend: B,
    account: &mut impl Account,
) -> End<L> {
    let Arrival {
        link,
        negotiated,
        received,
        standing,
    } = arrival;
    let limits = Limits {
        mode: negotiated.mode,
        size: negotiated.export.size,
        flags: negotiated.export.flags,
        contexts: negotiated.contexts,
    };
    let session = Session::new(backend, &negotiated.export, limits, account.pool());
    standing.begin(&session.budget);
    let transport = link.here(local.ring());
    let delays = Delays::new(Rc::clone(&local), &negotiated.export.name);
    let sender = local.spawn_task(send(delays.clone(), transport.clone(), Rc::clone(&session)));
    let presence = Presence::new(transport.clone());
    let receiver = Receiver::new(transport.clone(), received);
    let mut connection = Connection {
        local,
        delays,
        session,
        standing,
        receiver,
        presence,
    };
    let stop = connection.receive().await;
    let session = connection.session;
    if let Stop::Left(_) = stop {
        session.withdrawal.withdraw();
        // What is withdrawn ends before this goes on.
        yield_once().await;
    }
    if !matches!(stop, Stop::Moved) && session.budget.leave_behind() {
        account.left();
    }
    session.budget.settled().await;
    session.outbox.close();
    sender.await;
    match stop {
        Stop::Moved => {
            let received = connection.receiver.bytes().to_vec();
            drop((connection.receiver, connection.presence));
            End::Moved(transport.leave(), received)
        }
        // The socket closes with its last handle, which the server holds until it has counted the client out: whoever
        // sees the end of the connection may remove the export at once.
        Stop::Closed(closing) | Stop::Left(closing) => {
            transport.farewell();
            End::Closed(session.send_error.take().unwrap_or(closing))
        }
    }
}

/// Sends what is queued until the outbox is closed.
async fn send<B: ExportedNode>(delays: Delays, transport: impl Transport, session: Rc<Session<B>>) {
    while let Some(batch) = session.outbox.next().await {
        if is_delaying() {
            delays.sends().await;
        }
        let (buffers, permit) = batch.into_parts();
        let (result, buffers) = transport.send(buffers).await;
        drop((buffers, permit));
        session.sent();
        if let Err(error) = result {
            session
                .send_error
                .replace(Some(Closing::broken(format!("sending failed: {error}"))));
            session.outbox.close();
            // Ends the receiving side too.
            transport.shut_down();
        }
    }
}

/// The receiving side of a connection.
struct Connection<B, T: Transport> {
    local: Rc<Local>,
    delays: Delays,
    session: Rc<Session<B>>,
    standing: Rc<Standing>,
    receiver: Receiver<T>,
    presence: Presence<T>,
}

impl<B: ExportedNode, T: Transport> Connection<B, T> {
    async fn receive(&mut self) -> Stop {
        loop {
            if let Err(stop) = self.requests().await {
                return stop;
            }
            let waiting = self.standing.wait(self.receiver.bytes());
            if let Err(ended) = self.receiver.more().await {
                return ended.into();
            }
            drop(waiting);
        }
    }

    /// Admits the requests that have come whole.
    async fn requests(&mut self) -> Result<(), Stop> {
        let limits = self.session.limits;
        loop {
            let header = Header::parse(limits.mode, self.receiver.bytes());
            let Some(header) = header.map_err(|error| Stop::Closed(Closing::broken(error.to_string())))?
            else {
                return Ok(());
            };
            if is_delaying() {
                self.receive_delayed().await?;
            }
            self.gate().await?;
            self.receiver.take(Header::length(limits.mode));
            match limits.judge(&header) {
                Verdict::Serve(request) => self.admit(request, Buffer::new()).await?,
                Verdict::ServePayload(request) => self.write(request).await?,
                Verdict::StatusPayload(n) => {
                    self.receiver.at_least(n).await?;
                    let payload = self.receiver.bytes().get(..n).unwrap_or_default();
                    let verdict = limits.status_payload(&header, payload);
                    self.receiver.take(n);
                    match verdict {
                        Ok(request) => self.admit(request, Buffer::new()).await?,
                        Err(refusal) => self.refuse(refusal).await?,
                    }
                }
                Verdict::Refuse(skip, refusal) => {
                    self.receiver.skip(skip as usize).await?;
                    self.refuse(refusal).await?;
                }
                Verdict::RefuseAndClose(refusal) => {
                    let why = refusal.text.clone();
                    self.refuse(refusal).await?;
                    return Err(Stop::Closed(Closing::broken(why)));
                }
                Verdict::Disconnect => {
                    return Err(Stop::Closed(Closing::orderly("the client disconnected")));
                }
            }
        }
    }

    /// Waits until the message policy lets a request be received, or cuts the connection.
    async fn receive_delayed(&mut self) -> Result<(), Stop> {
        let _waiting = self.standing.wait(self.receiver.bytes());
        if self.presence.while_there(self.delays.receives()).await? {
            return Ok(());
        }
        tracing::info!("the message policy cuts an NBD client's connection");
        self.presence.shut_down();
        Err(Stop::Closed(Closing::orderly("cut by the message policy")))
    }

    /// Waits while the node is drained.
    async fn gate(&mut self) -> Result<(), Stop> {
        let node = &self.session.backend;
        if !node.is_open() {
            let _waiting = self.standing.wait(self.receiver.bytes());
            self.presence.while_there(node.wait_open()).await?;
        }
        if node.has_moved() {
            Err(Stop::Moved)
        } else {
            Ok(())
        }
    }

    async fn admit(&mut self, request: Request, payload: Buffer) -> Result<(), Stop> {
        let permit = self.permit(cost(&request)).await?;
        self.session.dispatch(
            &self.local,
            Job {
                request,
                payload,
                permit,
            },
        );
        Ok(())
    }

    /// Waits until the client may have one more request in flight.
    async fn permit(&mut self, bytes: usize) -> Result<Permit, Stop> {
        let budget = &self.session.budget;
        if let Some(permit) = budget.try_admit(bytes) {
            return Ok(permit);
        }
        Ok(self.presence.while_there(budget.admit(bytes)).await?)
    }

    /// Receives a write's payload and admits it.
    async fn write(&mut self, request: Request) -> Result<(), Stop> {
        let permit = self.permit(cost(&request)).await?;
        // At most 32 MiB, as the header's check saw to.
        let len = request.range.len() as usize;
        let Some(buffer) = Buffer::try_alloc(len) else {
            drop(permit);
            self.receiver.skip(len).await?;
            let (cookie, offset) = (request.cookie, request.range.offset());
            let refusal = Refusal {
                cookie,
                offset,
                error: WireError::NoMem,
                text: "No memory".to_owned(),
            };
            return self.refuse(refusal).await;
        };
        let payload = self.receiver.fill(buffer).await?;
        self.session.dispatch(
            &self.local,
            Job {
                request,
                payload,
                permit,
            },
        );
        Ok(())
    }

    async fn refuse(&mut self, refusal: Refusal) -> Result<(), Stop> {
        let Refusal {
            cookie,
            offset,
            error,
            text,
        } = refusal;
        tracing::debug!(cookie, offset, ?error, "{text}");
        let permit = self.permit(text.len()).await?;
        let to = To {
            mode: self.session.limits.mode,
            cookie,
            offset,
        };
        self.session
            .outbox
            .add(|out| to.failure(out, error, &text), None, Some(permit));
        Ok(())
    }
}
