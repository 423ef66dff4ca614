//! `blockdev-create`: making an image in a file or in a node.

use std::sync::Arc;

use millpond_drivers::api::{ChildKind, DriverKind};
use millpond_messages::graph::{GraphReply, MakeImage, Options};
use millpond_messages::{Error, ErrorKind, NodeId, OpBlocker, Permissions, Result, RootId};
use serde_json::Value;

use crate::change::{delete, roots};
use crate::open::options;
use crate::open::tree::{self, Inherited};
use crate::order::Wiring;
use crate::procedure::Next;
use crate::transaction::{self, Change, Transaction};
use crate::world::World;

/// Makes an image. `options` are QAPI's `BlockdevCreateOptions`.
///
/// What is opened for it is opened, and held, in a mutation; the making itself may take long and goes on in the
/// background; what was held is let go in another mutation.
pub async fn make_image(world: &World, MakeImage(options): MakeImage) -> Next {
    let making = Making { options, job: None };
    let job = match transaction::run(world, "blockdev-create", making).await {
        Ok(Some(job)) => job,
        Ok(None) => return Next::Reply(Ok(GraphReply::Done)),
        Err(error) => return Next::Reply(Err(error)),
    };
    let world = world.clone();
    Next::Background(Box::pin(async move {
        let held = [job.file, job.header, job.data_file];
        let result = make(&world, job).await;
        Next::Mutation(Box::pin(async move {
            for (root, node) in held.into_iter().flatten() {
                roots::forget(&world, root);
                delete::refresh(&world, &[node]).await;
                delete::release(&world, [node]).await;
            }
            Next::Reply(result.map(|()| GraphReply::Done))
        }))
    }))
}

struct Job {
    kind: Arc<dyn DriverKind>,
    options: Options,
    /// The hold on the node to format, and that node.
    file: Option<(RootId, NodeId)>,
    /// The same for the node that the header is to be in, where that is elsewhere.
    header: Option<(RootId, NodeId)>,
    /// The same for the node that the guest's data is to be in, where that is elsewhere.
    data_file: Option<(RootId, NodeId)>,
}

/// An image that is to be made: its node is opened and held first.
struct Making {
    options: Options,
    job: Option<Job>,
}

impl Change for Making {
    type Answer = Option<Job>;

    async fn prepare(&mut self, transaction: &mut Transaction) -> Result<()> {
        let options = std::mem::take(&mut self.options);
        self.job = Some(prepare(transaction, options).await?);
        Ok(())
    }

    async fn finish(self, _: &World) -> Option<Job> {
        self.job
    }
}

async fn prepare(transaction: &mut Transaction, mut options: Options) -> Result<Job> {
    let driver = match options.remove("driver") {
        Some(Value::String(driver)) => driver,
        Some(_) => return Err(options::wrong_type("driver", "BlockdevDriver")),
        None => {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                "Parameter 'driver' is missing",
            ));
        }
    };
    let kind = transaction
        .world
        .with(|state| state.registry.find(&driver).cloned())
        .ok_or_else(|| {
            let text = format!("Parameter 'driver' does not accept value '{driver}'");
            Error::new(ErrorKind::InvalidArgument, text)
        })?;
    let (mut file, mut header, mut data_file) = (None, None, None);
    if kind.creates_detached()
        && let Some(value) = options.remove("header")
    {
        header = Some(hold(transaction, value, "header").await?);
    }
    if !kind.is_protocol() {
        match options.remove("file") {
            Some(value) => file = Some(hold(transaction, value, "file").await?),
            None if kind.creates_detached() => {}
            None => {
                let text = "Parameter 'file' is missing";
                return Err(Error::new(ErrorKind::InvalidArgument, text));
            }
        }
    }
    if kind.children().contains(&ChildKind::DATA_FILE)
        && let Some(value) = options.remove(ChildKind::DATA_FILE.name)
    {
        data_file = Some(hold(transaction, value, ChildKind::DATA_FILE.name).await?);
    }
    Ok(Job {
        kind,
        options,
        file,
        header,
        data_file,
    })
}

/// Takes hold of the node that is to be formatted.
async fn hold(transaction: &mut Transaction, value: Value, name: &str) -> Result<(RootId, NodeId)> {
    let node = tree::resolve(transaction, value, Inherited::default(), name).await?;
    let permissions = Permissions::CONSISTENT_READ | Permissions::WRITE | Permissions::RESIZE;
    let request = roots::hold("", "blockdev-create", permissions);
    let root = roots::link_root(transaction, node, &request);
    roots::take(transaction, node, root, permissions, Permissions::all()).await?;
    transaction.world.graph(|graph| {
        let reason = "block device is in use by block job: create".to_owned();
        let token = graph.add_blocker(reason, Some(root));
        let operations = OpBlocker::ALL.into_iter();
        let operations = operations.filter(|operation| *operation != OpBlocker::Dataplane);
        graph.blockers.block(token, node, operations);
    });
    Ok((root, node))
}

/// The work. It enters the graph at the node itself, so drained sections wait for it, and it waits for them.
async fn make(world: &World, job: Job) -> Result<()> {
    let Job {
        kind,
        options,
        file,
        header,
        data_file,
    } = job;
    let node_of = |held: Option<(RootId, NodeId)>| held.map(|(_, node)| node);
    let (file, header, data_file) = (node_of(file), node_of(header), node_of(data_file));
    let nodes: Vec<NodeId> = [file, header, data_file].into_iter().flatten().collect();
    for node in &nodes {
        world.until(|state| state.begin_internal_io(*node)).await;
    }
    let addresses = world.with(|state| {
        let address = |node: NodeId| state.address(node);
        let are_there = nodes.iter().all(|node| address(*node).is_some());
        are_there.then(|| [file, header, data_file].map(|node| node.and_then(address)))
    });
    let result = match addresses {
        Some([file, header, data_file]) => {
            let order = Wiring::Create {
                kind,
                options,
                file,
                header,
                data_file,
            };
            match nodes.first() {
                Some(node) => world.ask(*node, order).done().await,
                None => {
                    let main = world.with(|state| state.main);
                    world.ask_iothread(main, order).done().await
                }
            }
        }
        None => Err(Error::new(ErrorKind::NotFound, "The node is gone")),
    };
    for node in nodes {
        world.with(|state| state.end_internal_io(node));
    }
    result
}
