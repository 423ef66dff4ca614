//! `blockdev-create`: making an image in a file or in a node.

use messages::global_state::Options;
use messages::{Error, ErrorKind, NodeId, Permissions, Result};
use serde_json::Value;

use super::open::{self, Base};
use super::options;
use super::order::{Address, Order};
use super::transaction::Transaction;
use super::world::World;
use super::{resize, roots};

/// Makes an image. `options` are QAPI's `BlockdevCreateOptions`.
///
/// # Errors
/// There is no such driver or node, the node is in use, or the driver's.
pub async fn blockdev_create(world: &World, options: Options) -> Result<()> {
    let mut transaction = Transaction::new(world);
    let result = create(&mut transaction, options).await;
    // Whatever was opened or held for it ends with it.
    transaction.roll_back().await;
    result
}

async fn create(transaction: &mut Transaction, mut options: Options) -> Result<()> {
    let world = transaction.world.clone();
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
    let kind = world
        .with(|state| state.registry.find(&driver).cloned())
        .ok_or_else(|| {
            let text = format!("Parameter 'driver' does not accept value '{driver}'");
            Error::new(ErrorKind::InvalidArgument, text)
        })?;
    let file = if kind.is_protocol() {
        None
    } else {
        let value = options
            .remove("file")
            .ok_or_else(|| Error::new(ErrorKind::InvalidArgument, "Parameter 'file' is missing"))?;
        Some(hold_file(transaction, value).await?)
    };
    let iothread = file.map_or_else(|| world.with(|state| state.main), |file| file.iothread);
    world
        .ask_iothread(iothread, Order::Create { kind, options, file })
        .done()
        .await
}

/// Takes hold of the node that is to be formatted, so that nobody else relies on what is in it.
async fn hold_file(transaction: &mut Transaction, value: Value) -> Result<Address> {
    let world = transaction.world.clone();
    let node: NodeId = open::resolve(transaction, value, Base::default(), "file").await?;
    let permissions = Permissions::CONSISTENT_READ | Permissions::WRITE | Permissions::RESIZE;
    let request = resize::hold("", "blockdev-create", permissions);
    let root = roots::link_root(transaction, node, &request);
    roots::take(transaction, node, root, permissions, Permissions::all()).await?;
    world
        .with(|state| state.address(node))
        .ok_or_else(|| Error::new(ErrorKind::NotFound, "The node is gone"))
}
