//! The states of a job: which verb may be used in which, and which may follow which. The table is QEMU's.

use JobStatus as S;
use millpond_messages::qapi::{JobStatus, QmpError};

/// What a user can do to a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verb {
    /// End it without a result.
    Cancel,
    /// Hold it up at its next pause point.
    Pause,
    /// Let it go on.
    Resume,
    /// Change how fast it may be.
    SetSpeed,
    /// End it now that source and target are alike.
    Complete,
    /// Make its result final.
    Finalize,
    /// Forget that it was.
    Dismiss,
    /// Change its options while it runs.
    Change,
}

/// All states, in QEMU's order.
pub const STATES: [JobStatus; 11] = [
    S::Undefined,
    S::Created,
    S::Running,
    S::Paused,
    S::Ready,
    S::Standby,
    S::Waiting,
    S::Pending,
    S::Aborting,
    S::Concluded,
    S::Null,
];

impl Verb {
    /// All verbs, in QEMU's order.
    pub const ALL: [Self; 8] = [
        Self::Cancel,
        Self::Pause,
        Self::Resume,
        Self::SetSpeed,
        Self::Complete,
        Self::Finalize,
        Self::Dismiss,
        Self::Change,
    ];

    /// What QAPI calls it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cancel => "cancel",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::SetSpeed => "set-speed",
            Self::Complete => "complete",
            Self::Finalize => "finalize",
            Self::Dismiss => "dismiss",
            Self::Change => "change",
        }
    }

    /// Whether a job in this state takes the verb.
    #[must_use]
    pub const fn is_allowed_in(self, state: JobStatus) -> bool {
        match self {
            Self::Cancel => matches!(
                state,
                S::Created | S::Running | S::Paused | S::Ready | S::Standby | S::Waiting | S::Pending
            ),
            Self::Pause | Self::Resume | Self::SetSpeed | Self::Change => {
                matches!(state, S::Created | S::Running | S::Paused | S::Ready | S::Standby)
            }
            Self::Complete => matches!(state, S::Ready | S::Standby),
            Self::Finalize => matches!(state, S::Pending),
            Self::Dismiss => matches!(state, S::Concluded),
        }
    }

    /// Checks that a job in this state takes the verb.
    ///
    /// # Errors
    /// QEMU's text: it does not.
    pub fn check(self, id: &str, state: JobStatus) -> Result<(), QmpError> {
        if self.is_allowed_in(state) {
            return Ok(());
        }
        let (state, verb) = (name(state), self.name());
        Err(QmpError::generic(format!(
            "Job '{id}' in state '{state}' cannot accept command verb '{verb}'"
        )))
    }
}

/// What QAPI calls a state.
#[must_use]
pub const fn name(state: JobStatus) -> &'static str {
    match state {
        S::Undefined => "undefined",
        S::Created => "created",
        S::Running => "running",
        S::Paused => "paused",
        S::Ready => "ready",
        S::Standby => "standby",
        S::Waiting => "waiting",
        S::Pending => "pending",
        S::Aborting => "aborting",
        S::Concluded => "concluded",
        S::Null => "null",
    }
}

/// Whether a job can come from one state to another in one step.
#[must_use]
pub const fn may_follow(from: JobStatus, to: JobStatus) -> bool {
    match from {
        S::Undefined => matches!(to, S::Created),
        S::Created => matches!(to, S::Running | S::Paused | S::Aborting | S::Null),
        S::Running => matches!(to, S::Paused | S::Ready | S::Waiting | S::Aborting),
        S::Paused => matches!(to, S::Running),
        S::Ready => matches!(to, S::Standby | S::Waiting | S::Aborting),
        S::Standby => matches!(to, S::Ready),
        S::Waiting => matches!(to, S::Pending | S::Aborting),
        S::Pending => matches!(to, S::Aborting | S::Concluded),
        S::Aborting => matches!(to, S::Aborting | S::Concluded),
        S::Concluded => matches!(to, S::Null),
        S::Null => false,
    }
}
