//! Where a client stands: between two of its requests, or in them.

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;

use millpond_messages::saved::SavedStanding;

use super::budget::Budget;

/// Memory for what came of requests that is kept, so that a client that sends them in pieces costs none each time.
const KEPT: usize = 64;

/// Where one client stands, for whoever asks on its iothread.
///
/// It stands between two requests while the receiving task waits there, and every reply has gone out to its last byte.
#[derive(Debug, Default)]
pub struct Standing {
    /// The account of its requests, while it is served.
    budget: OnceCell<Rc<Budget>>,
    /// The receiving task waits between two requests.
    waits: Cell<bool>,
    /// What has come of the next request by then.
    unread: RefCell<Vec<u8>>,
}

impl Standing {
    /// The client is served, with requests on this account.
    pub(super) fn begin(&self, budget: &Rc<Budget>) {
        // A connection is served once; who asks for another has another.
        let _ = self.budget.set(Rc::clone(budget));
    }

    /// The receiving task waits between two requests, while the guard lives; `unread` has come of the next.
    pub(super) fn wait(&self, unread: &[u8]) -> Waiting<'_> {
        self.unread.borrow_mut().extend_from_slice(unread);
        self.waits.set(true);
        Waiting(self)
    }

    /// Where it stands now.
    #[must_use]
    pub fn look(&self) -> SavedStanding {
        let is_answered = self.budget.get().is_some_and(|budget| budget.is_unused());
        match is_answered && self.waits.get() {
            true => SavedStanding::Between {
                received: self.unread.borrow().clone(),
            },
            false => SavedStanding::Inside,
        }
    }
}

/// Ends the wait between two requests when dropped.
pub(super) struct Waiting<'a>(&'a Standing);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waits.set(false);
        let mut unread = self.0.unread.borrow_mut();
        unread.clear();
        unread.shrink_to(KEPT);
    }
}

#[cfg(test)]
mod tests {
    use super::super::budget::Pool;
    use super::*;

    #[test]
    fn a_client_stands_between_requests_only_while_it_waits_there_with_nothing_owed() {
        let (standing, budget) = (Standing::default(), Budget::new(&Pool::new(0)));
        let waiting = standing.wait(b"req");
        assert_eq!(standing.look(), SavedStanding::Inside, "it is not served yet");
        standing.begin(&budget);
        let received = b"req".to_vec();
        assert_eq!(standing.look(), SavedStanding::Between { received });
        let permit = budget.try_admit(1);
        assert_eq!(standing.look(), SavedStanding::Inside, "a reply is owed");
        drop((permit, waiting));
        assert_eq!(
            standing.look(),
            SavedStanding::Inside,
            "a request is being received"
        );
        let _waiting = standing.wait(&[7; 1000]);
        let received = vec![7; 1000];
        assert_eq!(standing.look(), SavedStanding::Between { received });
    }
}
