//! What a node remembers of the nodes below it, so as not to ask them again: its length, and which of them observes its
//! debug events.
//!
//! A node whose length follows from its children's would ask them, these theirs, and so on down to the bottom; so would a
//! node that looks for the observer of its events. In a chain that is built node upon node each new one would ask all those
//! below, and of a request whose events every node raises each node would look through all. So what was found is kept until
//! something changes anywhere on this thread that a node above may have kept. No node knows its parents: changes are
//! counted, and what was found before the last change counts no more.

use std::cell::{Cell, RefCell};

thread_local! {
    /// Counts changes of what others may have kept something of.
    static CHANGES: Cell<u64> = const { Cell::new(0) };
}

/// When nodes below were asked, in changes counted: any later change makes their answers obsolete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AskedAt(u64);

impl AskedAt {
    /// The time now. Taken before asking, so that a change meanwhile counts as later.
    pub fn now() -> Self {
        Self(CHANGES.get())
    }
}

/// What a node keeps of those below, and whether nodes above may keep something of it. `L` names the node that observes
/// debug events, or none.
pub struct Kept<L> {
    /// When the node's length was found, where it may be kept.
    length: Cell<Option<AskedAt>>,
    /// The observer below, and when it was found.
    observer: RefCell<Option<(AskedAt, L)>>,
    /// Whether a node above may have kept something of this one since it last changed.
    relied_on: Cell<bool>,
}

impl<L> Default for Kept<L> {
    fn default() -> Self {
        Self {
            length: Cell::default(),
            observer: RefCell::default(),
            relied_on: Cell::default(),
        }
    }
}

impl<L: Clone> Kept<L> {
    /// Whether the length that the node keeps is still that of its driver.
    pub fn has_length(&self) -> bool {
        self.length.get() == Some(AskedAt::now())
    }

    /// Notes that the node's length was found at `asked`.
    pub fn keep_length(&self, asked: AskedAt) {
        self.length.set(Some(asked));
    }

    /// Looks at the observer below, if that is known: most callers only want to know whether there is one.
    #[inline]
    pub fn look_at_observer<T>(&self, look: impl FnOnce(&L) -> T) -> Option<T> {
        let kept = self.observer.borrow();
        let (_, observer) = kept.as_ref().filter(|(asked, _)| *asked == AskedAt::now())?;
        Some(look(observer))
    }

    /// The observer below, if that is known.
    pub fn observer(&self) -> Option<L> {
        self.look_at_observer(L::clone)
    }

    /// Keeps the observer below that was found at `asked`.
    pub fn keep_observer(&self, asked: AskedAt, observer: L) {
        self.observer.replace(Some((asked, observer)));
    }

    /// Notes that a node above was told something of this one, and may keep it.
    pub fn rely(&self) {
        self.relied_on.set(true);
    }

    /// Forgets what was kept, because the node has changed, or may have.
    pub fn changed(&self) {
        self.length.set(None);
        self.observer.take();
        // Where nobody has asked since the last change, nobody has kept anything.
        if self.relied_on.replace(false) {
            CHANGES.set(CHANGES.get() + 1);
        }
    }
}

thread_local! {
    /// How many nodes of this thread have a driver that handles debug events. Mostly none, and then no request looks for
    /// one.
    static OBSERVERS: Cell<usize> = const { Cell::new(0) };
}

/// Whether any node of this thread has a driver that handles debug events.
#[inline]
pub fn anybody_observes() -> bool {
    OBSERVERS.get() > 0
}

/// Counts a node among those whose driver handles debug events, until dropped.
pub struct Observing(());

impl Observing {
    pub fn begin() -> Self {
        OBSERVERS.set(OBSERVERS.get() + 1);
        Self(())
    }
}

impl Drop for Observing {
    fn drop(&mut self) {
        OBSERVERS.set(OBSERVERS.get() - 1);
    }
}
