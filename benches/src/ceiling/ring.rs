//! The responder on Millpond's ring: one thread, one system call a turn for all connections.
//!
//! There is no executor: after each turn, every operation in flight is looked at once.

use std::future::Future;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use millpond_ring::buffer::{Buffer, Buffers};
use millpond_ring::{Fd, Moved, Pending, Received, Ring, RingConfig, Wait, Wake};

use super::answer::{Reply, Requests};
use super::negotiate;
use crate::Outcome;

/// Bytes asked for in one receive: what Millpond's server asks for.
const RECEIVE: usize = 64 << 10;

/// Bytes that are sent in one operation, unless a single reply has more.
const SEND: usize = 1 << 20;

/// How long to look for work before sleeping: what an iothread does by default.
const POLL: Duration = Duration::from_nanos(32_768);

/// A connection in transmission.
struct Connection {
    fd: Fd,
    requests: Requests,
    receive: Option<Pending<Received>>,
    send: Option<Pending<Moved>>,
    input: Buffer,
    /// Bytes at the front of `input` that are the beginning of a request.
    filled: usize,
    /// Memory for replies: its data bytes are never written, only headers are.
    output: Buffer,
    /// Replies that have not been put into memory to be sent yet.
    waiting: Vec<Reply>,
}

/// Serves connections until accepting fails.
pub(super) fn serve(listener: UnixListener) -> Outcome<()> {
    let wake = Arc::new(Wake::new()?);
    let ring = Ring::new(RingConfig::new(Arc::clone(&wake)))?;
    let accepted = accept(listener, wake)?;
    let mut connections: Vec<Connection> = Vec::new();
    loop {
        while let Ok((fd, structured)) = accepted.try_recv() {
            connections.push(Connection::new(&ring, fd, structured));
        }
        connections.retain_mut(|connection| match connection.work(&ring) {
            Ok(goes_on) => goes_on,
            Err(error) => {
                eprintln!("a connection ended: {error}");
                false
            }
        });
        // With nothing to be submitted and nothing ended this costs no system call.
        if ring.turn(Wait::No) == 0 {
            poll(&ring);
            ring.turn(Wait::Until(None));
        }
    }
}

/// Looks for a while whether something has ended, rather than sleep at once.
fn poll(ring: &Ring) {
    let until = Instant::now() + POLL;
    while !ring.has_work() && Instant::now() < until {
        std::hint::spin_loop();
    }
}

/// Accepts connections and negotiates on a thread of its own: that is no part of what is measured.
fn accept(listener: UnixListener, wake: Arc<Wake>) -> Outcome<Receiver<(OwnedFd, bool)>> {
    let (tell, told) = channel();
    std::thread::Builder::new()
        .name("accept".to_owned())
        .spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                match negotiate(&mut stream) {
                    Ok(structured) => {
                        if tell.send((OwnedFd::from(stream), structured)).is_err() {
                            return;
                        }
                        wake.wake();
                    }
                    // Such as that of a client who only looks whether we are there.
                    Err(error) => eprintln!("a connection ended in negotiation: {error}"),
                }
            }
        })?;
    Ok(told)
}

impl Connection {
    fn new(ring: &Ring, fd: OwnedFd, structured: bool) -> Connection {
        let fd = Arc::new(fd);
        Connection {
            receive: Some(ring.recv(&fd, Buffer::alloc(RECEIVE))),
            fd,
            requests: Requests::new(structured),
            send: None,
            input: Buffer::new(),
            filled: 0,
            output: Buffer::zeroed(SEND),
            waiting: Vec::new(),
        }
    }

    /// Goes on as far as it can without waiting; false when the client has gone.
    fn work(&mut self, ring: &Ring) -> Outcome<bool> {
        if let Some((count, buffer)) = take(&mut self.receive) {
            let count = count?;
            if count == 0 {
                return Ok(false);
            }
            self.received(ring, count, buffer)?;
        }
        if let Some((count, buffers)) = take(&mut self.send) {
            count?;
            let sent = buffers.into_single();
            self.output = match sent.try_unsplit(std::mem::take(&mut self.output)) {
                Ok(whole) => whole,
                Err(_) => Buffer::zeroed(SEND),
            };
        }
        if self.send.is_none() && !self.waiting.is_empty() {
            self.send(ring);
        }
        Ok(!self.requests.ended)
    }

    /// Takes requests from what was received, and receives more.
    fn received(&mut self, ring: &Ring, count: usize, buffer: Buffer) -> Outcome<()> {
        let head = std::mem::take(&mut self.input);
        // The ring gives back the buffer it was given, which was cut from the other.
        let mut input = if head.is_empty() {
            buffer
        } else {
            head.try_unsplit(buffer).map_err(|_| "a buffer got lost")?
        };
        let filled = self.filled + count;
        let waiting = &mut self.waiting;
        let used = self
            .requests
            .take(&input[..filled], |reply| waiting.push(reply))?;
        input.copy_within(used..filled, 0);
        self.filled = filled - used;
        let room = input.split_off(self.filled);
        self.input = input;
        self.receive = Some(ring.recv(&self.fd, room));
        Ok(())
    }

    /// Sends what fits into one operation.
    fn send(&mut self, ring: &Ring) {
        let (mut bytes, mut count) = (0, 0);
        for reply in &self.waiting {
            let length = reply.len + reply.data;
            if count > 0 && bytes + length > SEND {
                break;
            }
            bytes += length;
            count += 1;
        }
        if self.output.len() < bytes {
            self.output = Buffer::zeroed(bytes);
        }
        let mut at = 0;
        for reply in self.waiting.drain(..count) {
            self.output[at..at + reply.len].copy_from_slice(reply.header());
            at += reply.len + reply.data;
        }
        let rest = self.output.split_off(bytes);
        let sent = std::mem::replace(&mut self.output, rest);
        self.send = Some(ring.send(&self.fd, Buffers::from(sent)));
    }
}

/// The output of an operation, if it has ended.
fn take<T>(operation: &mut Option<T>) -> Option<T::Output>
where
    T: Future + Unpin,
{
    let future = operation.as_mut()?;
    let mut context = Context::from_waker(Waker::noop());
    match Pin::new(future).poll(&mut context) {
        Poll::Ready(output) => {
            *operation = None;
            Some(output)
        }
        Poll::Pending => None,
    }
}
