//! Mirrors: a node is copied while it is written, until target and source are alike; then a user decides.
//!
//! ```text
//!   users -> node                                      before
//!   users -> mirror_top -> node                        the filter sees what is written, and copies what is left
//!                      \-> target
//!   users -> target                                    after completion; node as before after a cancellation
//! ```
//! The same with a target that is in the node's own chain merges the active image down: it is an active commit.

mod commit;
mod data;
mod drive;
mod plan;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use millpond_messages::graph::{DrainScope, DropFilter, EditForJob, JobEdit};
use millpond_messages::qapi::schema::MirrorCopyMode;
use millpond_messages::qapi::{JobType, QmpError};
use millpond_messages::saved::{SavedOptions, SavedWork};
use millpond_messages::{Error, ErrorKind, MirrorLine, MirrorMode, OpBlocker, Permissions, Result, RootId};

use super::data::{NodeGates, at_home, cancelled, failed, flush_copied};
use super::holds::{Holds, by_errno, refused};
use crate::job::copy::Stopped;
use crate::job::pace::{Cancelled, Pace};
use crate::job::work::Job;
use crate::node::Client;

use data::{Data, Progress};
use plan::Manner;
pub use plan::MirrorPlan;

const FILTER: &str = "mirror_top";

/// Copies a node and follows its writes.
pub struct MirrorJob(Rc<Mirror>);

struct Mirror {
    plan: MirrorPlan,
    holds: Holds,
    line: Arc<MirrorLine>,
    /// The filter's name, while it is there.
    filter: RefCell<Option<String>>,
    /// The target was made writable for this.
    was_read_only: Cell<bool>,
    /// A client of the filter.
    keeper: RefCell<Option<Client>>,
    /// A client of the target.
    target: RefCell<Option<Client>>,
    /// Clients of the images that are merged.
    merged: RefCell<Vec<Client>>,
    pace: RefCell<Option<Pace>>,
    progress: Cell<Progress>,
}

impl MirrorPlan {
    /// The job that does it.
    #[must_use]
    pub fn job(self) -> MirrorJob {
        let kind = match self.merged {
            None => "mirror",
            Some(_) => "commit",
        };
        let holds = Holds::new(self.graph.clone(), &self.id, kind);
        let line = Arc::new(MirrorLine::new(self.mode));
        MirrorJob(Rc::new(Mirror {
            plan: self,
            holds,
            line,
            filter: RefCell::default(),
            was_read_only: Cell::default(),
            keeper: RefCell::default(),
            target: RefCell::default(),
            merged: RefCell::default(),
            pace: RefCell::default(),
            progress: Cell::default(),
        }))
    }
}

impl Job for MirrorJob {
    fn kind(&self) -> JobType {
        match self.0.plan.merged {
            None => JobType::Mirror,
            Some(_) => JobType::Commit,
        }
    }

    fn options(&self) -> SavedOptions {
        SavedOptions::of(&self.0.plan.asked)
    }

    fn saved_work(&self) -> SavedWork {
        let Mirror {
            plan,
            line,
            filter,
            was_read_only,
            // These are with the roots.
            holds: _,
            keeper: _,
            target: _,
            merged: _,
            // Its wishes are with the job's. What is to be copied at first is looked for once more.
            pace: _,
            progress: _,
        } = &*self.0;
        let mode = match line.mode() {
            MirrorMode::Background => "background",
            MirrorMode::WriteBlocking | MirrorMode::Closing => "write-blocking",
        };
        SavedWork {
            filter: filter.borrow().clone(),
            made_writable: was_read_only.get().then(|| plan.target.clone()),
            copy_mode: Some(mode.to_owned()),
            ..SavedWork::default()
        }
    }

    fn roots(&self) -> Vec<RootId> {
        self.0.holds.clients().iter().map(Client::root).collect()
    }

    fn claim(&mut self) -> Option<LocalBoxFuture<'static, Result<(), QmpError>>> {
        let mirror = Rc::clone(&self.0);
        Some(async move { Ok(mirror.claim().await?) }.boxed_local())
    }

    fn begin(&mut self) -> Option<LocalBoxFuture<'static, Result<(), QmpError>>> {
        let mirror = Rc::clone(&self.0);
        Some(async move { Ok(mirror.begin().await?) }.boxed_local())
    }

    fn run(&mut self, pace: Pace) -> LocalBoxFuture<'static, Result<()>> {
        let mirror = Rc::clone(&self.0);
        async move { mirror.run(pace).await }.boxed_local()
    }

    fn completes(&self) -> bool {
        true
    }

    fn is_synced(&self) -> bool {
        self.0.line.mode() == MirrorMode::WriteBlocking && self.0.line.left() == 0
    }

    fn change(&mut self, copy_mode: MirrorCopyMode) -> Result<(), QmpError> {
        if self.0.plan.merged.is_some() {
            return refused("Job type does not support change");
        }
        match (copy_mode, self.0.line.mode()) {
            (MirrorCopyMode::Background, MirrorMode::WriteBlocking) => {
                refused("Change to copy mode 'background' is not implemented")
            }
            (MirrorCopyMode::Background, _) => Ok(()),
            (MirrorCopyMode::WriteBlocking, _) => {
                self.0.line.set_mode(MirrorMode::WriteBlocking);
                Ok(())
            }
        }
    }

    fn prepare(&mut self) -> Option<LocalBoxFuture<'static, Result<()>>> {
        let mirror = Rc::clone(&self.0);
        Some(async move { mirror.end().await }.boxed_local())
    }

    fn settle(&mut self, succeeded: bool) -> Option<LocalBoxFuture<'static, ()>> {
        let mirror = Rc::clone(&self.0);
        Some(async move { mirror.settle(succeeded).await }.boxed_local())
    }
}

/// The job's end came before its beginning.
fn not_begun() -> Error {
    Error::new(ErrorKind::Closed, "The job has not begun")
}

impl Mirror {
    /// Makes a target in the source's own chain writable, and puts the filter over the source: from here on it sees all
    /// writes.
    async fn claim(&self) -> Result<()> {
        let Self { plan, holds, .. } = self;
        let was_read_only = plan.merged.is_some() && plan.target_read_only;
        self.was_read_only
            .set(holds.make_writable(&plan.target, was_read_only).await?);
        if let Some(size) = plan.grows_to {
            // Once the filter is there, nobody else changes the target's length.
            let client = holds
                .open(&plan.target, Permissions::empty(), Permissions::all())
                .await?;
            let root = client.root();
            let resized = EditForJob(JobEdit::ResizeHeld { root, size });
            holds.graph.ask(resized).await?;
            holds.release(&client).await;
        }
        let options = plan.filter.clone();
        let filter = holds.insert_filter(&plan.node, FILTER, options, false).await?;
        self.filter.replace(filter);
        Ok(())
    }

    async fn begin(&self) -> Result<()> {
        let Self { plan, holds, .. } = self;
        let filter = self.filter.borrow().clone().unwrap_or_default();
        let keeper = holds.keep_main(&filter).await?;
        if let Some(merged) = &plan.merged {
            self.hold_merged(&filter, merged).await?;
        } else {
            holds.keep(&plan.node, Permissions::all()).await?;
        }
        let target = holds.keep_target(&plan.target).await?;
        if let Some(name) = &plan.replaces {
            holds.block(name, &keeper, &[OpBlocker::Replace]).await?;
        }
        self.target.replace(Some(target));
        self.keeper.replace(Some(keeper));
        Ok(())
    }

    fn clients(&self) -> Result<(Client, Client)> {
        let keeper = self.keeper.borrow().clone().ok_or_else(not_begun)?;
        let target = self.target.borrow().clone().ok_or_else(not_begun)?;
        Ok((keeper, target))
    }

    async fn run(&self, pace: Pace) -> Result<()> {
        if self.plan.merged.is_none() && self.plan.size != self.plan.target_size {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                "Source and target image have different sizes",
            ));
        }
        self.pace.replace(Some(pace));
        self.follow(self.plan.manner()).await
    }

    /// Copies what is left, until the job is to end and nothing is.
    async fn follow(&self, manner: Manner) -> Result<()> {
        let (keeper, target) = self.clients()?;
        let pace = self.pace.borrow().clone().ok_or_else(not_begun)?;
        loop {
            let (clients, line) = (self.holds.clients(), Arc::clone(&self.line));
            let (home, keeper, target, pace) = (keeper.clone(), keeper.clone(), target.clone(), pace.clone());
            let mut progress = self.progress.get();
            let (ended, progress) = at_home(home, move || async move {
                let data = Data {
                    keeper: keeper.here(),
                    target: target.here(),
                    gates: NodeGates::new(&clients),
                    pace,
                    line,
                    manner,
                };
                let ended = data.follow(&mut progress).await;
                (ended, progress)
            })
            .await?;
            self.progress.set(progress);
            match ended {
                Ok(()) => return Ok(()),
                Err(Stopped::Moved) => {}
                Err(Stopped::Cancelled) => return Err(cancelled(Cancelled)),
                Err(Stopped::Failed(fault)) => return Err(failed(fault.error)),
            }
        }
    }

    /// Ends it in a moment when nothing is written and nothing is left.
    async fn end(&self) -> Result<()> {
        let Self { plan, holds, .. } = self;
        let (_, target) = self.clients()?;
        let filter = self.filter.borrow().clone().ok_or_else(not_begun)?;
        let pace = self.pace.borrow().clone().ok_or_else(not_begun)?;
        let still = loop {
            let scope = DrainScope::Node(filter.clone());
            // What is written to both ends waits for the target, which may be dead.
            let still = pace.unless_stuck(holds.graph.drain(scope, "mirror")).await;
            let still = still.map_err(cancelled)??;
            if self.line.left() == 0 {
                break still;
            }
            // What came in between was discarded, or has not reached the target.
            drop(still);
            self.follow(plan.manner().unstoppable()).await?;
        };
        self.line.set_mode(MirrorMode::Closing);
        // What the source's users have flushed is to be durable in the target before it is theirs.
        flush_copied(&target, &pace).await?;
        holds.unfreeze();
        let ended = match pace.is_stopped() {
            true => {
                self.release_merged().await;
                holds.graph.ask(DropFilter { node_name: filter }).await
            }
            false => {
                let pivot = JobEdit::Pivot {
                    filter,
                    replaced: plan.replaces.clone(),
                    target: plan.target.clone(),
                    backing: plan.backing.clone(),
                };
                holds.graph.ask(EditForJob(pivot)).await
            }
        };
        drop(still);
        ended.map_err(|error| by_errno(&error))?;
        self.filter.take();
        // The target is written by whoever wrote the source. QEMU leaves it writable where it stands by itself, too.
        self.was_read_only.set(false);
        Ok(())
    }

    async fn settle(&self, succeeded: bool) {
        let Self { plan, holds, .. } = self;
        self.keeper.take();
        self.target.take();
        self.merged.take();
        holds.end(self.filter.take(), succeeded, self.pace.take()).await;
        if let Some(opened) = &plan.opened {
            holds.release(opened).await;
        }
        if self.was_read_only.take() {
            holds.make_read_only(&plan.target).await;
        }
    }
}
