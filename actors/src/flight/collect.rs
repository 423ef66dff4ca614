//! Asking the iothreads what they have open, for a flight record.

use std::time::Duration;

use futures_channel::oneshot;
use millpond_engine::flight::{Open, written};
use millpond_engine::iothread::IoThread;
use millpond_engine::node::Mail;

/// How long iothreads have to tell what they have open.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// Writes down what all threads know. `iothreads` are asked what they have open; the others' rings are read as they are.
pub async fn collect(reason: &str, iothreads: Vec<IoThread<Mail>>) -> Vec<u8> {
    let asked: Vec<(String, oneshot::Receiver<Open>)> = iothreads
        .into_iter()
        .map(|iothread| {
            let (tell, told) = oneshot::channel();
            // One that has ended does not answer.
            drop(iothread.send(Mail::Flight(tell)));
            (iothread.name().to_owned(), told)
        })
        .collect();
    let end = tokio::time::Instant::now() + PATIENCE;
    let mut open = Vec::new();
    for (name, told) in asked {
        let told = tokio::time::timeout_at(end, told).await;
        open.push((name, told.ok().and_then(Result::ok)));
    }
    written(reason, open)
}
