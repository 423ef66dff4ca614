//! Changes of the graph, as the log reports them.

use std::collections::HashMap;

use millpond_messages::graph::{Action, ChildOf, GraphRequest, Immediate, Mutation, Options, RootUser};
use millpond_messages::{Error, Result};
use serde_json::Value;

use millpond_graph::RequestId;

/// Changes that have been asked for and not answered, as people read them. Kept only while somebody reads them.
#[derive(Default)]
pub(super) struct ChangeLog(HashMap<RequestId, String>);

impl ChangeLog {
    /// A request has come.
    pub(super) fn asked(&mut self, id: RequestId, request: &GraphRequest) {
        if tracing::enabled!(tracing::Level::INFO)
            && let Some(change) = change(request)
        {
            self.0.insert(id, change);
        }
    }

    /// Logs that a change was answered.
    pub(super) fn answered<T>(&mut self, id: RequestId, result: &Result<T>) {
        if self.0.is_empty() {
            return;
        }
        let Some(change) = self.0.remove(&id) else {
            return;
        };
        match result {
            Ok(_) => tracing::info!("changed the graph: {change}"),
            Err(error) => refused(&change, error),
        }
    }
}

fn refused(change: &str, error: &Error) {
    tracing::info!(%error, "refused to change the graph: {change}");
}

/// What a request is to change; nothing for questions, and for what leaves the graph as it is.
fn change(request: &GraphRequest) -> Option<String> {
    match request {
        GraphRequest::Mutation(mutation) => mutated(mutation),
        GraphRequest::Immediate(Immediate::CloseAll { .. }) => Some("close everything".to_owned()),
        GraphRequest::Immediate(_) | GraphRequest::Query(_) => None,
    }
}

fn mutated(mutation: &Mutation) -> Option<String> {
    Some(match mutation {
        Mutation::Open(open) => match &open.filename {
            Some(filename) => format!("open image '{filename}'"),
            None => format!("open {}", node(&open.options)),
        },
        Mutation::BlockdevAdd(options) => format!("add {}", node(options)),
        Mutation::BlockdevDel { node_name } => format!("delete node '{node_name}'"),
        Mutation::BlockdevReopen(all) | Mutation::ReopenKeeping(all) => {
            format!("reopen {}", all.iter().map(node).collect::<Vec<_>>().join(", "))
        }
        Mutation::SetReadOnly { node_name, read_only } => {
            let access = if *read_only { "read-only" } else { "writable" };
            format!("make node '{node_name}' {access}")
        }
        Mutation::SetActive { node_name, active } => {
            let verb = if *active { "activate" } else { "inactivate" };
            match node_name {
                Some(name) => format!("{verb} node '{name}'"),
                None => format!("{verb} all nodes"),
            }
        }
        Mutation::AddIothread(options) => format!("start iothread '{}'", options.id),
        Mutation::DelIothread { id } => format!("stop iothread '{id}'"),
        _ => return edited(mutation),
    })
}

/// What a mutation is to change of what leads where, or of what an image has.
fn edited(mutation: &Mutation) -> Option<String> {
    Some(match mutation {
        Mutation::BlockdevSnapshot { node, overlay } => {
            format!("put overlay '{overlay}' on node '{node}'")
        }
        Mutation::Transaction { actions, .. } => {
            let names = actions.iter().map(Action::name).collect::<Vec<_>>();
            format!("all or none of: {}", names.join(", "))
        }
        Mutation::AddChild { parent, node } => format!("add child '{node}' to node '{parent}'"),
        Mutation::DelChild { parent, child } | Mutation::DetachChild { parent, child } => {
            format!("take child '{child}' from node '{parent}'")
        }
        Mutation::AttachChild { parent, child, node } => {
            format!("put node '{node}' behind child '{child}' of node '{parent}'")
        }
        Mutation::Amend { node_name, .. } => format!("amend the image of node '{node_name}'"),
        Mutation::Resize { node_name, size } => format!("resize node '{node_name}' to {size} bytes"),
        Mutation::SetIothread {
            node_name, iothread, ..
        } => format!(
            "move node '{node_name}' and what is joined to it to {}",
            place(iothread.as_deref())
        ),
        Mutation::MoveNode { node_name, iothread } => {
            format!("move node '{node_name}' to {}", place(iothread.as_deref()))
        }
        Mutation::AttachRoot(root) | Mutation::AttachRootInactive(root) => {
            format!("attach {} to node '{}'", user(&root.user), root.node)
        }
        Mutation::DetachRoot(root) => format!("detach user {root}"),
        Mutation::Append { node, new } => format!("put node '{new}' on top of node '{node}'"),
        Mutation::ReplaceNode { from, to } => format!("replace node '{from}' by node '{to}'"),
        Mutation::ReplaceChild { of, node } => match of {
            ChildOf::Node { node_name, child } => {
                format!("put node '{node}' behind child '{child}' of node '{node_name}'")
            }
            ChildOf::Root(root) => format!("put node '{node}' behind user {root}"),
        },
        Mutation::InsertNode { node: below, options } => {
            format!("insert {} above node '{below}'", node(options))
        }
        Mutation::DropFilter { node_name } => format!("drop filter '{node_name}'"),
        Mutation::SetBacking { node_name, backing } => match backing {
            Some(backing) => format!("put node '{backing}' behind node '{node_name}' as its backing node"),
            None => format!("leave node '{node_name}' without a backing node"),
        },
        Mutation::ChangeBackingFile {
            image_node_name,
            backing_file,
            ..
        } => format!("let the image of node '{image_node_name}' name '{backing_file}' as its backing file"),
        Mutation::DropIntermediate { top, base, .. } => {
            format!("drop the images from '{top}' to '{base}', which stays")
        }
        Mutation::Commit { node_name } => format!("commit node '{node_name}' to its backing node"),
        Mutation::MakeEmpty { node_name } => format!("empty node '{node_name}'"),
        _ => return None,
    })
}

/// A node by its options.
fn node(options: &Options) -> String {
    let text = |name: &str| options.get(name).and_then(Value::as_str);
    match (text("node-name"), text("driver")) {
        (Some(name), Some(driver)) => format!("{driver} node '{name}'"),
        (Some(name), None) => format!("node '{name}'"),
        (None, driver) => format!("{} node without a name", driver.unwrap_or("a")),
    }
}

fn place(iothread: Option<&str>) -> String {
    iothread.map_or_else(
        || "the main iothread".to_owned(),
        |name| format!("iothread '{name}'"),
    )
}

fn user(user: &RootUser) -> String {
    match user {
        RootUser::Export(id) => format!("export '{id}'"),
        RootUser::Job(id) => format!("job '{id}'"),
        RootUser::Embedder(name) => format!("'{name}'"),
    }
}
