//! `transaction`: several changes, all or none.

use millpond_messages::graph::{Action, CompletionMode, Transact};
use millpond_messages::{Error, ErrorKind, Result};

use crate::change::{add, backing_link, children, insert, iothreads, links, replace, roots, snapshot};
use crate::sections::Cover;
use crate::state::PolicyState;
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

/// One change of a list: a row for each [`Action`], and the [`Change`] that carries it out.
macro_rules! parts {
    ($($name:ident: $change:ty),+ $(,)?) => {
        enum Part {
            Abort,
            $($name(Box<$change>)),+
        }

        impl From<Action> for Part {
            fn from(action: Action) -> Self {
                match action {
                    Action::Abort => Self::Abort,
                    $(Action::$name(request) => Self::$name(Box::new(request.into()))),+
                }
            }
        }

        impl Change for Part {
            type Answer = ();

            fn check(&mut self, state: &PolicyState) -> Result<()> {
                match self {
                    Self::Abort => Err(Error::new(
                        ErrorKind::InvalidArgument,
                        "Transaction aborted using Abort action",
                    )),
                    $(Self::$name(change) => change.check(state)),+
                }
            }

            fn cover(&self, graph: &Graph) -> Cover {
                match self {
                    Self::Abort => Cover::Nodes(Vec::new()),
                    $(Self::$name(change) => change.cover(graph)),+
                }
            }

            async fn prepare(&mut self, transaction: &mut Transaction) -> Result<()> {
                match self {
                    Self::Abort => Ok(()),
                    $(Self::$name(change) => change.prepare(transaction).await),+
                }
            }

            async fn settle(&mut self, world: &World, outcome: Outcome) -> Result<()> {
                match self {
                    Self::Abort => Ok(()),
                    $(Self::$name(change) => change.settle(world, outcome).await),+
                }
            }

            async fn finish(self, world: &World) {
                match self {
                    Self::Abort => {}
                    $(Self::$name(change) => change.finish(world).await),+
                }
            }
        }
    };
}

parts! {
    Snapshot: snapshot::Snapshot,
    AddNode: add::Add,
    AddChild: children::AddChild,
    DelChild: children::DelChild,
    Append: replace::Append,
    ReplaceNode: replace::Replace,
    ReplaceChild: replace::Replace,
    InsertNode: insert::Insert,
    DropFilter: replace::Replace,
    SetBacking: links::Relink,
    AttachChild: links::Relink,
    DetachChild: links::Relink,
    RecordBackingFile: backing_link::Record,
    SetIothread: iothreads::Move,
    MoveNode: iothreads::Move,
    SetRootPermissions: roots::SetPermissions,
}
