//! What is mirrored, as its user asks for it.

use millpond_messages::graph::{CheckReplace, NodeFacts, Options};
use millpond_messages::qapi::QmpError;
use millpond_messages::qapi::schema::{BlockdevMirror, BlockdevOnError, MirrorCopyMode, MirrorSyncMode};
use millpond_messages::{MirrorMode, NodeId, OpBlocker, OpenFlags};

use super::FILTER;
use crate::graph::GraphHandle;
use crate::job::block::chain::{Chains, Merged};
use crate::job::block::copy;
use crate::job::block::holds::{as_options, refused};
use crate::node::Client;

/// How many pieces are under way at most.
const PIECES: u64 = 16;
/// Bytes that are under way at most where a user says nothing.
const BUFFERS: u64 = 16 << 20;

/// What is mirrored: names of nodes, as they were found before anything was taken.
pub struct MirrorPlan {
    pub(super) graph: GraphHandle,
    /// What a user asked for, to be written down.
    pub(super) asked: Options,
    pub(super) id: String,
    pub(super) node: String,
    pub(super) size: u64,
    pub(super) target: String,
    pub(super) target_size: u64,
    pub(super) target_read_only: bool,
    /// The target is made so long before anything is copied.
    pub(super) grows_to: Option<u64>,
    pub(super) mode: MirrorMode,
    pub(super) manner: Manner,
    /// The node that the target takes the place of, if that is not the source.
    pub(super) replaces: Option<String>,
    /// What the target is to stand on in the end, if that is for the job to say.
    pub(super) backing: Option<String>,
    /// The hold on a target that was opened for the job.
    pub(super) opened: Option<Client>,
    /// Options of the filter.
    pub(super) filter: Options,
    /// The target is below the source: what is above it leaves the chain.
    pub(super) merged: Option<Vec<Merged>>,
}

/// How the data half goes about its work.
#[derive(Clone, Copy)]
pub struct Manner {
    /// Bytes of the source.
    pub size: u64,
    /// Only what layers above this node have is copied at first.
    pub above: Option<NodeId>,
    /// All is copied at first.
    pub copies_all: bool,
    pub on_errors: OnErrors,
    /// How many pieces are under way at most.
    pub pieces: usize,
}

/// What is done about errors of either side.
#[derive(Clone, Copy)]
pub struct OnErrors {
    pub source: BlockdevOnError,
    pub target: BlockdevOnError,
}

impl Manner {
    /// The same of a job that is being finalized: no user can resume that, so what would stop it ends it.
    pub(super) fn unstoppable(self) -> Self {
        let unstoppable = |policy| match policy {
            BlockdevOnError::Ignore => policy,
            _ => BlockdevOnError::Report,
        };
        Self {
            on_errors: OnErrors {
                source: unstoppable(self.on_errors.source),
                target: unstoppable(self.on_errors.target),
            },
            ..self
        }
    }
}

impl MirrorPlan {
    /// What a user asks for, checked against the graph as it is. Nothing is taken yet.
    ///
    /// # Errors
    /// QEMU's texts.
    pub async fn new(graph: GraphHandle, asked: &BlockdevMirror) -> Result<Self, QmpError> {
        let chains = Chains::new(graph.facts().await?);
        plan(graph, &chains, asked).await
    }

    /// The hold on a target that was opened for the job, for whoever finds that there is no job.
    #[must_use]
    pub fn opened(&self) -> Option<Client> {
        self.opened.clone()
    }

    pub(super) const fn manner(&self) -> Manner {
        self.manner
    }
}

/// Checks what a user asks for against the graph as it is.
///
/// # Errors
/// QEMU's texts.
pub async fn plan(
    graph: GraphHandle,
    chains: &Chains,
    asked: &BlockdevMirror,
) -> Result<MirrorPlan, QmpError> {
    let node = chains.find(&asked.device, &asked.device)?;
    if !chains.is_root(node) {
        return refused("Need a root block node");
    }
    let target = chains.find(&asked.target, &asked.target)?;
    let granularity = check_granularity(asked.granularity)?;
    check_operations(&graph, node, target).await?;
    let backing = chains.backing(chains.image(node));
    let replaces = check_replaced(&graph, chains, node, asked.replaces.as_deref()).await?;
    let (copies_all, above) = first(asked.sync, backing)?;
    let (piece, pieces) = under_way(asked.buf_size)?;
    if chains.image(node).id == chains.image(target).id {
        return refused("Can't mirror node into itself");
    }
    Ok(MirrorPlan {
        asked: as_options(asked),
        id: asked.job_id.clone().unwrap_or_default(),
        node: node.name.clone(),
        size: node.size,
        target: target.name.clone(),
        target_size: target.size,
        target_read_only: target.read_only,
        grows_to: None,
        mode: mode(asked.copy_mode),
        manner: Manner {
            size: node.size,
            above,
            copies_all,
            on_errors: OnErrors {
                source: asked.on_source_error.unwrap_or_default(),
                target: asked.on_target_error.unwrap_or_default(),
            },
            pieces,
        },
        replaces,
        backing: None,
        opened: None,
        filter: filter_options(
            &asked.filter_node_name,
            (node, target),
            granularity,
            piece,
            |manner| {
                let unmaps = target.flags.contains(OpenFlags::UNMAP);
                manner.insert("looks-at-target".to_owned(), copies_all.into());
                manner.insert("skips-holes".to_owned(), (copies_all && unmaps).into());
            },
        ),
        merged: None,
        graph,
    })
}

/// What is copied at first: all of it, or what layers above a node have.
fn first(sync: MirrorSyncMode, backing: Option<&NodeFacts>) -> Result<(bool, Option<NodeId>), QmpError> {
    match (sync, backing) {
        (MirrorSyncMode::Incremental, _) => refused("Sync mode 'incremental' not supported"),
        (MirrorSyncMode::Bitmap, _) => refused("Sync mode 'bitmap' not supported"),
        (MirrorSyncMode::Top, Some(backing)) => Ok((false, Some(backing.id))),
        (MirrorSyncMode::Full | MirrorSyncMode::Top, _) => Ok((true, None)),
        (MirrorSyncMode::None, _) => Ok((false, None)),
    }
}

/// The most bytes of one piece, and how many pieces are under way at most.
fn under_way(buf_size: Option<i64>) -> Result<(u64, usize), QmpError> {
    let buffers = match buf_size {
        None | Some(0) => BUFFERS,
        Some(bytes) => u64::try_from(bytes).map_err(|_| QmpError::generic("Invalid parameter 'buf-size'"))?,
    };
    let piece = copy::PIECE.min(buffers);
    let pieces = usize::try_from((buffers / piece).clamp(1, PIECES)).unwrap_or(1);
    Ok((piece, pieces))
}

const fn mode(copy_mode: Option<MirrorCopyMode>) -> MirrorMode {
    match copy_mode {
        Some(MirrorCopyMode::WriteBlocking) => MirrorMode::WriteBlocking,
        Some(MirrorCopyMode::Background) | None => MirrorMode::Background,
    }
}

fn check_granularity(asked: Option<u32>) -> Result<u64, QmpError> {
    match asked {
        None | Some(0) => Ok(0),
        Some(bytes) if !(512..=64 << 20).contains(&bytes) => {
            refused("Parameter 'granularity' expects a value in range [512B, 64MB]")
        }
        Some(bytes) if !bytes.is_power_of_two() => refused("Parameter 'granularity' expects a power of 2"),
        Some(bytes) => Ok(bytes.into()),
    }
}

async fn check_operations(graph: &GraphHandle, node: &NodeFacts, target: &NodeFacts) -> Result<(), QmpError> {
    graph.check_operation(&node.name, OpBlocker::MirrorSource).await?;
    graph
        .check_operation(&target.name, OpBlocker::MirrorTarget)
        .await?;
    Ok(())
}

/// The node that the target is to take the place of, if that is not the source.
///
/// # Errors
/// QEMU's texts: it cannot be.
pub async fn check_replaced(
    graph: &GraphHandle,
    chains: &Chains,
    node: &NodeFacts,
    name: Option<&str>,
) -> Result<Option<String>, QmpError> {
    let Some(name) = name else { return Ok(None) };
    let Some(replaced) = chains.named(name) else {
        return refused(format!("Failed to find node with node-name='{name}'"));
    };
    let asked = CheckReplace {
        parent: node.name.clone(),
        node_name: name.to_owned(),
    };
    graph.ask(asked).await?;
    if replaced.size != node.size {
        return refused("cannot replace image with a mirror image of different size");
    }
    Ok(Some(name.to_owned()))
}

/// Options of the filter over a source, with what `add` says of the manner of the mirror.
pub fn filter_options(
    name: &Option<String>,
    (node, target): (&NodeFacts, &NodeFacts),
    granularity: u64,
    piece: u64,
    add: impl FnOnce(&mut Options),
) -> Options {
    let mut options = Options::new();
    let mut put = |name: &str, value: serde_json::Value| options.insert(name.to_owned(), value);
    put("driver", FILTER.into());
    put("file", node.name.clone().into());
    put("target", target.name.clone().into());
    if let Some(name) = name {
        put("node-name", name.clone().into());
    }
    put("granularity", granularity.into());
    put("piece", piece.into());
    put("unmap", true.into());
    for manner in ["looks-at-target", "skips-holes", "is-commit"] {
        put(manner, false.into());
    }
    add(&mut options);
    options
}
