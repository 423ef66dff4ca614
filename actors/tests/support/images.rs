//! Images that QEMU's tools make, and users of the nodes that are opened on them.

use std::process::Command;

use millpond::graph::GraphHandle;
use millpond::node::Client;
use millpond_messages::Permissions;
use millpond_messages::graph::{RootRequest, RootUser};

/// Runs a tool of QEMU's, which succeeds.
pub fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}: install the package qemu-utils"));
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {text}");
}

/// A user of a node that shares everything with others.
pub async fn attach(graph: &GraphHandle, node: &str, permissions: Permissions) -> Client {
    let request = RootRequest::new(node, RootUser::Embedder("test".to_owned()), permissions);
    graph.attach(request).await.unwrap()
}
