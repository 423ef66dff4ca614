//! The handle on a root edge, by which clients find the iothread where it is.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Weak};

use arc_swap::ArcSwap;
use millpond_messages::{IoThreadId, Permissions, RootId};

use super::mail::Mail;
use crate::iothread::IoThread;

/// The state of a root edge that the graph actor, the node's iothread and the clients share. The graph actor writes what the
/// user may do, and on which iothreads besides its node's it does so; the iothread that has the edge writes where it is, and
/// what clients elsewhere go by.
pub struct RootShared {
    id: RootId,
    permissions: AtomicU8,
    writethrough: bool,
    home_id: AtomicU32,
    home: ArcSwap<IoThread<Mail>>,
    /// The iothreads that the user serves others on, wherever the node lives.
    threads: ArcSwap<Vec<IoThread<Mail>>>,
    /// The gate of the node is open, as far as its iothread has told.
    open: AtomicBool,
    /// Buffers of any alignment go to the node's storage as they are.
    any_memory: AtomicBool,
    node_name: ArcSwap<String>,
}

impl RootShared {
    /// Sends mail to the iothread where the edge is now. False where that has stopped: the mail is dropped then, which tells
    /// whoever waits for its reply.
    pub fn send(&self, mail: Mail) -> bool {
        self.home.load().send(mail).is_ok()
    }

    /// Whether clients send to this iothread.
    pub fn is_at(&self, iothread: IoThreadId) -> bool {
        self.home.load().id() == iothread
    }
}

/// The graph actor's hold on a root edge.
#[derive(Clone)]
pub struct RootHandle(Arc<RootShared>);

impl RootHandle {
    /// A root edge whose node lives on `home`. `writethrough` makes every write durable before it is answered.
    #[must_use]
    pub fn new(id: RootId, permissions: Permissions, writethrough: bool, home: IoThread<Mail>) -> Self {
        Self(Arc::new(RootShared {
            id,
            permissions: AtomicU8::new(permissions.bits()),
            writethrough,
            home_id: AtomicU32::new(home.id().0),
            home: ArcSwap::from_pointee(home),
            threads: ArcSwap::default(),
            open: AtomicBool::new(true),
            any_memory: AtomicBool::new(false),
            node_name: ArcSwap::default(),
        }))
    }

    /// The number of the root edge.
    #[must_use]
    pub fn id(&self) -> RootId {
        self.0.id
    }

    /// What the user may do.
    #[must_use]
    pub fn permissions(&self) -> Permissions {
        Permissions::from_bits_truncate(self.0.permissions.load(Ordering::Acquire))
    }

    /// Changes what the user may do, from its next request on.
    pub fn set_permissions(&self, permissions: Permissions) {
        self.0.permissions.store(permissions.bits(), Ordering::Release);
    }

    /// Whether writes are durable when answered.
    #[must_use]
    pub fn writethrough(&self) -> bool {
        self.0.writethrough
    }

    /// The edge lives on `home` from now on. Called on the new iothread, after the edge is in its table.
    pub fn set_home(&self, home: Arc<IoThread<Mail>>) {
        let id = home.id().0;
        self.0.home.store(home);
        self.0.home_id.store(id, Ordering::Release);
    }

    /// The handle by which clients send. While others hold it too, a client may be about to send.
    pub fn home(&self) -> Arc<IoThread<Mail>> {
        self.0.home.load_full()
    }

    /// Sends mail to the iothread where the edge is now; false where that has stopped.
    pub fn send(&self, mail: Mail) -> bool {
        self.0.home.load().send(mail).is_ok()
    }

    /// The number of the iothread where the edge is now, which is cheaper to read than the handle.
    #[must_use]
    pub fn home_id(&self) -> IoThreadId {
        IoThreadId(self.0.home_id.load(Ordering::Acquire))
    }

    /// Notes on which iothreads the user serves others, wherever the node lives.
    pub fn set_threads(&self, threads: Vec<IoThread<Mail>>) {
        self.0.threads.store(Arc::new(threads));
    }

    /// The iothreads that the user serves others on; none where it does so beside the node.
    #[must_use]
    pub fn threads(&self) -> Vec<IoThread<Mail>> {
        self.0.threads.load().to_vec()
    }

    /// Tells clients elsewhere whether the node takes requests now, and whether it takes them with any memory.
    pub(crate) fn show(&self, open: bool, any_memory: bool) {
        self.0.any_memory.store(any_memory, Ordering::Relaxed);
        self.0.open.store(open, Ordering::Release);
    }

    /// Tells clients elsewhere what the node is called.
    pub(crate) fn show_name(&self, name: &str) {
        self.0.node_name.store(Arc::new(name.to_owned()));
    }

    /// The edge has ended: nobody elsewhere has anything to wait for.
    pub(crate) fn show_end(&self) {
        self.0.open.store(true, Ordering::Release);
    }

    /// Whether the node takes requests, as far as its iothread has told.
    pub(crate) fn is_open(&self) -> bool {
        self.0.open.load(Ordering::Acquire)
    }

    /// Whether it takes them with any memory, as far as its iothread has told.
    pub(crate) fn takes_any_memory(&self) -> bool {
        self.0.any_memory.load(Ordering::Relaxed)
    }

    /// What the node is called, as far as its iothread has told.
    pub(crate) fn node_name(&self) -> String {
        self.0.node_name.load().to_string()
    }

    pub(crate) fn downgrade(&self) -> Weak<RootShared> {
        Arc::downgrade(&self.0)
    }
}
