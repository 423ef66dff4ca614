//! A connection on which requests are under way.
//!
//! Nothing runs here by itself. Each request sends itself and then waits; of those that wait one reads, and hands to the others
//! what came for them. When it has its own reply, the next one reads.
//!
//! ```text
//!   request: put into a slot ---> send (one at a time; short ones together) ---> wait: read, or be handed the reply
//! ```
//! Sending and waiting go on side by side: a server may want its replies to be read before it reads more.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::task::{Poll, Waker};

use futures_util::future::join;
use millpond_messages::nbd::{CommandFlags, Cursor, command};
use millpond_messages::{IoError, Range};
use millpond_ring::buffer::Buffers;
use slab::Slab;

use super::handshake::Agreed;
use super::inbox::Inbox;
use super::reply::{Expected, Reply};
use super::socket::{ServerSocket, ServerSocketLuggage};
use super::wire::{ReplyKind, Request, read_reply_head, reply_head_len};

/// What a request is, but for its data.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    pub(super) command: u16,
    pub(super) flags: CommandFlags,
    pub(super) range: Range,
}

/// A request that waits.
struct Slot {
    cookie: u64,
    reply: Reply,
    is_done: bool,
    waker: Option<Waker>,
}

/// A connection to a server, on one iothread.
pub(super) struct Link {
    socket: ServerSocket,
    agreed: Agreed,
    slots: RefCell<Slab<Slot>>,
    /// How many requests there were.
    count: Cell<u64>,
    /// Taken by who reads.
    inbox: Cell<Option<Inbox>>,
    /// Requests without data that are to be sent.
    outbox: RefCell<Vec<u8>>,
    /// Some request is being sent.
    is_sending: Cell<bool>,
    senders: RefCell<VecDeque<Waker>>,
    broken: Cell<Option<IoError>>,
}

impl Link {
    pub(super) fn new(socket: ServerSocket, agreed: Agreed, inbox: Inbox) -> Self {
        Self {
            socket,
            agreed,
            slots: RefCell::default(),
            count: Cell::new(0),
            inbox: Cell::new(Some(inbox)),
            outbox: RefCell::default(),
            is_sending: Cell::new(false),
            senders: RefCell::default(),
            broken: Cell::new(None),
        }
    }

    pub(super) const fn agreed(&self) -> &Agreed {
        &self.agreed
    }

    /// Why nothing more comes, if so.
    pub(super) fn broken(&self) -> Option<IoError> {
        self.broken.get()
    }

    /// Ends the connection; what is under way fails with `error`.
    pub(super) fn break_off(&self, error: IoError) {
        if self.broken.get().is_some() {
            return;
        }
        self.broken.set(Some(error));
        // Whoever reads or sends finds the end.
        self.socket.shut_down();
        for (_, slot) in self.slots.borrow_mut().iter_mut() {
            slot.waker.take().into_iter().for_each(Waker::wake);
        }
        let senders: Vec<Waker> = self.senders.borrow_mut().drain(..).collect();
        senders.into_iter().for_each(Waker::wake);
    }

    /// What is left for another iothread to go on with: nothing is under way.
    pub(super) fn take_parts(&self) -> (ServerSocketLuggage, Agreed, Option<Inbox>) {
        (self.socket.depart(), self.agreed.clone(), self.inbox.take())
    }

    /// Tells the server that no more requests come.
    pub(super) async fn say_goodbye(&self) {
        let goodbye = self.request_bytes(
            0,
            Asked {
                command: command::DISC,
                flags: CommandFlags::empty(),
                range: Range::between(0, 0),
            },
        );
        // A server that is gone need not be told.
        drop(self.socket.send(goodbye.into()).await);
        self.socket.farewell();
    }

    /// Does a request with the data that it sends, if it sends any. Answers its reply, and that data again.
    pub(super) async fn request(
        &self,
        asked: Asked,
        data: Option<Buffers>,
        expected: Expected,
    ) -> (Reply, Option<Buffers>) {
        let (key, cookie) = self.begin(expected);
        let request = self.request_bytes(cookie, asked);
        let (data, ()) = join(self.send(request, data), self.wait(key)).await;
        let mut reply = self.slots.borrow_mut().remove(key).reply;
        if let Some(error) = self.broken.get()
            && !reply.is_whole()
        {
            reply.fail(error);
        }
        (reply, data)
    }

    fn begin(&self, expected: Expected) -> (usize, u64) {
        let mut slots = self.slots.borrow_mut();
        let entry = slots.vacant_entry();
        let count = self.count.get().wrapping_add(1);
        self.count.set(count);
        // Later requests in the same slot have other cookies.
        let cookie = (count << 32) | entry.key() as u64;
        let key = entry.key();
        entry.insert(Slot {
            cookie,
            reply: Reply::new(expected),
            is_done: false,
            waker: None,
        });
        (key, cookie)
    }

    fn request_bytes(&self, cookie: u64, asked: Asked) -> Vec<u8> {
        let request = Request {
            command: asked.command,
            flags: asked.flags,
            cookie,
            offset: asked.range.offset(),
            len: asked.range.len(),
        };
        let mut bytes = Vec::with_capacity(32);
        request.write(self.agreed.mode, &mut bytes);
        bytes
    }

    /// Sends a request. One without data may be sent by whoever is sending.
    async fn send(&self, request: Vec<u8>, data: Option<Buffers>) -> Option<Buffers> {
        let Some(data) = data else {
            self.outbox.borrow_mut().extend(request);
            if !self.is_sending.replace(true) {
                self.send_outbox().await;
            }
            return None;
        };
        poll_fn(|context| {
            if self.broken.get().is_some() || !self.is_sending.get() {
                return Poll::Ready(());
            }
            self.senders.borrow_mut().push_back(context.waker().clone());
            Poll::Pending
        })
        .await;
        if self.broken.get().is_some() {
            return Some(data);
        }
        self.is_sending.set(true);
        let mut bytes = std::mem::take(&mut *self.outbox.borrow_mut());
        bytes.extend(request);
        let head = bytes.len();
        let mut all = Buffers::from(bytes);
        all.append(data);
        let (sent, mut all) = self.socket.send(all).await;
        let data = all.split_off(head);
        if let Err(error) = sent {
            self.lost(&error);
        }
        self.send_outbox().await;
        Some(data)
    }

    /// Sends what others have left to be sent, until there is nothing, and lets the next one send.
    async fn send_outbox(&self) {
        while self.broken.get().is_none() {
            let bytes = std::mem::take(&mut *self.outbox.borrow_mut());
            if bytes.is_empty() {
                break;
            }
            let (sent, _) = self.socket.send(bytes.into()).await;
            if let Err(error) = sent {
                self.lost(&error);
            }
        }
        self.is_sending.set(false);
        let next = self.senders.borrow_mut().pop_front();
        next.into_iter().for_each(Waker::wake);
    }

    fn lost(&self, error: &io::Error) {
        tracing::debug!(%error, "the connection to an NBD server is lost");
        self.break_off(IoError::Os(libc::EIO));
    }

    /// Waits until a request has its reply: reads as long as nobody else does.
    async fn wait(&self, key: usize) {
        loop {
            let inbox = poll_fn(|context| {
                let mut slots = self.slots.borrow_mut();
                let Some(slot) = slots.get_mut(key) else {
                    return Poll::Ready(None);
                };
                if slot.is_done || self.broken.get().is_some() {
                    return Poll::Ready(None);
                }
                if let Some(inbox) = self.inbox.take() {
                    return Poll::Ready(Some(inbox));
                }
                slot.waker = Some(context.waker().clone());
                Poll::Pending
            })
            .await;
            let Some(inbox) = inbox else {
                break;
            };
            let mut reading = Reading {
                link: self,
                inbox: Some(inbox),
                is_whole: false,
            };
            if let Err(error) = reading.one().await {
                self.lost(&error);
            }
            reading.is_whole = true;
        }
        self.pass_on();
    }

    /// Has another request read, if nobody does.
    fn pass_on(&self) {
        let inbox = self.inbox.take();
        if inbox.is_none() {
            return;
        }
        self.inbox.set(inbox);
        let mut slots = self.slots.borrow_mut();
        let next = slots
            .iter_mut()
            .filter(|(_, slot)| !slot.is_done)
            .find_map(|(_, slot)| slot.waker.take());
        next.into_iter().for_each(Waker::wake);
    }
}

/// One who reads. If that is dropped half-way, nobody knows where the next reply begins.
struct Reading<'a> {
    link: &'a Link,
    inbox: Option<Inbox>,
    is_whole: bool,
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.link.inbox.set(self.inbox.take());
        if !self.is_whole {
            self.link.break_off(IoError::Os(libc::EIO));
        }
    }
}

impl Reading<'_> {
    /// Reads one reply, or one chunk, for whoever it is.
    async fn one(&mut self) -> io::Result<()> {
        let link = self.link;
        let Some(inbox) = &mut self.inbox else {
            return Ok(());
        };
        let wrong = |text: &str| io::Error::new(io::ErrorKind::InvalidData, text.to_owned());
        let magic = Cursor(inbox.peek(&link.socket, 4).await?).u32().unwrap_or(0);
        let len =
            reply_head_len(magic, link.agreed.mode).ok_or_else(|| wrong("a reply with a wrong magic"))?;
        let head = read_reply_head(inbox.take(&link.socket, len).await?);
        let head = head.ok_or_else(|| wrong("a reply without a head"))?;
        let key = (head.cookie & u64::from(u32::MAX)) as usize;
        // Taken out while its data is read into it.
        let reply = {
            let mut slots = link.slots.borrow_mut();
            let slot = slots.get_mut(key);
            let slot = slot.filter(|slot| slot.cookie == head.cookie && !slot.is_done);
            let slot = slot.ok_or_else(|| wrong("a reply to what was not asked"))?;
            std::mem::replace(&mut slot.reply, Reply::new(Expected::Nothing))
        };
        let (read, reply) = reply.take(head, inbox, link).await;
        let mut slots = link.slots.borrow_mut();
        let Some(slot) = slots.get_mut(key) else {
            return read;
        };
        slot.reply = reply;
        if read.is_ok() && (head.is_last || matches!(head.kind, ReplyKind::Simple(_))) {
            slot.is_done = true;
            slot.reply.end();
            slot.waker.take().into_iter().for_each(Waker::wake);
        }
        read
    }
}

impl Link {
    pub(super) const fn socket(&self) -> &ServerSocket {
        &self.socket
    }
}
