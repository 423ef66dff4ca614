//! What a job answers to the registry.

use futures_util::future::LocalBoxFuture;
use millpond_messages::qapi::schema::MirrorCopyMode;
use millpond_messages::qapi::{JobType, QmpError};
use millpond_messages::saved::{SavedOptions, SavedWork};
use millpond_messages::{Result, RootId};

use super::pace::Pace;

/// A job: its control half, on the control thread, which starts its data half.
///
/// The registry calls each of these once, in this order. `claim` and `begin` take what the job needs; if one of them
/// fails, or nothing follows because the job cannot be as fast as is asked for, `settle` comes next. `run` does the work;
/// when that has ended well, `prepare` comes once the job is finalized; and at the end, however it came, `settle`. All of
/// it is on the control thread, where the job was made.
pub trait Job: 'static {
    /// Which kind of job it is.
    fn kind(&self) -> JobType;

    /// What it was started with, to be written down.
    fn options(&self) -> SavedOptions;

    /// What it has done to the graph and what it has found out, to be written down: all that a later daemon needs to go on with
    /// it, or to take it back, and would not find in its options, its progress, its roots and the nodes. There is no default,
    /// and whoever keeps such a thing takes the job apart here field by field, so that no new one is forgotten.
    fn saved_work(&self) -> SavedWork;

    /// The root edges by which it holds nodes at present.
    fn roots(&self) -> Vec<RootId> {
        Vec::new()
    }

    /// Takes what must be had before anybody hears of the job. `None` if there is nothing to take.
    fn claim(&mut self) -> Option<LocalBoxFuture<'static, Result<(), QmpError>>> {
        None
    }

    /// Takes what is had by a job that others hear of. `None` if there is nothing to take.
    fn begin(&mut self) -> Option<LocalBoxFuture<'static, Result<(), QmpError>>> {
        None
    }

    /// Does the work, up to where it could be undone. It goes through `pace`'s pause points, and stops when one of them
    /// says that the job is cancelled; work that has none goes to its end, and is cancelled then.
    ///
    /// The future runs on the control thread; one that moves data waits there for what it has started on an iothread.
    fn run(&mut self, pace: Pace) -> LocalBoxFuture<'static, Result<()>>;

    /// Whether it can be completed by a user, when it is ready.
    fn completes(&self) -> bool {
        false
    }

    /// Whether source and target, once they are alike, are kept so write by write.
    fn is_synced(&self) -> bool {
        false
    }

    /// Has writes answered at another time.
    ///
    /// # Errors
    /// It cannot be changed, or not like that.
    fn change(&mut self, copy_mode: MirrorCopyMode) -> Result<(), QmpError> {
        let _ = copy_mode;
        Err(QmpError::generic("Job type does not support change"))
    }

    /// Makes the result final, as far as that can fail: a pivot, a last flush. `None` if there is nothing to do.
    fn prepare(&mut self) -> Option<LocalBoxFuture<'static, Result<()>>> {
        None
    }

    /// Takes away what the job put into the graph: holds, filters, blockers. Its result stands if `succeeded`, and is to be
    /// undone if not. `None` if there is nothing to do.
    fn settle(&mut self, succeeded: bool) -> Option<LocalBoxFuture<'static, ()>> {
        let _ = succeeded;
        None
    }
}
