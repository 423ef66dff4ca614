//! A device that several users share: all of them write to it, and one of them, on which the focus is, gets its input.
//!
//! The escape character, Control-A, begins an order of whoever types: `c` moves the focus on, `h` tells of the orders, `x`
//! ends the program, and Control-A is the character itself. The text at the end is QEMU's.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use futures_util::future::{Either, select};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;

use super::connection::Connection;
use super::lease::Lease;
use super::open::Chardev;

/// Bytes that may wait in each direction of each user.
const WAITING: usize = 4096;
/// The character that begins an order.
const ESCAPE: u8 = 1;

const HELP: &[u8] = b"\n\rControl-A, and then:\n\r  h  this help\n\r  c  the next user gets the input\n\r  \
    x  end the program\n\r  Control-A  send Control-A\n\r";
const ENDED: &[u8] = b"QEMU: Terminated\n\r";

/// A device that several users share.
pub struct Mux {
    label: String,
    sides: Rc<Sides>,
    task: JoinHandle<()>,
}

/// The sides of all users.
#[derive(Default)]
struct Sides {
    sides: RefCell<Vec<Side>>,
    /// Which of them gets the input.
    focus: Cell<usize>,
    is_connected: Cell<bool>,
    /// What the device itself says to whoever types.
    answer: RefCell<Vec<u8>>,
    /// Who waits for what users write.
    reader: Cell<Option<Waker>>,
}

/// The side of one user.
struct Side {
    /// Gives the user a connection.
    connections: UnboundedSender<Connection>,
    /// The shared device's ends of the connection, while there is one.
    output: Option<DuplexStream>,
    input: Option<DuplexStream>,
}

impl Mux {
    /// How many users a device may have at once.
    pub const MOST: usize = 4;

    /// Shares a device. `end` is called when whoever types asks for the program's end.
    pub fn new(label: &str, base: Lease, end: impl Fn() + 'static) -> Self {
        let sides = Rc::<Sides>::default();
        let task = actix_rt::spawn(run(base, Rc::clone(&sides), end));
        Self {
            label: label.to_owned(),
            sides,
            task,
        }
    }

    /// A side for one more user, which gets the input from now on; none if there are too many.
    pub fn side(&self) -> Option<Chardev> {
        let mut sides = self.sides.sides.borrow_mut();
        let (connections, offered) = unbounded_channel();
        let mut side = Side {
            connections,
            output: None,
            input: None,
        };
        if self.sides.is_connected.get() {
            side.connect();
        }
        let free = sides.iter().position(|side| side.connections.is_closed());
        let place = free.unwrap_or(sides.len());
        match free {
            Some(place) => *sides.get_mut(place)? = side,
            None if sides.len() < Self::MOST => sides.push(side),
            None => return None,
        }
        self.sides.focus.set(place);
        self.sides.wake();
        Some(Chardev::side(&self.label, offered))
    }

    /// How many users it has.
    pub fn users(&self) -> usize {
        let sides = self.sides.sides.borrow();
        sides.iter().filter(|side| !side.connections.is_closed()).count()
    }

    /// Gives the device back that was shared.
    pub async fn close(self) {
        self.task.abort();
        // It was ended, which is told as an error.
        let _ = self.task.await;
    }
}

impl Side {
    fn connect(&mut self) {
        // One for each direction, so that each ends by itself.
        let (output, writer) = duplex(WAITING);
        let (input, reader) = duplex(WAITING);
        (self.output, self.input) = (Some(output), Some(input));
        // A user that is gone needs none.
        let _ = self.connections.send(Connection::new(reader, writer));
    }
}

/// Serves one client of the shared device after the other.
async fn run(mut base: Lease, sides: Rc<Sides>, end: impl Fn()) {
    while let Some(connection) = base.next().await {
        sides.connect();
        let input = pin!(sides.hand_out(connection.reader, &end));
        let output = pin!(sides.collect(connection.writer));
        let ended = match select(input, output).await {
            Either::Left((ended, output)) => {
                sides.end_input();
                ended.and(output.await)
            }
            Either::Right((ended, _)) => ended,
        };
        tracing::debug!(?ended, "a shared device's client is gone");
        sides.disconnect();
    }
}

impl Sides {
    fn connect(&self) {
        self.is_connected.set(true);
        let mut sides = self.sides.borrow_mut();
        let used = sides.iter_mut().filter(|side| !side.connections.is_closed());
        used.for_each(Side::connect);
    }

    fn end_input(&self) {
        self.is_connected.set(false);
        self.sides
            .borrow_mut()
            .iter_mut()
            .for_each(|side| side.input = None);
        self.wake();
    }

    fn disconnect(&self) {
        self.end_input();
        self.answer.take();
        self.sides
            .borrow_mut()
            .iter_mut()
            .for_each(|side| side.output = None);
    }

    fn wake(&self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    /// Gives what comes in to the user on which the focus is, until there is no more.
    async fn hand_out(&self, mut reader: Box<dyn AsyncRead + Unpin>, end: &impl Fn()) -> io::Result<()> {
        let mut buffer = [0; WAITING];
        let mut is_order = false;
        loop {
            let count = reader.read(&mut buffer).await?;
            let mut data = Vec::with_capacity(count);
            for byte in buffer.get(..count).unwrap_or_default() {
                match (is_order, *byte) {
                    (false, ESCAPE) => {}
                    (false, byte) | (true, byte @ ESCAPE) => data.push(byte),
                    (true, order) => {
                        self.send(&data).await;
                        data.clear();
                        self.carry_out(order, end);
                    }
                }
                is_order = !is_order && *byte == ESCAPE;
            }
            self.send(&data).await;
            if count == 0 {
                return Ok(());
            }
        }
    }

    fn carry_out(&self, order: u8, end: &impl Fn()) {
        match order {
            b'c' => self.move_focus(),
            b'h' | b'?' => self.answer.borrow_mut().extend(HELP),
            b'x' => {
                self.answer.borrow_mut().extend(ENDED);
                end();
            }
            _ => {}
        }
        self.wake();
    }

    fn move_focus(&self) {
        let sides = self.sides.borrow();
        let count = sides.len().max(1);
        let others = (1..=count).map(|step| (self.focus.get() + step) % count);
        let used = |place: &usize| {
            sides
                .get(*place)
                .is_some_and(|side| !side.connections.is_closed())
        };
        if let Some(next) = others.into_iter().find(used) {
            self.focus.set(next);
        }
    }

    /// Gives bytes to the user on which the focus is. They are lost where there is none.
    async fn send(&self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let sent = poll_fn(|context| {
                let mut sides = self.sides.borrow_mut();
                match sides
                    .get_mut(self.focus.get())
                    .and_then(|side| side.input.as_mut())
                {
                    Some(input) => Pin::new(input).poll_write(context, bytes),
                    None => Poll::Ready(Ok(bytes.len())),
                }
            });
            let sent = sent.await.unwrap_or(bytes.len());
            bytes = bytes.get(sent..).unwrap_or_default();
        }
    }

    /// Sends what users write, until the input has ended and they have all taken leave.
    async fn collect(&self, mut writer: Box<dyn AsyncWrite + Unpin>) -> io::Result<()> {
        let mut buffer = [0; WAITING];
        loop {
            let answer = self.answer.take();
            writer.write_all(&answer).await?;
            let mut into = ReadBuf::new(&mut buffer);
            if !poll_fn(|context| self.poll_read(context, &mut into)).await {
                return writer.flush().await;
            }
            writer.write_all(into.filled()).await?;
            writer.flush().await?;
        }
    }

    /// Waits for something to be sent. It is false if nothing comes any more.
    fn poll_read(&self, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<bool> {
        if !self.answer.borrow().is_empty() {
            return Poll::Ready(true);
        }
        for side in self.sides.borrow_mut().iter_mut() {
            let Some(output) = &mut side.output else { continue };
            match Pin::new(output).poll_read(context, into) {
                Poll::Ready(Ok(())) if !into.filled().is_empty() => return Poll::Ready(true),
                Poll::Ready(_) => side.output = None,
                Poll::Pending => {}
            }
        }
        let has_ended = !self.is_connected.get();
        if has_ended && self.sides.borrow().iter().all(|side| side.output.is_none()) {
            return Poll::Ready(false);
        }
        self.reader.set(Some(context.waker().clone()));
        Poll::Pending
    }
}
