//! Temporary overlays: an image is opened read-only below a new one, which takes all writes and goes when it is closed.

use std::sync::Arc;

use millpond_drivers::api::DriverKind;
use millpond_engine::node::OrderOutcome;
use millpond_messages::graph::Options;
use millpond_messages::{Error, ErrorKind, NodeId, OpenFlags, Result, Role};

use crate::open::tree::{self, Inherited};
use crate::open::{backing, options};
use crate::order::{IothreadOrder, Wiring};
use crate::transaction::Transaction;
use crate::value::common::Common;
use crate::world::World;

/// Opens an image and a temporary overlay above it; answers the overlay.
///
/// # Errors
/// An open's, or the overlay's file cannot be made.
pub async fn open_below(
    transaction: &mut Transaction,
    mut options: Options,
    base: Inherited,
) -> Result<NodeId> {
    let read_only = options::take_bool(&mut options, "read-only")?.unwrap_or(base.common.read_only);
    let below = Inherited {
        common: base.common.inherited_from_format(Role::COW),
        ..base
    };
    let image = tree::open_tree(transaction, options, below).await?;
    let overlay = make_overlay(transaction, image, read_only).await?;
    backing::connect(transaction, overlay, image).await?;
    Ok(overlay)
}

async fn make_overlay(transaction: &mut Transaction, image: NodeId, read_only: bool) -> Result<NodeId> {
    let world = transaction.world.clone();
    let size = world.graph(|graph| {
        let facts = graph.expect(image)?.facts.as_ref();
        Ok::<_, Error>(facts.map_or(0, |facts| facts.size))
    })?;
    let format = format(&world)?;
    // What is thrown away need not survive anything.
    let common = Common {
        no_flush: true,
        extra: OpenFlags::TEMPORARY,
        ..Common::default()
    };
    let mut options = Options::new();
    options.insert("driver".to_owned(), "file".into());
    options.insert("filename".to_owned(), new_file(&world).await?.into());
    let base = Inherited {
        common,
        ..Inherited::default()
    };
    let (file, _) = tree::open_one(transaction, options, base).await?;
    let address = world.with(|state| state.address(file));
    let mut create = Options::new();
    create.insert("size".to_owned(), size.into());
    let order = Wiring::Create {
        kind: Arc::clone(&format),
        options: create,
        file: address,
        header: None,
        data_file: None,
    };
    world
        .ask(file, order)
        .done()
        .await
        .map_err(|error| error.within("Could not create temporary overlay"))?;
    let mut options = Options::new();
    options.insert("driver".to_owned(), format.name().into());
    options.insert("backing".to_owned(), serde_json::Value::Null);
    let base = Inherited {
        common: Common { read_only, ..common },
        file: Some(file),
        ..Inherited::default()
    };
    let (overlay, _) = tree::open_one(transaction, options, base).await?;
    Ok(overlay)
}

fn format(world: &World) -> Result<Arc<dyn DriverKind>> {
    world
        .with(|state| state.registry.find("qcow2").cloned())
        .ok_or_else(|| {
            Error::new(
                ErrorKind::Unsupported,
                "A temporary overlay needs the driver 'qcow2'",
            )
        })
}

async fn new_file(world: &World) -> Result<String> {
    let main = world.with(|state| state.main);
    match world.ask_iothread(main, IothreadOrder::NewTemporary).await {
        OrderOutcome::Named(name) => name,
        OrderOutcome::Done(Err(error)) => Err(error),
        _ => Err(Error::new(ErrorKind::Closed, "The iothread gave no answer")),
    }
}
