//! What images name as their backing files, changed by users: `change-backing-file`, and chains from which images are taken
//! out.

use millpond_drivers::api::BackingLink;
use millpond_messages::graph::{BackingName, DropIntermediate, RecordBackingFile, RootUser};
use millpond_messages::{Error, ErrorKind, IoError, NodeId, OpBlocker, Result, Role};

use crate::change::delete;
use crate::change::reopen::{self, Access};
use crate::change::replace::{self, Besides, Moving, Reachable};
use crate::sections::Cover;
use crate::state::PolicyState;
use crate::transaction::{Change, Outcome, Transaction};
use crate::value::edge::Parent;
use crate::value::filename::Filenames;
use crate::value::graph::Graph;
use crate::value::refusal::Refusal;
use crate::value::{chain, forbidden};
use crate::world::World;

/// The user in whose name an image is drained whose header changes.
pub const USER: &str = "change-backing-file";

/// `change-backing-file`: an image, which is in the chain of a device, names another backing file from now on. Its backing node
/// stays.
pub struct Record {
    request: RecordBackingFile,
    found: Option<(NodeId, Option<BackingLink>)>,
    /// The image's node as it was, if it had to be made writable.
    reopened: Vec<Access>,
}

impl From<RecordBackingFile> for Record {
    fn from(request: RecordBackingFile) -> Self {
        Self {
            request,
            found: None,
            reopened: Vec::new(),
        }
    }
}

impl Change for Record {
    type Answer = ();

    fn check(&mut self, state: &PolicyState) -> Result<()> {
        self.found = Some(check(&state.graph, &self.request)?);
        Ok(())
    }

    fn cover(&self, _: &Graph) -> Cover {
        let nodes = self.found.as_ref().map(|(node, _)| vec![*node]);
        Cover::Nodes(nodes.unwrap_or_default())
    }

    async fn prepare(&mut self, transaction: &mut Transaction) -> Result<()> {
        let Some((node, link)) = self.found.take() else {
            return Ok(());
        };
        make_writable(&transaction.world, node, &mut self.reopened).await?;
        let recorded = transaction.record_backing(node, link).await;
        recorded.map_err(|error| {
            let text = format!(
                "Could not change backing file to '{}': {}",
                self.request.backing_file,
                reason(&error)
            );
            Error::caused_by(error.kind(), text, error)
        })
    }

    async fn settle(&mut self, world: &World, _: Outcome) -> Result<()> {
        restore(world, std::mem::take(&mut self.reopened)).await
    }

    async fn finish(self, _: &World) {}
}

/// An image names another backing file from now on, whatever is below it: what a program does that looks after chains itself.
pub struct Store {
    node_name: String,
    link: Option<BackingLink>,
    node: Option<NodeId>,
}

impl Store {
    /// The node's image names this from now on, or nothing.
    pub fn new(node_name: String, link: Option<BackingLink>) -> Self {
        Self {
            node_name,
            link,
            node: None,
        }
    }
}

impl Change for Store {
    type Answer = ();

    fn check(&mut self, state: &PolicyState) -> Result<()> {
        let node = state.graph.find(&self.node_name)?;
        forbidden::check(&state.graph, node.id, OpBlocker::Change)?;
        self.node = Some(node.id);
        Ok(())
    }

    fn cover(&self, _: &Graph) -> Cover {
        Cover::Nodes(self.node.into_iter().collect())
    }

    async fn prepare(&mut self, transaction: &mut Transaction) -> Result<()> {
        let Some(node) = self.node else { return Ok(()) };
        transaction.record_backing(node, self.link.take()).await
    }

    async fn finish(self, _: &World) {}
}

/// An error as its number alone tells it.
fn reason(error: &Error) -> IoError {
    IoError::from_errno(error.errno())
}

/// Whether no node stands on this one, and no job goes on there.
pub fn is_root(graph: &Graph, node: NodeId) -> bool {
    graph.parents_of(node).all(|edge| match edge.parent {
        Parent::Root(root) => graph
            .root(root)
            .is_none_or(|root| !matches!(root.user, RootUser::Job(_))),
        Parent::Node(..) => false,
    })
}

fn check(graph: &Graph, request: &RecordBackingFile) -> Result<(NodeId, Option<BackingLink>)> {
    let RecordBackingFile {
        device,
        image_node_name: image,
        backing_file,
    } = request;
    let invalid = |text: String| Err(Error::new(ErrorKind::InvalidArgument, text));
    let top = graph.look_up(device, device)?;
    if !is_root(graph, top.id) {
        return invalid("Need a root block node".to_owned());
    }
    let node = graph.look_up("", image)?;
    if chain::find_overlay(graph, node.id, None) == Some(node.id) {
        return invalid("not allowing backing file change on an image without a backing file".to_owned());
    }
    forbidden::check(graph, top.id, OpBlocker::Change)?;
    if !chain::contains(graph, top.id, node.id) {
        return invalid(format!("'{device}' and image file are not in the same chain"));
    }
    // The format that is stored is the overlay's own, not that of what it names: so does QEMU.
    let link = (!backing_file.is_empty()).then(|| BackingLink {
        filename: backing_file.clone(),
        format: Some(node.kind.name().to_owned()),
    });
    Ok((node.id, link))
}

/// Reopens a node for writing where it is not open for that, and notes how it was.
async fn make_writable(world: &World, node: NodeId, reopened: &mut Vec<Access>) -> Result<()> {
    if world.graph(|graph| graph.expect(node).map(|node| node.flags.is_read_only()))? {
        reopened.extend(reopen::set_access(world, node, false).await?);
    }
    Ok(())
}

/// Gives up what was needed to write, the last first. All are tried; the first failure is told.
async fn restore(world: &World, reopened: Vec<Access>) -> Result<()> {
    let mut result = Ok(());
    for access in reopened.into_iter().rev() {
        let restored = reopen::restore(world, access).await;
        result = result.and(restored);
    }
    result
}

/// Images that are taken out of a chain: all that has `top` as its child has `base` from then on, and images that had it as
/// their backing file name another, or what opens `base`. What nobody holds any more is closed.
pub struct Shorten {
    request: DropIntermediate,
    /// Where `base` has no format, overlays call it raw.
    mask_protocol: bool,
    found: Option<(NodeId, NodeId)>,
    /// The overlays that had to be made writable, as they were.
    reopened: Vec<Access>,
}

impl From<DropIntermediate> for Shorten {
    fn from(request: DropIntermediate) -> Self {
        Self {
            request,
            mask_protocol: false,
            found: None,
            reopened: Vec::new(),
        }
    }
}

impl Shorten {
    /// The same, with all that can be said about what overlays name.
    pub fn naming(top: String, base: String, named: BackingName) -> Self {
        let BackingName {
            backing_file,
            mask_protocol,
        } = named;
        let request = DropIntermediate {
            top,
            base,
            backing_file,
        };
        Self {
            request,
            mask_protocol,
            found: None,
            reopened: Vec::new(),
        }
    }
}

/// What an image stores that has `base` as its backing image.
///
/// # Errors
/// There is no such node any more.
pub fn link(graph: &Graph, base: NodeId, named: BackingName) -> Result<BackingLink> {
    let base = graph.expect(base)?;
    let opens = || Filenames::of(graph, [base.id]).get(base.id).to_owned();
    let is_masked = named.mask_protocol && base.kind.is_protocol();
    let format = if is_masked { "raw" } else { base.kind.name() };
    Ok(BackingLink {
        filename: named.backing_file.unwrap_or_else(opens),
        format: Some(format.to_owned()),
    })
}

impl Change for Shorten {
    type Answer = ();

    fn check(&mut self, state: &PolicyState) -> Result<()> {
        let graph = &state.graph;
        let (top, base) = (graph.find(&self.request.top)?, graph.find(&self.request.base)?);
        if top.id == base.id || !chain::contains(graph, top.id, base.id) {
            let (base, top) = (base.name.clone(), top.name.clone());
            return Err(Refusal::NotInChain { base, top }.into());
        }
        self.found = Some((top.id, base.id));
        Ok(())
    }

    /// From before the first overlay is made writable to after the last image is closed nothing moves below.
    fn cover(&self, _: &Graph) -> Cover {
        let nodes = self.found.map(|(top, base)| vec![top, base]);
        Cover::Subtree(nodes.unwrap_or_default())
    }

    async fn prepare(&mut self, transaction: &mut Transaction) -> Result<()> {
        let Some((top, base)) = self.found else {
            return Ok(());
        };
        let world = transaction.world.clone();
        let (edges, overlays, link) = world.graph(|graph| {
            let edges = replace::moving(graph, top, base, Reachable::Refuse)?;
            let overlays: Vec<NodeId> = edges.iter().filter_map(|edge| overlay(graph, edge)).collect();
            let named = BackingName {
                backing_file: self.request.backing_file.take(),
                mask_protocol: self.mask_protocol,
            };
            Ok::<_, Error>((edges, overlays, link(graph, base, named)?))
        })?;
        for overlay in &overlays {
            make_writable(&world, *overlay, &mut self.reopened).await?;
        }
        replace::redirect(transaction, top, base, &edges, Besides::Nothing).await?;
        transaction.send_burst().await?;
        for overlay in overlays {
            let recorded = transaction.record_backing(overlay, Some(link.clone())).await;
            recorded.map_err(|error| {
                let text = format!("Could not update backing file link: {}", reason(&error));
                Error::caused_by(error.kind(), text, error)
            })?;
        }
        Ok(())
    }

    async fn settle(&mut self, world: &World, outcome: Outcome) -> Result<()> {
        let dropped = self.found.filter(|_| outcome == Outcome::Committed);
        if let Some((top, base)) = dropped {
            world.graph(|graph| inherit_past(graph, top, base));
        }
        if let Err(error) = restore(world, std::mem::take(&mut self.reopened)).await {
            tracing::warn!(%error, "an overlay stays writable");
        }
        delete::release(world, dropped.map(|(top, _)| top)).await;
        Ok(())
    }

    async fn finish(self, _: &World) {}
}

/// The node that holds this edge, if it is that to a backing node.
fn overlay(graph: &Graph, edge: &Moving) -> Option<NodeId> {
    let (parent, slot) = edge.node()?;
    let edge = graph.edge(graph.node(parent)?.child(slot)?)?;
    let is_overlay = edge.role.contains(Role::COW) && matches!(edge.parent, Parent::Node(..));
    is_overlay.then_some(parent)
}

/// What `base` inherited through `top` it inherits from where `top` does.
fn inherit_past(graph: &mut Graph, top: NodeId, base: NodeId) {
    let mut at = Some(base);
    while let Some(id) = at {
        at = graph.node(id).and_then(|node| node.inherits_from);
        if at == Some(top) {
            let above = graph.node(top).and_then(|node| node.inherits_from);
            if let Some(base) = graph.node_mut(base) {
                base.inherits_from = above;
            }
            return;
        }
    }
}
