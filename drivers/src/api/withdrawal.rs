//! Requests that nobody wants any more: their client has left, or is being sent away.
//!
//! A request that a driver has begun runs to its end, since no driver is left half-way. One that only waits, at a gate or in
//! a throttle group, and of which nothing has reached a disk, is withdrawn: its wait ends with [`IoError::Cancelled`], which
//! goes up as any error does. The waits are told by what polls the request, through the thread it is polled on:
//!
//! ```text
//!   client ---- scoped(withdrawal, request) ---- poll ----> node ----> throttle: Waited::for(..) ends early
//!                                                            |
//!                                                            +--- hidden ---> what a driver asks of its children for its
//!                                                                             own ends is never withdrawn
//! ```

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use millpond_messages::{IoError, IoResult};
use slab::Slab;

thread_local! {
    /// Whose request is being polled on this thread.
    static CURRENT: Cell<Option<Rc<State>>> = const { Cell::new(None) };
    /// Whether more than a wait would be given up with it. Every node that is passed says so, hence a word that needs no
    /// destructor: that is no more than a store.
    static IS_HIDDEN: Cell<bool> = const { Cell::new(false) };
}

/// Says to some requests that they are not wanted any more. Clones say it to the same ones.
#[derive(Clone, Debug, Default)]
pub struct Withdrawal(Rc<State>);

#[derive(Debug, Default)]
struct State {
    withdrawn: Cell<bool>,
    /// What waits and would rather not.
    waiting: RefCell<Slab<Waker>>,
}

impl Withdrawal {
    /// Withdraws what waits, and what will.
    pub fn withdraw(&self) {
        self.0.withdrawn.set(true);
        let waiting: Vec<Waker> = self.0.waiting.borrow_mut().drain().collect();
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Whether they are withdrawn.
    #[must_use]
    pub fn is_withdrawn(&self) -> bool {
        self.0.withdrawn.get()
    }

    /// Runs one of the requests.
    pub async fn scoped<T>(&self, request: impl Future<Output = T>) -> T {
        let mut request = pin!(request);
        poll_fn(|context| {
            let _scope = Scope::of(Rc::clone(&self.0));
            request.as_mut().poll(context)
        })
        .await
    }
}

/// What is polled on this thread belongs to some requests until this is dropped. A panic leaves it as it was.
struct Scope {
    before: Option<Rc<State>>,
    _seen: Hidden,
}

impl Scope {
    fn of(state: Rc<State>) -> Self {
        Self {
            before: CURRENT.replace(Some(state)),
            _seen: Hidden::set(false),
        }
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        CURRENT.set(self.before.take());
    }
}

/// What is polled on this thread would be missed by others than the client, until this is dropped. A panic leaves it as it
/// was.
#[derive(Debug)]
pub struct Hidden {
    before: bool,
}

impl Hidden {
    /// Hides it from whoever withdraws requests.
    #[inline]
    #[must_use]
    pub fn begin() -> Self {
        Self::set(true)
    }

    #[inline]
    fn set(hidden: bool) -> Self {
        Self {
            before: IS_HIDDEN.replace(hidden),
        }
    }
}

impl Drop for Hidden {
    #[inline]
    fn drop(&mut self) {
        IS_HIDDEN.set(self.before);
    }
}

/// Waits for `wait`, of which nothing is lost when it is dropped.
///
/// # Errors
/// [`IoError::Cancelled`] if the request that is polled on this thread is withdrawn meanwhile.
pub async fn unless_withdrawn<T>(wait: impl Future<Output = T>) -> IoResult<T> {
    let mut wait = pin!(wait);
    let mut noticed: Option<Noticed> = None;
    poll_fn(|context| {
        // Polled first: a wait that has ended has been paid for.
        if let Poll::Ready(done) = wait.as_mut().poll(context) {
            return Poll::Ready(Ok(done));
        }
        if noticed.is_none() {
            noticed = Noticed::here();
        }
        match &mut noticed {
            Some(noticed) => noticed.poll(context).map(|()| Err(IoError::Cancelled)),
            None => Poll::Pending,
        }
    })
    .await
}

/// A wait that is told of a withdrawal, until it is dropped.
struct Noticed {
    state: Rc<State>,
    key: Option<usize>,
}

impl Noticed {
    fn here() -> Option<Self> {
        if IS_HIDDEN.get() {
            return None;
        }
        let state = CURRENT.take();
        CURRENT.set(state.clone());
        state.map(|state| Self { state, key: None })
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.state.withdrawn.get() {
            self.key = None;
            return Poll::Ready(());
        }
        let mut waiting = self.state.waiting.borrow_mut();
        match self.key.and_then(|key| waiting.get_mut(key)) {
            Some(waker) => waker.clone_from(context.waker()),
            None => self.key = Some(waiting.insert(context.waker().clone())),
        }
        Poll::Pending
    }
}

impl Drop for Noticed {
    fn drop(&mut self) {
        // A withdrawal has taken out all there were, and lets nothing in again.
        if let Some(key) = self.key
            && !self.state.withdrawn.get()
        {
            self.state.waiting.borrow_mut().try_remove(key);
        }
    }
}
