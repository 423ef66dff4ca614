//! Jobs, written down.

use actix::{Context, Handler, Message, MessageResult};
use millpond_messages::saved::SavedJob;
use serde::Serialize;
use serde_json::Value;

use super::registry::{Entry, Jobs, Registry};

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
    let info = &entry.info;
    SavedJob {
        id: info.id.clone(),
        kind: qapi_name(&info.kind),
        status: qapi_name(&info.status),
        options: entry.job.options(),
        current_progress: u64::try_from(info.current_progress).unwrap_or(0),
        total_progress: u64::try_from(info.total_progress).unwrap_or(0),
        error: info.error.clone(),
        // No job has a speed that could be set, or holds nodes from one step to the next.
        speed: 0,
        roots: Vec::new(),
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
