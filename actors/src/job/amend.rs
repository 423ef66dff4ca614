//! `x-blockdev-amend` as a job.

use std::future::ready;

use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use millpond_messages::graph::Amend;
use millpond_messages::qapi::JobType;
use millpond_messages::saved::{SavedOptions, SavedWork};
use millpond_messages::{Error, ErrorKind, Result};

use super::pace::Pace;
use super::work::Job;
use crate::graph::GraphHandle;

/// What a job does to the encryption of an image.
pub enum Amendment {
    /// Nothing: no change is asked for.
    Nothing,
    /// It fails: the image is not encrypted.
    NotEncrypted,
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
            Amendment::NotEncrypted => vec![("encryption".to_owned(), true.into())],
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
        let result = match &self.0 {
            Amendment::Nothing => Ok(()),
            Amendment::NotEncrypted => {
                let text = "image is not encrypted, can't amend";
                Err(Error::new(ErrorKind::Unsupported, text))
            }
            Amendment::Keys(graph, amend) => {
                let (graph, amend) = (graph.clone(), amend.clone());
                pace.progress(0, 1);
                return async move {
                    let amended = graph.ask(amend).await;
                    pace.progress(1, 1);
                    amended
                }
                .boxed_local();
            }
        };
        pace.progress(1, 1);
        ready(result).boxed_local()
    }
}
