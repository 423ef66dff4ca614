//! `x-blockdev-amend` as a job.

use std::future::ready;

use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use millpond_messages::Result;
use millpond_messages::graph::Amend;
use millpond_messages::qapi::JobType;
use millpond_messages::saved::{SavedOptions, SavedWork};

use super::pace::Pace;
use super::work::Job;
use crate::graph::GraphHandle;

/// What a job does to the encryption of an image.
pub enum Amendment {
    /// Nothing: no change is asked for.
    Nothing,
    /// It changes the keys.
    Keys(GraphHandle, Amend),
}

/// Changes how an image is encrypted. It has no pause points: keys are changed in one go.
pub struct AmendJob(pub Amendment);

impl Job for AmendJob {
    fn kind(&self) -> JobType {
        JobType::Amend
    }

    /// The options name secrets, and have none in them.
    fn options(&self) -> SavedOptions {
        let given = match &self.0 {
            Amendment::Nothing => vec![("encryption".to_owned(), false.into())],
            Amendment::Keys(_, amend) => vec![
                ("node-name".to_owned(), amend.node_name.clone().into()),
                ("options".to_owned(), amend.options.clone().into()),
                ("force".to_owned(), amend.force.into()),
            ],
        };
        SavedOptions::of(&given.into_iter().collect())
    }

    fn saved_work(&self) -> SavedWork {
        SavedWork::default()
    }

    fn run(&mut self, pace: Pace) -> LocalBoxFuture<'static, Result<()>> {
        let Amendment::Keys(graph, amend) = &self.0 else {
            pace.progress(1, 1);
            return ready(Ok(())).boxed_local();
        };
        let (graph, amend) = (graph.clone(), amend.clone());
        pace.progress(0, 1);
        async move {
            let amended = graph.ask(amend).await;
            pace.progress(1, 1);
            amended
        }
        .boxed_local()
    }
}
