//! Exports, and the NBD server.

use crate::daemon::Daemon;
use millpond_messages::graph::FindNode;
use millpond_messages::qapi::schema::{
    BlockDirtyBitmapOrStr, BlockExportDel, BlockExportInfo, BlockExportKind, BlockExportOptions,
    NbdExportOptions, NbdServerAddOptions, NbdServerRemove, NbdServerStart, NbdServerStop, QueryBlockExports,
};
use millpond_messages::qapi::{NbdServerOptions, QmpError};

pub(crate) async fn add(daemon: Daemon, options: BlockExportOptions) -> Result<(), QmpError> {
    Ok(daemon.exports().add(&options).await?)
}

pub(super) async fn delete(daemon: Daemon, arguments: BlockExportDel) -> Result<(), QmpError> {
    let BlockExportDel { id, mode } = arguments;
    Ok(daemon.exports().delete(&id, mode).await?)
}

pub(super) async fn query(daemon: Daemon, _: QueryBlockExports) -> Result<Vec<BlockExportInfo>, QmpError> {
    Ok(daemon.exports().list().await)
}

pub(super) async fn server_start(daemon: Daemon, start: NbdServerStart) -> Result<(), QmpError> {
    start_server(daemon, &start.into()).await
}

/// Starts the NBD server, with credentials if they are named.
pub(crate) async fn start_server(daemon: Daemon, options: &NbdServerOptions) -> Result<(), QmpError> {
    if let Some(id) = &options.tls_creds {
        daemon.objects(|objects| objects.may_be_tls_credentials(id))?;
    }
    Ok(daemon.exports().start_server(options).await?)
}

/// The deprecated form of `block-export-add`.
pub(super) async fn server_add(daemon: Daemon, arguments: NbdServerAddOptions) -> Result<(), QmpError> {
    let NbdServerAddOptions {
        name,
        description,
        device,
        writable,
        bitmap,
    } = arguments;
    let name = name.unwrap_or_else(|| device.clone());
    let query = FindNode {
        node_name: device.clone(),
    };
    let Ok(node) = daemon.graph(query).await else {
        let text = format!("Cannot find device='{device}' nor node-name='{device}'");
        return Err(QmpError::generic(text));
    };
    let options = BlockExportOptions {
        kind: BlockExportKind::Nbd(NbdExportOptions {
            name: Some(name.clone()),
            description,
            bitmaps: bitmap.map(|bitmap| vec![BlockDirtyBitmapOrStr::Local(bitmap)]),
            allocation_depth: None,
        }),
        id: name,
        fixed_iothread: None,
        iothread: None,
        node_name: device,
        // What cannot be written to is exported read-only, whatever was asked for.
        writable: writable.map(|writable| writable && !node.read_only),
        writethrough: None,
        allow_inactive: None,
    };
    Ok(daemon.exports().add(&options).await?)
}

/// The deprecated form of `block-export-del`.
pub(super) async fn server_remove(daemon: Daemon, arguments: NbdServerRemove) -> Result<(), QmpError> {
    let NbdServerRemove { name, mode } = arguments;
    Ok(daemon.exports().delete(&name, mode).await?)
}

pub(super) async fn server_stop(daemon: Daemon, _: NbdServerStop) -> Result<(), QmpError> {
    Ok(daemon.exports().stop_server().await?)
}
