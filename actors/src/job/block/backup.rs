//! `blockdev-backup`: a node is copied as it was when the job began.
//!
//! ```text
//!   users -> node                                    before, and after
//!   users -> copy-before-write -> node               a write has copied first what it changes
//!                          \-> target                the job has the rest copied, piece by piece
//! ```
//! Who copies a chunk first, a write or the job, is a matter of the filter: the other finds it copied.

use std::cell::RefCell;
use std::rc::Rc;
use std::task::Waker;

use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use millpond_messages::graph::{NamesBacking, NodeFacts, Options};
use millpond_messages::io::{CopyFault, Operation, SnapshotRequest};
use millpond_messages::qapi::schema::{
    BitmapSyncMode, BlockdevBackup, BlockdevOnError, IoOperationType, MirrorSyncMode,
};
use millpond_messages::qapi::{JobType, QmpError};
use millpond_messages::saved::SavedOptions;
use millpond_messages::{Error, ErrorKind, OpBlocker, Permissions, Range, Result, RootId, StatusFlags};
use millpond_ring::buffer::Buffers;

use super::chain::Chains;
use super::copy::{self, copy_left};
use super::data::{NodeGates, at_home, cancelled};
use super::holds::{Holds, as_options, refused};
use crate::graph::GraphHandle;
use crate::job::copy::{Copying, Fault, FaultVerdict, Need};
use crate::job::pace::{Gates, Pace};
use crate::job::work::Job;
use crate::node::{Client, HomeClient};

const FILTER: &str = "copy-before-write";

/// The smallest chunk that is copied by itself, in bytes; the filter's are no smaller.
const CHUNK: u64 = 65_536;

/// What is backed up: names of nodes, as they were found before anything was taken.
pub struct BackupPlan {
    graph: GraphHandle,
    id: String,
    node: String,
    size: u64,
    target: String,
    /// Of zeroes that the target shows anyway none need be written: no image below it will ever show through.
    keeps_zeroes: bool,
    sync: MirrorSyncMode,
    on_errors: OnErrors,
    workers: usize,
    piece: u64,
    /// Options of the filter.
    filter: Options,
    /// What a user asked for, to be written down.
    asked: Options,
}

/// What is done about errors of either side.
#[derive(Clone, Copy)]
struct OnErrors {
    source: BlockdevOnError,
    target: BlockdevOnError,
}

impl BackupPlan {
    /// What a user asks for, checked against the graph as it is. Nothing is taken yet.
    ///
    /// # Errors
    /// QEMU's texts.
    pub async fn new(graph: GraphHandle, asked: &BlockdevBackup) -> Result<Self, QmpError> {
        let chains = Chains::new(graph.facts().await?);
        let node = chains.find(&asked.device, &asked.device)?;
        let target = chains.find(&asked.target, &asked.target)?;
        let workers = check_perf(asked)?;
        check_bitmap(asked)?;
        check_nodes(&graph, asked, node, target).await?;
        let names_backing = NamesBacking {
            node_name: target.name.clone(),
        };
        let keeps_zeroes =
            asked.sync == MirrorSyncMode::Full && target.has_zero_init && !graph.ask(names_backing).await?;
        let perf = asked.x_perf.as_ref();
        let most = perf
            .and_then(|perf| perf.max_chunk)
            .and_then(|most| u64::try_from(most).ok());
        Ok(Self {
            graph,
            id: asked.job_id.clone().unwrap_or_default(),
            node: node.name.clone(),
            size: node.size,
            target: target.name.clone(),
            keeps_zeroes,
            sync: asked.sync,
            on_errors: OnErrors {
                source: asked.on_source_error.unwrap_or_default(),
                target: asked.on_target_error.unwrap_or_default(),
            },
            workers,
            piece: most
                .filter(|most| *most > 0)
                .unwrap_or(copy::PIECE)
                .min(copy::PIECE),
            asked: as_options(asked),
            filter: filter_options(asked, node, target),
        })
    }

    /// The job that does it.
    #[must_use]
    pub fn job(self) -> BackupJob {
        let holds = Holds::new(self.graph.clone(), &self.id, "backup");
        BackupJob(Rc::new(Backup {
            plan: self,
            holds,
            filter: RefCell::default(),
            client: RefCell::default(),
            target: RefCell::default(),
        }))
    }
}

/// How many requests may be under way.
fn check_perf(asked: &BlockdevBackup) -> Result<usize, QmpError> {
    let Some(perf) = &asked.x_perf else {
        return Ok(copy::PIECES);
    };
    let workers = match perf.max_workers {
        None => copy::PIECES,
        Some(workers @ 1..=0x7fff_ffff) => usize::try_from(workers).unwrap_or(copy::PIECES).min(64),
        Some(_) => return refused("max-workers must be between 1 and 2147483647"),
    };
    if perf.max_chunk.is_some_and(|most| most < 0) {
        return refused("max-chunk must be zero (which means no limit) or positive");
    }
    Ok(workers)
}

/// No node has bitmaps, so none can be found.
fn check_bitmap(asked: &BlockdevBackup) -> Result<(), QmpError> {
    let name = match asked.sync {
        MirrorSyncMode::Bitmap => Some("bitmap"),
        MirrorSyncMode::Incremental => Some("incremental"),
        _ => None,
    };
    if let (Some(name), None) = (name, &asked.bitmap) {
        return refused(format!("must provide a valid bitmap name for '{name}' sync mode"));
    }
    let is_incremental = asked.sync == MirrorSyncMode::Incremental;
    if is_incremental && !matches!(asked.bitmap_mode, None | Some(BitmapSyncMode::OnSuccess)) {
        return refused("Bitmap sync mode must be 'on-success' when using sync mode 'incremental'");
    }
    match (&asked.bitmap, asked.bitmap_mode) {
        (Some(bitmap), _) => refused(format!("Bitmap '{bitmap}' could not be found")),
        (None, Some(_)) => refused("Cannot specify bitmap sync mode without a bitmap"),
        (None, None) => Ok(()),
    }
}

async fn check_nodes(
    graph: &GraphHandle,
    asked: &BlockdevBackup,
    node: &NodeFacts,
    target: &NodeFacts,
) -> Result<(), QmpError> {
    if node.id == target.id {
        return refused("Source and target cannot be the same");
    }
    if asked.compress == Some(true) && !target.takes_compressed {
        // QEMU names the device here, and a daemon's nodes have none.
        return refused("Compression is not supported for this drive ");
    }
    graph.check_operation(&node.name, OpBlocker::BackupSource).await?;
    graph
        .check_operation(&target.name, OpBlocker::BackupTarget)
        .await?;
    if node.size != target.size {
        return refused("Source and target image have different sizes");
    }
    Ok(())
}

fn filter_options(asked: &BlockdevBackup, node: &NodeFacts, target: &NodeFacts) -> Options {
    let mut options = Options::new();
    let mut put = |name: &str, value: serde_json::Value| options.insert(name.to_owned(), value);
    put("driver", FILTER.into());
    put("file", node.name.clone().into());
    put("target", target.name.clone().into());
    if let Some(name) = &asked.filter_node_name {
        put("node-name", name.clone().into());
    }
    put("compress", asked.compress.unwrap_or(false).into());
    put("discard-source", asked.discard_source.unwrap_or(false).into());
    let perf = asked.x_perf.as_ref();
    if let Some(size) = perf.and_then(|perf| perf.min_cluster_size) {
        put("min-cluster-size", size.into());
    }
    options
}

/// Copies a node as it was.
pub struct BackupJob(Rc<Backup>);

struct Backup {
    plan: BackupPlan,
    holds: Holds,
    /// The filter's name, while it is there.
    filter: RefCell<Option<String>>,
    client: RefCell<Option<Client>>,
    target: RefCell<Option<Client>>,
}

impl Job for BackupJob {
    fn kind(&self) -> JobType {
        JobType::Backup
    }

    fn options(&self) -> SavedOptions {
        SavedOptions::of(&self.0.plan.asked)
    }

    fn roots(&self) -> Vec<RootId> {
        self.0.holds.clients().iter().map(Client::root).collect()
    }

    fn claim(&mut self) -> Option<LocalBoxFuture<'static, Result<(), QmpError>>> {
        let backup = Rc::clone(&self.0);
        Some(async move { Ok(backup.insert_filter().await?) }.boxed_local())
    }

    fn begin(&mut self) -> Option<LocalBoxFuture<'static, Result<(), QmpError>>> {
        let backup = Rc::clone(&self.0);
        Some(async move { Ok(backup.begin().await?) }.boxed_local())
    }

    fn run(&mut self, pace: Pace) -> LocalBoxFuture<'static, Result<()>> {
        let backup = Rc::clone(&self.0);
        async move { backup.run(pace).await }.boxed_local()
    }

    fn settle(&mut self, _: bool) -> Option<LocalBoxFuture<'static, ()>> {
        let backup = Rc::clone(&self.0);
        Some(async move { backup.settle().await }.boxed_local())
    }
}

impl Backup {
    /// Puts the filter over the node: from here on the target has the moment.
    async fn insert_filter(&self) -> Result<()> {
        let Self { plan, holds, .. } = self;
        let options = plan.filter.clone();
        let filter = holds.insert_filter(&plan.node, FILTER, options, true).await?;
        self.filter.replace(filter);
        Ok(())
    }

    async fn begin(&self) -> Result<()> {
        let Self { plan, holds, .. } = self;
        let filter = self.filter.borrow().clone().unwrap_or_default();
        let client = holds.keep_main(&filter).await?;
        let target = holds.keep(&plan.target, Permissions::all()).await?;
        self.client.replace(Some(client));
        self.target.replace(plan.keeps_zeroes.then_some(target));
        Ok(())
    }

    async fn run(&self, pace: Pace) -> Result<()> {
        let gone = || Error::new(ErrorKind::Closed, "The job has not begun");
        let client = self.client.borrow().clone().ok_or_else(gone)?;
        let plan = &self.plan;
        pace.progress(0, i64::try_from(plan.size).unwrap_or(i64::MAX));
        if plan.sync == MirrorSyncMode::None {
            return self.wait(client, pace).await;
        }
        let left = copy::all(plan.size, CHUNK, plan.piece)?;
        copy_left(&client, &pace, plan.workers, left, || {
            let (keeper, pace, clients) = (client.clone(), pace.clone(), self.holds.clients());
            let target = self.target.borrow().clone();
            let (sync, on_errors) = (plan.sync, plan.on_errors);
            move || Data {
                keeper: keeper.here(),
                target: target.map(|target| target.here()),
                gates: NodeGates::new(&clients),
                pace,
                sync,
                on_errors,
            }
        })
        .await
    }

    /// Only what is written is copied, before it is: the job waits for its end.
    async fn wait(&self, client: Client, pace: Pace) -> Result<()> {
        let clients = self.holds.clients();
        let waited = at_home(client, move || async move {
            pace.idle(&NodeGates::new(&clients)).await
        })
        .await?;
        match waited {
            Ok(never) => match never {},
            Err(error) => Err(cancelled(error)),
        }
    }

    async fn settle(&self) {
        self.client.take();
        self.target.take();
        self.holds.release_all().await;
        if let Some(filter) = self.filter.take() {
            self.holds.drop_filter(filter).await;
        }
    }
}

/// The data half of a backup.
struct Data {
    /// The filter: it copies what it is told to.
    keeper: HomeClient,
    /// The target, where zeroes that it shows anyway need not be written.
    target: Option<HomeClient>,
    gates: NodeGates,
    pace: Pace,
    sync: MirrorSyncMode,
    on_errors: OnErrors,
}

impl Data {
    async fn ask(&self, request: SnapshotRequest<Buffers>) -> millpond_messages::io::Outcome<Buffers> {
        self.keeper.request(Operation::Snapshot(request)).await
    }

    /// Of the uppermost layer alone: what it does not have is not copied, by writes neither.
    async fn look_at_top(&self, range: Range) -> Result<(u64, Need), Fault> {
        let status = self.keeper.block_status(range.offset(), range.len(), true, true);
        let status = status.await.map_err(reading)?;
        let is_in_top = status.flags.contains(StatusFlags::ALLOCATED) && status.depth == 1;
        let need = if !is_in_top {
            self.forget(range.first(status.len)).await?;
            Need::Nothing
        } else if status.flags.contains(StatusFlags::ZERO) {
            Need::Zeroes
        } else {
            Need::Data
        };
        Ok((status.len, need))
    }

    /// Has the filter copy nothing of what lies in a range as a whole.
    async fn forget(&self, range: Range) -> Result<(), Fault> {
        let whole = range.end() / CHUNK * CHUNK;
        let range = Range::between(range.offset(), whole);
        let forgotten = self.ask(SnapshotRequest::Discard { range }).await;
        forgotten.into_done().map_err(reading)
    }

    /// How much of the start of a range, which was zeroes then, the target shows as zeroes already, by itself: nobody but
    /// this job writes there, so that it stays so.
    async fn zero_already(&self, range: Range) -> Option<u64> {
        let target = self.target.as_ref()?;
        let status = target.block_status(range.offset(), range.len(), true, false);
        // A target that cannot tell is written.
        let status = status.await.ok()?;
        let is_whole = status.len >= range.len() || status.len >= CHUNK;
        (is_whole && status.flags.contains(StatusFlags::ZERO)).then_some(status.len.min(range.len()))
    }
}

const fn reading(error: millpond_messages::IoError) -> Fault {
    Fault {
        operation: IoOperationType::Read,
        error,
    }
}

impl Gates for Data {
    fn watch(&self, waker: &Waker) -> bool {
        self.gates.watch(waker)
    }
}

impl Copying for Data {
    async fn look(&self, range: Range) -> Result<(u64, Need), Fault> {
        if self.sync == MirrorSyncMode::Top {
            return self.look_at_top(range).await;
        }
        let status = self
            .ask(SnapshotRequest::Status { range })
            .await
            .into_status()
            .map_err(reading)?;
        if !status.flags.contains(StatusFlags::ZERO) {
            return Ok((status.len, Need::Data));
        }
        let zeroes = range.first(status.len);
        match self.zero_already(zeroes).await {
            None => Ok((status.len, Need::Zeroes)),
            Some(len) => {
                self.forget(zeroes.first(len)).await?;
                Ok((len, Need::Nothing))
            }
        }
    }

    async fn copy(&self, piece: Range, _: Need, room: Buffers) -> (Result<(), Fault>, Buffers) {
        let copied = self
            .ask(SnapshotRequest::Copy { range: piece })
            .await
            .into_copied();
        let fault = |fault: CopyFault| Fault {
            operation: match fault {
                CopyFault::Source(_) => IoOperationType::Read,
                CopyFault::Target(_) => IoOperationType::Write,
            },
            error: fault.error(),
        };
        (copied.map_err(fault), room)
    }

    fn begins(&self, piece: Range, need: Need) {
        if need == Need::Data {
            self.pace.moved(piece.len());
        }
    }

    fn needs_room(&self) -> bool {
        false
    }

    fn failed(&self, fault: Fault) -> FaultVerdict {
        let policy = match fault.operation {
            IoOperationType::Read => self.on_errors.source,
            IoOperationType::Write => self.on_errors.target,
        };
        copy::verdict(self.pace.failed(policy, fault.operation, fault.error))
    }

    fn passed(&self, bytes: u64) {
        self.pace.advance(bytes);
    }

    fn skipped(&self, bytes: u64) {
        match self.sync {
            MirrorSyncMode::Top => self.pace.skip(bytes),
            _ => self.pace.advance(bytes),
        }
    }

    fn has_moved(&self) -> bool {
        copy::has_moved(&self.keeper)
    }
}
