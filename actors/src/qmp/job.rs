//! Jobs: shown, and dismissed when they have ended.

use super::{Reply, done, text};
use crate::daemon::Daemon;
use millpond_messages::qapi::{JobStatus, Object, QmpError};
use serde_json::json;

pub(super) async fn query(daemon: Daemon, _: Object) -> Reply {
    Ok(json!(daemon.job_infos()))
}

pub(super) async fn dismiss(daemon: Daemon, arguments: Object) -> Reply {
    let id = text(&arguments, "id");
    match daemon.job_status(id)? {
        JobStatus::Concluded => daemon.forget_job(id),
        status => return Err(cannot(id, status, "dismiss")),
    }
    Ok(done())
}

pub(super) async fn cancel(daemon: Daemon, arguments: Object) -> Reply {
    refuse(&daemon, &arguments, "cancel")
}

pub(super) async fn complete(daemon: Daemon, arguments: Object) -> Reply {
    refuse(&daemon, &arguments, "complete")
}

pub(super) async fn finalize(daemon: Daemon, arguments: Object) -> Reply {
    refuse(&daemon, &arguments, "finalize")
}

pub(super) async fn pause(daemon: Daemon, arguments: Object) -> Reply {
    refuse(&daemon, &arguments, "pause")
}

pub(super) async fn resume(daemon: Daemon, arguments: Object) -> Reply {
    daemon.job_status(text(&arguments, "id"))?;
    Err(QmpError::generic("Can't resume a job that was not paused"))
}

/// Jobs that make an image go to their end by themselves: nothing can be done about them on the way.
fn refuse(daemon: &Daemon, arguments: &Object, verb: &str) -> Reply {
    let id = text(arguments, "id");
    Err(cannot(id, daemon.job_status(id)?, verb))
}

fn cannot(id: &str, status: JobStatus, verb: &str) -> QmpError {
    let status = json!(status);
    let status = status.as_str().unwrap_or_default();
    QmpError::generic(format!(
        "Job '{id}' in state '{status}' cannot accept command verb '{verb}'"
    ))
}
