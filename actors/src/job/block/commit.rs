//! `block-commit`: images of a chain are merged into one below them, and leave the chain.
//!
//! ```text
//!   overlay -> top -> middle -> base            before
//!   overlay -> commit_top -> top -> middle -> base        data is copied from top and middle to base
//!   overlay -> base                             after: the overlay's header names base
//! ```
//! The filter relies on nothing below it, so base may change while the overlay's users read the same as ever.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use millpond_messages::graph::{BackingName, EditForJob, FindBackingImage, JobEdit, NodeFacts, Options};
use millpond_messages::qapi::schema::{BlockCommit, BlockdevOnError};
use millpond_messages::qapi::{ErrorClass, JobType, QmpError};
use millpond_messages::saved::{SavedOptions, SavedWork};
use millpond_messages::{Error, NodeId, OpBlocker, Permissions, Result, RootId};

use super::chain::{Chains, Merged};
use super::copy::{self, NodeCopy, copy_left};
use super::data::{Errors, NodeGates, failed, flush_copied};
use super::holds::{Holds, as_options, by_errno, refused};
use super::mirror::MirrorPlan;
use super::outline::{FilterMade, Layers, Outline};
use crate::graph::GraphHandle;
use crate::job::copy::Ends;
use crate::job::pace::Pace;
use crate::job::work::Job;
use crate::node::Client;
use millpond_drivers::replica::offload::Offload;

const FILTER: &str = "commit_top";

/// What is copied as a whole, in bytes: an image has its data and zeroes in no smaller parts.
const CHUNK: u64 = 4096;

/// What a base shares with others, and what its writer does.
const QUIET: Permissions = Permissions::CONSISTENT_READ.union(Permissions::WRITE_UNCHANGED);
const WRITES: Permissions = Permissions::CONSISTENT_READ.union(Permissions::WRITE);

/// What is committed: names of nodes, as they were found before anything was taken.
pub struct CommitPlan {
    graph: GraphHandle,
    /// The command as it was given.
    asked: Options,
    id: String,
    on_error: BlockdevOnError,
    device: String,
    top: String,
    base: String,
    base_read_only: bool,
    /// The base is shorter than the top, which is this long.
    grows_to: Option<u64>,
    /// From the top on, all that is above the base.
    merged: Vec<Merged>,
    /// The image that stands on the top.
    overlay: String,
    /// It is not open for writing.
    overlay_read_only: bool,
    /// What is below the last image that is merged: only what is above is copied.
    above: NodeId,
    named: BackingName,
    filter_name: Option<String>,
}

/// Merges images of a chain down.
pub struct CommitJob(Rc<Commit>);

struct Commit {
    plan: CommitPlan,
    holds: Holds,
    /// The filter's name, while it is there.
    filter: RefCell<Option<String>>,
    base_was_read_only: Cell<bool>,
    top: RefCell<Option<Client>>,
    base: RefCell<Option<Client>>,
}

/// How images are merged down.
pub enum Committing {
    /// Nobody writes to them.
    Intermediate(CommitPlan),
    /// They are written meanwhile, so that is followed.
    Active(MirrorPlan),
}

impl Committing {
    /// What the job would do.
    pub(in crate::job) fn outline(&self) -> Outline {
        match self {
            Self::Intermediate(plan) => plan.outline(),
            Self::Active(plan) => plan.outline(),
        }
    }
}

/// What a user asks for, checked against the graph as it is. Nothing is taken yet.
///
/// # Errors
/// QEMU's texts.
pub async fn commit_plan(graph: GraphHandle, asked: &BlockCommit) -> Result<Committing, QmpError> {
    let chains = Chains::new(graph.facts().await?);
    plan(&graph, &chains, asked).await
}

impl CommitPlan {
    /// The job that does it.
    #[must_use]
    pub fn job(self) -> CommitJob {
        let holds = Holds::new(self.graph.clone(), &self.id, "commit");
        CommitJob(Rc::new(Commit {
            plan: self,
            holds,
            filter: RefCell::default(),
            base_was_read_only: Cell::default(),
            top: RefCell::default(),
            base: RefCell::default(),
        }))
    }

    /// What the job would do.
    pub(in crate::job) fn outline(&self) -> Outline {
        let reopened = [
            (&self.base, self.base_read_only),
            (&self.overlay, self.overlay_read_only),
        ];
        let reopened = reopened.into_iter().filter(|(_, is_read_only)| *is_read_only);
        Outline {
            active: false,
            source: self.top.clone(),
            target: self.base.clone(),
            leaves: names(&self.merged),
            overlay: Some(self.overlay.clone()),
            backing: Some(self.base.clone()),
            reopens: reopened.map(|(name, _)| name.clone()).collect(),
            grows_to: self.grows_to,
            layers: Layers::Above(self.above),
            filter: (self.filter_name.clone(), FilterMade::Last),
        }
    }
}

/// The names of nodes that leave the chain.
pub(super) fn names(merged: &[Merged]) -> Vec<String> {
    merged.iter().map(|node| node.name.clone()).collect()
}

async fn plan(graph: &GraphHandle, chains: &Chains, asked: &BlockCommit) -> Result<Committing, QmpError> {
    let device = find_device(chains, &asked.device)?;
    graph
        .check_operation(&device.name, OpBlocker::CommitSource)
        .await?;
    let top = find_top(graph, chains, asked, device).await?;
    let base = find_base(graph, chains, asked, top).await?;
    for node in chains.above(top, chains.below(base).map(|below| below.id)) {
        graph.check_operation(&node.name, OpBlocker::CommitTarget).await?;
    }
    if top.id == base.id {
        return refused("cannot commit an image into itself");
    }
    if is_written(chains, asked, device, top)? {
        let plan = MirrorPlan::merging(graph.clone(), asked, chains, (top, base))?;
        return Ok(Committing::Active(plan));
    }
    let no_overlay = || QmpError::generic(format!("'{}' has no overlay", top.name));
    let overlay = chains.overlay(device, Some(top)).ok_or_else(no_overlay)?;
    graph
        .check_operation(&overlay.name, OpBlocker::CommitTarget)
        .await?;
    let same = || QmpError::generic("Invalid files for merge: top and base are the same");
    if chains.image(top).id == chains.image(base).id {
        return Err(same());
    }
    let last = chains.overlay(top, Some(base)).ok_or_else(same)?;
    let above = chains.backing(last).ok_or_else(same)?.id;
    Ok(Committing::Intermediate(CommitPlan {
        graph: graph.clone(),
        asked: as_options(asked),
        id: asked.job_id.clone().unwrap_or_default(),
        on_error: asked.on_error.unwrap_or_default(),
        device: device.name.clone(),
        top: top.name.clone(),
        base: base.name.clone(),
        base_read_only: base.read_only,
        grows_to: (base.size < top.size).then_some(top.size),
        merged: chains.merged(top, base),
        overlay: overlay.name.clone(),
        overlay_read_only: overlay.read_only,
        above,
        named: BackingName {
            backing_file: asked.backing_file.clone(),
            mask_protocol: asked.backing_mask_protocol.unwrap_or(false),
        },
        filter_name: asked.filter_node_name.clone(),
    }))
}

fn find_device<'a>(chains: &'a Chains, name: &str) -> Result<&'a NodeFacts, QmpError> {
    let device = chains
        .named(name)
        .ok_or_else(|| QmpError::new(ErrorClass::DeviceNotFound, format!("Device '{name}' not found")))?;
    match chains.is_root(device) {
        true => Ok(device),
        false => refused("Need a root block node"),
    }
}

async fn find_top<'a>(
    graph: &GraphHandle,
    chains: &'a Chains,
    asked: &BlockCommit,
    device: &'a NodeFacts,
) -> Result<&'a NodeFacts, QmpError> {
    match (&asked.top_node, &asked.top) {
        (Some(_), Some(_)) => refused("'top-node' and 'top' are mutually exclusive"),
        (Some(name), None) => in_chain(chains, device, name),
        (None, Some(filename)) if *filename == device.filename => Ok(device),
        (None, Some(filename)) => {
            let found = graph
                .ask(FindBackingImage {
                    top: device.name.clone(),
                    filename: filename.clone(),
                })
                .await?;
            let found = found.and_then(|found| chains.node(found.id));
            found.ok_or_else(|| QmpError::generic(format!("Top image file {filename} not found")))
        }
        (None, None) => Ok(device),
    }
}

async fn find_base<'a>(
    graph: &GraphHandle,
    chains: &'a Chains,
    asked: &BlockCommit,
    top: &'a NodeFacts,
) -> Result<&'a NodeFacts, QmpError> {
    match (&asked.base_node, &asked.base) {
        (Some(_), Some(_)) => refused("'base-node' and 'base' are mutually exclusive"),
        (Some(name), None) => in_chain(chains, top, name),
        (None, Some(filename)) => {
            let found = graph
                .ask(FindBackingImage {
                    top: top.name.clone(),
                    filename: filename.clone(),
                })
                .await?;
            let found = found.and_then(|found| chains.node(found.id));
            found.ok_or_else(|| QmpError::generic(format!("Can't find '{filename}' in the backing chain")))
        }
        (None, None) => {
            let base = chains.overlay(top, None);
            base.ok_or_else(|| QmpError::generic("There is no backimg image"))
        }
    }
}

fn in_chain<'a>(chains: &'a Chains, top: &NodeFacts, name: &str) -> Result<&'a NodeFacts, QmpError> {
    let node = chains.find("", name)?;
    match chains.contains(top, node) {
        true => Ok(node),
        false => refused(format!("'{name}' is not in this backing file chain")),
    }
}

/// Whether what is to be committed may be written meanwhile.
fn is_written(
    chains: &Chains,
    asked: &BlockCommit,
    device: &NodeFacts,
    top: &NodeFacts,
) -> Result<bool, QmpError> {
    let is_active = chains.image(top).id == chains.image(device).id;
    if !is_active && !chains.is_written(top) {
        return Ok(false);
    }
    match (&asked.backing_file, is_active) {
        (Some(_), true) => refused("'backing-file' specified, but 'top' is the active layer"),
        (Some(_), false) => refused("'backing-file' specified, but 'top' has a writer on it"),
        (None, _) => Ok(true),
    }
}

impl Job for CommitJob {
    fn kind(&self) -> JobType {
        JobType::Commit
    }

    fn options(&self) -> SavedOptions {
        SavedOptions::of(&self.0.plan.asked)
    }

    fn saved_work(&self) -> SavedWork {
        let Commit {
            plan,
            filter,
            base_was_read_only,
            // These are with the roots.
            holds: _,
            top: _,
            base: _,
        } = &*self.0;
        SavedWork {
            filter: filter.borrow().clone(),
            made_writable: base_was_read_only.get().then(|| plan.base.clone()),
            ..SavedWork::default()
        }
    }

    fn roots(&self) -> Vec<RootId> {
        self.0.holds.clients().iter().map(Client::root).collect()
    }

    fn begin(&mut self) -> Option<LocalBoxFuture<'static, Result<(), QmpError>>> {
        let commit = Rc::clone(&self.0);
        Some(async move { Ok(commit.begin().await?) }.boxed_local())
    }

    fn run(&mut self, pace: Pace) -> LocalBoxFuture<'static, Result<()>> {
        let commit = Rc::clone(&self.0);
        async move { commit.run(pace).await }.boxed_local()
    }

    fn prepare(&mut self) -> Option<LocalBoxFuture<'static, Result<()>>> {
        let commit = Rc::clone(&self.0);
        Some(async move { commit.shorten().await.map_err(|error| by_errno(&error)) }.boxed_local())
    }

    fn settle(&mut self, _: bool) -> Option<LocalBoxFuture<'static, ()>> {
        let commit = Rc::clone(&self.0);
        Some(async move { commit.settle().await }.boxed_local())
    }
}

impl Commit {
    async fn begin(&self) -> Result<()> {
        let Self { plan, holds, .. } = self;
        holds.keep_main(&plan.device).await?;
        let was_read_only = holds.make_writable(&plan.base, plan.base_read_only).await?;
        self.base_was_read_only.set(was_read_only);
        let filter = self.insert_filter().await?;
        for Merged { name, is_over_base } in &plan.merged {
            let mut shared = Permissions::WRITE_UNCHANGED | Permissions::WRITE;
            shared.set(Permissions::CONSISTENT_READ, *is_over_base);
            holds.keep(name, shared).await?;
        }
        holds.freeze(&filter, &plan.base).await?;
        let base = holds.keep(&plan.base, Permissions::all()).await?;
        if let Some(size) = plan.grows_to {
            let root = base.root();
            holds
                .graph
                .ask(EditForJob(JobEdit::ResizeHeld { root, size }))
                .await?;
        }
        let base = holds.open(&plan.base, WRITES, QUIET).await?;
        self.base.replace(Some(base));
        let nothing = Permissions::empty();
        let top = holds.open(&plan.top, nothing, Permissions::all()).await?;
        self.top.replace(Some(top));
        Ok(())
    }

    /// Puts the filter over the top; answers its name.
    async fn insert_filter(&self) -> Result<String> {
        let Self { plan, holds, .. } = self;
        let mut options = Options::new();
        options.insert("driver".to_owned(), FILTER.into());
        options.insert("file".to_owned(), plan.top.clone().into());
        if let Some(name) = &plan.filter_name {
            options.insert("node-name".to_owned(), name.clone().into());
        }
        let filter = holds.insert_filter(&plan.top, FILTER, options, false).await?;
        let name = filter.unwrap_or_default();
        self.filter.replace(Some(name.clone()));
        Ok(name)
    }

    async fn run(&self, pace: Pace) -> Result<()> {
        let gone = || Error::new(millpond_messages::ErrorKind::Closed, "The job has not begun");
        let top = self.top.borrow().clone().ok_or_else(gone)?;
        let base = self.base.borrow().clone().ok_or_else(gone)?;
        let (above, policy) = (self.plan.above, self.plan.on_error);
        let size = top.length().await.map_err(failed)?;
        pace.progress(0, i64::try_from(size).unwrap_or(i64::MAX));
        let (piece, pieces) = copy::IN_ORDER;
        let left = copy::all(size, CHUNK, piece)?;
        copy_left(&top, &pace, pieces, left, || {
            let (top, base, pace, clients) = (top.clone(), base.clone(), pace.clone(), self.holds.clients());
            move || NodeCopy {
                ends: Ends {
                    source: top.here(),
                    target: base.here(),
                    above,
                    offload: Offload::new(true),
                    chunk: CHUNK,
                },
                gates: NodeGates::new(&clients),
                errors: Errors { pace, policy },
            }
        })
        .await?;
        flush_copied(&base, &pace).await
    }

    /// Takes the merged images out of the chain, with the filter above them.
    async fn shorten(&self) -> Result<()> {
        let Self { plan, holds, .. } = self;
        holds.unfreeze();
        // Its user writes no more, so whoever gets the base as its backing node can rely on that.
        if let Some(base) = self.base.take() {
            holds.release(&base).await;
        }
        let Some(filter) = self.filter.borrow().clone() else {
            return Ok(());
        };
        let dropped = JobEdit::DropImages {
            top: filter,
            base: plan.base.clone(),
            named: plan.named.clone(),
        };
        holds.graph.ask(EditForJob(dropped)).await?;
        self.filter.take();
        Ok(())
    }

    async fn settle(&self) {
        let Self { plan, holds, .. } = self;
        self.base.take();
        self.top.take();
        holds.release_all().await;
        if let Some(filter) = self.filter.take() {
            holds.drop_filter(filter).await;
        }
        if self.base_was_read_only.take() {
            holds.make_read_only(&plan.base).await;
        }
    }
}
