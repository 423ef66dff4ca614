//! How a file lives in its node: permissions with their locks, new options, other iothreads, the end.

use std::rc::Rc;

use millpond_messages::{Permissions, Result};

use super::node::{File, State, Usage};
use crate::api::{Answer, Lifecycle, Moved, ReopenRequest, SavesState};

impl Lifecycle for File {
    fn permissions_prepare(&self, taken: Permissions, shared: Permissions) -> Answer<'_, Result<()>> {
        Answer::wait(self.prepare_usage(Usage { taken, shared }))
    }

    fn permissions_commit(&self) {
        self.commit_usage();
    }

    fn permissions_abort(&self) {
        self.abort_usage();
    }

    fn reopen_prepare(&self, request: ReopenRequest) -> Answer<'_, Result<()>> {
        Answer::wait(self.prepare_reopen(request))
    }

    fn reopen_commit(&self) {
        self.commit_reopen();
    }

    fn reopen_abort(&self) {
        self.abort_reopen();
    }

    fn saved_state(&self) -> Option<&dyn SavesState> {
        Some(self)
    }

    fn depart(&self) -> Moved {
        let state = State {
            config: self.config.borrow().clone(),
            handle: self.handle.borrow().clone(),
            used: self.used.get(),
            caps: self.caps.get(),
            flush_error: self.flush_error.get(),
            releases: self.releases.take(),
        };
        Moved::new(state, |state, _, ring| Rc::new(File::new(state, ring)))
    }

    fn close(&self) -> Answer<'_, Result<()>> {
        // A descriptor handed out for a copy may outlive the node, its locks must not.
        self.give_back(&self.handle.borrow());
        self.used.set(Usage::NONE);
        if self.releases.borrow().is_empty() {
            return Answer::ready(Ok(()));
        }
        Answer::wait(async {
            self.released().await;
            Ok(())
        })
    }
}
