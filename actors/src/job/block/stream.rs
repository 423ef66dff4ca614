//! `block-stream`: what a node has from below is copied up into it, until it needs the images below no more.
//!
//! ```text
//!   node -> middle -> base                      before
//!   copy-on-read -> node -> middle -> base      reads of the filter copy what middle has into the node
//!   node -> base                                after: the node's header names base
//! ```
//! The filter keeps the chain down to the last image from which is copied as it is.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use millpond_messages::graph::{
    BackingName, DropFilter, EditForJob, FindBackingImage, JobEdit, NodeFacts, Options,
};
use millpond_messages::qapi::schema::{BlockStream, BlockdevOnError};
use millpond_messages::qapi::{JobType, QmpError};
use millpond_messages::saved::{SavedOptions, SavedWork};
use millpond_messages::{Error, IoError, OpBlocker, Permissions, Result, RootId};

use super::chain::Chains;
use super::copy::{self, copy_left};
use super::data::{Errors, NodeGates, failed, flush_copied};
use super::holds::{Holds, as_options, by_errno, refused};
use super::outline::{FilterMade, Layers, Outline};
use super::stream_data::CopyUp;
use crate::graph::GraphHandle;
use crate::job::pace::Pace;
use crate::job::work::Job;
use crate::node::Client;

const FILTER: &str = "copy-on-read";

/// What is copied as a whole, in bytes: an image has its data in no smaller parts.
const CHUNK: u64 = 4096;

/// What others may do with images from which is copied: they must stay as they are.
const QUIET: Permissions = Permissions::CONSISTENT_READ.union(Permissions::WRITE_UNCHANGED);

/// What is streamed: names of nodes, as they were found before anything was taken.
pub struct StreamPlan {
    graph: GraphHandle,
    /// The command as it was given.
    asked: Options,
    id: String,
    on_error: BlockdevOnError,
    node: String,
    read_only: bool,
    /// The last image from which is copied.
    bottom: String,
    /// The node that leads to what the image has as its backing node in the end.
    above_base: String,
    /// Where images from which is copied are in the chain, its topmost node being the first: below the first number, and
    /// not below the second.
    sources: (u32, u32),
    /// Nodes that leave the chain, the topmost first.
    leaves: Vec<String>,
    /// What the image stands on in the end.
    base: Option<String>,
    /// The image that has the data in the end: the node, or what it filters.
    image: String,
    named: BackingName,
    filter_name: Option<String>,
}

/// Copies backing data up.
pub struct StreamJob(Rc<Stream>);

struct Stream {
    plan: StreamPlan,
    holds: Holds,
    /// The filter's name, while it is there.
    filter: RefCell<Option<String>>,
    was_read_only: Cell<bool>,
    client: RefCell<Option<Client>>,
    /// The errno of the first error that was passed over, 0 for none.
    passed_over: Arc<AtomicI32>,
}

impl StreamPlan {
    /// Whether there is anything to be copied.
    const fn has_sources(&self) -> bool {
        let (above, bottom) = self.sources;
        above < bottom
    }

    /// What a user asks for, checked against the graph as it is. Nothing is taken yet.
    ///
    /// # Errors
    /// QEMU's texts.
    pub async fn new(graph: GraphHandle, asked: &BlockStream) -> Result<Self, QmpError> {
        let chains = Chains::new(graph.facts().await?);
        plan(&graph, &chains, asked).await
    }

    /// What the job would do.
    pub(in crate::job) fn outline(&self) -> Outline {
        // The job's own filter, which is counted as well, is not there.
        let (above, bottom) = self.sources;
        Outline {
            active: false,
            source: self.node.clone(),
            target: self.image.clone(),
            leaves: self.leaves.clone(),
            overlay: Some(self.image.clone()),
            backing: self.base.clone(),
            reopens: self.read_only.then(|| self.node.clone()).into_iter().collect(),
            grows_to: None,
            layers: Layers::Between(above.saturating_sub(1), bottom.saturating_sub(1)),
            filter: (self.filter_name.clone(), FilterMade::FirstInSteps),
        }
    }

    /// The job that does it.
    #[must_use]
    pub fn job(self) -> StreamJob {
        let holds = Holds::new(self.graph.clone(), &self.id, "stream");
        StreamJob(Rc::new(Stream {
            plan: self,
            holds,
            filter: RefCell::default(),
            was_read_only: Cell::default(),
            client: RefCell::default(),
            passed_over: Arc::default(),
        }))
    }
}

async fn plan(graph: &GraphHandle, chains: &Chains, asked: &BlockStream) -> Result<StreamPlan, QmpError> {
    check_exclusive(asked)?;
    let node = chains.find(&asked.device, &asked.device)?;
    let base = find_base(graph, chains, asked, node).await?;
    let bottom = find_bottom(chains, asked, node)?;
    let end = match bottom {
        Some(bottom) => chains.below(bottom),
        None => base,
    };
    for each in chains.above(node, end.map(|end| end.id)) {
        graph.check_operation(&each.name, OpBlocker::Stream).await?;
    }
    if base.is_none() && asked.backing_file.is_some() {
        return refused("backing file specified, but streaming the entire chain");
    }
    let not_in_chain = || {
        let base = base.map_or("", |base| base.name.as_str());
        QmpError::generic(format!("'{base}' is not in the backing chain of '{}'", node.name))
    };
    let (bottom, above_base) = match bottom {
        Some(bottom) => (bottom, bottom),
        None => {
            let bottom = chains.overlay(node, base).ok_or_else(not_in_chain)?;
            // Between the two there can only be filters.
            let above = chains.above(bottom, base.map(|base| base.id)).last();
            (bottom, above.ok_or_else(not_in_chain)?)
        }
    };
    // The job's own filter will be above all of them.
    let place = |end: &NodeFacts| {
        let end = chains.below(end).map(|below| below.id);
        u32::try_from(chains.above(node, end).count()).map_or(u32::MAX, |place| place.saturating_add(1))
    };
    let image = chains.image(node);
    let end = chains.below(above_base);
    let leaves = chains.above(image, end.map(|end| end.id)).skip(1);
    Ok(StreamPlan {
        graph: graph.clone(),
        asked: as_options(asked),
        id: asked.job_id.clone().unwrap_or_default(),
        on_error: asked.on_error.unwrap_or_default(),
        node: node.name.clone(),
        read_only: node.read_only,
        bottom: bottom.name.clone(),
        above_base: above_base.name.clone(),
        sources: (place(image), place(bottom)),
        leaves: leaves.map(|node| node.name.clone()).collect(),
        base: end.map(|end| end.name.clone()),
        image: image.name.clone(),
        named: BackingName {
            backing_file: asked.backing_file.clone(),
            mask_protocol: asked.backing_mask_protocol.unwrap_or(false),
        },
        filter_name: asked.filter_node_name.clone(),
    })
}

fn check_exclusive(asked: &BlockStream) -> Result<(), QmpError> {
    let given = [
        ("base", asked.base.is_some()),
        ("base-node", asked.base_node.is_some()),
        ("bottom", asked.bottom.is_some()),
    ];
    let pairs = [(0, 1), (0, 2), (2, 1)];
    for (one, other) in pairs.map(|(one, other)| (given[one], given[other])) {
        if one.1 && other.1 {
            let (one, other) = (one.0, other.0);
            return refused(format!(
                "'{one}' and '{other}' cannot be specified at the same time"
            ));
        }
    }
    Ok(())
}

async fn find_base<'a>(
    graph: &GraphHandle,
    chains: &'a Chains,
    asked: &BlockStream,
    node: &NodeFacts,
) -> Result<Option<&'a NodeFacts>, QmpError> {
    if let Some(filename) = &asked.base {
        let found = graph
            .ask(FindBackingImage {
                top: node.name.clone(),
                filename: filename.clone(),
            })
            .await?;
        let found = found.and_then(|found| chains.node(found.id));
        let missing = || QmpError::generic(format!("Can't find '{filename}' in the backing chain"));
        return found.map(Some).ok_or_else(missing);
    }
    let Some(name) = &asked.base_node else {
        return Ok(None);
    };
    let base = chains.find("", name)?;
    if base.id == node.id || !chains.contains(node, base) {
        let text = format!("Node '{name}' is not a backing image of '{}'", asked.device);
        return refused(text);
    }
    Ok(Some(base))
}

fn find_bottom<'a>(
    chains: &'a Chains,
    asked: &BlockStream,
    node: &NodeFacts,
) -> Result<Option<&'a NodeFacts>, QmpError> {
    let Some(name) = &asked.bottom else {
        return Ok(None);
    };
    let bottom = chains.find("", name)?;
    if bottom.is_filter {
        return refused(format!(
            "Node '{name}' is a filter, use a non-filter node as 'bottom'"
        ));
    }
    if !chains.contains(node, bottom) {
        return refused(format!(
            "Node '{name}' is not in a chain starting from '{}'",
            asked.device
        ));
    }
    Ok(Some(bottom))
}

impl Job for StreamJob {
    fn kind(&self) -> JobType {
        JobType::Stream
    }

    fn options(&self) -> SavedOptions {
        SavedOptions::of(&self.0.plan.asked)
    }

    fn saved_work(&self) -> SavedWork {
        let Stream {
            plan,
            filter,
            was_read_only,
            passed_over,
            // These are with the roots.
            holds: _,
            client: _,
        } = &*self.0;
        SavedWork {
            filter: filter.borrow().clone(),
            made_writable: was_read_only.get().then(|| plan.node.clone()),
            passed_over: passed_over.load(Ordering::Acquire),
            ..SavedWork::default()
        }
    }

    fn roots(&self) -> Vec<RootId> {
        self.0.holds.clients().iter().map(Client::root).collect()
    }

    fn claim(&mut self) -> Option<LocalBoxFuture<'static, Result<(), QmpError>>> {
        let stream = Rc::clone(&self.0);
        Some(async move { Ok(stream.claim().await?) }.boxed_local())
    }

    fn begin(&mut self) -> Option<LocalBoxFuture<'static, Result<(), QmpError>>> {
        let stream = Rc::clone(&self.0);
        Some(async move { Ok(stream.begin().await?) }.boxed_local())
    }

    fn run(&mut self, pace: Pace) -> LocalBoxFuture<'static, Result<()>> {
        let stream = Rc::clone(&self.0);
        async move { stream.run(pace).await }.boxed_local()
    }

    fn prepare(&mut self) -> Option<LocalBoxFuture<'static, Result<()>>> {
        let stream = Rc::clone(&self.0);
        Some(async move { stream.rebase().await.map_err(|error| by_errno(&error)) }.boxed_local())
    }

    fn settle(&mut self, _: bool) -> Option<LocalBoxFuture<'static, ()>> {
        let stream = Rc::clone(&self.0);
        Some(async move { stream.settle().await }.boxed_local())
    }
}

impl Stream {
    async fn claim(&self) -> Result<()> {
        let Self { plan, holds, .. } = self;
        let was_read_only = holds.make_writable(&plan.node, plan.read_only).await?;
        self.was_read_only.set(was_read_only);
        let mut options = Options::new();
        options.insert("driver".to_owned(), FILTER.into());
        options.insert("file".to_owned(), plan.node.clone().into());
        options.insert("bottom".to_owned(), plan.bottom.clone().into());
        if let Some(name) = &plan.filter_name {
            options.insert("node-name".to_owned(), name.clone().into());
        }
        let filter = holds.insert_filter(&plan.node, FILTER, options, true).await?;
        self.filter.replace(filter);
        Ok(())
    }

    async fn begin(&self) -> Result<()> {
        let Self { plan, holds, .. } = self;
        let filter = self.filter.borrow().clone().unwrap_or_default();
        let written = QUIET | Permissions::WRITE;
        holds.keep_main(&filter).await?;
        let taken = Permissions::CONSISTENT_READ;
        let client = holds.open(&filter, taken, written).await?;
        self.client.replace(Some(client));
        holds.keep(&plan.node, written).await?;
        let chains = Chains::new(holds.graph.facts().await?);
        let (Some(node), Some(above_base)) = (chains.named(&plan.node), chains.named(&plan.above_base))
        else {
            return Ok(());
        };
        let end = chains.below(above_base).map(|below| below.id);
        for image in chains.above(node, end).skip(1) {
            holds.keep(&image.name, QUIET).await?;
        }
        Ok(())
    }

    async fn run(&self, pace: Pace) -> Result<()> {
        if !self.plan.has_sources() {
            return Ok(());
        }
        let gone = || Error::new(millpond_messages::ErrorKind::Closed, "The job has not begun");
        let client = self.client.borrow().clone().ok_or_else(gone)?;
        let (sources, policy) = (self.plan.sources, self.plan.on_error);
        let size = client.length().await.map_err(failed)?;
        pace.progress(0, i64::try_from(size).unwrap_or(i64::MAX));
        let (piece, pieces) = copy::IN_ORDER;
        let left = copy::all(size, CHUNK, piece)?;
        copy_left(&client, &pace, pieces, left, || {
            let (client, pace, clients) = (client.clone(), pace.clone(), self.holds.clients());
            let passed_over = Arc::clone(&self.passed_over);
            move || CopyUp {
                node: client.here(),
                sources,
                gates: NodeGates::new(&clients),
                errors: Errors { pace, policy },
                passed_over,
            }
        })
        .await?;
        // An image that was not copied whole still needs those below it.
        match self.passed_over.load(Ordering::Acquire) {
            0 => flush_copied(&client, &pace).await,
            errno => Err(failed(IoError::from_errno(errno))),
        }
    }

    /// Gives the image what is below its last source as its backing node.
    async fn rebase(&self) -> Result<()> {
        let Self { plan, holds, .. } = self;
        self.drop_filter().await?;
        let chains = Chains::new(holds.graph.facts().await?);
        let Some(node) = chains.named(&plan.node).map(|node| chains.image(node)) else {
            return Ok(());
        };
        if chains.backing(node).is_none() {
            return Ok(());
        }
        let base = chains
            .named(&plan.above_base)
            .and_then(|above| chains.below(above));
        let base = base.map(|base| base.name.clone());
        let rebased = JobEdit::Rebase {
            node_name: node.name.clone(),
            base,
            named: plan.named.clone(),
        };
        holds.graph.ask(EditForJob(rebased)).await
    }

    /// Takes the filter out, which lets the chain change.
    async fn drop_filter(&self) -> Result<()> {
        let Some(filter) = self.filter.borrow().clone() else {
            return Ok(());
        };
        self.holds
            .graph
            .ask(DropFilter {
                node_name: filter.clone(),
            })
            .await?;
        self.filter.take();
        Ok(())
    }

    async fn settle(&self) {
        let Self { plan, holds, .. } = self;
        self.client.take();
        // Before its users let go: without them it would be closed with its last one.
        if let Err(error) = self.drop_filter().await {
            tracing::warn!(%error, "the filter of a stream stays");
        }
        holds.release_all().await;
        if self.was_read_only.take() {
            holds.make_read_only(&plan.node).await;
        }
    }
}
