//! The session, the version, what there is to ask, and the end.

use super::{Reply, done};
use crate::daemon::Daemon;
use crate::monitor::Dispatch;
use crate::monitor::chardev::BACKENDS;
use messages::qapi::schema::introspect;
use messages::qapi::{Object, QmpError, VersionInfo};
use serde_json::{Value, json};

pub(super) async fn version(_: Daemon, _: Object) -> Reply {
    serde_json::to_value(VersionInfo::current()).map_err(|error| QmpError::generic(error.to_string()))
}

pub(super) async fn commands(daemon: Daemon, _: Object) -> Reply {
    // QEMU lists the last registered first.
    Ok(daemon
        .commands()
        .iter()
        .rev()
        .map(|name| json!({"name": name}))
        .collect())
}

pub(super) async fn schema(daemon: Daemon, _: Object) -> Reply {
    Ok(introspect(daemon.commands()))
}

pub(super) async fn quit(daemon: Daemon, _: Object) -> Reply {
    daemon.quit();
    Ok(done())
}

/// Lists of what a daemon without devices never has.
pub(super) async fn nothing(_: Daemon, _: Object) -> Reply {
    Ok(Value::Array(Vec::new()))
}

pub(super) async fn chardevs(daemon: Daemon, _: Object) -> Reply {
    Ok(daemon.describe_chardevs())
}

pub(super) async fn chardev_backends(_: Daemon, _: Object) -> Reply {
    Ok(BACKENDS.iter().map(|name| json!({"name": name})).collect())
}
