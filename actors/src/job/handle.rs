//! The jobs, for those who start and use them.

use actix::Addr;
use millpond_messages::qapi::{BlockJobInfo, JobInfo, QmpError};

use super::order::{Family, JobOptions, JobOrder};
use super::registry::{Apply, FinishAll, List, ListBlockJobs, MakeJob, Registry, Start};
use super::work::Job;
use crate::monitor::EventBus;

/// All jobs. Clones are the same jobs.
#[derive(Clone)]
pub struct Jobs(pub(super) Addr<Registry>);

impl Jobs {
    /// No jobs, on the current actix arbiter. What becomes of those to come is told over `events`.
    #[must_use]
    pub fn new(events: EventBus) -> Self {
        Self(Registry::launch(events))
    }

    /// Starts the job that `make` makes under an id of its user's choice; it runs when this returns.
    ///
    /// # Errors
    /// The id is malformed or taken, the speed is negative, or the job cannot have what it needs.
    pub async fn start<J: Job>(
        &self,
        id: &str,
        options: JobOptions,
        make: impl FnOnce() -> J + Send + 'static,
    ) -> Result<(), QmpError> {
        let id = id.to_owned();
        let make: MakeJob = Box::new(|| Box::new(make()));
        let Ok(started) = self.0.send(Start { id, options, make }).await else {
            return Err(ended());
        };
        started.await.unwrap_or_else(|_| Err(ended()))
    }

    /// Asks something of the job `id`.
    ///
    /// # Errors
    /// There is none that the family of commands sees, or it does not take this now.
    pub async fn apply(&self, family: Family, id: &str, order: JobOrder) -> Result<(), QmpError> {
        let id = id.to_owned();
        let applied = self.0.send(Apply { family, id, order }).await;
        applied.unwrap_or_else(|_| Err(ended()))
    }

    /// The jobs, the newest first.
    pub async fn list(&self) -> Vec<JobInfo> {
        self.0.send(List).await.unwrap_or_default()
    }

    /// The block jobs as older clients are shown them, the newest first.
    pub async fn list_block_jobs(&self) -> Vec<BlockJobInfo> {
        self.0.send(ListBlockJobs).await.unwrap_or_default()
    }

    /// Waits for all jobs, and forgets them. Block jobs are cancelled, and so are those that would wait for a user.
    pub async fn finish(&self) {
        if let Ok(finished) = self.0.send(FinishAll).await {
            // Nobody is left to say so if the registry has ended.
            let _ = finished.await;
        }
    }
}

pub(super) fn ended() -> QmpError {
    QmpError::generic("The daemon is shutting down")
}
