//! One job as the registry knows it.

use actix::SpawnHandle;
use futures_channel::oneshot;
use millpond_messages::qapi::{
    BlockDeviceIoStatus, BlockJobInfo, BlockJobInfoMirror, BlockJobKind, JobInfo, JobStatus, JobType,
    QmpError, QmpEvent,
};

use super::order::{JobOptions, is_block_job};
use super::pace::Pace;
use super::rate::Rate;
use super::retry::Retry;
use super::work::Job;

/// Names a job, also among those that once had the same id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key(pub u64);

/// Names those jobs that end alike: by the first of them that was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Group(pub u64);

/// How far the end of a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Its data half has not ended.
    AtWork,
    /// Its data half has ended, and it stands still.
    Ran,
    /// Its result is being made final.
    Preparing,
    /// Its result is final, if those of its group are.
    Prepared,
    /// What it left is being taken away.
    Settling,
}

/// What has been decided of all jobs of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Nothing has been decided yet.
    Open,
    /// Their results become final.
    Final,
    /// They end without a result.
    Aborted,
}

/// A job, from before it is announced until it is forgotten.
pub(super) struct Entry {
    pub key: Key,
    pub id: String,
    pub kind: JobType,
    pub status: JobStatus,
    pub error: Option<String>,
    pub options: JobOptions,
    pub job: Box<dyn Job>,
    pub pace: Pace,
    /// How fast it has been, for those who ask.
    pub rate: Rate,
    /// A user or an error has paused it, and nobody has resumed it.
    pub user_paused: bool,
    /// Whether an error has stopped it.
    pub io_status: BlockDeviceIoStatus,
    /// How it goes on by itself when its target is full, if it does.
    pub retry: Option<Retry>,
    /// The jobs that end as it does.
    pub group: Group,
    /// How far its end is.
    pub step: Step,
    /// What has been decided of it and its group.
    pub fate: Fate,
    /// Who waits for it to run. Until then nobody else sees it.
    pub starting: Option<oneshot::Sender<Result<(), QmpError>>>,
    /// Why it never runs.
    pub refused: Option<QmpError>,
    /// Wakes the data half when it has rested.
    pub rest: Option<SpawnHandle>,
}

impl Entry {
    /// Its result is being made final, or what it left is being taken away.
    pub fn is_ending(&self) -> bool {
        matches!(self.step, Step::Preparing | Step::Prepared | Step::Settling)
    }

    /// A user has it go on, whatever paused it.
    pub fn resume(&mut self) {
        self.user_paused = false;
        self.io_status = BlockDeviceIoStatus::Ok;
        self.pace.resume();
    }

    pub fn is_block_job(&self) -> bool {
        is_block_job(self.kind)
    }

    /// Whether it has a result that stands if it is ended now, and nobody has said how it ends.
    pub fn can_stop(&self) -> bool {
        let is_ready = matches!(self.status, JobStatus::Ready | JobStatus::Standby);
        self.job.completes() && is_ready
    }

    /// As `query-jobs` shows it.
    pub fn info(&mut self) -> JobInfo {
        let (current_progress, total_progress) = self.pace.progress_made();
        let is_measured = self.is_block_job() && self.status == JobStatus::Running;
        let now = self.pace.age();
        let outlook = is_measured
            .then(|| self.rate.look(now, current_progress, total_progress))
            .flatten();
        JobInfo {
            id: self.id.clone(),
            kind: self.kind,
            status: self.status,
            current_progress,
            total_progress,
            error: self.error.clone(),
            x_millpond_bytes_left: outlook.map(|outlook| outlook.left),
            x_millpond_rate: outlook.map(|outlook| outlook.rate),
            x_millpond_seconds_left: outlook.map(|outlook| outlook.seconds),
        }
    }

    /// As `query-block-jobs` shows it.
    pub fn block_info(&self) -> Option<BlockJobInfo> {
        let kind = match self.kind {
            JobType::Commit => BlockJobKind::Commit,
            JobType::Stream => BlockJobKind::Stream,
            JobType::Backup => BlockJobKind::Backup,
            JobType::Mirror => {
                let is_ready = matches!(self.status, JobStatus::Ready | JobStatus::Standby);
                let actively_synced = is_ready && self.job.is_synced();
                BlockJobKind::Mirror(BlockJobInfoMirror { actively_synced })
            }
            _ => return None,
        };
        let (offset, len) = self.pace.progress_made();
        let is_held = matches!(self.status, JobStatus::Paused | JobStatus::Standby);
        let is_at_work = matches!(self.status, JobStatus::Running | JobStatus::Ready);
        Some(BlockJobInfo {
            kind,
            device: self.id.clone(),
            len,
            offset,
            busy: is_at_work && !self.pace.is_resting(),
            paused: self.user_paused || is_held,
            speed: self.speed(),
            io_status: self.io_status,
            ready: matches!(self.status, JobStatus::Ready | JobStatus::Standby),
            status: self.status,
            auto_finalize: self.options.auto_finalize,
            auto_dismiss: self.options.auto_dismiss,
            error: self.error.clone(),
        })
    }

    fn speed(&self) -> i64 {
        i64::try_from(self.pace.speed()).unwrap_or(i64::MAX)
    }

    /// The event with which a block job ends.
    pub fn end_event(&self) -> QmpEvent {
        let (offset, len) = self.pace.progress_made();
        let (kind, device, speed) = (self.kind, self.id.clone(), self.speed());
        if self.pace.is_cancelled() {
            return QmpEvent::BlockJobCancelled {
                kind,
                device,
                len,
                offset,
                speed,
            };
        }
        QmpEvent::BlockJobCompleted {
            kind,
            device,
            len,
            offset,
            speed,
            error: self.error.clone(),
        }
    }

    /// The event of a block job that can be completed.
    pub fn ready_event(&self) -> QmpEvent {
        let (offset, len) = self.pace.progress_made();
        QmpEvent::BlockJobReady {
            kind: self.kind,
            device: self.id.clone(),
            len,
            offset,
            speed: self.speed(),
        }
    }
}
