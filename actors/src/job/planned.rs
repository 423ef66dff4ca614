//! Commits and streams that only say what they would do.

use millpond_messages::graph::MayName;
use millpond_messages::qapi::QmpError;
use millpond_messages::qapi::schema::{BlockCommit, BlockStream, MillpondBlockJobPlan};

use super::block::{FilterMade, Outline, StreamPlan, commit_plan};
use super::handle::{Jobs, ended};
use super::order::check_speed;
use super::registry::CheckId;
use crate::graph::GraphHandle;

impl Jobs {
    /// What a commit would do if it began now: which nodes it writes to, which leave the chain, how much it copies and how
    /// much room that takes. The graph stays as it is, no request is held up, and nothing is kept for a commit to come.
    ///
    /// # Errors
    /// Those of the commit, as far as they show before it begins: who else uses its nodes is found as it takes them.
    pub async fn plan_commit(
        &self,
        graph: GraphHandle,
        asked: &BlockCommit,
    ) -> Result<MillpondBlockJobPlan, QmpError> {
        let outline = commit_plan(graph.clone(), asked).await?.outline();
        self.check(&graph, &outline, (&asked.job_id, asked.speed)).await?;
        outline.survey(&graph).await
    }

    /// The same of a stream.
    ///
    /// # Errors
    /// Those of the stream, as with [`Jobs::plan_commit`].
    pub async fn plan_stream(
        &self,
        graph: GraphHandle,
        asked: &BlockStream,
    ) -> Result<MillpondBlockJobPlan, QmpError> {
        let outline = StreamPlan::new(graph.clone(), asked).await?.outline();
        self.check(&graph, &outline, (&asked.job_id, asked.speed)).await?;
        outline.survey(&graph).await
    }

    /// Checks what a job is refused for as it starts, in the same order.
    async fn check(
        &self,
        graph: &GraphHandle,
        outline: &Outline,
        (id, speed): (&Option<String>, Option<i64>),
    ) -> Result<(), QmpError> {
        let id = CheckId(id.clone().unwrap_or_default());
        self.0.send(id).await.unwrap_or_else(|_| Err(ended()))?;
        let speed = check_speed(speed.unwrap_or(0)).map(drop);
        let (name, made) = &outline.filter;
        let named = match name {
            Some(name) => {
                let node_name = name.clone();
                graph.ask(MayName { node_name }).await
            }
            None => Ok(()),
        };
        match made {
            FilterMade::Last => {
                speed?;
                Ok(named?)
            }
            FilterMade::First => {
                named?;
                speed
            }
            FilterMade::FirstInSteps => {
                named.map_err(|error| error.within("Could not create node"))?;
                speed
            }
        }
    }
}
