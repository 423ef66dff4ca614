//! `blockdev-create` as a job.

use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use millpond_messages::Result;
use millpond_messages::graph::{MakeImage, Options};
use millpond_messages::qapi::JobType;
use millpond_messages::saved::{SavedOptions, SavedWork};

use super::pace::Pace;
use super::work::Job;
use crate::graph::GraphHandle;

/// Makes an image. It has no pause points: a driver makes an image in one go.
pub struct CreateJob {
    /// The graph that the image is made in.
    pub graph: GraphHandle,
    /// What to make: QAPI's `BlockdevCreateOptions`.
    pub options: Options,
}

impl Job for CreateJob {
    fn kind(&self) -> JobType {
        JobType::Create
    }

    fn options(&self) -> SavedOptions {
        SavedOptions::of(&self.options)
    }

    fn saved_work(&self) -> SavedWork {
        SavedWork::default()
    }

    fn run(&mut self, pace: Pace) -> LocalBoxFuture<'static, Result<()>> {
        let (graph, options) = (self.graph.clone(), self.options.clone());
        pace.progress(0, 1);
        async move {
            let created = graph.ask(MakeImage(options)).await;
            pace.progress(1, 1);
            created
        }
        .boxed_local()
    }
}
