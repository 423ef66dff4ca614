//! What a service manager is told of the daemon's life (`sd_notify`), if one asked to be: that everything is set up, that
//! it ends, what it does, and, where it watches, that it is alive.

use crate::daemon::Daemon;
use millpond_messages::graph::ListIothreads;
use sd_notify::NotifyState;
use std::time::Duration;

/// How long a manager that does not listen may hold up the start or the end.
const PATIENCE: Duration = Duration::from_secs(1);

/// Everything is set up. `moved`: this is another process than the one that was started.
pub async fn ready(daemon: &Daemon, status: String, moved: bool) {
    tell(move || {
        let (process, status) = (std::process::id(), NotifyState::Status(&status));
        if moved {
            sd_notify::notify(&[NotifyState::MainPid(process), status, NotifyState::Ready])
        } else {
            sd_notify::notify(&[status, NotifyState::Ready])
        }
    })
    .await;
    if let Some(limit) = sd_notify::watchdog_enabled() {
        actix_rt::spawn(keep_alive(daemon.clone(), limit));
    }
}

/// Tells the service manager that the daemon ends.
pub async fn stopping() {
    tell(|| {
        let status = NotifyState::Status("Flushing and closing all nodes");
        sd_notify::notify(&[NotifyState::Stopping, status])
    })
    .await;
}

/// Says that the daemon lives, twice in each span that the manager allows, as long as the graph answers. A storage that
/// does not answer changes nothing in that: the graph never waits for one to answer a query.
async fn keep_alive(daemon: Daemon, limit: Duration) {
    loop {
        // What it answers does not matter: that it does.
        let _ = daemon.graph(ListIothreads).await;
        tell(|| sd_notify::notify(&[NotifyState::Watchdog])).await;
        tokio::time::sleep(limit / 2).await;
    }
}

/// The manager's socket may be full: so the control thread does not send.
async fn tell(send: impl FnOnce() -> std::io::Result<()> + Send + 'static) {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let sent = tokio::time::timeout(PATIENCE, tokio::task::spawn_blocking(send)).await;
    match sent {
        Ok(Ok(Ok(()))) => {}
        Ok(Ok(Err(error))) => tracing::warn!("the service manager cannot be told: {error}"),
        Ok(Err(error)) => tracing::warn!("the service manager cannot be told: {error}"),
        Err(_elapsed) => tracing::warn!("the service manager does not listen"),
    }
}
