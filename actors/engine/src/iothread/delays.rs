//! The delay rules in force on an iothread: the messages that are held there wait by the ring's clock.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Instant;

use async_task::Task;
use futures_channel::oneshot;
use millpond_messages::record::HeldMessage;

use super::guarded::guarded;
use super::local::Local;
use crate::delay::{Chaos, Hop, Lanes};

thread_local! {
    /// Whether rules are in force on this thread's iothread: reading this is all that a hop costs while there are none.
    static ON: Cell<bool> = const { Cell::new(false) };
}

/// Whether rules are in force on the current iothread.
#[inline]
pub fn is_delaying() -> bool {
    ON.get()
}

/// Delivers a message that was held.
type Deliver = Box<dyn FnOnce()>;

/// The messages that an iothread holds, by its rules.
#[derive(Default)]
pub struct ThreadChaos {
    lanes: RefCell<Option<Lanes<Deliver>>>,
    timer: Cell<Option<Timer>>,
    connections: Cell<u64>,
}

/// A task that sleeps until the next message is due. Dropped, it delivers nothing.
struct Timer {
    at: Instant,
    _task: Task<()>,
}

/// Restores the flag of the iothread that was current before.
pub(crate) struct OnGuard(bool);

impl Drop for OnGuard {
    fn drop(&mut self) {
        ON.set(self.0);
    }
}

impl ThreadChaos {
    /// Makes the flag this iothread's while the guard lives.
    pub(crate) fn enter(&self) -> OnGuard {
        OnGuard(ON.replace(self.lanes.borrow().is_some()))
    }

    /// Puts rules in force on the current iothread, or none. What was held goes out at once, in order.
    pub fn set(&self, local: &Rc<Local>, chaos: Option<Chaos>) {
        loop {
            let now = local.ring().now();
            let next = self
                .lanes
                .borrow_mut()
                .as_mut()
                .and_then(|lanes| lanes.close_and_pop(now));
            let Some(deliver) = next else { break };
            guarded("a message that was held", deliver);
        }
        let now = local.ring().now();
        let lanes = chaos.map(|chaos| Lanes::new(chaos, Some(local.name().to_owned()), now));
        ON.set(lanes.is_some());
        let before = self.lanes.replace(lanes);
        drop(before);
        self.arm(local);
    }

    /// Delivers a message now, or when it is due.
    pub fn pass(&self, local: &Rc<Local>, hop: &Hop<'_>, deliver: impl FnOnce() + 'static) {
        let deliver: Deliver = Box::new(deliver);
        let now = local.ring().now();
        let at_once = match &mut *self.lanes.borrow_mut() {
            Some(lanes) => lanes.pass(hop, now, deliver),
            None => Some(deliver),
        };
        match at_once {
            Some(deliver) => deliver(),
            None => self.arm(local),
        }
    }

    /// Waits until a message may go on.
    pub async fn wait(&self, local: &Rc<Local>, hop: &Hop<'_>) {
        let (go, gone) = oneshot::channel();
        // The task that waited may be gone.
        self.pass(local, hop, move || go.send(()).unwrap_or(()));
        // A message that is never delivered was dropped as the iothread ended, which ends this task too.
        gone.await.unwrap_or(());
    }

    /// Whether an NBD connection is cut with its next message.
    pub fn cuts(&self, local: &Rc<Local>, hop: &Hop<'_>) -> bool {
        let now = local.ring().now();
        let mut lanes = self.lanes.borrow_mut();
        lanes.as_mut().is_some_and(|lanes| lanes.cuts(hop, now))
    }

    /// The messages that are held now.
    pub fn held(&self, now: Instant) -> Vec<HeldMessage> {
        let lanes = self.lanes.borrow();
        lanes.as_ref().map(|lanes| lanes.held(now)).unwrap_or_default()
    }

    /// A number for a new NBD connection.
    pub fn next_connection(&self) -> u64 {
        self.connections.replace(self.connections.get() + 1)
    }

    /// Drops the held messages, because the iothread ends.
    pub(crate) fn clear(&self) {
        let lanes = self.lanes.take();
        ON.set(false);
        drop((lanes, self.timer.take()));
    }

    /// Makes sure that a timer runs for the message that is due next.
    fn arm(&self, local: &Rc<Local>) {
        let next = self.lanes.borrow().as_ref().and_then(Lanes::next_due);
        let timer = self.timer.take();
        if timer.as_ref().map(|timer| timer.at) == next {
            return self.timer.set(timer);
        }
        self.timer.set(next.map(|at| {
            let held_by = Rc::clone(local);
            let task = local.spawn_task(async move {
                held_by.ring().sleep_until(at).await;
                held_by.chaos().deliver_due(&held_by);
            });
            Timer { at, _task: task }
        }));
        drop(timer);
    }

    fn deliver_due(&self, local: &Rc<Local>) {
        let now = local.ring().now();
        loop {
            let next = self
                .lanes
                .borrow_mut()
                .as_mut()
                .and_then(|lanes| lanes.pop_due(now));
            let Some(deliver) = next else { break };
            guarded("a message that was held", deliver);
        }
        // This one's time is over: what is due next needs another.
        let over = self.timer.take();
        self.arm(local);
        drop(over);
    }
}
