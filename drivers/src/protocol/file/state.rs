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
        // A descriptor that the other part has prepared would conflict with the check of the locks: it is made anew.
        let prepared = self
            .pending
            .borrow_mut()
            .as_mut()
            .and_then(|pending| pending.handle.take());
        if let Some(prepared) = prepared {
            self.give_back(&prepared);
        }
        self.released().await;
        let used = self.used.get();
        let config = self.config.borrow().clone();
        let committed = locks_for(&config, used);
        let config = next.reopen.as_ref().unwrap_or(&config);
        let used = next.usage.unwrap_or(used);
        let plan = Plan {
            handle: self.handle.borrow().clone(),
            filename: config.parsed.filename.clone(),
            access: Access::new(config.flags, used.taken),
            held: self.held_locks(),
            wanted: locks_for(config, used),
            committed,
        };
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
    /// Gives the new descriptor, if there has to be one.
    fn run(self) -> Result<Option<Handle>> {
        let new = if self.access == self.handle.access {
            None
        } else {
            Some(self.handle.reopen(&self.filename, self.access)?)
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
mod tests {
    use std::pin::pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::{Context, Poll, Waker};

    use millpond_messages::{OpenFlags, Permissions};

    use super::super::node::{Caps, State};
    use super::*;
    use millpond_ring::os::files::is_byte_locked;
    use millpond_ring::{Ring, RingConfig, Wait, Wake};

    /// The byte of the permission to write, taken.
    const WRITE_TAKEN: u16 = 101;

    fn run<F: Future>(ring: &Ring, future: F) -> F::Output {
        let mut future = pin!(future);
        loop {
            match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(output) => return output,
                Poll::Pending => drop(ring.turn(Wait::Until(None))),
            }
        }
    }

    fn writer(path: &str, ring: &Ring, may_hang: bool) -> File {
        let access = Access::new(OpenFlags::RDWR, Permissions::empty());
        let handle = Handle {
            may_hang,
            ..Handle::open("file", path, access).unwrap()
        };
        let serde_json::Value::Object(options) = serde_json::json!({"filename": path}) else {
            panic!("an object")
        };
        let flags = OpenFlags::RDWR;
        let parsed = FileOptions::new("file", &options, flags).unwrap();
        let config = Config {
            driver: "file",
            options,
            parsed,
            flags,
            locking: true,
        };
        let state = State {
            config,
            handle,
            used: Usage::NONE,
            caps: Caps::ALL,
            flush_error: None,
            releases: Vec::new(),
        };
        File::new(state, ring.clone())
    }

    #[test]
    fn no_change_has_a_moment_without_the_locks_of_both_sides() {
        change_again_and_again(false);
    }

    #[test]
    fn nor_has_one_of_a_file_that_may_hang() {
        change_again_and_again(true);
    }

    fn is_locked(path: &str, byte: u16) -> bool {
        use std::os::fd::AsFd;
        let other = std::fs::File::open(path).unwrap();
        is_byte_locked(other.as_fd(), byte).unwrap()
    }

    #[test]
    fn a_file_that_may_hang_is_asked_and_unlocked_by_a_thread() {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(4096).unwrap();
        let path = image.path().to_str().unwrap();
        let ring = Ring::new(RingConfig::new(Arc::new(Wake::new().unwrap()))).unwrap();
        let file = writer(path, &ring, true);
        let started = || ring.stats().started;
        let before = started();
        assert_eq!(run(&ring, file.end()), Ok(4096));
        assert_eq!(started(), before + 1);
        let usage = Usage {
            taken: Permissions::WRITE,
            shared: Permissions::all(),
        };
        run(&ring, file.prepare_usage(usage)).unwrap();
        file.commit_usage();
        assert!(is_locked(path, WRITE_TAKEN));
        run(&ring, file.prepare_usage(Usage::NONE)).unwrap();
        let before = started();
        file.commit_usage();
        assert_eq!(started(), before + 1, "nothing waits for it here");
        run(&ring, file.released());
        assert!(!is_locked(path, WRITE_TAKEN));
        // Taken again right after it was given up: the one has ended before the other begins.
        run(&ring, file.prepare_usage(usage)).unwrap();
        file.commit_usage();
        run(&ring, file.prepare_usage(Usage::NONE)).unwrap();
        file.commit_usage();
        run(&ring, file.prepare_usage(usage)).unwrap();
        file.commit_usage();
        assert!(is_locked(path, WRITE_TAKEN));
        run(&ring, crate::api::Lifecycle::close(&file)).unwrap();
        assert!(!is_locked(path, WRITE_TAKEN));
    }

    /// Has a thread look for the lock over and over until it is `over`; it has looked once when this returns.
    fn watch_lock(path: String, over: Arc<AtomicBool>) -> std::thread::JoinHandle<()> {
        use std::os::fd::AsFd;
        let begun = Arc::new(AtomicBool::new(false));
        let watcher = std::thread::spawn({
            let begun = Arc::clone(&begun);
            move || {
                let other = std::fs::File::open(path).unwrap();
                let mut looks = 0_u64;
                while !over.load(Ordering::Relaxed) {
                    let is_locked = is_byte_locked(other.as_fd(), WRITE_TAKEN).unwrap();
                    assert!(is_locked, "look {looks} found no lock");
                    looks += 1;
                    begun.store(true, Ordering::Relaxed);
                }
            }
        });
        while !begun.load(Ordering::Relaxed) && !watcher.is_finished() {
            std::thread::yield_now();
        }
        watcher
    }

    fn change_again_and_again(may_hang: bool) {
        let image = tempfile::NamedTempFile::new().unwrap();
        let path = image.path().to_str().unwrap().to_owned();
        let ring = Ring::new(RingConfig::new(Arc::new(Wake::new().unwrap()))).unwrap();
        let file = writer(&path, &ring, may_hang);
        let usage = Usage {
            taken: Permissions::WRITE,
            shared: Permissions::all(),
        };
        run(&ring, file.prepare_usage(usage)).unwrap();
        file.commit_usage();

        let over = Arc::new(AtomicBool::new(false));
        let watcher = watch_lock(path, Arc::clone(&over));
        for round in 0..300 {
            let old = file.config.borrow().clone();
            let before = file.fd();
            // Another access, so another descriptor.
            let flags = old.flags.symmetric_difference(OpenFlags::RDWR);
            run(
                &ring,
                file.prepare_reopen(ReopenRequest {
                    options: old.options,
                    flags,
                }),
            )
            .unwrap();
            // Unsharing and sharing again changes the other bytes, and one round in three is given up.
            let shared = if round % 2 == 0 {
                Permissions::WRITE
            } else {
                Permissions::all()
            };
            run(
                &ring,
                file.prepare_usage(Usage {
                    taken: Permissions::WRITE,
                    shared,
                }),
            )
            .unwrap();
            let commits = round % 3 != 0;
            if commits {
                file.commit_reopen();
                file.commit_usage();
            } else {
                file.abort_usage();
                file.abort_reopen();
            }
            assert_eq!(Arc::ptr_eq(&before, &file.fd()), !commits);
        }
        over.store(true, Ordering::Relaxed);
        watcher.join().unwrap();
    }
}
