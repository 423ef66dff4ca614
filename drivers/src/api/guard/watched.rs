//! The health of a driver that may panic, and the answers that it owes.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use futures_util::future::LocalBoxFuture;
use millpond_messages::error::errno::EIO;
use millpond_messages::{Error, IoError, IoResult, Result};
use millpond_ring::buffer::Buffers;
use slab::Slab;

use crate::api::notice::{Notice, Notices};

/// Whether a node's driver has panicked, and who waits for an answer of it.
pub(super) struct Health {
    pub(super) node: String,
    pub(super) driver: &'static str,
    pub(super) notices: Notices,
    /// Users of the node can be told: it has been opened.
    pub(super) is_open: Cell<bool>,
    pub(super) broken: Cell<bool>,
    /// What the panic said.
    pub(super) reason: RefCell<String>,
    pub(super) waiting: RefCell<Slab<Waker>>,
}

impl Health {
    pub(super) fn new(node: String, driver: &'static str, notices: Notices, is_open: bool) -> Rc<Self> {
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
    pub(super) fn run<T>(&self, code: impl FnOnce() -> T) -> Option<T> {
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
    pub(super) fn fail(&self, panic: &(dyn Any + Send)) {
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
    pub(super) fn wait(&self, key: &mut Option<usize>, waker: &Waker) {
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
    pub(super) fn leave(&self, key: &mut Option<usize>) {
        if let Some(key) = key.take() {
            let waker = self.waiting.borrow_mut().try_remove(key);
            drop(waker);
        }
    }

    pub(super) fn error(&self) -> Error {
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
pub(super) fn drop_of<T>(health: &Health, value: T) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(value))) {
        health.fail(&*panic);
    }
}

/// What a broken driver answers.
pub(super) trait IfBroken {
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

impl IfBroken for (IoResult<()>, Buffers) {
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
    pub(super) fn new(future: LocalBoxFuture<'a, T>, health: &Rc<Health>) -> Self
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

    /// Polls the driver, unless it has panicked.
    pub(in crate::api) fn poll_watched(&mut self, context: &mut Context<'_>) -> Poll<T> {
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

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        self.get_mut().poll_watched(context)
    }
}

impl<T> Drop for Watched<'_, T> {
    fn drop(&mut self) {
        self.end();
    }
}
