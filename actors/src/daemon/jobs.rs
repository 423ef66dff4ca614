//! Jobs that make images or change them: the states they go through, and what is left of them when they have ended.

use super::Daemon;
use millpond_messages::graph::{Mutation, Options};
use millpond_messages::qapi::{Event, JobInfo, JobStatus, JobType, QmpError, is_identifier};
use tokio::task::JoinHandle;

/// The jobs there are, in the order in which they were made.
#[derive(Debug, Default)]
pub(super) struct Jobs {
    jobs: Vec<Job>,
}

#[derive(Debug)]
struct Job {
    info: JobInfo,
    task: Option<JoinHandle<()>>,
}

impl Jobs {
    fn find(&mut self, id: &str) -> Option<&mut Job> {
        self.jobs.iter_mut().find(|job| job.info.id == id)
    }
}

impl Daemon {
    /// Starts the job `id` that makes an image. It stays when it has ended, until it is dismissed.
    ///
    /// # Errors
    /// The id is malformed or taken.
    pub(crate) fn start_create(&self, id: &str, options: Options) -> Result<(), QmpError> {
        let daemon = self.clone();
        self.start_job(id, JobType::Create, async move {
            let created = daemon.graph(Mutation::BlockdevCreate(options)).await;
            created.map(|_| ())
        })
    }

    /// Starts the job `id` that changes how an image is encrypted, where that is asked for. No image that can be opened
    /// is, so there is nothing that it could change.
    ///
    /// # Errors
    /// The id is malformed or taken.
    pub(crate) fn start_amend(&self, id: &str, encryption: bool) -> Result<(), QmpError> {
        self.start_job(id, JobType::Amend, async move {
            match encryption {
                true => Err(QmpError::generic("image is not encrypted, can't amend")),
                false => Ok(()),
            }
        })
    }

    fn start_job(
        &self,
        id: &str,
        kind: JobType,
        work: impl Future<Output = Result<(), QmpError>> + 'static,
    ) -> Result<(), QmpError> {
        if !is_identifier(id) {
            return Err(QmpError::generic(format!("Invalid job ID '{id}'")));
        }
        if self.parts.jobs.borrow_mut().find(id).is_some() {
            return Err(QmpError::generic(format!("Job ID '{id}' already in use")));
        }
        let info = JobInfo {
            id: id.to_owned(),
            kind,
            status: JobStatus::Undefined,
            current_progress: 0,
            total_progress: 1,
            error: None,
        };
        self.parts.jobs.borrow_mut().jobs.push(Job { info, task: None });
        self.set_job_status(id, JobStatus::Created);
        self.set_job_status(id, JobStatus::Running);
        let (daemon, owned_id) = (self.clone(), id.to_owned());
        let task = actix_rt::spawn(async move { daemon.end_job(&owned_id, work.await) });
        if let Some(job) = self.parts.jobs.borrow_mut().find(id) {
            job.task = Some(task);
        }
        Ok(())
    }

    fn end_job(&self, id: &str, result: Result<(), QmpError>) {
        if let Some(job) = self.parts.jobs.borrow_mut().find(id) {
            job.info.current_progress = job.info.total_progress;
            job.info.error = result.as_ref().err().map(|error| error.desc.clone());
        }
        let last: &[JobStatus] = match result {
            Ok(()) => &[JobStatus::Waiting, JobStatus::Pending, JobStatus::Concluded],
            Err(_) => &[JobStatus::Aborting, JobStatus::Concluded],
        };
        for status in last {
            self.set_job_status(id, *status);
        }
    }

    fn set_job_status(&self, id: &str, status: JobStatus) {
        if let Some(job) = self.parts.jobs.borrow_mut().find(id) {
            job.info.status = status;
        }
        self.events().emit(Event::JobStatusChange {
            id: id.to_owned(),
            status,
        });
    }

    /// All jobs, the newest first.
    pub(crate) fn job_infos(&self) -> Vec<JobInfo> {
        self.parts
            .jobs
            .borrow()
            .jobs
            .iter()
            .rev()
            .map(|job| job.info.clone())
            .collect()
    }

    /// The state of a job.
    ///
    /// # Errors
    /// There is none of that id.
    pub(crate) fn job_status(&self, id: &str) -> Result<JobStatus, QmpError> {
        let mut jobs = self.parts.jobs.borrow_mut();
        jobs.find(id)
            .map(|job| job.info.status)
            .ok_or_else(|| QmpError::generic("Job not found"))
    }

    /// Forgets a job that has ended.
    pub(crate) fn forget_job(&self, id: &str) {
        self.set_job_status(id, JobStatus::Null);
        self.parts.jobs.borrow_mut().jobs.retain(|job| job.info.id != id);
    }

    /// Waits for all jobs, and forgets them.
    pub(super) async fn finish_jobs(&self) {
        let tasks: Vec<_> = self
            .parts
            .jobs
            .borrow_mut()
            .jobs
            .iter_mut()
            .filter_map(|job| job.task.take())
            .collect();
        futures_util::future::join_all(tasks).await;
        for job in self.job_infos() {
            self.forget_job(&job.id);
        }
    }
}
