//! `blockdev-snapshot-sync`: an overlay is made, opened with its node's flags, and put on top of the node.

use std::cell::RefCell;
use std::rc::Rc;

use millpond_messages::graph::{OpenImage, Options, Probing, Transacted};
use millpond_messages::{Error, ErrorKind, NodeId, OpBlocker, OpenFlags, Result, graph};

use crate::change::{delete, new_file, snapshot};
use crate::new_image::NewImage;
use crate::open::image;
use crate::sections::Cover;
use crate::state::PolicyState;
use crate::transaction::{Change, Transaction};
use crate::value::filename::Filenames;
use crate::value::forbidden;
use crate::value::graph::Graph;
use crate::world::World;

/// An overlay that is made for a node, and put on top of it.
pub struct SnapshotSync {
    request: graph::SnapshotSync,
    told: Rc<RefCell<Transacted>>,
    node: Option<NodeId>,
    overlay: Option<NodeId>,
}

impl SnapshotSync {
    /// The same, of which others are told.
    pub fn new(request: graph::SnapshotSync, told: Rc<RefCell<Transacted>>) -> Self {
        Self {
            request,
            told,
            node: None,
            overlay: None,
        }
    }
}

impl From<graph::SnapshotSync> for SnapshotSync {
    fn from(request: graph::SnapshotSync) -> Self {
        Self::new(request, Rc::default())
    }
}

impl Change for SnapshotSync {
    type Answer = ();

    fn check(&mut self, state: &PolicyState) -> Result<()> {
        let request = &self.request;
        let device = request.device.as_deref().unwrap_or_default();
        let name = request.node_name.as_deref().unwrap_or_default();
        let node = state.graph.look_up_new(device, name)?.id;
        forbidden::check(&state.graph, node, OpBlocker::ExternalSnapshot)?;
        if self.overlay.is_none() {
            check_name(&state.graph, request)?;
        }
        self.node = Some(node);
        Ok(())
    }

    async fn ahead(&mut self, transaction: &mut Transaction) -> Result<()> {
        let Some(node) = self.node else { return Ok(()) };
        let overlay = self.make(transaction, node).await?;
        self.overlay = Some(overlay);
        let found = fit(transaction, node, overlay)?;
        snapshot::bring_ready(transaction, found).await
    }

    fn flushed(&self) -> Option<NodeId> {
        self.node
    }

    fn cover(&self, _: &Graph) -> Cover {
        Cover::Nodes(self.node.into_iter().chain(self.overlay).collect())
    }

    async fn prepare(&mut self, transaction: &mut Transaction) -> Result<()> {
        let Some(node) = self.node else { return Ok(()) };
        let overlay = match self.overlay {
            Some(overlay) => overlay,
            None => {
                let overlay = self.make(transaction, node).await?;
                self.overlay = Some(overlay);
                transaction.drain([overlay], snapshot::USER).await;
                overlay
            }
        };
        let found = fit(transaction, node, overlay)?;
        snapshot::put_over(transaction, found).await
    }

    async fn finish(self, world: &World) {
        if let Some(node) = self.node {
            snapshot::settle_below(world, node).await;
        }
        // It belongs to whoever uses the node, and is closed where nobody does.
        delete::release(world, self.overlay).await;
    }
}

/// A node and an overlay that was made for it.
fn fit(transaction: &Transaction, node: NodeId, overlay: NodeId) -> Result<snapshot::NodeAndOverlay> {
    transaction.world.graph(|graph| {
        let (node, overlay) = (graph.expect(node)?, graph.expect(overlay)?);
        snapshot::check_overlay(graph, node, overlay)
    })
}

fn check_name(graph: &Graph, request: &graph::SnapshotSync) -> Result<()> {
    let refuse = |text: &'static str| Err(Error::new(ErrorKind::InvalidArgument, text));
    match &request.snapshot_node_name {
        None if request.node_name.is_some() => refuse("New overlay node-name missing"),
        Some(name) if graph.has_name(name) => refuse("New overlay node-name already in use"),
        _ => Ok(()),
    }
}

impl SnapshotSync {
    /// Makes the overlay's file, unless it is there, and opens it.
    async fn make(&self, transaction: &mut Transaction, node: NodeId) -> Result<NodeId> {
        let world = transaction.world.clone();
        let request = &self.request;
        if !request.existing {
            let image = world.graph(|graph| {
                let image = beside(graph, node, &request.snapshot_file, &request.format)?;
                over(graph, node, image)
            })?;
            let mut told = Vec::new();
            let made = new_file::make(&world, &image, &mut told).await;
            self.told.borrow_mut().told.extend(told);
            made?;
        }
        let mut options = Options::new();
        options.insert("driver".to_owned(), request.format.clone().into());
        if let Some(name) = &request.snapshot_node_name {
            options.insert("node-name".to_owned(), name.clone().into());
        }
        let flags = world.graph(|graph| graph.expect(node).map(|node| node.flags))?;
        let unwanted = OpenFlags::SNAPSHOT | OpenFlags::COPY_ON_READ | OpenFlags::PROTOCOL;
        let overlay = OpenImage {
            filename: Some(request.snapshot_file.clone()),
            options,
            flags: (flags - unwanted) | OpenFlags::NO_BACKING,
            probing: Probing::Off,
            ..OpenImage::default()
        };
        image::open_node(transaction, overlay).await
    }
}

/// An image that shows a node's image where it has nothing of its own.
///
/// # Errors
/// The node is gone.
pub fn over(graph: &Graph, base: NodeId, image: NewImage) -> Result<NewImage> {
    let names = Filenames::of(graph, [base]);
    Ok(NewImage {
        base: Some(names.get(base).to_owned()),
        base_format: Some(graph.expect(base)?.kind.name().to_owned()),
        ..image
    })
}

/// A new image that is as long as a node's.
///
/// # Errors
/// The node is gone.
pub fn beside(graph: &Graph, node: NodeId, filename: &str, format: &str) -> Result<NewImage> {
    let facts = graph.expect(node)?.facts.as_ref();
    Ok(NewImage {
        filename: filename.to_owned(),
        format: format.to_owned(),
        size: Some(facts.map_or(0, |facts| facts.size)),
        flags: OpenFlags::NO_BACKING,
        ..NewImage::default()
    })
}
