//! A change as a value, and the one runner that carries changes out: alone or several together, all or none.
//!
//! ```text
//!   check       each change finds its nodes; a refusal of the first ends it before anything is drained
//!   ahead       what takes long and touches nothing that is in use: files are made, and what is to be durable is flushed
//!   cover       one drained section covers what all of them touch
//!   flush       what was written since the first flush, of all at once
//!   prepare     each in turn takes its steps, on the graph as those before it have left it; what their nodes are to be told
//!               goes out in one burst for all that touch nothing in common
//!   commit      all steps hold; or they are undone, the last first, as soon as one change fails
//!   settle      still inside of the section: what may fail without undoing anything
//!   finish      the section is over: what is left to do, and the answer
//! ```

use millpond_messages::{Error, NodeId, Result};

use crate::order::NodeTask;

use crate::sections::Cover;
use crate::state::PolicyState;
use crate::transaction::Transaction;
use crate::value::graph::Graph;
use crate::world::{Answered, World};

/// How a transaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All steps of all its changes hold.
    Committed,
    /// All steps that were taken were undone.
    RolledBack,
}

/// A change of the graph that a transaction can be made of.
pub trait Change: Sized {
    /// What whoever asked for it is told.
    type Answer;

    /// Whether its steps stay. Those of a change that only holds nodes while it works are undone at its end.
    const LASTS: bool = true;

    /// Looks at whether it is possible as things are, and finds its nodes. A change that comes after others in a list is
    /// looked at twice: before the section, to find what it touches, and again once those before it are prepared. Only the
    /// second time a refusal counts.
    ///
    /// # Errors
    /// Why it is not.
    fn check(&mut self, _state: &PolicyState) -> Result<()> {
        Ok(())
    }

    /// Takes those of its steps that concern nothing but nodes and files of its own, before anything is drained. It is called
    /// only where the change and all before it were found possible, and touch different nodes; else the change takes these
    /// steps as it is prepared.
    ///
    /// # Errors
    /// Whatever a step met. It is told when the change's turn comes.
    async fn ahead(&mut self, _transaction: &mut Transaction) -> Result<()> {
        Ok(())
    }

    /// What must be still before it is prepared, as far as [`Change::check`] has found it.
    fn cover(&self, _graph: &Graph) -> Cover {
        Cover::Nodes(Vec::new())
    }

    /// All nodes that it has to do with, as far as [`Change::check`] has found them: another change that touches one of them
    /// must not take steps ahead of it.
    fn touches(&self, graph: &Graph) -> Cover {
        self.cover(graph)
    }

    /// The node whose data must be durable before the change is prepared, because later flushes do not reach it.
    fn flushed(&self) -> Option<NodeId> {
        None
    }

    /// Takes all steps that can fail, each with what undoes it. The graph was changed since [`Change::check`] only by
    /// changes of the same list, and by what others may do while a section is waited for.
    ///
    /// # Errors
    /// Whatever a step met. The transaction is rolled back then.
    async fn prepare(&mut self, transaction: &mut Transaction) -> Result<()>;

    /// Does what is due once it is known how the transaction ended, before its section ends.
    ///
    /// # Errors
    /// Nothing is undone because of them, but whoever asked is told.
    async fn settle(&mut self, _world: &World, _outcome: Outcome) -> Result<()> {
        Ok(())
    }

    /// Does what is left once the section is over: nodes that nobody holds any more are closed.
    async fn finish(self, world: &World) -> Self::Answer;
}

/// Carries one change out.
///
/// # Errors
/// Why it is not possible; nothing has changed then, unless it is settling that failed.
pub async fn run<C: Change>(world: &World, user: &str, mut change: C) -> Result<C::Answer> {
    run_in(world, user, std::slice::from_mut(&mut change)).await?;
    Ok(change.finish(world).await)
}

/// Carries out all changes of a list, or none of them.
///
/// # Errors
/// The first one's that is not possible.
pub async fn run_all<C: Change>(world: &World, user: &str, mut changes: Vec<C>) -> Result<Vec<C::Answer>> {
    run_in(world, user, &mut changes).await?;
    let mut answers = Vec::with_capacity(changes.len());
    for change in changes {
        answers.push(change.finish(world).await);
    }
    Ok(answers)
}

async fn run_in<C: Change>(world: &World, user: &str, changes: &mut [C]) -> Result<()> {
    let possible = world.with(|state| find_all(state, changes))?;
    let mut transaction = Transaction::new(world);
    let prepared = prepare_all(&mut transaction, user, changes, possible).await;
    let mut result = match prepared {
        Ok(()) => transaction.send_burst().await,
        Err(error) => Err(error),
    };
    let outcome = if result.is_ok() && C::LASTS {
        Outcome::Committed
    } else {
        Outcome::RolledBack
    };
    let sections = match outcome {
        Outcome::Committed => transaction.commit_still(),
        Outcome::RolledBack => transaction.roll_back_still().await,
    };
    for change in changes {
        let settled = change.settle(world, outcome).await;
        result = result.and(settled);
    }
    for section in sections {
        world.undrain(section);
    }
    result
}

/// Takes the steps of all changes, in one drained section. The first so many are possible as things are, and touch nothing in
/// common.
///
/// # Errors
/// The first change's that is not possible.
async fn prepare_all<C: Change>(
    transaction: &mut Transaction,
    user: &str,
    changes: &mut [C],
    possible: usize,
) -> Result<()> {
    let world = transaction.world.clone();
    let mut early = take_ahead(transaction, &mut changes[..possible]).await;
    let cover = world.graph(|graph| {
        let nothing = Cover::Nodes(Vec::new());
        let covers = changes.iter().map(|change| change.cover(graph));
        covers.fold(nothing, Cover::join)
    });
    if !cover.is_empty() {
        transaction.drain_cover(cover.clone(), user).await;
    }
    flush_all(&world, changes, &mut early).await;
    let mut early = early.into_iter();
    for (at, change) in changes.iter_mut().enumerate() {
        let done = early.next();
        if done.is_none() {
            transaction.send_burst().await?;
        }
        if at > 0 {
            look_again(transaction, user, change, &cover).await?;
        }
        match (done, change.flushed()) {
            (Some(result), _) => result?,
            (None, Some(node)) => told(flush(&world, node).done().await)?,
            (None, None) => {}
        }
        change.prepare(transaction).await?;
    }
    Ok(())
}

/// Takes the steps that changes take ahead, and flushes what they flush; answers what came of each, up to the first that
/// failed.
async fn take_ahead<C: Change>(transaction: &mut Transaction, changes: &mut [C]) -> Vec<Result<()>> {
    let mut taken = Vec::with_capacity(changes.len());
    let mut getting_ready = Vec::with_capacity(changes.len());
    for change in changes.iter_mut() {
        let before = transaction.getting_ready();
        taken.push(change.ahead(transaction).await);
        getting_ready.push(transaction.getting_ready() - before);
        if taken.last().is_some_and(Result::is_err) {
            break;
        }
    }
    for (taken, count) in taken.iter_mut().zip(getting_ready) {
        let readied = transaction.readied(count).await;
        *taken = std::mem::replace(taken, Ok(())).and(readied);
    }
    // A failure counts ahead too: storage tells of what it has lost but once.
    flush_all(&transaction.world, changes, &mut taken).await;
    taken
}

/// Makes what was acknowledged durable for each change that wants it and has not failed, all at once. `taken` is what came of
/// the first changes.
async fn flush_all<C: Change>(world: &World, changes: &[C], taken: &mut [Result<()>]) {
    let wanted = |(change, taken): (&C, &Result<()>)| change.flushed().filter(|_| taken.is_ok());
    let flushed = changes.iter().zip(taken.iter()).map(wanted);
    let asked: Vec<Option<Answered>> = flushed.map(|node| node.map(|node| flush(world, node))).collect();
    for (answer, taken) in asked.into_iter().zip(taken) {
        if let Some(answer) = answer {
            *taken = told(answer.done().await);
        }
    }
}

fn flush(world: &World, node: NodeId) -> Answered {
    world.ask(node, NodeTask::Flush)
}

fn told(flushed: Result<()>) -> Result<()> {
    flushed.map_err(|error| Error::caused_by(error.kind(), "An IO error has occurred", error))
}

/// Has each change find its nodes; answers how many, from the first one on, are possible as things are and touch nothing in
/// common.
///
/// # Errors
/// The first one's refusal. A later one may be possible once those before it are done.
fn find_all<C: Change>(state: &PolicyState, changes: &mut [C]) -> Result<usize> {
    let (mut possible, mut touched) = (0, Cover::Nodes(Vec::new()));
    for (at, change) in changes.iter_mut().enumerate() {
        let checked = change.check(state);
        let is_possible = checked.is_ok();
        if at == 0 {
            checked?;
        }
        let touches = change.touches(&state.graph);
        if is_possible && possible == at && touches.clone().beyond(&touched) == touches {
            possible += 1;
        }
        touched = touched.join(touches);
    }
    Ok(possible)
}

/// Looks at a change on the graph as those before it have left it, and drains what it touches that came with them.
///
/// # Errors
/// Why it is not possible.
async fn look_again<C: Change>(
    transaction: &mut Transaction,
    user: &str,
    change: &mut C,
    covered: &Cover,
) -> Result<()> {
    let beyond = transaction.world.with(|state| {
        change.check(state)?;
        Ok::<_, Error>(change.cover(&state.graph).beyond(covered))
    })?;
    if !beyond.is_empty() {
        transaction.drain_cover(beyond, user).await;
    }
    Ok(())
}
