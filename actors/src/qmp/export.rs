//! Exports, and the NBD server.

use super::{Reply, arguments, done};
use crate::daemon::Daemon;
use millpond_messages::graph::{GraphReply, GraphRequest, Query};
use millpond_messages::qapi::{
    BlockDirtyBitmapOrStr, BlockExportDel, BlockExportKind, BlockExportOptions, NbdExportOptions,
    NbdServerAdd, NbdServerRemove, NbdServerStart, Object, QmpError,
};
use serde_json::json;

pub(super) async fn add(daemon: Daemon, given: Object) -> Reply {
    daemon.exports().add(&arguments(given)?).await?;
    Ok(done())
}

pub(super) async fn delete(daemon: Daemon, given: Object) -> Reply {
    let BlockExportDel { id, mode } = arguments(given)?;
    daemon.exports().delete(&id, mode).await?;
    Ok(done())
}

pub(super) async fn query(daemon: Daemon, _: Object) -> Reply {
    Ok(json!(daemon.exports().list().await))
}

pub(super) async fn server_start(daemon: Daemon, given: Object) -> Reply {
    let start: NbdServerStart = arguments(given)?;
    daemon.exports().start_server(&start.into()).await?;
    Ok(done())
}

/// The deprecated form of `block-export-add`.
pub(super) async fn server_add(daemon: Daemon, given: Object) -> Reply {
    let NbdServerAdd {
        name,
        description,
        device,
        writable,
        bitmap,
    } = arguments(given)?;
    let name = name.unwrap_or_else(|| device.clone());
    let query = Query::Node {
        node_name: device.clone(),
    };
    let Ok(GraphReply::Node(node)) = daemon.graph(GraphRequest::Query(query)).await else {
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
    daemon.exports().add(&options).await?;
    Ok(done())
}

/// The deprecated form of `block-export-del`.
pub(super) async fn server_remove(daemon: Daemon, given: Object) -> Reply {
    let NbdServerRemove { name, mode } = arguments(given)?;
    daemon.exports().delete(&name, mode).await?;
    Ok(done())
}

pub(super) async fn server_stop(daemon: Daemon, _: Object) -> Reply {
    daemon.exports().stop_server().await?;
    Ok(done())
}
