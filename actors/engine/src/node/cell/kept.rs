//! What a node keeps of the nodes below it, so as not to ask them again.
//!
//! A node whose length follows from its children's would ask them, these theirs, and so on down to the bottom; so would one
//! that looks for whoever listens to its events. In a chain that is built node upon node each new one would ask all of
//! them, and in a request that every node tells of its events each would look through all. So what was found is kept until
//! something has changed anywhere on this thread that a node above may have kept something of. No node knows its parents:
//! changes are counted, and what was found before the last one is not kept any more.

use std::cell::{Cell, RefCell};

thread_local! {
    /// Counts changes of what others may have kept something of.
    static CHANGES: Cell<u64> = const { Cell::new(0) };
}

/// A time at which nodes below were asked: what has changed since makes their answers some of the past.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked(u64);

impl Asked {
    /// The time that it is before asking.
    pub fn now() -> Self {
        Self(CHANGES.get())
    }
}

/// What a node keeps, and whether nodes above may keep something of it. `L` stands for the node that listens to another's
/// events, or for none.
pub struct Kept<L> {
    /// When the length that the node has was found, where it may be kept.
    length: Cell<Option<Asked>>,
    /// Who listens below, and when that was found.
    listener: RefCell<Option<(Asked, L)>>,
    /// A node above may have kept something of this one since it last changed.
    relied_on: Cell<bool>,
}

impl<L> Default for Kept<L> {
    fn default() -> Self {
        Self {
            length: Cell::default(),
            listener: RefCell::default(),
            relied_on: Cell::default(),
        }
    }
}

impl<L: Clone> Kept<L> {
    /// Whether the length that the node has is its driver's still.
    pub fn has_length(&self) -> bool {
        self.length.get() == Some(Asked::now())
    }

    /// The node has the length that was found then.
    pub fn keep_length(&self, asked: Asked) {
        self.length.set(Some(asked));
    }

    /// Looks at who listens below, if that is known: most only want to know whether anybody does.
    #[inline]
    pub fn look_at_listener<T>(&self, look: impl FnOnce(&L) -> T) -> Option<T> {
        let kept = self.listener.borrow();
        let (_, listener) = kept.as_ref().filter(|(asked, _)| *asked == Asked::now())?;
        Some(look(listener))
    }

    /// Who listens below, if that is known.
    pub fn listener(&self) -> Option<L> {
        self.look_at_listener(L::clone)
    }

    /// Who listens below, as it was found then.
    pub fn keep_listener(&self, asked: Asked, listener: L) {
        self.listener.replace(Some((asked, listener)));
    }

    /// A node above is told something, and may keep what it makes of it.
    pub fn rely(&self) {
        self.relied_on.set(true);
    }

    /// The node has changed, or may have.
    pub fn changed(&self) {
        self.length.set(None);
        self.listener.take();
        // Where nobody has asked since the last change, nobody has kept anything.
        if self.relied_on.replace(false) {
            CHANGES.set(CHANGES.get() + 1);
        }
    }
}

thread_local! {
    /// How many nodes of this thread have a driver that hears events. Mostly none, and then no request looks for one.
    static LISTENERS: Cell<usize> = const { Cell::new(0) };
}

/// Whether any node of this thread has a driver that hears events.
#[inline]
pub fn anybody_listens() -> bool {
    LISTENERS.get() > 0
}

/// Counts a node among those whose driver hears events.
pub struct Listening(());

impl Listening {
    pub fn begin() -> Self {
        LISTENERS.set(LISTENERS.get() + 1);
        Self(())
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        LISTENERS.set(LISTENERS.get() - 1);
    }
}
