//! Snapshots inside images: made, deleted, applied and shown.

use millpond_engine::node::OrderOutcome;
use millpond_messages::graph::{ChangeSnapshots, GraphReply, TakeSnapshot};
use millpond_messages::{
    Error, ErrorKind, InternalSnapshot, IoError, NodeId, OpBlocker, Permissions, Result, SnapshotChange,
    SnapshotName,
};

use crate::change::{backing_link, resize, roots};
use crate::effect::Reply;
use crate::order::NodeTask;
use crate::sections::Cover;
use crate::state::PolicyState;
use crate::transaction::{Change, Transaction, run, snapshots};
use crate::value::graph::Graph;
use crate::value::node::Node;
use crate::value::{chain, forbidden};
use crate::world::World;

/// A change of an image's snapshots. What is held for one that is applied does not last: it ends with the change.
pub struct Snapshots<const LASTS: bool> {
    request: ChangeSnapshots,
    /// The node whose image has the snapshots: below the filters that the request may name.
    node: Option<NodeId>,
    changed: InternalSnapshot,
}

impl<const LASTS: bool> From<ChangeSnapshots> for Snapshots<LASTS> {
    fn from(request: ChangeSnapshots) -> Self {
        Self {
            request,
            node: None,
            changed: InternalSnapshot::default(),
        }
    }
}

impl From<TakeSnapshot> for Snapshots<true> {
    fn from(TakeSnapshot { device, snapshot }: TakeSnapshot) -> Self {
        let change = SnapshotChange::Create(snapshot);
        Self::from(ChangeSnapshots {
            device,
            change,
            any_name: false,
        })
    }
}

fn refused<T>(text: impl Into<String>) -> Result<T> {
    Err(Error::new(ErrorKind::InvalidArgument, text.into()))
}

impl<const LASTS: bool> Change for Snapshots<LASTS> {
    type Answer = InternalSnapshot;

    const LASTS: bool = LASTS;

    fn check(&mut self, state: &PolicyState) -> Result<()> {
        let graph = &state.graph;
        let device = &self.request.device;
        let node = graph.look_up_new(device, device)?;
        let found = chain::keeper_of_snapshots(graph, node.id);
        match &self.request.change {
            SnapshotChange::Create(_) => {
                check_root(graph, node)?;
                forbidden::check(graph, node.id, OpBlocker::InternalSnapshot)?;
                if node.flags.is_read_only() {
                    return refused(format!("Device '{device}' is read only"));
                }
                if found.is_none_or(|found| found.flags.is_read_only()) {
                    let text = format!(
                        "Block format '{}' used by device '{device}' does not support internal snapshots",
                        node.kind.name()
                    );
                    return Err(Error::new(ErrorKind::Unsupported, text));
                }
                check_lists(found)?;
            }
            SnapshotChange::Delete(name) => {
                check_root(graph, node)?;
                if *name == SnapshotName::default() {
                    return refused("Name or id must be provided");
                }
                forbidden::check(graph, node.id, OpBlocker::InternalSnapshotDelete)?;
                check_lists(found)?;
            }
            SnapshotChange::Apply(_) => {
                // Below a filter too: what an image comes to show is written past its bitmaps.
                let tracked = |node: &Node| !node.bitmaps.is_empty();
                if tracked(node) || found.is_some_and(tracked) {
                    return refused("Device has active dirty bitmaps");
                }
                if found.is_none() {
                    let text = "Block driver does not support snapshots";
                    return Err(Error::new(ErrorKind::Unsupported, text));
                }
            }
            SnapshotChange::Show(_) if found.is_none() => {
                let text = format!(
                    "Block format '{}' used by device '' does not support temporarily loading internal snapshots",
                    node.kind.name()
                );
                return Err(Error::new(ErrorKind::Unsupported, text));
            }
            SnapshotChange::Show(_) => {}
        }
        self.node = found.map(|found| found.id);
        Ok(())
    }

    /// The snapshot is of one moment.
    fn cover(&self, _: &Graph) -> Cover {
        Cover::Nodes(self.node.into_iter().collect())
    }

    async fn prepare(&mut self, transaction: &mut Transaction) -> Result<()> {
        let Some(node) = self.node else { return Ok(()) };
        let world = transaction.world.clone();
        let there = snapshots_of(&world, node).await?;
        let device = &self.request.device;
        let applied = match &self.request.change {
            SnapshotChange::Create(new) => {
                if !self.request.any_name {
                    check_name(&there, &new.name, device)?;
                }
                false
            }
            SnapshotChange::Delete(name) => {
                check_there(&there, name, device)?;
                false
            }
            SnapshotChange::Apply(text) => {
                self.may_resize(transaction, node, &there, text).await?;
                true
            }
            SnapshotChange::Show(_) => false,
        };
        let changed = snapshots::ask(&world, node, self.request.change.clone()).await;
        if applied {
            resize::refresh_sizes(&world, node).await;
        }
        self.changed = changed.map_err(|error| self.told(error))?;
        if matches!(self.request.change, SnapshotChange::Create(_)) {
            transaction.snapshot_taken(node, self.changed.id.clone());
        }
        Ok(())
    }

    async fn finish(self, _: &World) -> InternalSnapshot {
        self.changed
    }
}

/// Carries out a change of an image's snapshots.
///
/// # Errors
/// Why it is not possible; nothing has changed then.
pub async fn change(world: &World, request: ChangeSnapshots) -> Reply {
    let user = "snapshot";
    let changed = match request.change {
        SnapshotChange::Apply(_) => run(world, user, Snapshots::<false>::from(request)).await,
        _ => run(world, user, Snapshots::<true>::from(request)).await,
    };
    changed.map(GraphReply::Snapshot)
}

impl<const LASTS: bool> Snapshots<LASTS> {
    /// Takes the permission to change the length of the disk, where it is about to change.
    async fn may_resize(
        &self,
        transaction: &mut Transaction,
        node: NodeId,
        there: &[InternalSnapshot],
        text: &str,
    ) -> Result<()> {
        let fits = |name: SnapshotName| there.iter().find(|snapshot| name.fits(snapshot));
        let found = fits(SnapshotName::with_id(text)).or_else(|| fits(SnapshotName::named(text)));
        let size = transaction
            .world
            .graph(|graph| graph.node(node)?.facts.as_ref().map(|facts| facts.size));
        if found.is_none_or(|found| Some(found.disk_size) == size) {
            return Ok(());
        }
        let hold = roots::hold(&self.request.device, "snapshot", Permissions::RESIZE);
        let root = roots::link_root(transaction, node, &hold);
        roots::take(transaction, node, root, hold.permissions, hold.shared).await
    }

    /// An error as QEMU tells it.
    fn told(&self, error: Error) -> Error {
        let device = &self.request.device;
        let text = match &self.request.change {
            SnapshotChange::Create(new) => {
                format!("Failed to create snapshot '{}' on device '{device}'", new.name)
            }
            SnapshotChange::Apply(_) => "Failed to load snapshot".to_owned(),
            SnapshotChange::Delete(_) | SnapshotChange::Show(_) => return error,
        };
        let reason = IoError::from_errno(error.errno());
        Error::caused_by(error.kind(), format!("{text}: {reason}"), error)
    }
}

/// Refuses a node of whose snapshots there is no list: its format has none, or none beside data in another file.
fn check_lists(node: Option<&Node>) -> Result<()> {
    let facts = node.and_then(|node| node.facts.as_ref());
    match facts {
        Some(facts) if facts.data_file.is_none() => Ok(()),
        _ => Err(Error::io("Failed to get a snapshot list", IoError::NotSupported)),
    }
}

fn check_root(graph: &Graph, node: &Node) -> Result<()> {
    match backing_link::is_root(graph, node.id) {
        true => Ok(()),
        false => refused("Need a root block node"),
    }
}

fn check_name(there: &[InternalSnapshot], name: &str, device: &str) -> Result<()> {
    if name.is_empty() {
        return refused("Name is empty");
    }
    if there.iter().any(|snapshot| snapshot.name == name) {
        return refused(format!(
            "Snapshot with name '{name}' already exists on device '{device}'"
        ));
    }
    Ok(())
}

fn check_there(there: &[InternalSnapshot], name: &SnapshotName, device: &str) -> Result<()> {
    if there.iter().any(|snapshot| name.fits(snapshot)) {
        return Ok(());
    }
    // As C prints what is not there.
    let shown = |text: &Option<String>| text.clone().unwrap_or_else(|| "null".to_owned());
    let text = format!(
        "Snapshot with id '{}' and name '{}' does not exist on device '{device}'",
        shown(&name.id),
        shown(&name.name)
    );
    Err(Error::new(ErrorKind::NotFound, text))
}

async fn snapshots_of(world: &World, node: NodeId) -> Result<Vec<InternalSnapshot>> {
    match world.ask(node, NodeTask::Describe).await {
        OrderOutcome::Described(Ok(description)) => Ok(description.snapshots),
        OrderOutcome::Described(Err(error)) => Err(Error::io("Failed to get a snapshot list", error)),
        OrderOutcome::Done(Err(error)) => Err(error),
        _ => Err(Error::new(ErrorKind::Closed, "The iothread gave no answer")),
    }
}
