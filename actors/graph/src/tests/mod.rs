//! The policy driven by a test: nodes are fakes that do what they are told, in whatever order the test chooses.

mod blockers;
mod chains;
mod children;
mod commits;
mod deep;
mod drains;
mod edits;
mod exchanges;
mod failures;
mod iothreads;
mod model;
mod opens;
mod oracle;
mod permissions;
mod promises;
mod random;
mod shutdown;
mod users;
mod world;

use millpond_messages::Permissions;
use millpond_messages::global_state::{
    DrainScope, GraphRequest, IothreadOptions, Options, RootRequest, RootUser,
};
use serde_json::Value;

pub use world::FakeWorld;

pub fn options(json: Value) -> Options {
    let Value::Object(options) = json else {
        panic!("not an object: {json}")
    };
    options
}

pub fn add(json: Value) -> GraphRequest {
    GraphRequest::BlockdevAdd(options(json))
}

pub fn del(name: &str) -> GraphRequest {
    GraphRequest::BlockdevDel {
        node_name: name.to_owned(),
    }
}

pub fn snapshot(node: &str, overlay: &str) -> GraphRequest {
    GraphRequest::BlockdevSnapshot {
        node: node.to_owned(),
        overlay: overlay.to_owned(),
    }
}

pub fn add_child(parent: &str, node: &str) -> GraphRequest {
    GraphRequest::AddChild {
        parent: parent.to_owned(),
        node: node.to_owned(),
    }
}

pub fn del_child(parent: &str, child: &str) -> GraphRequest {
    GraphRequest::DelChild {
        parent: parent.to_owned(),
        child: child.to_owned(),
    }
}

pub fn reopen(json: Value) -> GraphRequest {
    GraphRequest::BlockdevReopen(vec![options(json)])
}

pub fn attach(node: &str, permissions: Permissions, shared: Permissions) -> GraphRequest {
    GraphRequest::AttachRoot(RootRequest {
        node: node.to_owned(),
        user: RootUser::Export("e".to_owned()),
        permissions,
        shared,
        iothread: None,
        iothread_required: false,
        writethrough: false,
    })
}

pub fn drain_node(name: &str) -> GraphRequest {
    GraphRequest::DrainBegin {
        scope: DrainScope::Node(name.to_owned()),
        user: "test".to_owned(),
    }
}

pub fn drain_all() -> GraphRequest {
    GraphRequest::DrainBegin {
        scope: DrainScope::All,
        user: "test".to_owned(),
    }
}

pub const READ: Permissions = Permissions::CONSISTENT_READ;
pub const READ_WRITE: Permissions = READ.union(Permissions::WRITE);
pub const ALL: Permissions = Permissions::all();
