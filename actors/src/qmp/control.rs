//! The version, what there is to ask, and the end.

use super::names;
use crate::daemon::Daemon;
use crate::flight;
use crate::log;
use millpond_messages::qapi::schema::{
    BlockInfo, CommandInfo, Like, QueryBlock, QueryCommands, QueryQmpSchema, QueryVersion, Quit, SchemaInfo,
    VersionInfo, XMillpondFlightRecord, XMillpondLogReopen,
};
use millpond_messages::qapi::{QmpError, introspect};
use serde_json::Value;

pub(super) async fn version(_: Daemon, _: QueryVersion) -> Result<VersionInfo, QmpError> {
    Ok(VersionInfo::current())
}

pub(super) async fn commands(_: Daemon, _: QueryCommands) -> Result<Vec<CommandInfo>, QmpError> {
    // QEMU lists the last registered first.
    let newest_first = names().into_iter().rev();
    Ok(newest_first
        .map(|name| CommandInfo {
            name: name.to_owned(),
        })
        .collect())
}

pub(super) async fn schema(_: Daemon, _: QueryQmpSchema) -> Result<Like<Vec<SchemaInfo>, Value>, QmpError> {
    Ok(Like::new(introspect(&names())))
}

pub(super) async fn quit(daemon: Daemon, _: Quit) -> Result<(), QmpError> {
    daemon.quit();
    Ok(())
}

pub(super) async fn devices(_: Daemon, _: QueryBlock) -> Result<Vec<BlockInfo>, QmpError> {
    Ok(Vec::new())
}

/// Writes the flight record to a file.
pub(super) async fn flight_record(daemon: Daemon, arguments: XMillpondFlightRecord) -> Result<(), QmpError> {
    let path = arguments.filename;
    let bytes = daemon.flight_record("asked by x-millpond-flight-record").await?;
    let failed = format!("Could not write '{path}'");
    // A slow disk holds up nothing else.
    let written = tokio::task::spawn_blocking(move || flight::write_to(path.as_ref(), &bytes)).await;
    match written {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(QmpError::generic(format!("{failed}: {error}"))),
        Err(error) => Err(QmpError::generic(format!("{failed}: {error}"))),
    }
}

/// Opens the log's file anew, after somebody has moved it away. The disk is waited for on a thread of its own.
pub(super) async fn reopen_log(_: Daemon, _: XMillpondLogReopen) -> Result<(), QmpError> {
    let Some(file) = log::file() else {
        return Err(QmpError::generic("The log does not go to a file"));
    };
    let opened = tokio::task::spawn_blocking(|| file.reopen()).await;
    let failed = |error: &dyn std::fmt::Display| {
        let path = file.path().display();
        QmpError::generic(format!("Could not open '{path}': {error}"))
    };
    match opened {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(failed(&log::why(&error))),
        Err(error) => Err(failed(&error)),
    }
}
