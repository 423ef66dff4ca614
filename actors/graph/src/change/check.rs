//! Checks of images, and repairs.

use millpond_engine::node::OrderOutcome;
use millpond_messages::graph::{CheckImage, GraphReply};
use millpond_messages::{
    CheckResult, Error, ErrorKind, NodeId, OpBlocker, Permissions, Repair, Result, RootId, Token,
};

use crate::change::{delete, roots};
use crate::order::NodeTask;
use crate::procedure::Next;
use crate::sections::Cover;
use crate::transaction::{self, Change, Transaction};
use crate::world::World;

/// What a check holds while it goes on.
struct Hold {
    node: NodeId,
    root: RootId,
    /// Nobody changes the metadata that is looked at: requests to the node wait.
    section: Token,
}

/// Checks an image's metadata, and mends what is to be mended. Requests to the node wait until that is done; other
/// mutations of the graph do not, unless they are about the same node.
pub async fn check(world: &World, request: CheckImage) -> Next {
    let CheckImage { node_name, repair } = request;
    let node = match world.graph(|graph| graph.look_up("", &node_name).map(|node| node.id)) {
        Ok(node) => node,
        Err(error) => return Next::Reply(Err(error)),
    };
    let section = world.drain(Cover::Nodes(vec![node]), "check").await;
    let holding = Holding {
        node,
        repair,
        root: RootId(0),
    };
    let root = match transaction::run(world, "check", holding).await {
        Ok(root) => root,
        Err(error) => {
            world.undrain(section);
            return Next::Reply(Err(error));
        }
    };
    let hold = Hold { node, root, section };
    let world = world.clone();
    Next::Background(Box::pin(async move {
        let result = carry_out(&world, node, repair).await;
        Next::Mutation(Box::pin(async move {
            let_go(&world, &hold).await;
            Next::Reply(result.map(GraphReply::Checked))
        }))
    }))
}

/// What a check takes before it begins.
struct Holding {
    node: NodeId,
    repair: Repair,
    root: RootId,
}

impl Change for Holding {
    type Answer = RootId;

    async fn prepare(&mut self, transaction: &mut Transaction) -> Result<()> {
        self.root = hold(transaction, self.node, self.repair).await?;
        Ok(())
    }

    async fn finish(self, _: &World) -> RootId {
        self.root
    }
}

async fn hold(transaction: &mut Transaction, node: NodeId, repair: Repair) -> Result<RootId> {
    let mut permissions = Permissions::CONSISTENT_READ;
    if repair.is_wanted() {
        permissions |= Permissions::WRITE | Permissions::RESIZE;
    }
    let request = roots::hold("", "check", permissions);
    let root = roots::link_root(transaction, node, &request);
    roots::take(transaction, node, root, permissions, request.shared).await?;
    transaction.world.graph(|graph| {
        let reason = "block device is being checked".to_owned();
        let token = graph.add_blocker(reason, Some(root));
        let operations = OpBlocker::ALL.into_iter();
        let operations = operations.filter(|operation| *operation != OpBlocker::Dataplane);
        graph.blockers.block(token, node, operations);
    });
    Ok(root)
}

async fn carry_out(world: &World, node: NodeId, repair: Repair) -> Result<CheckResult> {
    match world.ask(node, NodeTask::Check { repair }).await {
        OrderOutcome::Checked(result) => result,
        OrderOutcome::Done(Err(error)) => Err(error),
        _ => Err(Error::new(ErrorKind::Closed, "The iothread gave no answer")),
    }
}

async fn let_go(world: &World, hold: &Hold) {
    roots::forget(world, hold.root);
    delete::refresh(world, &[hold.node]).await;
    world.undrain(hold.section);
    delete::release(world, [hold.node]).await;
}
