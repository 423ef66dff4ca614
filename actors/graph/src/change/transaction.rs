//! `transaction`: several changes, all or none.

use millpond_messages::graph::{self, Action, CompletionMode, Transact};
use millpond_messages::{Error, ErrorKind, Result};

use crate::change::snapshot::Snapshot;
use crate::sections::Cover;
use crate::transaction::{Change, Outcome, Transaction, run_all};
use crate::value::graph::Graph;
use crate::world::World;

/// Carries out all actions, or none of them.
///
/// # Errors
/// The first one's that is not possible; nothing has changed then.
pub async fn all(world: &World, request: Transact) -> Result<()> {
    let Transact { actions, completion } = request;
    if let (CompletionMode::Grouped, Some(first)) = (completion, actions.first()) {
        // None of the actions there are starts a job.
        let text = format!(
            "Action '{}' does not support transaction property completion-mode = grouped",
            first.name()
        );
        return Err(Error::new(ErrorKind::InvalidArgument, text));
    }
    let parts = actions.into_iter().map(Part::from).collect();
    run_all(world, "transaction", parts).await.map(drop)
}

/// One change of a list.
enum Part {
    Abort,
    Snapshot(Snapshot),
}

impl From<Action> for Part {
    fn from(action: Action) -> Self {
        match action {
            Action::Abort => Self::Abort,
            Action::BlockdevSnapshot { node, overlay } => {
                Self::Snapshot(graph::Snapshot { node, overlay }.into())
            }
        }
    }
}

impl Change for Part {
    type Answer = ();

    fn check(&mut self, graph: &Graph) -> Result<()> {
        match self {
            Self::Abort => Err(Error::new(
                ErrorKind::InvalidArgument,
                "Transaction aborted using Abort action",
            )),
            Self::Snapshot(snapshot) => snapshot.check(graph),
        }
    }

    fn cover(&self, graph: &Graph) -> Cover {
        match self {
            Self::Abort => Cover::Nodes(Vec::new()),
            Self::Snapshot(snapshot) => snapshot.cover(graph),
        }
    }

    async fn prepare(&mut self, transaction: &mut Transaction) -> Result<()> {
        match self {
            Self::Abort => Ok(()),
            Self::Snapshot(snapshot) => snapshot.prepare(transaction).await,
        }
    }

    async fn settle(&mut self, world: &World, outcome: Outcome) -> Result<()> {
        match self {
            Self::Abort => Ok(()),
            Self::Snapshot(snapshot) => snapshot.settle(world, outcome).await,
        }
    }

    async fn finish(self, world: &World) {
        match self {
            Self::Abort => {}
            Self::Snapshot(snapshot) => snapshot.finish(world).await,
        }
    }
}
