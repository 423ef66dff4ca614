//! The signals that ask the daemon to end, and the one that asks it for its flight record.

use crate::daemon::Daemon;
use crate::flight;
use std::io;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// What is told when a second signal does not wait for the end.
pub(super) const ENDED_AT_ONCE: &str =
    "Ended at once by a second signal: not everything was flushed and closed";

/// SIGTERM, SIGINT and SIGHUP, caught.
pub(super) struct Signals {
    kinds: [Signal; 3],
    /// How many have come.
    seen: u32,
}

impl Signals {
    /// Catches them from now on.
    pub fn catch() -> io::Result<Self> {
        let kinds = [
            SignalKind::terminate(),
            SignalKind::interrupt(),
            SignalKind::hangup(),
        ];
        let [terminate, interrupt, hangup] = kinds.map(signal);
        Ok(Self {
            kinds: [terminate?, interrupt?, hangup?],
            seen: 0,
        })
    }

    /// Waits for any of them.
    pub async fn next(&mut self) {
        let [terminate, interrupt, hangup] = &mut self.kinds;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hangup.recv() => {}
        }
        self.seen += 1;
    }

    /// Waits until the daemon has been told twice to end, so that it is to end at once. The first signal says no more than
    /// `quit` does, and may come just behind it.
    pub async fn second(&mut self) {
        while self.seen < 2 {
            self.next().await;
        }
    }
}

/// Writes the flight record at every SIGUSR1, to a new file in the folder for temporary files.
///
/// # Errors
/// The signal cannot be caught.
pub(super) fn record_at_usr1(daemon: &Daemon) -> io::Result<()> {
    let mut usr1 = signal(SignalKind::user_defined1())?;
    let daemon = daemon.clone();
    actix_rt::spawn(async move {
        while usr1.recv().await.is_some() {
            let bytes = match daemon.flight_record("SIGUSR1").await {
                Ok(bytes) => bytes,
                Err(error) => {
                    tracing::warn!(%error, "there is no flight record");
                    continue;
                }
            };
            match tokio::task::spawn_blocking(move || flight::write_new(&bytes)).await {
                Ok(Ok(path)) => tracing::warn!(path = %path.display(), "the flight record was written"),
                Ok(Err(error)) => tracing::warn!(%error, "the flight record cannot be written"),
                Err(error) => tracing::warn!(%error, "the flight record cannot be written"),
            }
        }
    });
    Ok(())
}
