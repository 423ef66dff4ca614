//! What a job would do, and how much it would copy, found without anything being taken.

use std::time::Duration;

use millpond_drivers::replica::left::Need;
use millpond_messages::graph::{DescribeImage, DetachRoot, RootRequest, RootUser};
use millpond_messages::qapi::QmpError;
use millpond_messages::qapi::schema::MillpondBlockJobPlan;
use millpond_messages::{BlockStatus, IoError, NodeId, Permissions, Range, RootId, StatusFlags};

use crate::graph::GraphHandle;
use crate::node::Client;

/// How long bytes are counted, and until when a node that is held up must have answered.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a job would do to the graph, as its plan has it.
pub(in crate::job) struct Outline {
    /// It becomes ready, and ends when a user says so.
    pub active: bool,
    /// The node that is read.
    pub source: String,
    /// The node that is written to.
    pub target: String,
    pub leaves: Vec<String>,
    /// What gets another backing node.
    pub overlay: Option<String>,
    /// The name of that backing node.
    pub backing: Option<String>,
    pub reopens: Vec<String>,
    pub grows_to: Option<u64>,
    pub layers: Layers,
    /// The name that a user gave the job's filter, and when that is made.
    pub filter: (Option<String>, FilterMade),
}

/// When a job makes its filter, which is told from the error where it cannot be.
pub(in crate::job) enum FilterMade {
    /// Before its speed is looked at.
    First,
    /// Likewise, and the error names the step.
    FirstInSteps,
    /// After its speed was looked at.
    Last,
}

/// Which layers of the source are copied.
#[derive(Clone, Copy)]
pub(in crate::job) enum Layers {
    All,
    /// Those above a node; their zeroes are copied as zeroes.
    Above(NodeId),
    /// Those below the first place in the chain and not below the second, the topmost node being the first. What is zeroes
    /// there is read as data.
    Between(u32, u32),
}

impl Layers {
    const fn base(self) -> Option<NodeId> {
        match self {
            Self::Above(node) => Some(node),
            Self::All | Self::Between(..) => None,
        }
    }

    fn need(self, status: &BlockStatus) -> Need {
        let flags = status.flags;
        let is_copied = flags.contains(StatusFlags::ALLOCATED)
            && match self {
                Self::All | Self::Above(_) => true,
                Self::Between(above, bottom) => status.depth > above && status.depth <= bottom,
            };
        match is_copied {
            false => Need::Nothing,
            true if flags.contains(StatusFlags::ZERO) => Need::Zeroes,
            true => Need::Data,
        }
    }
}

impl Outline {
    /// The answer to who asks for a plan, with the bytes counted.
    ///
    /// # Errors
    /// A node is gone, or cannot be asked what it has.
    pub async fn survey(self, graph: &GraphHandle) -> Result<MillpondBlockJobPlan, QmpError> {
        let len = match self.layers {
            Layers::Between(above, bottom) if above >= bottom => 0,
            _ => graph.node(&self.source).await?.size,
        };
        let (mut survey, mut lookers) = (Survey::default(), Vec::new());
        let counting = self.count(graph, len, &mut survey, &mut lookers);
        let counted = tokio::time::timeout(PATIENCE, counting).await;
        for looker in lookers {
            looker.leave().await;
        }
        // What was found until then is told.
        counted.unwrap_or(Ok(()))?;
        Ok(MillpondBlockJobPlan {
            active: self.active,
            target: self.target,
            leaves: self.leaves,
            overlay: self.overlay,
            backing: self.backing,
            reopens: self.reopens,
            grows_to: self.grows_to,
            len,
            seen: survey.seen,
            data: survey.data,
            zeroes: survey.zeroes,
            room: survey.room,
        })
    }

    async fn count(
        &self,
        graph: &GraphHandle,
        len: u64,
        survey: &mut Survey,
        lookers: &mut Vec<Looker>,
    ) -> Result<(), QmpError> {
        let source = Looker::at(graph, &self.source, lookers).await?;
        let target = Looker::at(graph, &self.target, lookers).await?;
        let node_name = self.target.clone();
        // A node that has no clusters has no such description.
        let cluster = graph.ask(DescribeImage { node_name }).await;
        survey.cluster = cluster.map_or(1, |info| info.cluster_size).max(1);
        survey.has_room = StatusFlags::DATA;
        // A cluster of zeroes may have its place; a hole in a file has an offset, and no more.
        survey.has_room.set(StatusFlags::OFFSET_VALID, survey.cluster > 1);
        let has = graph.node(&self.target).await?.size;
        let asked = |error: IoError| QmpError::generic(error.to_string());
        while survey.seen < len {
            let (at, left) = (survey.seen, len - survey.seen);
            let status = match self.layers.base() {
                Some(base) => source.block_status_above(at, left, true, base).await,
                None => source.block_status(at, left, true, true).await,
            };
            let status = status.map_err(asked)?;
            let range = match status.len {
                0 => return Err(asked(IoError::Corrupt)),
                bytes => Range::between(at, at.saturating_add(bytes).min(len)),
            };
            match self.layers.need(&status) {
                Need::Nothing => {}
                Need::Zeroes => survey.zeroes = survey.zeroes.saturating_add(range.len()),
                Need::Data => {
                    survey.data = survey.data.saturating_add(range.len());
                    survey.take_room(&target, has, range).await.map_err(asked)?;
                }
            }
            survey.seen = range.end();
        }
        Ok(())
    }
}

/// What was counted so far.
#[derive(Default)]
struct Survey {
    seen: u64,
    data: u64,
    zeroes: u64,
    room: u64,
    /// What says that the target has room for what is written there.
    has_room: StatusFlags,
    /// Bytes that the target gives room to as a whole.
    cluster: u64,
    /// The end of the last cluster for which room was counted.
    roomy_to: u64,
}

impl Survey {
    /// Counts the room for a range that the target has none for yet.
    async fn take_room(&mut self, target: &Client, has: u64, range: Range) -> Result<(), IoError> {
        let mut at = range.offset();
        while at < range.end() {
            let end = range.end();
            if at >= has {
                self.add_room(at, end);
                return Ok(());
            }
            let status = target.block_status(at, end.min(has) - at, true, false).await?;
            if status.len == 0 {
                return Err(IoError::Corrupt);
            }
            let next = at.saturating_add(status.len).min(end);
            if !status.flags.intersects(self.has_room) {
                self.add_room(at, next);
            }
            at = next;
        }
        Ok(())
    }

    fn add_room(&mut self, from: u64, to: u64) {
        let start = (from / self.cluster * self.cluster).max(self.roomy_to);
        let end = to.div_ceil(self.cluster).saturating_mul(self.cluster);
        self.room = self.room.saturating_add(end.saturating_sub(start));
        self.roomy_to = end.max(self.roomy_to);
    }
}

/// Who looks at a node, and takes nothing there: everybody may do with it what they did.
struct Looker {
    graph: GraphHandle,
    /// What is let go of when this is dropped.
    held: Option<RootId>,
}

impl Looker {
    async fn at(graph: &GraphHandle, node: &str, lookers: &mut Vec<Self>) -> Result<Client, QmpError> {
        let user = RootUser::Embedder("plan".to_owned());
        let request = RootRequest::new(node, user, Permissions::empty());
        let (client, graph) = (graph.attach(request).await?, graph.clone());
        let held = Some(client.root());
        lookers.push(Self { graph, held });
        Ok(client)
    }

    /// Lets go of the node. Where the graph is busy, that is not waited for.
    async fn leave(mut self) {
        if let Some(root) = self.held.take() {
            let detached = self.graph.detach(root);
            // A node that has gone is held by nobody.
            let _ = tokio::time::timeout(PATIENCE / 10, detached).await;
        }
    }
}

impl Drop for Looker {
    fn drop(&mut self) {
        if let Some(root) = self.held {
            self.graph.send(DetachRoot(root));
        }
    }
}
