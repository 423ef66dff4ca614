//! One place to tell all monitors that something happened.

use millpond_messages::qapi::{QmpEvent, TimedEvent, to_compact};
use serde_json::Value;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::{Rc, Weak};
use std::task::{Poll, Waker};

/// The most bytes of events, as they are sent, that one client may be behind. A client that reads does not come near it,
/// however large an answer it reads meanwhile; one that does not loses what comes after them.
const MOST_BYTES: usize = 4 << 20;

/// Gives every event to every client that listens. Clones are the same place, on the control thread. Telling never waits.
#[derive(Clone, Debug, Default)]
pub struct EventBus {
    listeners: Rc<RefCell<Vec<Weak<Queue>>>>,
}

/// The events for one client, from when it began to listen.
#[derive(Debug)]
pub struct Events(Rc<Queue>);

/// An event on its way to a client. It counts against what the client may be behind for as long as its charge is kept.
#[derive(Debug)]
pub struct Told {
    /// What happened, and when it happened.
    pub event: TimedEvent,
    /// To be kept until the client has it.
    pub charge: Charge,
}

/// A share of what a client may be behind.
#[derive(Debug)]
pub struct Charge {
    queue: Rc<Queue>,
    bytes: usize,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: RefCell<VecDeque<(TimedEvent, usize)>>,
    /// Of those that wait here, and of those that were taken and not sent.
    bytes: Cell<usize>,
    /// Events lost since the client last had room for one.
    lost: Cell<u64>,
    reader: RefCell<Option<Waker>>,
}

impl EventBus {
    /// Tells all who listen now that `event` happened.
    pub fn emit(&self, event: QmpEvent) {
        self.send(TimedEvent::now(event));
    }

    /// Tells all who listen now of an event that happened at some time. Events are not kept for later clients.
    pub(crate) fn send(&self, event: TimedEvent) {
        let mut listeners = self.listeners.borrow_mut();
        listeners.retain(|queue| queue.strong_count() > 0);
        if listeners.is_empty() {
            return;
        }
        let bytes = to_compact(&Value::Object(event.to_json())).len();
        for queue in listeners.iter().filter_map(Weak::upgrade) {
            queue.push(event.clone(), bytes);
        }
    }

    /// Events from now on.
    #[must_use]
    pub fn subscribe(&self) -> Events {
        let queue = Rc::default();
        self.listeners.borrow_mut().push(Rc::downgrade(&queue));
        Events(queue)
    }
}

impl Queue {
    fn push(&self, event: TimedEvent, bytes: usize) {
        let lost = self.lost.get();
        if self.bytes.get() >= MOST_BYTES {
            if lost == 0 {
                tracing::warn!(
                    ?event,
                    "events are lost from this one on: a monitor's client does not read"
                );
            }
            return self.lost.set(lost + 1);
        }
        if lost > 0 {
            self.lost.set(0);
            tracing::warn!(
                lost,
                ?event,
                "events were lost before this one: a monitor's client did not read"
            );
        }
        self.bytes.set(self.bytes.get() + bytes);
        self.waiting.borrow_mut().push_back((event, bytes));
        let reader = self.reader.take();
        if let Some(reader) = reader {
            reader.wake();
        }
    }
}

impl Events {
    /// The next event, if one has come.
    pub fn try_next(&mut self) -> Option<Told> {
        let (event, bytes) = self.0.waiting.borrow_mut().pop_front()?;
        let charge = Charge {
            queue: Rc::clone(&self.0),
            bytes,
        };
        Some(Told { event, charge })
    }

    /// The next event, as soon as it comes.
    pub async fn next(&mut self) -> Told {
        poll_fn(|context| match self.try_next() {
            Some(told) => Poll::Ready(told),
            None => {
                self.0.reader.replace(Some(context.waker().clone()));
                Poll::Pending
            }
        })
        .await
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.queue.bytes.set(self.queue.bytes.get() - self.bytes);
    }
}
