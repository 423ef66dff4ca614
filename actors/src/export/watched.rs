//! State of the control thread that others wait for.

use std::cell::RefCell;

use tokio::sync::Notify;

/// State, and a signal that it has changed.
#[derive(Debug, Default)]
pub(super) struct Watched<S> {
    state: RefCell<S>,
    changed: Notify,
}

impl<S> Watched<S> {
    /// Looks at the state, or changes it. Nothing in `look` may use the state by another way.
    pub(super) fn with<T>(&self, look: impl FnOnce(&mut S) -> T) -> T {
        look(&mut self.state.borrow_mut())
    }

    /// Has everybody who waits look again.
    pub(super) fn has_changed(&self) {
        self.changed.notify_waiters();
    }

    /// Waits until `condition` holds.
    pub(super) async fn until(&self, condition: impl Fn(&S) -> bool) {
        loop {
            let changed = self.changed.notified();
            if condition(&self.state.borrow()) {
                return;
            }
            changed.await;
        }
    }
}
