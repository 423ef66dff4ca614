//! `transaction`: several changes, all or none.

use std::cell::RefCell;
use std::rc::Rc;

use millpond_messages::graph::{Action, CompletionMode, GraphReply, JobAction, Transact, Transacted};
use millpond_messages::{Error, ErrorKind, NodeId, Result};

use crate::change::{
    add, backing_link, backup, bitmap, children, insert, internal_snapshot, iothreads, links, replace, roots,
    snapshot, snapshot_sync,
};
use crate::procedure::Next;
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

/// The same of actions that start jobs: answers what has been done, whatever came of it.
pub async fn for_jobs(world: &World, actions: Vec<JobAction>) -> Next {
    let told = Rc::new(RefCell::new(Transacted::default()));
    let part = |action| match action {
        JobAction::Change(Action::SnapshotSync(request)) => {
            let change = snapshot_sync::SnapshotSync::new(request, Rc::clone(&told));
            Part::SnapshotSync(Box::new(change))
        }
        JobAction::Change(action) => action.into(),
        JobAction::Backup(request) => {
            let change = backup::Backup::new(*request, Rc::clone(&told));
            Part::Backup(Box::new(change))
        }
    };
    let parts = actions.into_iter().map(part).collect();
    let done = run_all(world, "transaction", parts).await;
    let mut told = told.take();
    told.failure = done.err();
    Next::Reply(Ok(GraphReply::Transacted(Box::new(told))))
}

/// One change of a list: a row for each [`Action`], and the [`Change`] that carries it out; then those that start jobs.
macro_rules! parts {
    ($($name:ident: $change:ty),+ $(,)?; $($job:ident: $start:ty),+ $(,)?) => {
        enum Part {
            Abort,
            $($name(Box<$change>),)+
            $($job(Box<$start>)),+
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
                    $(Self::$name(change) => change.check(state),)+
                    $(Self::$job(change) => change.check(state)),+
                }
            }

            async fn ahead(&mut self, transaction: &mut Transaction) -> Result<()> {
                match self {
                    Self::Abort => Ok(()),
                    $(Self::$name(change) => change.ahead(transaction).await,)+
                    $(Self::$job(change) => change.ahead(transaction).await),+
                }
            }

            fn cover(&self, graph: &Graph) -> Cover {
                match self {
                    Self::Abort => Cover::Nodes(Vec::new()),
                    $(Self::$name(change) => change.cover(graph),)+
                    $(Self::$job(change) => change.cover(graph)),+
                }
            }

            fn touches(&self, graph: &Graph) -> Cover {
                match self {
                    Self::Abort => Cover::Nodes(Vec::new()),
                    $(Self::$name(change) => change.touches(graph),)+
                    $(Self::$job(change) => change.touches(graph)),+
                }
            }

            fn flushed(&self) -> Option<NodeId> {
                match self {
                    Self::Abort => None,
                    $(Self::$name(change) => change.flushed(),)+
                    $(Self::$job(change) => change.flushed()),+
                }
            }

            async fn prepare(&mut self, transaction: &mut Transaction) -> Result<()> {
                match self {
                    Self::Abort => Ok(()),
                    $(Self::$name(change) => change.prepare(transaction).await,)+
                    $(Self::$job(change) => change.prepare(transaction).await),+
                }
            }

            async fn settle(&mut self, world: &World, outcome: Outcome) -> Result<()> {
                match self {
                    Self::Abort => Ok(()),
                    $(Self::$name(change) => change.settle(world, outcome).await,)+
                    $(Self::$job(change) => change.settle(world, outcome).await),+
                }
            }

            async fn finish(self, world: &World) {
                match self {
                    Self::Abort => {}
                    $(Self::$name(change) => {
                        change.finish(world).await;
                    })+
                    $(Self::$job(change) => {
                        change.finish(world).await;
                    })+
                }
            }
        }
    };
}

parts! {
    Snapshot: snapshot::Snapshot,
    SnapshotSync: snapshot_sync::SnapshotSync,
    TakeSnapshot: internal_snapshot::Snapshots<true>,
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
    EditBitmap: bitmap::Editing;
    Backup: backup::Backup,
}
