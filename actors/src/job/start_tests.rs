//! Jobs that cannot be started.

use actix_rt::System;
use futures_channel::mpsc;
use futures_util::future::LocalBoxFuture;
use futures_util::{FutureExt, StreamExt};
use millpond_messages::Result;
use millpond_messages::qapi::{JobType, QmpError, QmpEvent};
use millpond_messages::saved::{SavedOptions, SavedWork};

use super::state::name;
use super::{Job, JobOptions, Jobs, Pace};
use crate::monitor::EventBus;

/// A job that cannot have what it needs, before it is announced or after.
struct Refused {
    is_claim: bool,
    settled: mpsc::UnboundedSender<bool>,
}

impl Job for Refused {
    fn kind(&self) -> JobType {
        JobType::Stream
    }

    fn options(&self) -> SavedOptions {
        SavedOptions::default()
    }

    fn saved_work(&self) -> SavedWork {
        SavedWork::default()
    }

    fn claim(&mut self) -> Option<LocalBoxFuture<'static, Result<(), QmpError>>> {
        let refused = self.is_claim.then(|| Err(QmpError::generic("It is taken")));
        refused.map(|refused| std::future::ready(refused).boxed_local())
    }

    fn begin(&mut self) -> Option<LocalBoxFuture<'static, Result<(), QmpError>>> {
        let refused = Err(QmpError::generic("It is in use"));
        Some(std::future::ready(refused).boxed_local())
    }

    fn run(&mut self, _: Pace) -> LocalBoxFuture<'static, Result<()>> {
        unreachable!("it never begins")
    }

    fn settle(&mut self, succeeded: bool) -> Option<LocalBoxFuture<'static, ()>> {
        self.settled.unbounded_send(succeeded).unwrap();
        None
    }
}

#[test]
fn a_job_that_cannot_have_what_it_needs_leaves_nothing() {
    System::new().block_on(async {
        let bus = EventBus::default();
        let mut events = bus.subscribe();
        let jobs = Jobs::new(bus);
        let (settled, mut ends) = mpsc::unbounded();
        let mut start = async |is_claim, speed| {
            let settled = settled.clone();
            let options = JobOptions {
                speed,
                ..JobOptions::MANUAL_DISMISS
            };
            let make = move || Refused { is_claim, settled };
            let started = jobs.start("j", options, make).await;
            assert!(!ends.next().await.unwrap(), "it gives back what it has");
            assert!(jobs.list().await.is_empty());
            let mut seen = Vec::new();
            while let Some(told) = events.try_next() {
                match told.event.event {
                    QmpEvent::JobStatusChange { status, .. } => seen.push(name(status)),
                    other => panic!("{other:?}"),
                }
            }
            (started.unwrap_err().desc, seen)
        };
        let announced = vec!["created", "null"];
        assert_eq!(start(true, 0).await, ("It is taken".to_owned(), vec![]));
        assert_eq!(
            start(false, 0).await,
            ("It is in use".to_owned(), announced.clone())
        );
        let text = "Parameter 'speed' expects a non-negative value".to_owned();
        assert_eq!(start(false, -1).await, (text, announced));
    });
}
