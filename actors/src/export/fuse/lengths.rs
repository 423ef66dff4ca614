//! Changes of an export's length: one owner, on the control thread, makes them for all iothreads that serve the export, one
//! after the other.

use futures_channel::{mpsc, oneshot};
use futures_util::StreamExt;
use futures_util::future::{Either, select};
use millpond_drivers::api::unless_withdrawn;
use millpond_engine::node::Client;
use millpond_messages::graph::SetRootPermissions;
use millpond_messages::io::{Operation, Preallocation};
use millpond_messages::{IoError, Permissions, RequestFlags};
use rustix::io::Errno;
use std::pin::pin;

use super::reply::{code, told};
use crate::graph::GraphHandle;

/// What a request wants of the length.
#[derive(Clone, Copy, Debug)]
pub(super) enum Change {
    /// To be exactly this.
    Set(u64),
    /// To be this at least.
    Reach(u64),
    /// To have space for a range, which begins behind the end.
    Allocate { offset: u64, end: u64 },
}

/// A change that somebody waits for.
#[derive(Debug)]
pub(super) struct Order {
    change: Change,
    made: Asker,
}

/// Who waits for a change, or has given up.
type Asker = oneshot::Sender<Result<(), Errno>>;

/// The way to the owner. No more orders wait there than the kernel has requests under way.
#[derive(Clone, Debug)]
pub(super) struct Lengths(mpsc::UnboundedSender<Order>);

impl Lengths {
    /// A way, and where its orders come out.
    pub(super) fn new() -> (Self, mpsc::UnboundedReceiver<Order>) {
        let (orders, ordered) = mpsc::unbounded();
        (Self(orders), ordered)
    }

    /// Has a change made. Where its request is withdrawn, it ends early if it only waits.
    pub(super) async fn change(&self, change: Change) -> Result<(), Errno> {
        let (made, answer) = oneshot::channel();
        // Where the owner has gone, the answer has too.
        let _gone = self.0.unbounded_send(Order { change, made });
        match unless_withdrawn(answer).await {
            Ok(made) => made.unwrap_or(Err(Errno::IO)),
            Err(withdrawn) => Err(told(withdrawn)),
        }
    }
}

/// Who changes the length.
pub(super) struct Owner {
    pub(super) client: Client,
    pub(super) graph: GraphHandle,
}

impl Owner {
    /// Carries orders out until nobody can give any more.
    pub(super) async fn serve(self, mut orders: mpsc::UnboundedReceiver<Order>) {
        while let Some(Order { change, mut made }) = orders.next().await {
            let done = self.make(change, &mut made).await;
            // Whoever has asked may have gone with its iothread.
            let _ = made.send(done);
        }
    }

    async fn make(&self, change: Change, asker: &mut Asker) -> Result<(), Errno> {
        match change {
            Change::Set(size) => self.truncate(size, Preallocation::Off, asker).await,
            // Another write may have been as long.
            Change::Reach(end) if self.length().await? >= end => Ok(()),
            Change::Reach(end) => self.truncate(end, Preallocation::Off, asker).await,
            Change::Allocate { offset, end } => {
                let length = self.length().await?;
                if offset < length {
                    return Err(Errno::OPNOTSUPP);
                }
                if offset > length {
                    self.truncate(offset, Preallocation::Off, asker).await?;
                }
                self.truncate(end, Preallocation::Falloc, asker).await
            }
        }
    }

    async fn length(&self) -> Result<u64, Errno> {
        self.client.length().await.map_err(told)
    }

    /// Changes the length. An export that does not grow by being written to asks for the permission for as long as this takes.
    async fn truncate(
        &self,
        size: u64,
        preallocation: Preallocation,
        asker: &mut Asker,
    ) -> Result<(), Errno> {
        let held = self.client.permissions();
        let lent = !held.contains(Permissions::RESIZE);
        if lent {
            self.permit(held | Permissions::RESIZE).await?;
        }
        let truncate = Operation::Truncate {
            size,
            exact: true,
            preallocation,
            flags: RequestFlags::ZERO_WRITE,
        };
        let request = pin!(self.client.request(truncate));
        let done = match select(request, asker.cancellation()).await {
            Either::Left((outcome, _)) => outcome.into_done(),
            // A request that is dropped ends early if it only waits.
            Either::Right(_) => Err(IoError::Cancelled),
        };
        if lent && let Err(error) = self.permit(held).await {
            tracing::warn!(%error, "a FUSE export keeps the permission to change the length of its node");
        }
        done.map_err(told)
    }

    /// Has the graph change what the export may do with its node.
    async fn permit(&self, permissions: Permissions) -> Result<(), Errno> {
        let request = SetRootPermissions {
            root: self.client.root(),
            permissions,
            shared: Permissions::all(),
        };
        let permitted = self.graph.ask(request).await;
        permitted.map_err(|error| code(error.errno()))
    }
}
