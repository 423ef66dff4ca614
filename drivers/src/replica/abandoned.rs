//! A target that is given up: nobody waits for it any more.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::pin;
use std::task::{Poll, Waker};

use slab::Slab;

/// Whether a target has been given up, and who waits for it until then.
#[derive(Debug, Default)]
pub(crate) struct Abandoned {
    is_so: Cell<bool>,
    waiting: RefCell<Slab<Waker>>,
}

/// Somebody who waits for the target.
struct Place<'a> {
    waiting: &'a RefCell<Slab<Waker>>,
    key: Option<usize>,
}

impl Place<'_> {
    fn register(&mut self, waker: &Waker) {
        let mut waiting = self.waiting.borrow_mut();
        match self.key.and_then(|key| waiting.get_mut(key)) {
            Some(known) => known.clone_from(waker),
            None => self.key = Some(waiting.insert(waker.clone())),
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.waiting.borrow_mut().try_remove(key);
        }
    }
}

impl Abandoned {
    pub fn new(is_so: bool) -> Self {
        Self {
            is_so: Cell::new(is_so),
            waiting: RefCell::default(),
        }
    }

    /// Nobody waits for the target any more, neither those who do now nor those to come.
    pub fn begin(&self) {
        self.is_so.set(true);
        let waiting: Vec<Waker> = self.waiting.borrow_mut().drain().collect();
        waiting.into_iter().for_each(Waker::wake);
    }

    pub fn is_so(&self) -> bool {
        self.is_so.get()
    }

    /// Waits for a request to the target, unless that is given up.
    pub async fn unless_so<T>(&self, request: impl Future<Output = T>) -> Option<T> {
        let mut request = pin!(request);
        let mut place = Place {
            waiting: &self.waiting,
            key: None,
        };
        poll_fn(|context| {
            if let Poll::Ready(ended) = request.as_mut().poll(context) {
                return Poll::Ready(Some(ended));
            }
            if self.is_so() {
                return Poll::Ready(None);
            }
            place.register(context.waker());
            Poll::Pending
        })
        .await
    }
}
