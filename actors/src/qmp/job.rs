//! Jobs: shown, and what users do to them.

use crate::daemon::Daemon;
use crate::job::Verb;
use millpond_messages::qapi::QmpError;
use millpond_messages::qapi::schema::{
    BlockJobInfo, JobCancel, JobComplete, JobDismiss, JobFinalize, JobInfo, JobPause, JobResume,
    QueryBlockJobs, QueryJobs,
};

pub(super) async fn query(daemon: Daemon, _: QueryJobs) -> Result<Vec<JobInfo>, QmpError> {
    Ok(daemon.jobs().list().await)
}

pub(super) async fn query_block_jobs(_: Daemon, _: QueryBlockJobs) -> Result<Vec<BlockJobInfo>, QmpError> {
    Ok(Vec::new())
}

pub(super) async fn dismiss(daemon: Daemon, JobDismiss { id }: JobDismiss) -> Result<(), QmpError> {
    apply(&daemon, &id, Verb::Dismiss).await
}

pub(super) async fn cancel(daemon: Daemon, JobCancel { id }: JobCancel) -> Result<(), QmpError> {
    apply(&daemon, &id, Verb::Cancel).await
}

pub(super) async fn complete(daemon: Daemon, JobComplete { id }: JobComplete) -> Result<(), QmpError> {
    apply(&daemon, &id, Verb::Complete).await
}

pub(super) async fn finalize(daemon: Daemon, JobFinalize { id }: JobFinalize) -> Result<(), QmpError> {
    apply(&daemon, &id, Verb::Finalize).await
}

pub(super) async fn pause(daemon: Daemon, JobPause { id }: JobPause) -> Result<(), QmpError> {
    apply(&daemon, &id, Verb::Pause).await
}

pub(super) async fn resume(daemon: Daemon, JobResume { id }: JobResume) -> Result<(), QmpError> {
    apply(&daemon, &id, Verb::Resume).await
}

async fn apply(daemon: &Daemon, id: &str, verb: Verb) -> Result<(), QmpError> {
    daemon.jobs().apply(id, verb).await
}
