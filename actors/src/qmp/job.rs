//! Jobs: shown, and what users do to them.

use crate::daemon::Daemon;
use crate::job::{Family, JobOrder};
use millpond_messages::qapi::QmpError;
use millpond_messages::qapi::schema::{
    BlockCommit, BlockJobCancel, BlockJobChangeKind, BlockJobChangeOptions, BlockJobComplete,
    BlockJobDismiss, BlockJobFinalize, BlockJobInfo, BlockJobPause, BlockJobResume, BlockJobSetSpeed,
    BlockStream, BlockdevMirror, DriveMirror, JobCancel, JobComplete, JobDismiss, JobFinalize, JobInfo,
    JobPause, JobResume, MillpondBlockJobPlan, QueryBlockJobs, QueryJobs, XMillpondJobRetry,
};

type Done = Result<(), QmpError>;

pub(super) async fn query(daemon: Daemon, _: QueryJobs) -> Result<Vec<JobInfo>, QmpError> {
    Ok(daemon.jobs().list().await)
}

pub(super) async fn query_block_jobs(
    daemon: Daemon,
    _: QueryBlockJobs,
) -> Result<Vec<BlockJobInfo>, QmpError> {
    Ok(daemon.jobs().list_block_jobs().await)
}

pub(super) async fn dismiss(daemon: Daemon, JobDismiss { id }: JobDismiss) -> Done {
    to_job(&daemon, &id, JobOrder::Dismiss).await
}

pub(super) async fn cancel(daemon: Daemon, JobCancel { id }: JobCancel) -> Done {
    to_job(&daemon, &id, JobOrder::Cancel { force: true }).await
}

pub(super) async fn complete(daemon: Daemon, JobComplete { id }: JobComplete) -> Done {
    to_job(&daemon, &id, JobOrder::Complete).await
}

pub(super) async fn finalize(daemon: Daemon, JobFinalize { id }: JobFinalize) -> Done {
    to_job(&daemon, &id, JobOrder::Finalize).await
}

pub(super) async fn pause(daemon: Daemon, JobPause { id }: JobPause) -> Done {
    to_job(&daemon, &id, JobOrder::Pause).await
}

pub(super) async fn resume(daemon: Daemon, JobResume { id }: JobResume) -> Done {
    to_job(&daemon, &id, JobOrder::Resume).await
}

pub(super) async fn block_commit(daemon: Daemon, arguments: BlockCommit) -> Done {
    daemon.start_commit(arguments).await
}

pub(super) async fn block_stream(daemon: Daemon, arguments: BlockStream) -> Done {
    daemon.start_stream(arguments).await
}

pub(super) async fn plan_commit(
    daemon: Daemon,
    arguments: BlockCommit,
) -> Result<MillpondBlockJobPlan, QmpError> {
    let graph = daemon.site().graph.clone();
    daemon.jobs().plan_commit(graph, &arguments).await
}

pub(super) async fn plan_stream(
    daemon: Daemon,
    arguments: BlockStream,
) -> Result<MillpondBlockJobPlan, QmpError> {
    let graph = daemon.site().graph.clone();
    daemon.jobs().plan_stream(graph, &arguments).await
}

pub(super) async fn blockdev_mirror(daemon: Daemon, arguments: BlockdevMirror) -> Done {
    daemon.start_mirror(arguments).await
}

pub(super) async fn drive_mirror(daemon: Daemon, arguments: DriveMirror) -> Done {
    daemon.start_drive_mirror(arguments).await
}

pub(super) async fn block_change(daemon: Daemon, options: BlockJobChangeOptions) -> Done {
    let BlockJobChangeOptions { id, kind } = options;
    let copy_mode = match kind {
        BlockJobChangeKind::Mirror(mirror) => Some(mirror.copy_mode),
        _ => None,
    };
    to_block_job(&daemon, &id, JobOrder::Change(copy_mode)).await
}

pub(super) async fn block_set_speed(daemon: Daemon, arguments: BlockJobSetSpeed) -> Done {
    let BlockJobSetSpeed { device, speed } = arguments;
    to_block_job(&daemon, &device, JobOrder::SetSpeed(speed)).await
}

pub(super) async fn block_cancel(daemon: Daemon, BlockJobCancel { device, force }: BlockJobCancel) -> Done {
    let force = force.unwrap_or(false);
    to_block_job(&daemon, &device, JobOrder::Cancel { force }).await
}

pub(super) async fn block_pause(daemon: Daemon, BlockJobPause { device }: BlockJobPause) -> Done {
    to_block_job(&daemon, &device, JobOrder::Pause).await
}

pub(super) async fn block_resume(daemon: Daemon, BlockJobResume { device }: BlockJobResume) -> Done {
    to_block_job(&daemon, &device, JobOrder::Resume).await
}

pub(super) async fn block_complete(daemon: Daemon, BlockJobComplete { device }: BlockJobComplete) -> Done {
    to_block_job(&daemon, &device, JobOrder::Complete).await
}

pub(super) async fn block_finalize(daemon: Daemon, BlockJobFinalize { id }: BlockJobFinalize) -> Done {
    to_block_job(&daemon, &id, JobOrder::Finalize).await
}

pub(super) async fn block_dismiss(daemon: Daemon, BlockJobDismiss { id }: BlockJobDismiss) -> Done {
    to_block_job(&daemon, &id, JobOrder::Dismiss).await
}

pub(super) async fn retry(daemon: Daemon, arguments: XMillpondJobRetry) -> Done {
    let XMillpondJobRetry { id, seconds } = arguments;
    to_block_job(&daemon, &id, JobOrder::RetryWhenFull(seconds)).await
}

async fn to_job(daemon: &Daemon, id: &str, order: JobOrder) -> Done {
    daemon.jobs().apply(Family::Job, id, order).await
}

async fn to_block_job(daemon: &Daemon, id: &str, order: JobOrder) -> Done {
    daemon.jobs().apply(Family::BlockJob, id, order).await
}
