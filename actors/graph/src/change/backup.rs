//! The start of a backup: a filter over a node, by which a target keeps what the node has now. All that the job needs of the
//! moment is done here, so that it can be one of several changes; the copying is the job's.

use std::cell::RefCell;
use std::rc::Rc;

use millpond_messages::graph::{BackupStart, BackupStarted, BackupTarget, Transacted};
use millpond_messages::{Error, ErrorKind, NodeId, OpBlocker, Result};

use crate::change::insert::{Inserted, insert};
use crate::query::facts;
use crate::sections::Cover;
use crate::state::PolicyState;
use crate::transaction::{Change, Transaction};
use crate::value::forbidden;
use crate::value::graph::Graph;
use crate::value::node::Node;
use crate::world::World;

/// A filter that is put over a node for a backup.
pub struct Backup {
    request: BackupStart,
    told: Rc<RefCell<Transacted>>,
    node: Option<NodeId>,
    target: Option<NodeId>,
}

impl Backup {
    /// What is asked for, of which others are told.
    pub const fn new(request: BackupStart, told: Rc<RefCell<Transacted>>) -> Self {
        Self {
            request,
            told,
            node: None,
            target: None,
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
        let BackupTarget::Node(name) = &self.request.target;
        let target = graph.look_up_new(name, name)?;
        self.target = Some(target.id);
        if let Some(text) = &self.request.refused {
            return refused(text);
        }
        check_nodes(graph, node, target, self.request.compress)
    }

    fn cover(&self, _: &Graph) -> Cover {
        Cover::Nodes(self.node.into_iter().collect())
    }

    async fn prepare(&mut self, transaction: &mut Transaction) -> Result<()> {
        let (Some(node), Some(target)) = (self.node, self.target) else {
            return Ok(());
        };
        let filter = self.put_filter(transaction, node, target).await?;
        if let Some(text) = &self.request.refused_job {
            return refused(text);
        }
        if let Some(text) = &self.request.refused_start {
            self.told.borrow_mut().failed_started = true;
            return refused(text);
        }
        let started = self.block(transaction, filter, target)?;
        self.told.borrow_mut().backups.push(started);
        Ok(())
    }

    async fn finish(self, _: &World) {}
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
    async fn put_filter(
        &self,
        transaction: &mut Transaction,
        node: NodeId,
        target: NodeId,
    ) -> Result<NodeId> {
        let name = |node| {
            let world = &transaction.world;
            world.graph(|graph| graph.expect(node).map(|node| node.name.clone()))
        };
        let mut options = self.request.filter.clone();
        options.insert("file".to_owned(), name(node)?.into());
        options.insert("target".to_owned(), name(target)?.into());
        let inserted = Inserted {
            owned: false,
            says_step: true,
        };
        insert(transaction, node, options, inserted).await
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
                blocker,
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
