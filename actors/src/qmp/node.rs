//! Nodes: opened, closed, changed and moved.

use crate::daemon::Daemon;
use millpond_messages::graph::{GraphRequest, Mutation, Query};
use millpond_messages::qapi::QmpError;
use millpond_messages::qapi::schema::{
    BlockdevDel, BlockdevOptions, BlockdevReopen, BlockdevSetActive, BlockdevSnapshot, XBlockdevChange,
    XBlockdevSetIothread, XMillpondMoveNode,
};

/// Has the graph do something, of which nothing is told but whether it was done.
pub(super) async fn change(daemon: &Daemon, request: impl Into<GraphRequest>) -> Result<(), QmpError> {
    daemon.graph(request).await.map(drop)
}

pub(crate) async fn add(daemon: Daemon, options: BlockdevOptions) -> Result<(), QmpError> {
    if !options.has_node_name() {
        return Err(QmpError::generic(
            "'node-name' must be specified for the root node",
        ));
    }
    change(&daemon, Mutation::BlockdevAdd(options.0)).await
}

pub(super) async fn delete(daemon: Daemon, arguments: BlockdevDel) -> Result<(), QmpError> {
    let BlockdevDel { node_name } = arguments;
    change(&daemon, Mutation::BlockdevDel { node_name }).await
}

pub(super) async fn reopen(daemon: Daemon, arguments: BlockdevReopen) -> Result<(), QmpError> {
    let options = arguments.options.into_iter().map(|options| options.0);
    change(&daemon, Mutation::BlockdevReopen(options.collect())).await
}

pub(super) async fn set_active(daemon: Daemon, arguments: BlockdevSetActive) -> Result<(), QmpError> {
    let BlockdevSetActive { node_name, active } = arguments;
    change(&daemon, Mutation::SetActive { node_name, active }).await
}

pub(super) async fn snapshot(daemon: Daemon, arguments: BlockdevSnapshot) -> Result<(), QmpError> {
    let BlockdevSnapshot { node, overlay } = arguments;
    change(&daemon, Mutation::BlockdevSnapshot { node, overlay }).await
}

/// The parent is looked for first, whatever else is wrong.
pub(super) async fn change_children(daemon: Daemon, arguments: XBlockdevChange) -> Result<(), QmpError> {
    let XBlockdevChange { parent, child, node } = arguments;
    let wrong = match (child, node) {
        (Some(child), None) => return change(&daemon, Mutation::DelChild { parent, child }).await,
        (None, Some(node)) => return change(&daemon, Mutation::AddChild { parent, node }).await,
        (Some(_), Some(_)) => "The parameters child and node are in conflict",
        (None, None) => "Either child or node must be specified",
    };
    let query = Query::Node {
        node_name: parent.clone(),
    };
    match daemon.graph(GraphRequest::Query(query)).await {
        Ok(_) => Err(QmpError::generic(wrong)),
        Err(_) => Err(QmpError::generic(format!(
            "Cannot find device='{parent}' nor node-name='{parent}'"
        ))),
    }
}

pub(super) async fn set_iothread(daemon: Daemon, arguments: XBlockdevSetIothread) -> Result<(), QmpError> {
    let request = Mutation::SetIothread {
        node_name: arguments.node_name,
        iothread: arguments.iothread.0,
        force: arguments.force,
    };
    change(&daemon, request).await
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
        let query = Query::MayMove {
            node_name,
            iothread,
            joined,
        };
        return change(&daemon, query).await;
    }
    let request = match joined {
        true => Mutation::SetIothread {
            node_name,
            iothread,
            force: true,
        },
        false => Mutation::MoveNode { node_name, iothread },
    };
    change(&daemon, request).await
}
