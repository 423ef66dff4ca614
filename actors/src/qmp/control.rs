//! The session, the version, what there is to ask, and the end.

use super::{Reply, done, names, text};
use crate::daemon::Daemon;
use crate::flight;
use crate::log;
use crate::monitor::chardev::BACKENDS;
use millpond_messages::qapi::schema::introspect;
use millpond_messages::qapi::{Object, QmpError, VersionInfo};
use serde_json::{Value, json};

pub(super) async fn version(_: Daemon, _: Object) -> Reply {
    serde_json::to_value(VersionInfo::current()).map_err(|error| QmpError::generic(error.to_string()))
}

pub(super) async fn commands(_: Daemon, _: Object) -> Reply {
    // QEMU lists the last registered first.
    Ok(names().iter().rev().map(|name| json!({"name": name})).collect())
}

pub(super) async fn schema(_: Daemon, _: Object) -> Reply {
    Ok(introspect(&names()))
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

/// Writes the flight record to a file.
pub(super) async fn flight_record(daemon: Daemon, arguments: Object) -> Reply {
    let path = text(&arguments, "filename").to_owned();
    let bytes = daemon.flight_record("asked by x-millpond-flight-record").await?;
    let failed = format!("Could not write '{path}'");
    // A slow disk holds up nothing else.
    let written = tokio::task::spawn_blocking(move || flight::write_to(path.as_ref(), &bytes)).await;
    match written {
        Ok(Ok(())) => Ok(done()),
        Ok(Err(error)) => Err(QmpError::generic(format!("{failed}: {error}"))),
        Err(error) => Err(QmpError::generic(format!("{failed}: {error}"))),
    }
}

/// Opens the log's file anew, after somebody has moved it away. The disk is waited for on a thread of its own.
pub(super) async fn reopen_log(_: Daemon, _: Object) -> Reply {
    let Some(file) = log::file() else {
        return Err(QmpError::generic("The log does not go to a file"));
    };
    let opened = tokio::task::spawn_blocking(|| file.reopen()).await;
    let failed = |error: &dyn std::fmt::Display| {
        let path = file.path().display();
        QmpError::generic(format!("Could not open '{path}': {error}"))
    };
    match opened {
        Ok(Ok(())) => Ok(done()),
        Ok(Err(error)) => Err(failed(&log::why(&error))),
        Err(error) => Err(failed(&error)),
    }
}
