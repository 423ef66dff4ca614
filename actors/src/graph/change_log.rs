//! Changes of the graph, as the log reports them.

use std::collections::HashMap;

use millpond_messages::graph::{
    Action, AddChild, Append, AttachChild, AttachRoot, AttachRootInactive, ChildOf, DelChild, DetachChild,
    DropIntermediate, GraphRequest, Immediate, JobAction, JobEdit, MoveNode, Mutation, OpenImage, Options,
    Reopen, ReopenKeeping, ReplaceChild, ReplaceNode, Resize, RootUser, SetActive, SetBacking, SetReadOnly,
    Snapshot,
};
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
        GraphRequest::Immediate(Immediate::CloseAll(_)) => Some("close everything".to_owned()),
        GraphRequest::Immediate(_) | GraphRequest::Query(_) => None,
    }
}

fn mutated(mutation: &Mutation) -> Option<String> {
    Some(match mutation {
        Mutation::Open(request) => opened(&request.0),
        Mutation::OpenHeld(request) => opened(&request.image),
        Mutation::AddNode(request) => format!("add {}", node(&request.0)),
        Mutation::DeleteNode(request) => format!("delete node '{}'", request.node_name),
        Mutation::Reopen(Reopen(all)) | Mutation::ReopenKeeping(ReopenKeeping(all)) => {
            format!("reopen {}", all.iter().map(node).collect::<Vec<_>>().join(", "))
        }
        Mutation::SetReadOnly(SetReadOnly { node_name, read_only }) => {
            let access = if *read_only { "read-only" } else { "writable" };
            format!("make node '{node_name}' {access}")
        }
        Mutation::SetActive(SetActive { node_name, active }) => {
            let verb = if *active { "activate" } else { "inactivate" };
            match node_name {
                Some(name) => format!("{verb} node '{name}'"),
                None => format!("{verb} all nodes"),
            }
        }
        Mutation::AddIothread(request) => format!("start iothread '{}'", request.0.id),
        Mutation::DelIothread(request) => format!("stop iothread '{}'", request.id),
        _ => return linked(mutation),
    })
}

/// What a mutation is to change of what leads where.
fn linked(mutation: &Mutation) -> Option<String> {
    Some(match mutation {
        Mutation::Snapshot(Snapshot { node, overlay }) => {
            format!("put overlay '{overlay}' on node '{node}'")
        }
        Mutation::AddChild(AddChild { parent, node }) => format!("add child '{node}' to node '{parent}'"),
        Mutation::DelChild(DelChild { parent, child })
        | Mutation::DetachChild(DetachChild { parent, child }) => {
            format!("take child '{child}' from node '{parent}'")
        }
        Mutation::AttachChild(AttachChild { parent, child, node }) => {
            format!("put node '{node}' behind child '{child}' of node '{parent}'")
        }
        Mutation::AttachRoot(AttachRoot(root)) | Mutation::AttachRootInactive(AttachRootInactive(root)) => {
            format!("attach {} to node '{}'", user(&root.user), root.node)
        }
        Mutation::DetachRoot(request) => format!("detach user {}", request.0),
        Mutation::Append(Append { node, new }) => format!("put node '{new}' on top of node '{node}'"),
        Mutation::ReplaceNode(ReplaceNode { from, to }) => format!("replace node '{from}' by node '{to}'"),
        Mutation::ReplaceChild(ReplaceChild { of, node }) => match of {
            ChildOf::Node { node_name, child } => {
                format!("put node '{node}' behind child '{child}' of node '{node_name}'")
            }
            ChildOf::Root(root) => format!("put node '{node}' behind user {root}"),
        },
        Mutation::InsertNode(request) => {
            format!("insert {} above node '{}'", node(&request.options), request.node)
        }
        Mutation::DropFilter(request) => format!("drop filter '{}'", request.node_name),
        Mutation::SetBacking(SetBacking { node_name, backing }) => match backing {
            Some(backing) => format!("put node '{backing}' behind node '{node_name}' as its backing node"),
            None => format!("leave node '{node_name}' without a backing node"),
        },
        Mutation::DropIntermediate(DropIntermediate { top, base, .. }) => dropped(top, base),
        Mutation::EditForJob(request) => edited_by_job(&request.0),
        _ => return changed(mutation),
    })
}

/// What a mutation is to change of an image, or of where a node lives.
fn changed(mutation: &Mutation) -> Option<String> {
    Some(match mutation {
        Mutation::Transact(request) => {
            let names = request.actions.iter().map(Action::name).collect::<Vec<_>>();
            format!("all or none of: {}", names.join(", "))
        }
        Mutation::TransactForJobs(request) => {
            let names = request.0.iter().map(JobAction::name).collect::<Vec<_>>();
            match names.as_slice() {
                [name] => (*name).to_owned(),
                _ => format!("all or none of: {}", names.join(", ")),
            }
        }
        Mutation::Amend(request) => format!("amend the image of node '{}'", request.node_name),
        Mutation::Resize(Resize { node_name, size }) => format!("resize node '{node_name}' to {size} bytes"),
        Mutation::SetIothread(request) => format!(
            "move node '{}' and what is joined to it to {}",
            request.node_name,
            place(request.iothread.as_deref())
        ),
        Mutation::MoveNode(MoveNode { node_name, iothread }) => {
            format!("move node '{node_name}' to {}", place(iothread.as_deref()))
        }
        Mutation::RecordBackingFile(request) => format!(
            "let the image of node '{}' name '{}' as its backing file",
            request.image_node_name, request.backing_file
        ),
        Mutation::Commit(request) => format!("commit node '{}' to its backing node", request.node_name),
        Mutation::MakeEmpty(request) => format!("empty node '{}'", request.node_name),
        _ => return None,
    })
}

fn dropped(top: &str, base: &str) -> String {
    format!("drop the images from '{top}' to '{base}', which stays")
}

/// The same of changes that only jobs ask for.
fn edited_by_job(edit: &JobEdit) -> String {
    match edit {
        JobEdit::InsertFilter {
            node: below, options, ..
        } => format!("put {} in place of '{below}'", node(options)),
        JobEdit::DropImages { top, base, .. } => dropped(top, base),
        JobEdit::Rebase { node_name, base, .. } => match base {
            Some(base) => format!("put node '{base}' behind the image of node '{node_name}'"),
            None => format!("leave the image of node '{node_name}' without a backing file"),
        },
        JobEdit::Pivot {
            filter,
            replaced,
            target,
            ..
        } => format!(
            "put {target} in the place of {} at the end of the mirror below {filter}",
            replaced.as_deref().unwrap_or("its source")
        ),
        JobEdit::JoinBitmap(join) => {
            format!("put bitmap {} of node {} together again", join.bitmap, join.node)
        }
        JobEdit::StoreBacking {
            node_name,
            backing_file,
            ..
        } => format!(
            "store '{}' as the backing file of the image of node '{node_name}'",
            backing_file.as_deref().unwrap_or_default()
        ),
        JobEdit::ResizeHeld { root, size } => format!("resize what user {root} holds to {size} bytes"),
    }
}

fn opened(image: &OpenImage) -> String {
    match &image.filename {
        Some(filename) => format!("open image '{filename}'"),
        None => format!("open {}", node(&image.options)),
    }
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
