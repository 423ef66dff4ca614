//! What stands between a node and its driver's panics: the driver's node is broken by one, and nothing else.
//!
//! [`Registry::register`](super::Registry::register) puts every driver behind a [`GuardedKind`], which opens nodes whose
//! drivers are behind a [`Guarded`]: each call and each poll of an answer passes there. From a panic on
//! - nothing of the driver runs any more, neither calls nor answers it still owes: what it left half-changed is not built upon;
//! - every answer it owes is an error, and whoever waits for one is woken to hear that;
//! - the node's users hear of it once, by [`Notice::Broken`] and in the log.
//!
//! A panic in a destructor while another panic unwinds ends the process, as everywhere in Rust.

mod driver;
mod kind;

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use futures_util::future::LocalBoxFuture;
use millpond_messages::error::errno::EIO;
use millpond_messages::{Error, IoError, IoResult, Result};
use slab::Slab;

use super::answer::Answer;
use super::child::Transfer;
use super::notice::{Notice, Notices};
use millpond_ring::buffer::Buffers;

pub use kind::GuardedKind;

/// Whether a node's driver has panicked, and who waits for an answer of it.
struct Health {
    node: String,
    driver: &'static str,
    notices: Notices,
    /// Users of the node can be told: it has been opened.
    is_open: Cell<bool>,
    broken: Cell<bool>,
    /// What the panic said.
    reason: RefCell<String>,
    waiting: RefCell<Slab<Waker>>,
}

impl Health {
    fn new(node: String, driver: &'static str, notices: Notices, is_open: bool) -> Rc<Self> {
        Rc::new(Self {
            node,
            driver,
            notices,
            is_open: Cell::new(is_open),
            broken: Cell::new(false),
            reason: RefCell::default(),
            waiting: RefCell::default(),
        })
    }

    /// Runs code of the driver; nothing if that has panicked, now or before.
    #[inline]
    fn run<T>(&self, code: impl FnOnce() -> T) -> Option<T> {
        if self.broken.get() {
            return None;
        }
        // What the code left half-changed is seen by the driver alone, which does not run any more.
        match catch_unwind(AssertUnwindSafe(code)) {
            Ok(value) => Some(value),
            Err(panic) => {
                self.fail(&*panic);
                None
            }
        }
    }

    #[cold]
    fn fail(&self, panic: &(dyn Any + Send)) {
        let text = panic_text(panic);
        if self.broken.replace(true) {
            return;
        }
        *self.reason.borrow_mut() = text.to_owned();
        let (node, driver) = (&self.node, self.driver);
        if self.is_open.get() {
            tracing::error!(node, driver, "the node is broken: its driver panicked: {text}");
            self.notices.report(Notice::Broken {
                message: text.to_owned(),
            });
        } else {
            tracing::error!(node, driver, "a driver panicked: {text}");
        }
        let waiting = self.waiting.take();
        waiting.into_iter().for_each(|(_, waker)| waker.wake());
    }

    /// Has `waker` called if the driver panics. `key` names the place among those that wait.
    #[inline]
    fn wait(&self, key: &mut Option<usize>, waker: &Waker) {
        if self.broken.get() {
            waker.wake_by_ref();
            return;
        }
        let mut waiting = self.waiting.borrow_mut();
        match key.and_then(|key| waiting.get_mut(key)) {
            Some(other) if other.will_wake(waker) => {}
            Some(other) => other.clone_from(waker),
            None => *key = Some(waiting.insert(waker.clone())),
        }
    }

    #[inline]
    fn leave(&self, key: &mut Option<usize>) {
        if let Some(key) = key.take() {
            let waker = self.waiting.borrow_mut().try_remove(key);
            drop(waker);
        }
    }

    fn error(&self) -> Error {
        let (node, driver, reason) = (&self.node, self.driver, self.reason.borrow());
        let what = if self.is_open.get() {
            format!("Node '{node}' is broken: its driver '{driver}' panicked")
        } else {
            format!("Driver '{driver}' panicked")
        };
        Error::io(&format!("{what} ({reason})"), IoError::Os(EIO))
    }
}

/// What a panic says.
#[must_use]
pub fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("(no text)")
}

/// Drops what is a driver's own. Its destructor may panic as well.
fn drop_of<T>(health: &Health, value: T) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(value))) {
        health.fail(&*panic);
    }
}

/// What a broken driver answers.
trait IfBroken {
    fn if_broken(health: &Health) -> Self;
}

impl IfBroken for () {
    fn if_broken(_: &Health) -> Self {}
}

impl<T> IfBroken for IoResult<T> {
    fn if_broken(_: &Health) -> Self {
        Err(IoError::Os(EIO))
    }
}

impl<T> IfBroken for Result<T> {
    fn if_broken(health: &Health) -> Self {
        Err(health.error())
    }
}

impl IfBroken for Transfer {
    /// The buffers were the driver's when it panicked.
    fn if_broken(_: &Health) -> Self {
        (Err(IoError::Os(EIO)), Buffers::default())
    }
}

/// An answer of a driver that may panic before it gives it.
pub struct Watched<'a, T> {
    /// None once it has ended.
    future: Option<LocalBoxFuture<'a, T>>,
    health: Rc<Health>,
    /// Its place among those that wait.
    key: Option<usize>,
    if_broken: fn(&Health) -> T,
}

impl<'a, T> Watched<'a, T> {
    fn new(future: LocalBoxFuture<'a, T>, health: &Rc<Health>) -> Self
    where
        T: IfBroken,
    {
        Self {
            future: Some(future),
            health: Rc::clone(health),
            key: None,
            if_broken: T::if_broken,
        }
    }

    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<T> {
        let Some(future) = &mut self.future else {
            return Poll::Pending;
        };
        match self.health.run(|| future.as_mut().poll(context)) {
            Some(Poll::Pending) => {
                self.health.wait(&mut self.key, context.waker());
                Poll::Pending
            }
            Some(ready) => {
                self.end();
                ready
            }
            None => {
                self.end();
                Poll::Ready((self.if_broken)(&self.health))
            }
        }
    }

    fn end(&mut self) {
        self.health.leave(&mut self.key);
        if let Some(future) = self.future.take() {
            drop_of(&self.health, future);
        }
    }
}

impl<T: Unpin> Future for Watched<'_, T> {
    type Output = T;

    fn poll(self: std::pin::Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        Watched::poll(self.get_mut(), context)
    }
}

impl<T> Drop for Watched<'_, T> {
    fn drop(&mut self) {
        self.end();
    }
}

/// The same answer, watched. Apart from the calls that are answered at once, which are to stay short.
#[inline(never)]
fn watch<'a, T: IfBroken + Unpin + 'a>(answer: Answer<'a, T>, health: &Rc<Health>) -> Answer<'a, T> {
    match answer {
        ready @ Answer::Ready(_) => ready,
        Answer::Wait(future) => Answer::Watched(Watched::new(future, health)),
        // What another has taken care of: a driver that wraps one of a registry.
        other => Answer::Watched(Watched::new(Box::pin(other), health)),
    }
}

#[cfg(test)]
mod tests;
