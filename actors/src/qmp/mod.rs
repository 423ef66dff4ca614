//! What clients of a monitor can ask for: one row for each command, in a file for each topic.
//!
//! This stands above the daemon and everything in it. A monitor knows no command: it is handed [`Commands`]. A handler takes
//! the arguments and gives the answer that the command's row in [`schema`] names; one that
//! does not fit its row does not compile.

mod bitmap;
mod chardev;
mod control;
pub(crate) mod export;
mod graph;
mod image;
mod job;
pub(crate) mod node;
pub(crate) mod object;
mod qom;
mod snapshot;
mod transaction;

use crate::daemon::Daemon;
use crate::monitor::Dispatch;
use futures_util::future::LocalBoxFuture;
use millpond_messages::qapi::schema::{self, Answers, COMMANDS, Command};
use millpond_messages::qapi::{ErrorClass, JsonText, Object, QmpError};
use std::rc::Rc;

type Handler = fn(Daemon, Object) -> LocalBoxFuture<'static, Result<JsonText, QmpError>>;

macro_rules! table {
    ($($command:ident => $handler:path,)*) => {
        &[$((<schema::$command as Command>::ROW.name, |daemon, arguments| {
            Box::pin(carry_out::<schema::$command, _, _>(daemon, arguments, $handler))
        })),*]
    };
}

const TABLE: &[(&str, Handler)] = table! {
    BlockDirtyBitmapAdd => bitmap::add,
    BlockDirtyBitmapRemove => bitmap::remove,
    BlockDirtyBitmapClear => bitmap::clear,
    BlockDirtyBitmapEnable => bitmap::enable,
    BlockDirtyBitmapDisable => bitmap::disable,
    BlockDirtyBitmapMerge => bitmap::merge,
    BlockExportAdd => export::add,
    BlockExportDel => export::delete,
    BlockCommit => job::block_commit,
    BlockJobCancel => job::block_cancel,
    BlockJobChange => job::block_change,
    BlockJobComplete => job::block_complete,
    BlockJobDismiss => job::block_dismiss,
    BlockJobFinalize => job::block_finalize,
    BlockJobPause => job::block_pause,
    BlockJobResume => job::block_resume,
    BlockJobSetSpeed => job::block_set_speed,
    BlockResize => image::resize,
    BlockSetWriteThreshold => graph::set_threshold,
    BlockStream => job::block_stream,
    BlockdevBackup => transaction::backup,
    BlockdevMirror => job::blockdev_mirror,
    BlockdevAdd => node::add,
    BlockdevCreate => image::create,
    BlockdevDel => node::delete,
    BlockdevReopen => node::reopen,
    BlockdevSetActive => node::set_active,
    BlockdevSnapshot => node::snapshot,
    BlockdevSnapshotDeleteInternalSync => snapshot::delete,
    BlockdevSnapshotInternalSync => snapshot::take,
    BlockdevSnapshotSync => transaction::snapshot_sync,
    ChardevAdd => chardev::add,
    ChardevChange => chardev::change,
    ChardevRemove => chardev::remove,
    ChardevSendBreak => chardev::send_break,
    ChangeBackingFile => image::change_backing_file,
    DriveBackup => transaction::drive_backup,
    DriveMirror => job::drive_mirror,
    JobCancel => job::cancel,
    JobComplete => job::complete,
    JobDismiss => job::dismiss,
    JobFinalize => job::finalize,
    JobPause => job::pause,
    JobResume => job::resume,
    NbdServerAdd => export::server_add,
    NbdServerRemove => export::server_remove,
    NbdServerStart => export::server_start,
    NbdServerStop => export::server_stop,
    ObjectAdd => object::add,
    ObjectDel => object::delete,
    QomGet => qom::get,
    QomList => qom::list,
    QomListGet => qom::list_get,
    QomListProperties => qom::list_properties,
    QomListTypes => qom::list_types,
    QomSet => qom::set,
    QueryBlock => control::devices,
    QueryBlockExports => export::query,
    QueryBlockJobs => job::query_block_jobs,
    QueryBlockstats => graph::query_statistics,
    QueryChardev => chardev::query,
    QueryChardevBackends => chardev::backends,
    QueryCommands => control::commands,
    QueryJobs => job::query,
    QueryNamedBlockNodes => graph::query_nodes,
    QueryQmpSchema => control::schema,
    QueryVersion => control::version,
    Quit => control::quit,
    RingbufRead => chardev::ringbuf_read,
    RingbufWrite => chardev::ringbuf_write,
    Transaction => transaction::run,
    XBlockdevAmend => image::amend,
    XBlockdevChange => node::change_children,
    XBlockdevSetIothread => node::set_iothread,
    XDebugBlockDirtyBitmapSha256 => bitmap::sha256,
    XDebugQueryBlockGraph => graph::query_graph,
    XMillpondBlockCommitPlan => job::plan_commit,
    XMillpondBlockStreamPlan => job::plan_stream,
    XMillpondCheck => image::check,
    XMillpondFlightRecord => control::flight_record,
    XMillpondJobRetry => job::retry,
    XMillpondLatencyHistogramSet => graph::set_histograms,
    XMillpondLogReopen => control::reopen_log,
    XMillpondMoveNode => node::move_node,
    XMillpondQueryDot => graph::query_dot,
    XMillpondQueryDrains => graph::query_drains,
    XMillpondQueryIothreads => graph::query_iothreads,
    XMillpondTruncate => image::truncate,
};

/// The commands of a daemon, as a monitor needs them.
pub struct Commands {
    daemon: Daemon,
    names: Vec<&'static str>,
}

impl Commands {
    /// The commands that `daemon` carries out.
    pub fn of(daemon: &Daemon) -> Rc<Self> {
        Rc::new(Self {
            daemon: daemon.clone(),
            names: names(),
        })
    }
}

impl Dispatch for Commands {
    fn commands(&self) -> &[&'static str] {
        &self.names
    }

    fn extra_drivers(&self) -> &[String] {
        self.daemon.extra_drivers()
    }

    fn dispatch(
        &self,
        command: &str,
        arguments: Object,
    ) -> LocalBoxFuture<'static, Result<JsonText, QmpError>> {
        match TABLE.iter().find(|(name, _)| *name == command) {
            Some((_, handler)) => handler(self.daemon.clone(), arguments),
            None => {
                let text = format!("The command {command} has not been found");
                Box::pin(async { Err(QmpError::new(ErrorClass::CommandNotFound, text)) })
            }
        }
    }
}

/// The commands there are, in the schema's order. The session carries one out itself: `qmp_capabilities`.
fn names() -> Vec<&'static str> {
    COMMANDS.iter().map(|command| command.name).collect()
}

/// Calls a command's handler with arguments that were checked.
async fn carry_out<C, R, F>(
    daemon: Daemon,
    arguments: Object,
    handler: fn(Daemon, C::Arguments) -> F,
) -> Result<JsonText, QmpError>
where
    C: Command,
    R: Answers<C::Answer>,
    F: Future<Output = Result<R, QmpError>>,
{
    handler(daemon, schema::parse(arguments)?).await?.into_text()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn each_command_of_the_schema_has_one_handler() {
        let handled: BTreeSet<&str> = TABLE.iter().map(|(name, _)| *name).collect();
        assert_eq!(handled.len(), TABLE.len(), "a command has two handlers");
        let mut known: BTreeSet<&str> = names().into_iter().collect();
        assert_eq!(known.len(), COMMANDS.len(), "COMMANDS has a command twice");
        known.remove("qmp_capabilities");
        assert_eq!(
            handled, known,
            "a command needs a row in COMMANDS (messages/src/qapi/schema/mod.rs) and one in TABLE"
        );
    }
}
