//! What there is in QMP: types, commands and events, one file a topic, one row a thing (see `qapi/row.rs`).
//!
//! Validation and introspection read the rows' tables, handlers get their arguments as the rows' types. A command stands in
//! [`COMMANDS`] as well, in the order in which it is listed.

mod bitmap;
mod chardev;
mod control;
mod crypto;
mod driver;
mod event;
mod export;
mod filter;
mod graph;
mod image;
mod introspection;
mod job;
mod mirror;
mod node;
mod object;
mod socket;
mod statistics;
mod tls;
mod transaction;

pub use super::define::*;
pub use bitmap::*;
pub use chardev::*;
pub use control::*;
pub use crypto::*;
pub use driver::*;
pub use event::*;
pub use export::*;
pub use filter::*;
pub use graph::*;
pub use image::*;
pub use introspection::*;
pub use job::*;
pub use mirror::*;
pub use node::*;
pub use object::*;
pub use socket::*;
pub use statistics::*;
pub use tls::*;
pub use transaction::*;

/// Every command of the schema, in the order in which it is listed.
pub static COMMANDS: &[&CommandRow] = &[
    &QmpCapabilities::ROW,
    &QueryVersion::ROW,
    &QueryCommands::ROW,
    &QueryQmpSchema::ROW,
    &Quit::ROW,
    &BlockdevAdd::ROW,
    &BlockdevDel::ROW,
    &BlockdevReopen::ROW,
    &BlockdevSnapshot::ROW,
    &BlockdevSnapshotDeleteInternalSync::ROW,
    &BlockdevSnapshotInternalSync::ROW,
    &BlockdevSnapshotSync::ROW,
    &Transaction::ROW,
    &BlockdevCreate::ROW,
    &XBlockdevAmend::ROW,
    &BlockdevSetActive::ROW,
    &BlockResize::ROW,
    &XBlockdevChange::ROW,
    &ChangeBackingFile::ROW,
    &XBlockdevSetIothread::ROW,
    &QueryNamedBlockNodes::ROW,
    &QueryBlock::ROW,
    &QueryBlockstats::ROW,
    &BlockSetWriteThreshold::ROW,
    &BlockDirtyBitmapAdd::ROW,
    &BlockDirtyBitmapRemove::ROW,
    &BlockDirtyBitmapClear::ROW,
    &BlockDirtyBitmapEnable::ROW,
    &BlockDirtyBitmapDisable::ROW,
    &BlockDirtyBitmapMerge::ROW,
    &XDebugBlockDirtyBitmapSha256::ROW,
    &QueryBlockJobs::ROW,
    &BlockCommit::ROW,
    &BlockStream::ROW,
    &BlockdevBackup::ROW,
    &DriveBackup::ROW,
    &DriveMirror::ROW,
    &BlockdevMirror::ROW,
    &BlockJobSetSpeed::ROW,
    &BlockJobCancel::ROW,
    &BlockJobChange::ROW,
    &BlockJobPause::ROW,
    &BlockJobResume::ROW,
    &BlockJobComplete::ROW,
    &BlockJobDismiss::ROW,
    &BlockJobFinalize::ROW,
    &XDebugQueryBlockGraph::ROW,
    &XMillpondBlockCommitPlan::ROW,
    &XMillpondBlockStreamPlan::ROW,
    &XMillpondCheck::ROW,
    &XMillpondFlightRecord::ROW,
    &XMillpondJobRetry::ROW,
    &XMillpondLatencyHistogramSet::ROW,
    &XMillpondLogReopen::ROW,
    &XMillpondMoveNode::ROW,
    &XMillpondQueryDot::ROW,
    &XMillpondQueryDrains::ROW,
    &XMillpondQueryIothreads::ROW,
    &XMillpondTruncate::ROW,
    &BlockExportAdd::ROW,
    &BlockExportDel::ROW,
    &QueryBlockExports::ROW,
    &NbdServerStart::ROW,
    &NbdServerAdd::ROW,
    &NbdServerRemove::ROW,
    &NbdServerStop::ROW,
    &QueryJobs::ROW,
    &JobPause::ROW,
    &JobResume::ROW,
    &JobCancel::ROW,
    &JobComplete::ROW,
    &JobFinalize::ROW,
    &JobDismiss::ROW,
    &ObjectAdd::ROW,
    &ObjectDel::ROW,
    &QomList::ROW,
    &QomGet::ROW,
    &QomListGet::ROW,
    &QomSet::ROW,
    &QomListTypes::ROW,
    &QomListProperties::ROW,
    &QueryChardev::ROW,
    &QueryChardevBackends::ROW,
    &ChardevAdd::ROW,
    &ChardevChange::ROW,
    &ChardevRemove::ROW,
    &ChardevSendBreak::ROW,
    &RingbufRead::ROW,
    &RingbufWrite::ROW,
];

/// The command called `name`.
pub fn find_command(name: &str) -> Option<&'static CommandRow> {
    COMMANDS.iter().find(|command| command.name == name).copied()
}
