//! What an iothread looks at by itself between its tasks: memory that other processes write to, which costs them a system
//! call to tell of.

use std::rc::{Rc, Weak};

use super::local::Local;

/// Something that an iothread looks at while it is awake, and that wakes it while it sleeps.
pub trait Watched {
    /// Whether something has come. What is to see to it was made ready then.
    fn look(&self) -> bool;

    /// The iothread is about to sleep: from now on whoever brings something has to wake it. True if something has come
    /// before that could be said; what is to see to it was made ready then.
    fn rest(&self) -> bool;
}

/// Has an iothread look at something, while this lives.
#[must_use = "nothing is looked at once this is dropped"]
pub struct Watching {
    local: Weak<Local>,
    watched: Rc<dyn Watched>,
}

impl Local {
    /// Has the iothread look at something between its tasks. What is called from there must not come here.
    pub fn look_at(self: &Rc<Self>, watched: Rc<dyn Watched>) -> Watching {
        self.watched.borrow_mut().push(Rc::clone(&watched));
        let local = Rc::downgrade(self);
        Watching { local, watched }
    }

    /// Looks at what is watched, up to the first that something has come of; whether there is one.
    #[inline]
    pub(crate) fn look(&self) -> bool {
        let watched = self.watched.borrow();
        watched.iter().any(|watched| watched.look())
    }

    /// Tells what is watched that the iothread is about to sleep; false if it must not, and then maybe not all of it was told.
    #[inline]
    pub(crate) fn rest(&self) -> bool {
        let watched = self.watched.borrow();
        watched.iter().all(|watched| !watched.rest())
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        if let Some(local) = self.local.upgrade() {
            let mut all = local.watched.borrow_mut();
            all.retain(|watched| !Rc::ptr_eq(watched, &self.watched));
        }
    }
}
