//! Nodes: opened, closed, changed and moved.

use crate::daemon::Daemon;
use millpond_messages::graph::{
    AddChild, AddNode, DelChild, DeleteNode, FindNode, MayMove, MoveNode, Reopen, SetActive, SetIothread,
    Snapshot,
};
use millpond_messages::qapi::QmpError;
use millpond_messages::qapi::schema::{
    BlockdevDel, BlockdevOptions, BlockdevReopen, BlockdevSetActive, BlockdevSnapshot, XBlockdevChange,
    XBlockdevSetIothread, XMillpondMoveNode,
};

pub(crate) async fn add(daemon: Daemon, options: BlockdevOptions) -> Result<(), QmpError> {
    if !options.has_node_name() {
        return Err(QmpError::generic(
            "'node-name' must be specified for the root node",
        ));
    }
    daemon.graph(AddNode(options.0)).await
}

pub(super) async fn delete(daemon: Daemon, arguments: BlockdevDel) -> Result<(), QmpError> {
    let BlockdevDel { node_name } = arguments;
    daemon.graph(DeleteNode { node_name }).await
}

pub(super) async fn reopen(daemon: Daemon, arguments: BlockdevReopen) -> Result<(), QmpError> {
    let options = arguments.options.into_iter().map(|options| options.0);
    daemon.graph(Reopen(options.collect())).await
}

pub(super) async fn set_active(daemon: Daemon, arguments: BlockdevSetActive) -> Result<(), QmpError> {
    let BlockdevSetActive { node_name, active } = arguments;
    daemon.graph(SetActive { node_name, active }).await
}

pub(super) async fn snapshot(daemon: Daemon, arguments: BlockdevSnapshot) -> Result<(), QmpError> {
    let BlockdevSnapshot { node, overlay } = arguments;
    daemon.graph(Snapshot { node, overlay }).await
}

/// The parent is looked for first, whatever else is wrong.
pub(super) async fn change_children(daemon: Daemon, arguments: XBlockdevChange) -> Result<(), QmpError> {
    let XBlockdevChange { parent, child, node } = arguments;
    let wrong = match (child, node) {
        (Some(child), None) => return daemon.graph(DelChild { parent, child }).await,
        (None, Some(node)) => return daemon.graph(AddChild { parent, node }).await,
        (Some(_), Some(_)) => "The parameters child and node are in conflict",
        (None, None) => "Either child or node must be specified",
    };
    let query = FindNode {
        node_name: parent.clone(),
    };
    match daemon.graph(query).await {
        Ok(_) => Err(QmpError::generic(wrong)),
        Err(_) => Err(QmpError::generic(format!(
            "Cannot find device='{parent}' nor node-name='{parent}'"
        ))),
    }
}

pub(super) async fn set_iothread(daemon: Daemon, arguments: XBlockdevSetIothread) -> Result<(), QmpError> {
    let request = SetIothread {
        node_name: arguments.node_name,
        iothread: arguments.iothread.0,
        force: arguments.force,
    };
    daemon.graph(request).await
}

pub(super) async fn move_node(daemon: Daemon, arguments: XMillpondMoveNode) -> Result<(), QmpError> {
    let XMillpondMoveNode {
        node_name,
        iothread,
        joined,
        dry_run,
    } = arguments;
    let iothread = iothread.0;
    if dry_run {
        let query = MayMove {
            node_name,
            iothread,
            joined,
        };
        return daemon.graph(query).await;
    }
    if !joined {
        return daemon.graph(MoveNode { node_name, iothread }).await;
    }
    let request = SetIothread {
        node_name,
        iothread,
        force: true,
    };
    daemon.graph(request).await
}
