//! A monitor: one character device, one client after the other.

use super::chardev::{Connection, Lease};
use super::events::{Charge, Events};
use super::{Dispatch, EventBus, Session, Turn};
use actix::prelude::*;
use futures_util::future::LocalBoxFuture;
use millpond_messages::qapi::{JsonText, QmpError};
use serde_json::Value;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Bytes that may wait for a client that does not read. Past it the monitor takes no further request of its client. What
/// events may wait is counted where they come from: an answer of any size costs the client none.
const MOST_OUTPUT: usize = 1 << 20;
/// Bytes read at once.
const READ: usize = 4096;
/// How long a client has to take what it is owed when the daemon ends.
const FAREWELL: Duration = Duration::from_secs(1);

/// A monitor, as an actor of the control thread.
pub struct Monitor {
    serve: Option<Serve>,
    stop: watch::Sender<bool>,
    task: Option<JoinHandle<()>>,
}

/// Asks a monitor to send what it owes its client, and to end.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Finish;

/// What a monitor's task works with.
struct Serve {
    chardev: Lease,
    dispatch: Rc<dyn Dispatch>,
    events: EventBus,
    pretty: bool,
    stop: watch::Receiver<bool>,
    running: Option<Running>,
    /// The command of a client that left before it ended.
    leftover: Option<JoinHandle<()>>,
    /// What is done when the first client has gone: there is to be no other.
    gone: Option<Box<dyn FnOnce()>>,
}

/// A command being carried out. It is polled by the conversation itself, so that its answer goes out
/// before events that follow it.
struct Running {
    work: LocalBoxFuture<'static, Result<JsonText, QmpError>>,
    id: Option<Value>,
}

impl Monitor {
    /// A monitor on `chardev` whose commands `dispatch` carries out.
    pub fn new(
        chardev: impl Into<Lease>,
        dispatch: Rc<dyn Dispatch>,
        events: EventBus,
        pretty: bool,
    ) -> Self {
        let (stop, stopped) = watch::channel(false);
        let serve = Serve {
            chardev: chardev.into(),
            dispatch,
            events,
            pretty,
            stop: stopped,
            running: None,
            leftover: None,
            gone: None,
        };
        Self {
            serve: Some(serve),
            stop,
            task: None,
        }
    }

    /// The same monitor with one client only: `gone` is called when that has gone.
    #[must_use]
    pub fn for_one_client(mut self, gone: Box<dyn FnOnce()>) -> Self {
        if let Some(serve) = &mut self.serve {
            serve.gone = Some(gone);
        }
        self
    }
}

impl Actor for Monitor {
    type Context = Context<Self>;

    fn started(&mut self, _: &mut Self::Context) {
        self.task = self.serve.take().map(|serve| actix_rt::spawn(serve.run()));
    }
}

impl Handler<Finish> for Monitor {
    type Result = ResponseActFuture<Self, ()>;

    fn handle(&mut self, _: Finish, _: &mut Self::Context) -> Self::Result {
        self.stop.send_replace(true);
        let task = self.task.take();
        let ended = async move {
            if let Some(mut task) = task
                && tokio::time::timeout(FAREWELL, &mut task).await.is_err()
            {
                task.abort();
                // Its device is free once it is gone.
                let _ = task.await;
            }
        };
        Box::pin(ended.into_actor(self).map(|(), _, context| context.stop()))
    }
}

impl Serve {
    async fn run(mut self) {
        let mut stop = self.stop.clone();
        loop {
            let connection = tokio::select! {
                biased;
                connection = self.chardev.next() => connection,
                // An error means that the actor is gone, which is an end as well.
                _ = stop.wait_for(|stop| *stop) => None,
            };
            let Some(connection) = connection else {
                // The device is in use until the monitor is asked to end.
                let _ = stop.wait_for(|stop| *stop).await;
                return;
            };
            tracing::info!(chardev = self.chardev.label(), "a monitor's client is connected");
            let end = self.converse(connection).await;
            tracing::info!(chardev = self.chardev.label(), ?end, "a monitor's client is gone");
            // The next client's commands wait for it, as those of the one that left would have.
            if let Some(running) = self.running.take() {
                self.leftover = Some(actix_rt::spawn(async move {
                    let result = running.work.await;
                    tracing::debug!(ok = result.is_ok(), "a command ended after its client had left");
                }));
            }
            if let Some(gone) = self.gone.take() {
                gone();
                let _ = stop.wait_for(|stop| *stop).await;
                return;
            }
        }
    }

    async fn converse(&mut self, connection: Connection) -> std::io::Result<()> {
        let Connection {
            mut reader,
            mut writer,
        } = connection;
        let mut session = Session::new(self.pretty);
        let mut output = Output::default();
        output.push(session.greeting());
        let mut events = self.events.subscribe();
        let mut buffer = [0; READ];
        let mut open = true;
        loop {
            // Whatever is being sent, events are taken as they come: they keep their place among the answers.
            hear(&session, &mut output, &mut events);
            self.take_turns(&mut session, &mut output);
            let stopping = *self.stop.borrow();
            let idle = self.running.is_none() && output.is_empty();
            if idle && (stopping || (!open && !session.is_waiting())) {
                return writer.flush().await;
            }
            // In order of what the client waits for: answers before events before its next command.
            tokio::select! {
                biased;
                count = writer.write(output.front()), if !output.is_empty() => {
                    output.sent(count?);
                    if output.is_empty() {
                        writer.flush().await?;
                    }
                }
                result = ended(&mut self.running), if self.running.is_some() => {
                    hear(&session, &mut output, &mut events);
                    let id = self.running.take().and_then(|running| running.id);
                    output.push(session.answer(id, result));
                }
                () = forgotten(&mut self.leftover), if self.leftover.is_some() => self.leftover = None,
                told = events.next() => output.push_event(session.event(&told.event), told.charge),
                count = reader.read(&mut buffer), if open && !stopping && !session.is_full() => {
                    let count = count?;
                    open = count > 0;
                    session.feed(buffer.get(..count).unwrap_or_default());
                }
                _ = self.stop.changed(), if !stopping => {}
            }
        }
    }

    /// Does what the session wants done, up to the next command that takes time.
    fn take_turns(&mut self, session: &mut Session, output: &mut Output) {
        let stopping = *self.stop.borrow();
        while self.running.is_none() && self.leftover.is_none() && !output.is_full() && !stopping {
            match session.next(&*self.dispatch) {
                None => return,
                Some(Turn::Send(bytes)) => output.push(bytes),
                Some(Turn::Run(call)) => {
                    let work = self.dispatch.dispatch(call.command, call.arguments);
                    self.running = Some(Running { work, id: call.id });
                }
            }
        }
    }
}

/// Waits for the running command. Never ends if there is none.
async fn ended(running: &mut Option<Running>) -> Result<JsonText, QmpError> {
    match running {
        Some(running) => (&mut running.work).await,
        None => std::future::pending().await,
    }
}

/// Waits for the command of the client before. Never ends if there is none.
async fn forgotten(leftover: &mut Option<JoinHandle<()>>) {
    match leftover {
        // It can only end otherwise when the whole system ends.
        Some(task) => drop(task.await),
        None => std::future::pending().await,
    }
}

/// Queues the events that have come.
fn hear(session: &Session, output: &mut Output, events: &mut Events) {
    while let Some(told) = events.try_next() {
        output.push_event(session.event(&told.event), told.charge);
    }
}

/// Bytes on their way to a client.
#[derive(Default)]
struct Output {
    /// Each with what it counts for, if it is an event.
    pieces: VecDeque<(Vec<u8>, Option<Charge>)>,
    /// Of the first piece.
    sent: usize,
    bytes: usize,
}

impl Output {
    fn push(&mut self, piece: Vec<u8>) {
        if !piece.is_empty() {
            self.bytes += piece.len();
            self.pieces.push_back((piece, None));
        }
    }

    /// An event, or nothing if the client does not hear of any yet.
    fn push_event(&mut self, piece: Option<Vec<u8>>, charge: Charge) {
        if let Some(piece) = piece {
            self.bytes += piece.len();
            self.pieces.push_back((piece, Some(charge)));
        }
    }

    fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    fn is_full(&self) -> bool {
        self.bytes >= MOST_OUTPUT
    }

    fn front(&self) -> &[u8] {
        self.pieces
            .front()
            .and_then(|(piece, _)| piece.get(self.sent..))
            .unwrap_or_default()
    }

    fn sent(&mut self, count: usize) {
        self.sent += count;
        if let Some((first, _)) = self.pieces.front()
            && self.sent >= first.len()
        {
            self.bytes -= first.len();
            self.sent = 0;
            self.pieces.pop_front();
        }
    }
}
