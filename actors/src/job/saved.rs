//! Jobs, written down.

use actix::{Context, Handler, Message, MessageResult};
use millpond_messages::saved::SavedJob;
use serde::Serialize;
use serde_json::Value;

use super::entry::Entry;
use super::handle::Jobs;
use super::registry::Registry;

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

fn saved(entry: &Entry) -> SavedJob {
    let (done, total) = entry.pace.progress_made();
    SavedJob {
        id: entry.id.clone(),
        kind: qapi_name(&entry.kind),
        status: qapi_name(&entry.status),
        options: entry.job.options(),
        current_progress: u64::try_from(done).unwrap_or(0),
        total_progress: u64::try_from(total).unwrap_or(0),
        error: entry.error.clone(),
        speed: entry.pace.speed(),
        roots: entry.job.roots(),
        manual_finalize: !entry.options.auto_finalize,
        manual_dismiss: !entry.options.auto_dismiss,
        pauses: u32::from(entry.user_paused),
    }
}

/// What QAPI calls a value of one of its enums.
fn qapi_name(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(name)) => name,
        // Enums of QAPI are texts.
        _ => String::new(),
    }
}
