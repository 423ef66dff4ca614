//! The start of a backup: a filter over a node, by which a target keeps what the node has now. All that the job needs of the
//! moment is done here, so that it can be one of several changes; the copying is the job's.

use std::cell::RefCell;
use std::rc::Rc;

use millpond_messages::graph::{
    BackupFile, BackupStart, BackupStarted, BackupTarget, BelowBackup, OpenImage, Options, Probing,
    StartedBitmap, Transacted,
};
use millpond_messages::{Error, ErrorKind, NodeId, OpBlocker, OpenFlags, Result};

use crate::change::insert::{self, Inserted};
use crate::change::{new_file, snapshot_sync};
use crate::open::{backing, image};
use crate::order::{BitmapOrder, NodeOrder};
use crate::query::facts;
use crate::sections::Cover;
use crate::state::PolicyState;
use crate::transaction::{Change, Transaction, bitmaps};
use crate::value::bitmap::Wanted;
use crate::value::graph::Graph;
use crate::value::node::Node;
use crate::value::refusal::Refusal;
use crate::value::{chain, forbidden};
use crate::world::World;

/// A filter that is put over a node for a backup.
pub struct Backup {
    request: BackupStart,
    told: Rc<RefCell<Transacted>>,
    node: Option<NodeId>,
    target: Option<NodeId>,
    filter: Option<NodeId>,
}

/// A filter goes with its job.
const INSERTED: Inserted = Inserted {
    owned: false,
    says_step: true,
};

impl Backup {
    /// What is asked for, of which others are told.
    pub const fn new(request: BackupStart, told: Rc<RefCell<Transacted>>) -> Self {
        Self {
            request,
            told,
            node: None,
            target: None,
            filter: None,
        }
    }
}

fn refused<T>(text: impl Into<String>) -> Result<T> {
    Err(Error::new(ErrorKind::InvalidArgument, text.into()))
}

impl Change for Backup {
    type Answer = ();

    fn check(&mut self, state: &PolicyState) -> Result<()> {
        let (graph, device) = (&state.graph, &self.request.device);
        let node = graph.look_up_new(device, device)?;
        self.node = Some(node.id);
        let target = match &self.request.target {
            BackupTarget::Node(name) => graph.look_up_new(name, name)?,
            BackupTarget::File(_) => return forbidden::check(graph, node.id, OpBlocker::BackupSource),
        };
        self.target = Some(target.id);
        self.check_arguments(node)?;
        check_nodes(graph, node, target, self.request.compress)
    }

    async fn ahead(&mut self, transaction: &mut Transaction) -> Result<()> {
        let Some(node) = self.node else { return Ok(()) };
        if let BackupTarget::File(file) = &self.request.target {
            let target = self.open_target(transaction, node, file).await?;
            self.target = Some(target);
        }
        if let Some(target) = self.target
            && self.check_file(&transaction.world, node, target).is_ok()
        {
            let options = self.filter_options(&transaction.world, node, target)?;
            self.filter = Some(insert::open(transaction, options, INSERTED).await?);
        }
        Ok(())
    }

    fn cover(&self, _: &Graph) -> Cover {
        Cover::Nodes(self.node.into_iter().chain(self.filter).collect())
    }

    fn touches(&self, _: &Graph) -> Cover {
        Cover::Nodes(self.node.into_iter().chain(self.target).collect())
    }

    async fn prepare(&mut self, transaction: &mut Transaction) -> Result<()> {
        if let (None, Some(node), BackupTarget::File(file)) = (self.target, self.node, &self.request.target) {
            self.target = Some(self.open_target(transaction, node, file).await?);
        }
        let (Some(node), Some(target)) = (self.node, self.target) else {
            return Ok(());
        };
        self.check_file(&transaction.world, node, target)?;
        let filter = match self.filter {
            Some(filter) => {
                insert::put(transaction, node, filter, INSERTED).await?;
                filter
            }
            None => {
                let options = self.filter_options(&transaction.world, node, target)?;
                insert::insert(transaction, node, options, INSERTED).await?
            }
        };
        if let Some(text) = &self.request.refused_job {
            return refused(text);
        }
        if let Some(text) = &self.request.refused_start {
            self.told.borrow_mut().failed_started = true;
            return refused(text);
        }
        let bitmap = self.split(transaction, node, filter).await?;
        let started = BackupStarted {
            bitmap,
            ..self.block(transaction, filter, target)?
        };
        self.told.borrow_mut().backups.push(started);
        Ok(())
    }

    async fn finish(self, _: &World) {}
}

/// What the target of a node's backup stands on.
fn below(graph: &Graph, node: NodeId, below: BelowBackup) -> Option<NodeId> {
    match below {
        BelowBackup::Nothing => None,
        BelowBackup::Backing => chain::next_image(graph, chain::skip_filters(graph, node)),
        BelowBackup::Source => Some(node),
    }
}

/// Makes the file that a job on a node writes to, unless it is there; answers the format that it is opened with, if that is
/// known. What is told of it is added to `told`.
///
/// # Errors
/// The image's maker's, in the words of QEMU's tools.
async fn make_file(
    world: &World,
    node: NodeId,
    file: &BackupFile,
    told: &mut Vec<String>,
) -> Result<Option<String>> {
    if file.existing {
        return Ok(file.format.clone());
    }
    let (image, format) = world.graph(|graph| {
        let kind = graph.expect(node)?.kind.name();
        let format = file.format.clone().unwrap_or_else(|| kind.to_owned());
        let image = snapshot_sync::beside(graph, node, &file.filename, &format)?;
        let image = match below(graph, node, file.below) {
            Some(base) => snapshot_sync::over(graph, base, image)?,
            None => image,
        };
        Ok::<_, Error>((image, format))
    })?;
    new_file::make(world, &image, told).await?;
    Ok(Some(format))
}

fn check_nodes(graph: &Graph, node: &Node, target: &Node, compress: bool) -> Result<()> {
    if node.id == target.id {
        return refused("Source and target cannot be the same");
    }
    if compress && !facts::takes_compressed(graph, target) {
        // QEMU names the device here, and a daemon's nodes have none.
        return refused("Compression is not supported for this drive ");
    }
    forbidden::check(graph, node.id, OpBlocker::BackupSource)?;
    forbidden::check(graph, target.id, OpBlocker::BackupTarget)?;
    let size = |node: &Node| node.facts.as_ref().map_or(0, |facts| facts.size);
    if size(node) != size(target) {
        return refused("Source and target image have different sizes");
    }
    Ok(())
}

impl Backup {
    fn check_arguments(&self, node: &Node) -> Result<()> {
        if let Some(text) = &self.request.refused {
            return refused(text);
        }
        let Some(asked) = &self.request.bitmap else {
            return Ok(());
        };
        let Some(bitmap) = node.bitmap_named(&asked.name) else {
            return refused(format!("Bitmap '{}' could not be found", asked.name));
        };
        if let Some(text) = &asked.lacks {
            return refused(text);
        }
        bitmap.check(Wanted::Use)?;
        if let Some(text) = &asked.refused {
            return refused(text);
        }
        match asked.changes {
            true => Ok(bitmap.check(Wanted::Change)?),
            false => Ok(()),
        }
    }

    /// Keeps the bitmap apart from what is written from now on, and the filter to what is dirty by it. The node is still.
    async fn split(
        &self,
        transaction: &mut Transaction,
        node: NodeId,
        filter: NodeId,
    ) -> Result<Option<StartedBitmap>> {
        let Some(asked) = &self.request.bitmap else {
            return Ok(None);
        };
        let world = transaction.world.clone();
        let found = world.graph(|graph| {
            graph
                .node(node)?
                .bitmap_named(&asked.name)
                .map(|bitmap| bitmap.id)
        });
        // It was there before, and the node is still.
        let bitmap = found.ok_or_else(|| Refusal::NoBitmap(asked.name.clone()))?;
        transaction.split_bitmap(node, bitmap).await?;
        let mut limit = None;
        if asked.limits {
            let bits = bitmaps::ask(&world, node, bitmap, BitmapOrder::Copy)
                .bits()
                .await?;
            world
                .ask(filter, NodeOrder::LimitMoment(bits.clone()))
                .done()
                .await?;
            limit = Some(bits);
        }
        Ok(Some(StartedBitmap { node, bitmap, limit }))
    }

    /// Of a target that is made here the rest is looked at once it is there.
    fn check_file(&self, world: &World, node: NodeId, target: NodeId) -> Result<()> {
        if matches!(self.request.target, BackupTarget::Node(_)) {
            return Ok(());
        }
        world.graph(|graph| {
            let (node, target) = (graph.expect(node)?, graph.expect(target)?);
            self.check_arguments(node)?;
            check_nodes(graph, node, target, self.request.compress)
        })
    }

    /// Makes the target's file, unless it is there, and opens it with the node's flags.
    async fn open_target(
        &self,
        transaction: &mut Transaction,
        node: NodeId,
        file: &BackupFile,
    ) -> Result<NodeId> {
        let world = transaction.world.clone();
        let mut told = Vec::new();
        let made = make_file(&world, node, file, &mut told).await;
        self.told.borrow_mut().told.extend(told);
        let format = made?;
        let mut options = Options::new();
        if let Some(format) = &format {
            options.insert("driver".to_owned(), format.clone().into());
        }
        options.insert("discard".to_owned(), "unmap".into());
        options.insert("detect-zeroes".to_owned(), "unmap".into());
        let flags = world.graph(|graph| graph.expect(node).map(|node| node.flags))?;
        let unwanted = OpenFlags::SNAPSHOT | OpenFlags::COPY_ON_READ | OpenFlags::PROTOCOL;
        let stands_on_source = file.below == BelowBackup::Source;
        let mut flags = (flags - unwanted) | OpenFlags::RDWR;
        flags.set(OpenFlags::NO_BACKING, stands_on_source);
        let target = OpenImage {
            filename: Some(file.filename.clone()),
            options,
            flags,
            // A format that nobody has said is found out, as QEMU does.
            probing: Probing::Always,
            ..OpenImage::default()
        };
        let target = image::open_node(transaction, target).await?;
        if stands_on_source {
            backing::connect(transaction, target, node).await?;
        }
        Ok(target)
    }

    fn lacks_backing(&self, graph: &Graph) -> bool {
        let wants_backing = match &self.request.target {
            BackupTarget::Node(_) => false,
            BackupTarget::File(file) => file.below == BelowBackup::Backing,
        };
        let node = self.node.filter(|_| wants_backing);
        node.is_some_and(|node| below(graph, node, BelowBackup::Backing).is_none())
    }

    fn filter_options(&self, world: &World, node: NodeId, target: NodeId) -> Result<Options> {
        let name = |node| world.graph(|graph| graph.expect(node).map(|node| node.name.clone()));
        let mut options = self.request.filter.clone();
        options.insert("file".to_owned(), name(node)?.into());
        options.insert("target".to_owned(), name(target)?.into());
        Ok(options)
    }

    /// Keeps others from both nodes, until the job does that.
    fn block(&self, transaction: &mut Transaction, filter: NodeId, target: NodeId) -> Result<BackupStarted> {
        let (started, token) = transaction.world.graph(|graph| {
            let size = |node: &Node| node.facts.as_ref().map_or(0, |facts| facts.size);
            let blocker = graph.add_blocker(self.request.reason.clone(), None);
            let to = graph.expect(target)?;
            let names_backing = to.facts.as_ref().is_some_and(|facts| facts.backing.is_some());
            let started = BackupStarted {
                filter: graph.expect(filter)?.name.clone(),
                target: to.name.clone(),
                target_is_zero: facts::has_zero_init(graph, to) && !names_backing,
                size: size(graph.expect(filter)?),
                lacks_backing: self.lacks_backing(graph),
                blocker,
                bitmap: None,
            };
            Ok::<_, Error>((started, blocker))
        })?;
        let kinds = OpBlocker::ALL.into_iter();
        let of_main = kinds.filter(|kind| *kind != OpBlocker::Dataplane);
        transaction.block(filter, token, of_main);
        transaction.block(target, token, OpBlocker::ALL);
        Ok(started)
    }
}
