//! Jobs, written down.

use actix::{Context, Handler, Message, MessageResult};
use millpond_messages::saved::{SavedFate, SavedJob, SavedStep, SavedWishes};
use serde::Serialize;
use serde_json::Value;

use super::entry::{Entry, Fate, Step};
use super::handle::Jobs;
use super::order::JobOptions;
use super::pace::Pace;
use super::registry::Registry;
use super::retry::Retry;

impl Jobs {
    /// All jobs written down, the first made first; none where the daemon ends.
    pub async fn save(&self) -> Vec<SavedJob> {
        self.0.send(Save).await.unwrap_or_default()
    }
}

/// Asks for all jobs as they are written down.
pub(super) struct Save;

impl Message for Save {
    type Result = Vec<SavedJob>;
}

impl Handler<Save> for Registry {
    type Result = MessageResult<Save>;

    fn handle(&mut self, _: Save, _: &mut Context<Self>) -> Self::Result {
        MessageResult(self.jobs.iter().map(saved).collect())
    }
}

/// A job is taken apart field by field, so that no new one is forgotten.
fn saved(entry: &Entry) -> SavedJob {
    let Entry {
        id,
        kind,
        status,
        error,
        options,
        job,
        pace,
        user_paused,
        io_status,
        retry,
        group,
        step,
        fate,
        // The number is new in every daemon, and the rate is found again.
        key: _,
        rate: _,
        // Who waits for it comes again, and asks anew.
        starting: _,
        refused: _,
        // It looks at the time again.
        rest: _,
    } = entry;
    let JobOptions {
        auto_finalize,
        auto_dismiss,
        // It may have changed since.
        speed: _,
    } = options;
    let (done, total) = pace.progress_made();
    SavedJob {
        id: id.clone(),
        kind: qapi_name(kind),
        status: qapi_name(status),
        options: job.options(),
        current_progress: u64::try_from(done).unwrap_or(0),
        total_progress: u64::try_from(total).unwrap_or(0),
        error: error.clone(),
        speed: pace.speed(),
        manual_finalize: !auto_finalize,
        manual_dismiss: !auto_dismiss,
        user_paused: *user_paused,
        io_status: qapi_name(io_status),
        retry: retry.as_ref().map(Retry::saved),
        wishes: wishes(pace),
        group: group.0,
        step: saved_step(*step),
        fate: saved_fate(*fate),
        roots: job.roots(),
        work: job.saved_work(),
    }
}

fn wishes(pace: &Pace) -> SavedWishes {
    SavedWishes {
        cancel: pace.is_cancelled(),
        complete: pace.is_to_end() && !pace.is_stopped(),
        stop: pace.is_stopped(),
    }
}

const fn saved_step(step: Step) -> SavedStep {
    match step {
        Step::AtWork => SavedStep::AtWork,
        Step::Ran => SavedStep::Ran,
        Step::Preparing => SavedStep::Preparing,
        Step::Prepared => SavedStep::Prepared,
        Step::Settling => SavedStep::Settling,
    }
}

const fn saved_fate(fate: Fate) -> SavedFate {
    match fate {
        Fate::Open => SavedFate::Open,
        Fate::Final => SavedFate::Final,
        Fate::Aborted => SavedFate::Aborted,
    }
}

/// What QAPI calls a value of one of its enums.
pub(super) fn qapi_name(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(name)) => name,
        // Enums of QAPI are texts.
        _ => String::new(),
    }
}
