//! What users ask of jobs.

use millpond_messages::qapi::schema::MirrorCopyMode;
use millpond_messages::qapi::{ErrorClass, JobType, QmpError};

use super::state::Verb;

/// What becomes of a job when its work is done, and how fast it may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JobOptions {
    /// Its result is final at once, rather than when a user says so.
    pub auto_finalize: bool,
    /// It is forgotten at once, rather than when a user dismisses it.
    pub auto_dismiss: bool,
    /// Bytes a second, 0 for no limit. A negative number is refused once the job is there.
    pub speed: i64,
}

impl Default for JobOptions {
    /// Those of a block job of which nothing is said.
    fn default() -> Self {
        Self {
            auto_finalize: true,
            auto_dismiss: true,
            speed: 0,
        }
    }
}

impl JobOptions {
    /// Those that a user asks for.
    #[must_use]
    pub fn asked(speed: Option<i64>, auto_finalize: Option<bool>, auto_dismiss: Option<bool>) -> Self {
        Self {
            auto_finalize: auto_finalize.unwrap_or(true),
            auto_dismiss: auto_dismiss.unwrap_or(true),
            speed: speed.unwrap_or(0),
        }
    }

    /// Those of jobs without such options: final at once, and there until they are dismissed.
    pub const MANUAL_DISMISS: Self = Self {
        auto_finalize: true,
        auto_dismiss: false,
        speed: 0,
    };
}

/// By which family of commands a job is asked: they see other jobs, and refuse in other words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `job-pause` and its like, for all jobs.
    Job,
    /// `block-job-pause` and its like, for jobs that copy the data of nodes.
    BlockJob,
}

/// What a user asks of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobOrder {
    /// Hold it up at its next pause point.
    Pause,
    /// Let it go on.
    Resume,
    /// Be at most so many bytes a second fast; 0 is no limit.
    SetSpeed(i64),
    /// End it without a result.
    Cancel {
        /// Also if it is paused.
        force: bool,
    },
    /// End it now that source and target are alike.
    Complete,
    /// Make its result final.
    Finalize,
    /// Forget that it was.
    Dismiss,
    /// Have writes answered at another time, where anything is said of that.
    Change(Option<MirrorCopyMode>),
    /// Try again by itself when the target is full, with at most so many seconds between two tries; 0 for not.
    RetryWhenFull(u64),
}

impl JobOrder {
    /// The verb of QEMU's table that it is.
    #[must_use]
    pub const fn verb(self) -> Verb {
        match self {
            Self::Pause => Verb::Pause,
            Self::Resume => Verb::Resume,
            Self::SetSpeed(_) => Verb::SetSpeed,
            Self::Cancel { .. } => Verb::Cancel,
            Self::Complete => Verb::Complete,
            Self::Finalize => Verb::Finalize,
            Self::Dismiss => Verb::Dismiss,
            Self::Change(_) | Self::RetryWhenFull(_) => Verb::Change,
        }
    }
}

impl Family {
    /// Whether its commands see a job of this kind.
    #[must_use]
    pub const fn sees(self, kind: JobType) -> bool {
        matches!(self, Self::Job) || is_block_job(kind)
    }

    /// There is no job of this id.
    #[must_use]
    pub fn not_found(self, id: &str) -> QmpError {
        match self {
            Self::Job => QmpError::generic("Job not found"),
            Self::BlockJob => {
                QmpError::new(ErrorClass::DeviceNotActive, format!("Block job '{id}' not found"))
            }
        }
    }
}

/// Whether jobs of this kind copy the data of nodes, and have the events of block jobs.
#[must_use]
pub const fn is_block_job(kind: JobType) -> bool {
    matches!(
        kind,
        JobType::Commit | JobType::Stream | JobType::Mirror | JobType::Backup
    )
}

/// A speed as the limit takes it.
///
/// # Errors
/// It is negative.
pub fn check_speed(speed: i64) -> Result<u64, QmpError> {
    u64::try_from(speed).map_err(|_| QmpError::generic("Parameter 'speed' expects a non-negative value"))
}
