//! The policy driven by a test: nodes are fakes that do what they are told, in whatever order the test chooses.

mod bitmaps;
mod blockers;
mod chains;
mod children;
mod commits;
mod deep;
mod disk;
mod drains;
mod edits;
mod exchanges;
mod facts;
mod failures;
mod in_flight;
mod iothreads;
mod kinds;
mod model;
mod opens;
mod oracle;
mod permissions;
mod promises;
mod random;
mod settled;
mod shutdown;
mod snapshots;
mod subject;
mod transactions;
mod turns;
mod users;
mod world;

use millpond_messages::Permissions;
use millpond_messages::graph::{
    AddChild, AddNode, AttachRoot, DelChild, DeleteNode, DrainBegin, DrainScope, IothreadOptions, Options,
    Reopen, RootRequest, RootUser, Snapshot,
};
use serde_json::Value;

pub use world::FakeWorld;

pub fn options(json: Value) -> Options {
    let Value::Object(options) = json else {
        panic!("not an object: {json}")
    };
    options
}

pub fn add(json: Value) -> AddNode {
    AddNode(options(json))
}

pub fn del(name: &str) -> DeleteNode {
    DeleteNode {
        node_name: name.to_owned(),
    }
}

pub fn snapshot(node: &str, overlay: &str) -> Snapshot {
    Snapshot {
        node: node.to_owned(),
        overlay: overlay.to_owned(),
    }
}

pub fn add_child(parent: &str, node: &str) -> AddChild {
    AddChild {
        parent: parent.to_owned(),
        node: node.to_owned(),
    }
}

pub fn del_child(parent: &str, child: &str) -> DelChild {
    DelChild {
        parent: parent.to_owned(),
        child: child.to_owned(),
    }
}

pub fn reopen(json: Value) -> Reopen {
    Reopen(vec![options(json)])
}

pub fn attach(node: &str, permissions: Permissions, shared: Permissions) -> AttachRoot {
    AttachRoot(RootRequest {
        node: node.to_owned(),
        user: RootUser::Export("e".to_owned()),
        permissions,
        shared,
        iothread: None,
        iothread_required: false,
        writethrough: false,
    })
}

pub fn drain_node(name: &str) -> DrainBegin {
    DrainBegin {
        scope: DrainScope::Node(name.to_owned()),
        user: "test".to_owned(),
    }
}

pub fn drain_all() -> DrainBegin {
    DrainBegin {
        scope: DrainScope::All,
        user: "test".to_owned(),
    }
}

pub const READ: Permissions = Permissions::CONSISTENT_READ;
pub const READ_WRITE: Permissions = READ.union(Permissions::WRITE);
pub const ALL: Permissions = Permissions::all();
