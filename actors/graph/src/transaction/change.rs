//! A change as a value, and the one runner that carries changes out: alone or several together, all or none.
//!
//! ```text
//!   check       the first change is looked at before anything is drained
//!   cover       one drained section covers what all of them touch
//!   prepare     each in turn takes its steps, on the graph as those before it have left it
//!   commit      all steps hold; or they are undone, the last first, as soon as one change fails
//!   settle      still inside of the section: what may fail without undoing anything
//!   finish      the section is over: what is left to do, and the answer
//! ```

use millpond_messages::Result;

use crate::sections::Cover;
use crate::transaction::Transaction;
use crate::value::graph::Graph;
use crate::world::World;

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

    /// Looks at whether it is possible in the graph as it is, and finds its nodes. A change that comes after others in a
    /// list is first looked at when it is prepared.
    ///
    /// # Errors
    /// Why it is not.
    fn check(&mut self, _graph: &Graph) -> Result<()> {
        Ok(())
    }

    /// What must be still before it is prepared, as far as it is known then.
    fn cover(&self, _graph: &Graph) -> Cover {
        Cover::Nodes(Vec::new())
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
    if let Some(first) = changes.first_mut() {
        world.graph(|graph| first.check(graph))?;
    }
    let cover = world.graph(|graph| {
        let covers = changes.iter().map(|change| change.cover(graph));
        covers.fold(Cover::Nodes(Vec::new()), Cover::join)
    });
    let mut transaction = Transaction::new(world);
    if !cover.is_empty() {
        transaction.drain_cover(cover, user).await;
    }
    let mut result = Ok(());
    for (at, change) in changes.iter_mut().enumerate() {
        if at > 0 {
            result = world.graph(|graph| change.check(graph));
        }
        if result.is_ok() {
            result = change.prepare(&mut transaction).await;
        }
        if result.is_err() {
            break;
        }
    }
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
