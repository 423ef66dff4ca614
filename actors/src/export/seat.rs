//! Where the workers of an export serve: beside its node, or each on one of the iothreads that the export was given.
//!
//! ```text
//!   Seats (one export) --- fewest, nth ---> Seat (one worker)
//!     no iothreads: beside the node, and goes where that goes
//!     iothreads:    on one of them, and stays there; requests go to the node's by mailbox where that is another
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use millpond_engine::iothread::{IoThread, Local};
use millpond_engine::node::{Client, HomeClient, Mail};

/// The seats of an export. Clones are the same ones.
#[derive(Clone)]
pub struct Seats {
    client: Client,
    threads: Arc<[Thread]>,
}

/// An iothread of an export.
struct Thread {
    iothread: IoThread<Mail>,
    /// How many workers it has. The control thread alone counts them in.
    taken: Arc<AtomicUsize>,
}

/// The seat of a worker, with the hold on the node that it serves. Clones are the same seat.
#[derive(Clone)]
pub struct Seat {
    client: Client,
    thread: Option<Arc<Taken>>,
}

/// A seat on an iothread, until it is dropped.
struct Taken {
    iothread: IoThread<Mail>,
    taken: Arc<AtomicUsize>,
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Thread {
    fn take(&self) -> Arc<Taken> {
        self.taken.fetch_add(1, Ordering::Relaxed);
        Arc::new(Taken {
            iothread: self.iothread.clone(),
            taken: Arc::clone(&self.taken),
        })
    }

    fn workers(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }
}

impl Seats {
    /// The seats of who holds a node by `client`: on the iothreads that it works on.
    pub(crate) fn new(client: Client) -> Self {
        let threads = client.threads().into_iter().map(|iothread| Thread {
            iothread,
            taken: Arc::default(),
        });
        Self {
            threads: threads.collect(),
            client,
        }
    }

    /// How many workers can serve beside each other: one where there are no iothreads.
    pub(crate) fn count(&self) -> usize {
        self.threads.len().max(1)
    }

    /// A seat where the fewest workers are, on the first of several.
    pub(crate) fn fewest(&self) -> Seat {
        self.seat(self.threads.iter().min_by_key(|thread| thread.workers()))
    }

    /// A seat for the worker of this number, which takes turns.
    pub(crate) fn nth(&self, number: usize) -> Seat {
        self.seat(
            self.threads
                .iter()
                .cycle()
                .nth(number % self.threads.len().max(1)),
        )
    }

    fn seat(&self, thread: Option<&Thread>) -> Seat {
        Seat {
            client: self.client.clone(),
            thread: thread.map(Thread::take),
        }
    }
}

impl Seat {
    /// A seat beside the node.
    pub(crate) fn beside(client: Client) -> Self {
        Self { client, thread: None }
    }

    /// The iothread `local`, if it is where the seat is: beside the node, that may be somewhere else by now.
    pub(crate) fn here(&self, local: &Local) -> Option<IoThread<Mail>> {
        let iothread = match &self.thread {
            Some(taken) => taken.iothread.clone(),
            None => self.client.home(),
        };
        (iothread.id() == local.id()).then_some(iothread)
    }

    /// The node for the worker, on the iothread of its seat.
    pub(crate) fn node(&self) -> HomeClient {
        match &self.thread {
            Some(_) => self.client.staying_here(),
            None => self.client.here(),
        }
    }

    /// Has code run where the seat is, or was a moment ago: false if that iothread has ended.
    pub(crate) fn run(&self, code: impl FnOnce() + Send + 'static) -> bool {
        match &self.thread {
            Some(taken) => taken.iothread.send(Mail::Run(Box::new(code))).is_ok(),
            None => self.client.run_at_home(code),
        }
    }
}
