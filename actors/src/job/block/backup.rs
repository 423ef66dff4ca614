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
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use millpond_messages::graph::{
    BackupFile, BackupStart, BackupStarted, BackupTarget, BelowBackup, JoinBitmap, Options, StartedBitmap,
};
use millpond_messages::io::{Operation, SnapshotRequest};
use millpond_messages::qapi::schema::{
    BitmapSyncMode, BlockdevBackup, DriveBackup, MirrorSyncMode, NewImageMode,
};
use millpond_messages::qapi::{JobType, QmpError};
use millpond_messages::saved::{SavedOptions, SavedWork};
use millpond_messages::{Error, ErrorKind, MomentLine, Permissions, Result, RootId};

use super::backup_checks::{bitmap_mode, bitmap_of, check_bitmap, check_perf, filter_options};
use super::backup_data::{CHUNK, Data, Moment, OnErrors};
use super::copy::{self, copy_left};
use super::data::{NodeGates, at_home, cancelled, failed, flush_copied};
use super::holds::{Holds, as_options, reason};
use crate::graph::{GraphHandle, unblock_all};
use crate::job::copy::Left;
use crate::job::order::{JobOptions, check_speed};
use crate::job::pace::Pace;
use crate::job::saved::qapi_name;
use crate::job::work::Job;
use crate::node::Client;

/// What the job is called where it stands in the way of others.
const KIND: &str = "backup";

/// What a user asks for, as far as it can be looked at without the graph. The rest is looked at as the backup starts.
pub struct BackupPlan {
    id: String,
    options: JobOptions,
    sync: MirrorSyncMode,
    /// When the bitmap follows what has been copied, if there is one.
    bitmap_mode: Option<BitmapSyncMode>,
    on_errors: OnErrors,
    workers: usize,
    piece: u64,
    /// What is done in the graph.
    start: BackupStart,
    /// What a user asked for, to be written down.
    asked: Options,
}

impl BackupPlan {
    /// What a user asks for. What of it cannot be is told when the backup starts.
    #[must_use]
    pub fn new(asked: &BlockdevBackup) -> Self {
        let workers = check_perf(asked);
        let checked = workers
            .as_ref()
            .map_err(Clone::clone)
            .and_then(|_| check_bitmap(asked));
        let perf = asked.x_perf.as_ref();
        let most = perf
            .and_then(|perf| perf.max_chunk)
            .and_then(|most| u64::try_from(most).ok());
        Self {
            id: asked.job_id.clone().unwrap_or_default(),
            options: JobOptions::asked(asked.speed, asked.auto_finalize, asked.auto_dismiss),
            sync: asked.sync,
            bitmap_mode: bitmap_mode(asked),
            on_errors: OnErrors {
                source: asked.on_source_error.unwrap_or_default(),
                target: asked.on_target_error.unwrap_or_default(),
            },
            workers: workers.unwrap_or(copy::PIECES),
            piece: most
                .filter(|most| *most > 0)
                .unwrap_or(copy::PIECE)
                .min(copy::PIECE),
            start: BackupStart {
                device: asked.device.clone(),
                target: BackupTarget::Node(asked.target.clone()),
                compress: asked.compress.unwrap_or(false),
                filter: filter_options(asked),
                reason: reason(KIND),
                refused: checked.err().map(|error| error.desc),
                bitmap: bitmap_of(asked),
                refused_job: None,
                refused_start: check_speed(asked.speed.unwrap_or(0))
                    .err()
                    .map(|error| error.desc),
            },
            asked: as_options(asked),
        }
    }

    /// The same where the target is a file, which is made or opened as the backup starts.
    #[must_use]
    pub fn to_file(asked: DriveBackup) -> Self {
        let written = as_options(&asked);
        let file = BackupFile {
            filename: asked.target.clone(),
            format: asked.format,
            existing: asked.mode == Some(NewImageMode::Existing),
            below: match asked.sync {
                MirrorSyncMode::Top => BelowBackup::Backing,
                MirrorSyncMode::None => BelowBackup::Source,
                _ => BelowBackup::Nothing,
            },
        };
        let mut plan = Self::new(&BlockdevBackup {
            job_id: asked.job_id,
            device: asked.device,
            sync: asked.sync,
            speed: asked.speed,
            bitmap: asked.bitmap,
            bitmap_mode: asked.bitmap_mode,
            compress: asked.compress,
            on_source_error: asked.on_source_error,
            on_target_error: asked.on_target_error,
            on_cbw_error: asked.on_cbw_error,
            auto_finalize: asked.auto_finalize,
            auto_dismiss: asked.auto_dismiss,
            filter_node_name: asked.filter_node_name,
            discard_source: asked.discard_source,
            x_perf: asked.x_perf,
            target: asked.target,
        });
        plan.start.target = BackupTarget::File(file);
        plan.asked = written;
        plan
    }

    /// The id of the job.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    pub(in crate::job) const fn job_options(&self) -> JobOptions {
        self.options
    }

    /// What is done in the graph, where the job cannot have its id for this reason.
    pub(in crate::job) fn start(&mut self, refused: Option<QmpError>) -> BackupStart {
        self.start.refused_job = refused.map(|error| error.desc);
        self.start.clone()
    }

    /// Takes over what was done in the graph. It fails only where the nodes or the graph have gone meanwhile.
    pub(in crate::job) async fn take_over(
        mut self,
        graph: GraphHandle,
        started: BackupStarted,
    ) -> ReadyBackup {
        if started.lacks_backing {
            self.sync = MirrorSyncMode::Full;
        }
        let holds = Holds::new(graph.clone(), &self.id, KIND);
        let taken = async {
            let filter = holds.keep_main(&started.filter).await?;
            let target = holds.keep(&started.target, Permissions::all()).await?;
            Ok(Clients { filter, target })
        };
        let clients = taken.await;
        graph.send(unblock_all(started.blocker));
        ReadyBackup {
            plan: self,
            size: started.size,
            holds,
            filter: started.filter,
            keeps_zeroes: started.target_is_zero,
            bitmap: started.bitmap,
            clients,
        }
    }
}

/// A backup that has all that it needs.
pub(in crate::job) struct ReadyBackup {
    plan: BackupPlan,
    size: u64,
    holds: Holds,
    filter: String,
    keeps_zeroes: bool,
    bitmap: Option<StartedBitmap>,
    clients: Result<Clients>,
}

/// By which a backup holds both nodes.
struct Clients {
    filter: Client,
    target: Client,
}

impl ReadyBackup {
    /// Why it has not.
    pub fn failed(&self) -> Option<QmpError> {
        let error = self.clients.as_ref().err()?;
        Some(QmpError::generic(error.to_string()))
    }

    /// The job that does it.
    pub fn job(self) -> BackupJob {
        // Of zeroes that the target shows anyway none need be written: no image below it will ever show through.
        let keeps_zeroes = self.plan.sync == MirrorSyncMode::Full && self.keeps_zeroes;
        let (client, target) = match self.clients {
            Ok(Clients { filter, target }) => (Some(filter), Some(target)),
            Err(_) => (None, None),
        };
        BackupJob(Rc::new(Backup {
            plan: self.plan,
            size: self.size,
            holds: self.holds,
            filter: RefCell::new(Some(self.filter)),
            client: RefCell::new(client),
            pace: RefCell::default(),
            target: RefCell::new(target),
            keeps_zeroes,
            bitmap: RefCell::new(self.bitmap),
            line: Arc::default(),
        }))
    }

    /// Takes away what it has, as there will be no job.
    pub async fn give_up(&self) {
        self.holds.release_all().await;
        if let Some(bitmap) = &self.bitmap {
            self.holds.join_bitmap(bitmap.joined()).await;
        }
        self.holds.drop_filter(self.filter.clone()).await;
    }
}

/// Copies a node as it was.
pub struct BackupJob(Rc<Backup>);

struct Backup {
    plan: BackupPlan,
    size: u64,
    holds: Holds,
    /// The filter's name, while it is there.
    filter: RefCell<Option<String>>,
    client: RefCell<Option<Client>>,
    target: RefCell<Option<Client>>,
    pace: RefCell<Option<Pace>>,
    /// Zeroes that the target shows anyway need not be written.
    keeps_zeroes: bool,
    /// The bitmap that has a part in it, until the end.
    bitmap: RefCell<Option<StartedBitmap>>,
    /// The filter says there that it has lost the moment.
    line: Arc<MomentLine>,
}

impl Job for BackupJob {
    fn kind(&self) -> JobType {
        JobType::Backup
    }

    fn options(&self) -> SavedOptions {
        SavedOptions::of(&self.0.plan.asked)
    }

    fn saved_work(&self) -> SavedWork {
        let Backup {
            plan,
            filter,
            keeps_zeroes,
            // These are with the roots, and the size is the node's.
            holds: _,
            client: _,
            target: _,
            size: _,
            // Whether the moment is lost is known to the filter.
            line: _,
            pace: _,
            // That it is split is the graph's to say.
            bitmap: _,
        } = &*self.0;
        SavedWork {
            filter: filter.borrow().clone(),
            sync: Some(qapi_name(&plan.sync)),
            target_was_zero: *keeps_zeroes,
            ..SavedWork::default()
        }
    }

    fn roots(&self) -> Vec<RootId> {
        self.0.holds.clients().iter().map(Client::root).collect()
    }

    fn run(&mut self, pace: Pace) -> LocalBoxFuture<'static, Result<()>> {
        let backup = Rc::clone(&self.0);
        async move { backup.run(pace).await }.boxed_local()
    }

    fn settle(&mut self, succeeded: bool) -> Option<LocalBoxFuture<'static, ()>> {
        let backup = Rc::clone(&self.0);
        Some(async move { backup.settle(succeeded).await }.boxed_local())
    }
}

impl Backup {
    async fn run(&self, pace: Pace) -> Result<()> {
        self.pace.replace(Some(pace.clone()));
        let gone = || Error::new(ErrorKind::Closed, "The job has not begun");
        let client = self.client.borrow().clone().ok_or_else(gone)?;
        let plan = &self.plan;
        let limit = self
            .bitmap
            .borrow_mut()
            .as_mut()
            .and_then(|bitmap| bitmap.limit.take());
        let left = match &limit {
            None => copy::all(self.size, CHUNK, plan.piece)?,
            Some(limit) => copy::some(self.size, CHUNK, plan.piece, limit)?,
        };
        pace.progress(0, i64::try_from(left.bytes()).unwrap_or(i64::MAX));
        let join = SnapshotRequest::Join(Arc::clone(&self.line));
        let joined = client.request(Operation::Snapshot(join)).await;
        joined.into_done().map_err(failed)?;
        if plan.sync == MirrorSyncMode::None {
            return self.wait(client, pace).await;
        }
        let copied = self.copy(&client, &pace, left).await;
        // Of a moment that is lost nothing is worth anything, however its copy went.
        self.line.lost().map_or(copied, |error| Err(failed(error)))?;
        let target = self.target.borrow().clone().ok_or_else(gone)?;
        // What the backup has is durable before anybody is told of its end.
        flush_copied(&target, &pace).await
    }

    /// Copies all that is wanted of what was there then.
    async fn copy(&self, client: &Client, pace: &Pace, left: Left) -> Result<()> {
        let plan = &self.plan;
        copy_left(client, pace, plan.workers, left, || {
            let (keeper, pace, clients) = (client.clone(), pace.clone(), self.holds.clients());
            let target = self.target.borrow().clone().filter(|_| self.keeps_zeroes);
            let (sync, on_errors, line) = (plan.sync, plan.on_errors, Arc::clone(&self.line));
            move || Data {
                keeper: keeper.here(),
                target: target.map(|target| target.here()),
                moment: Moment {
                    gates: NodeGates::new(&clients),
                    line,
                },
                pace,
                sync,
                on_errors,
            }
        })
        .await
    }

    /// Only what is written is copied, before it is: the job waits for its end.
    async fn wait(&self, client: Client, pace: Pace) -> Result<()> {
        let (clients, line) = (self.holds.clients(), Arc::clone(&self.line));
        let lost = Arc::clone(&line);
        let waited = at_home(client, move || async move {
            let gates = NodeGates::new(&clients);
            pace.idle(&Moment { gates, line }).await
        })
        .await?;
        waited.map_err(cancelled)?;
        lost.lost().map_or(Ok(()), |error| Err(failed(error)))
    }

    /// What is dirty at the end: what was, unless it has been copied, and what has been written since.
    fn joined(&self, bitmap: &StartedBitmap, succeeded: bool) -> JoinBitmap {
        let follows = match self.plan.bitmap_mode {
            Some(BitmapSyncMode::OnSuccess) => succeeded,
            Some(BitmapSyncMode::Always) => true,
            Some(BitmapSyncMode::Never) | None => false,
        };
        let left_of = self.filter.borrow().clone().filter(|_| follows && !succeeded);
        JoinBitmap {
            keeps: !follows,
            left_of,
            ..bitmap.joined()
        }
    }

    async fn settle(&self, succeeded: bool) {
        if let Some(bitmap) = self.bitmap.take() {
            // What has been copied is known while the filter is there.
            self.holds.join_bitmap(self.joined(&bitmap, succeeded)).await;
        }
        self.client.take();
        self.target.take();
        let (filter, pace) = (self.filter.take(), self.pace.take());
        self.holds.end(filter, succeeded, pace).await;
    }
}
