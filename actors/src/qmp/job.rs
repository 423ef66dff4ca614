//! Jobs: shown, and what users do to them.

use super::{Reply, done, text};
use crate::daemon::Daemon;
use crate::job::Verb;
use millpond_messages::qapi::Object;
use serde_json::json;

pub(super) async fn query(daemon: Daemon, _: Object) -> Reply {
    Ok(json!(daemon.jobs().list().await))
}

pub(super) async fn dismiss(daemon: Daemon, arguments: Object) -> Reply {
    apply(&daemon, &arguments, Verb::Dismiss).await
}

pub(super) async fn cancel(daemon: Daemon, arguments: Object) -> Reply {
    apply(&daemon, &arguments, Verb::Cancel).await
}

pub(super) async fn complete(daemon: Daemon, arguments: Object) -> Reply {
    apply(&daemon, &arguments, Verb::Complete).await
}

pub(super) async fn finalize(daemon: Daemon, arguments: Object) -> Reply {
    apply(&daemon, &arguments, Verb::Finalize).await
}

pub(super) async fn pause(daemon: Daemon, arguments: Object) -> Reply {
    apply(&daemon, &arguments, Verb::Pause).await
}

pub(super) async fn resume(daemon: Daemon, arguments: Object) -> Reply {
    apply(&daemon, &arguments, Verb::Resume).await
}

async fn apply(daemon: &Daemon, arguments: &Object, verb: Verb) -> Reply {
    daemon.jobs().apply(text(arguments, "id"), verb).await?;
    Ok(done())
}
