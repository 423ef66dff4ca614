//! Permissions and reopen: both may ask for another descriptor and for other locks, and come in one transaction.
//!
//! Preparing adds locks to the descriptor in use, so that it holds the old ones and the new ones, and opens another
//! descriptor with all of them if the access changes. Committing swaps the descriptors and gives up what is left
//! over. So there is no moment without the locks that either side of the change needs.

use std::sync::Arc;

use futures_channel::oneshot;
use millpond_messages::{OpenFlags, Result};

use super::lock::{self, Locks};
use super::node::{Config, File, Pending, Usage};
use super::open::{Access, Handle};
use super::ops::Ops;
use super::options::{FileOptions, MUTABLE, RESETTABLE};
use crate::api::ReopenRequest;
use crate::api::reopen::{check_kept, check_unchanged};

/// One of the two parts of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Reopen,
    Usage,
}

fn locks_for(config: &Config, used: Usage) -> Locks {
    if !config.locking || config.flags.contains(OpenFlags::INACTIVE) {
        return Locks::NONE;
    }
    Locks::new(used.taken, used.shared)
}

impl File {
    /// The bytes that the descriptor in use has locked.
    pub(super) fn held_locks(&self) -> Locks {
        let config = self.config.borrow();
        let committed = locks_for(&config, self.used.get());
        match &*self.pending.borrow() {
            None => committed,
            Some(Pending { reopen, usage, .. }) => {
                let next = locks_for(
                    reopen.as_ref().unwrap_or(&config),
                    usage.unwrap_or(self.used.get()),
                );
                committed.union(next)
            }
        }
    }

    /// Readies the locks for these permissions.
    pub(super) async fn prepare_usage(&self, usage: Usage) -> Result<()> {
        let reopen = self
            .pending
            .borrow_mut()
            .as_mut()
            .and_then(|pending| pending.reopen.take());
        self.prepare(
            Pending {
                reopen,
                usage: Some(usage),
                handle: None,
            },
            Part::Usage,
        )
        .await
    }

    /// Readies these options and flags.
    pub(super) async fn prepare_reopen(&self, request: ReopenRequest) -> Result<()> {
        let ReopenRequest { options, flags } = request;
        let old = self.config.borrow().clone();
        check_kept(&old.options, &options, &RESETTABLE)?;
        check_unchanged(&old.options, &options, &MUTABLE)?;
        let parsed = FileOptions::new(old.driver, &options, flags)?;
        let usage = self.pending.borrow().as_ref().and_then(|pending| pending.usage);
        let config = Config {
            options,
            parsed,
            flags,
            ..old
        };
        self.prepare(
            Pending {
                reopen: Some(config),
                usage,
                handle: None,
            },
            Part::Reopen,
        )
        .await
    }

    /// Gets descriptor and locks for `next`, which then is pending; on an error only the other part still is.
    async fn prepare(&self, mut next: Pending, part: Part) -> Result<()> {
        let prepared = self
            .pending
            .borrow_mut()
            .as_mut()
            .and_then(|pending| pending.handle.take());
        self.released().await;
        let used = self.used.get();
        let config = self.config.borrow().clone();
        let committed = locks_for(&config, used);
        let config = next.reopen.as_ref().unwrap_or(&config);
        let used = next.usage.unwrap_or(used);
        let plan = Plan {
            handle: self.handle.borrow().clone(),
            prepared,
            filename: config.parsed.filename.clone(),
            access: Access::new(config.flags, used.taken),
            held: self.held_locks(),
            wanted: locks_for(config, used),
            committed,
        };
        if plan.is_trivial() {
            self.pending.replace(Some(next));
            return Ok(());
        }
        match self.ring.blocking(move || plan.run()).await {
            Ok(handle) => {
                next.handle = handle;
                self.pending.replace(Some(next));
                Ok(())
            }
            Err(error) => {
                match part {
                    Part::Reopen => next.reopen = None,
                    Part::Usage => next.usage = None,
                }
                self.keep(next);
                Err(error)
            }
        }
    }

    fn keep(&self, rest: Pending) {
        let rest = Some(rest).filter(|rest| rest.reopen.is_some() || rest.usage.is_some());
        self.pending.replace(rest);
    }

    pub(super) fn commit_usage(&self) {
        self.commit(Part::Usage);
    }

    pub(super) fn commit_reopen(&self) {
        self.commit(Part::Reopen);
    }

    fn commit(&self, part: Part) {
        let held = self.held_locks();
        let Some(mut pending) = self.pending.take() else {
            return;
        };
        match part {
            Part::Usage => self.used.set(pending.usage.take().unwrap_or(self.used.get())),
            Part::Reopen => {
                if let Some(config) = pending.reopen.take() {
                    self.config.replace(config);
                }
            }
        }
        if let Some(handle) = pending.handle.take() {
            self.ops.replace(Ops::new(&self.ring, &handle, self.aio()));
            let old = self.handle.replace(handle);
            // An offloaded copy may still read from the old descriptor, but that no longer keeps other processes away.
            self.give_back(&old);
        }
        self.keep(pending);
        self.let_go(&self.handle.borrow(), held, self.held_locks());
    }

    pub(super) fn abort_usage(&self) {
        self.abort(Part::Usage);
    }

    pub(super) fn abort_reopen(&self) {
        self.abort(Part::Reopen);
    }

    fn abort(&self, part: Part) {
        let held = self.held_locks();
        let Some(mut pending) = self.pending.take() else {
            return;
        };
        match part {
            Part::Usage => pending.usage = None,
            Part::Reopen => pending.reopen = None,
        }
        if let Some(prepared) = pending.handle.take() {
            self.give_back(&prepared);
        }
        self.keep(pending);
        self.let_go(&self.handle.borrow(), held, self.held_locks());
    }

    /// Gives up the locks of `held` that are not in `wanted`. Where that may hang, a thread does it, and whoever wants locks
    /// waits for it first.
    fn let_go(&self, handle: &Handle, held: Locks, wanted: Locks) {
        if wanted.contains(held) {
            return;
        }
        if !handle.may_hang {
            return lock::trim(&handle.fd, held, wanted);
        }
        let (done, release) = oneshot::channel();
        let fd = Arc::clone(&handle.fd);
        // It is done though nobody waits for this: what is waited for is the end of the channel.
        drop(self.ring.blocking(move || {
            lock::trim(&fd, held, wanted);
            drop::<oneshot::Sender<()>>(done);
        }));
        self.releases.borrow_mut().push(release);
    }

    /// Gives up all locks of a descriptor.
    pub(super) fn give_back(&self, handle: &Handle) {
        self.let_go(handle, Locks::ALL, Locks::NONE);
    }

    /// Waits until all that was given up is.
    pub(super) async fn released(&self) {
        loop {
            let release = self.releases.borrow_mut().pop();
            let Some(release) = release else { return };
            // Its sender is dropped, not sent to.
            release.await.unwrap_or(());
        }
    }
}

/// What a pool thread does to prepare a change.
struct Plan {
    handle: Handle,
    /// The descriptor that the other part of the change has prepared.
    prepared: Option<Handle>,
    filename: String,
    access: Access,
    /// What the descriptor in use has locked, and keeps if this fails.
    held: Locks,
    /// What must be locked for the change.
    wanted: Locks,
    /// What was locked before the transaction began: within that nobody can be in conflict.
    committed: Locks,
}

impl Plan {
    /// Whether all that is wanted is at hand: no descriptor is opened, nothing is locked, and so nobody is in conflict.
    fn is_trivial(&self) -> bool {
        self.access == self.handle.access && self.prepared.is_none() && self.committed.contains(self.wanted)
    }

    /// Gives the new descriptor, if there has to be one.
    fn run(mut self) -> Result<Option<Handle>> {
        let prepared = self.prepared.take();
        if let Some(prepared) = &prepared {
            // Its locks would conflict with the check of those that are wanted; the descriptor in use has them all.
            lock::give_back(&prepared.fd);
        }
        let prepared = prepared.filter(|prepared| prepared.access == self.access);
        let new = match (self.access == self.handle.access, prepared) {
            (true, _) => None,
            (false, Some(prepared)) => Some(prepared),
            (false, None) => Some(self.handle.reopen(&self.filename, self.access)?),
        };
        let locked = self.lock(new.as_ref());
        if locked.is_err() {
            if let Some(new) = &new {
                lock::give_back(&new.fd);
            }
            lock::trim(&self.handle.fd, self.held.union(self.wanted), self.held);
        }
        locked.map(|()| new)
    }

    fn lock(&self, new: Option<&Handle>) -> Result<()> {
        lock::add(&self.handle.fd, self.held, self.wanted)?;
        if !self.committed.contains(self.wanted) {
            lock::check(&self.handle.fd, self.wanted, &self.filename)?;
        }
        new.map_or(Ok(()), |new| {
            lock::add(&new.fd, Locks::NONE, self.held.union(self.wanted))
        })
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
