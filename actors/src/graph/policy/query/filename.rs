//! The names that nodes are shown by: the file's name where that alone would open the same node, else `json:{...}`.

use std::collections::HashMap;
use std::rc::Rc;

use messages::global_state::Options;
use messages::path::{full_backing_filename, path_combine};
use messages::qapi::to_compact;
use messages::{Error, ErrorKind, NodeId, Result};
use serde_json::Value;

use super::super::value::{Edge, Graph, Node, Parent};

/// The longest name shown, in bytes.
const NAME_MAX: usize = 4095;
/// How deep options are shown. A name is cut off long before.
const DEPTH_MAX: usize = 400;

/// A node's name.
#[derive(Debug, Clone)]
struct Name {
    shown: Rc<str>,
    /// A plain filename opens the node.
    is_plain: bool,
}

/// The names of many nodes.
#[derive(Debug, Default)]
pub struct Filenames(HashMap<NodeId, Name>);

impl Filenames {
    /// The names of `nodes` and of all below them, each worked out once.
    pub fn of(graph: &Graph, nodes: impl IntoIterator<Item = NodeId>) -> Self {
        let mut names = Self::default();
        for id in graph.topological(nodes).into_iter().rev() {
            if let Some(node) = graph.node(id) {
                let name = names.name(graph, node);
                names.0.insert(id, name);
            }
        }
        names
    }

    /// A node's name.
    pub fn get(&self, id: NodeId) -> &str {
        self.0.get(&id).map_or("", |name| &name.shown)
    }

    fn name(&self, graph: &Graph, node: &Node) -> Name {
        match self.plain(graph, node) {
            Some(shown) => Name {
                shown,
                is_plain: true,
            },
            None => Name {
                shown: self.json(graph, node).into(),
                is_plain: false,
            },
        }
    }

    /// The plain filename, where one does.
    fn plain(&self, graph: &Graph, node: &Node) -> Option<Rc<str>> {
        if node.kind.has_filenames() {
            let filename = node.facts.as_ref()?.filename.as_deref()?;
            return (!filename.is_empty()).then(|| filename.into());
        }
        // A filter is there only if somebody asks for it by options.
        if node.kind.is_filter()
            || strong_options(node).next().is_some()
            || self.backing_overridden(graph, node)
        {
            return None;
        }
        let file = primary(graph, node)?;
        // A format is guessed from what is in a file, never from what another format shows.
        if !graph.node(file)?.kind.has_filenames() {
            return None;
        }
        self.0
            .get(&file)
            .filter(|name| name.is_plain)
            .map(|name| Rc::clone(&name.shown))
    }

    /// Whether what is behind the node is not what its image names. A stored name is compared as it is, not completed,
    /// with that of a node which was not opened because of it.
    pub fn backing_overridden(&self, graph: &Graph, node: &Node) -> bool {
        let named = node.facts.as_ref().and_then(|facts| facts.backing.as_ref());
        match graph.child_named(node.id, "backing") {
            Some(backing) if node.implicit_backing == Some(backing) => false,
            Some(backing) => named.is_none_or(|link| link.filename != self.get(backing)),
            None => named.is_some(),
        }
    }

    fn json(&self, graph: &Graph, node: &Node) -> String {
        let mut text = String::from("json:");
        text.push_str(&to_compact(&Value::Object(self.options(graph, node, 0))));
        if text.len() > NAME_MAX {
            let end = (0..=NAME_MAX - 3)
                .rev()
                .find(|end| text.is_char_boundary(*end))
                .unwrap_or(0);
            text.truncate(end);
            text.push_str("...");
        }
        text
    }

    /// The options that open the node.
    fn options(&self, graph: &Graph, node: &Node, depth: usize) -> Options {
        let mut options = Options::new();
        options.insert("driver".to_owned(), Value::String(node.kind.name().to_owned()));
        for (name, value) in strong_options(node) {
            options.insert(name.clone(), value.clone());
        }
        let overridden = self.backing_overridden(graph, node);
        for edge in graph.children_of(node.id) {
            let skipped = edge.name == "backing" && !overridden;
            if let Some(child) = graph.node(edge.child).filter(|_| !skipped && depth < DEPTH_MAX) {
                let nested = Value::Object(self.options(graph, child, depth + 1));
                match node.kind.numbered().filter(|_| is_numbered(node, edge)) {
                    Some(numbered) => push(&mut options, numbered.name, nested),
                    None => drop(options.insert(edge.name.clone().into_owned(), nested)),
                }
            }
        }
        if overridden && graph.child_named(node.id, "backing").is_none() {
            options.insert("backing".to_owned(), Value::Null);
        }
        options
    }
}

fn is_numbered(node: &Node, edge: &Edge) -> bool {
    matches!(edge.parent, Parent::Node(_, slot) if slot.index() >= node.kind.children().len())
}

/// Adds to a list among options. Numbers have gaps once a child was deleted, but the list that opens the same again has
/// none.
fn push(options: &mut Options, name: &str, value: Value) {
    let list = options.entry(name).or_insert_with(|| Value::Array(Vec::new()));
    if let Value::Array(list) = list {
        list.push(value);
    }
}

/// The child that stands for a node.
fn primary(graph: &Graph, node: &Node) -> Option<NodeId> {
    let by_role = graph
        .children_of(node.id)
        .find(|edge| edge.role.contains(messages::Role::PRIMARY));
    by_role
        .map(|edge| edge.child)
        .or_else(|| graph.child_named(node.id, "file"))
}

/// The options that say which data a node shows, as opposed to how it is accessed.
fn strong_options(node: &Node) -> impl Iterator<Item = (&String, &Value)> {
    let strong: Option<&[&str]> = match node.kind.name() {
        "file" | "host_device" | "host_cdrom" => Some(&["filename"]),
        "raw" => Some(&["offset", "size"]),
        "null-co" | "null-aio" => Some(&["size", "read-zeroes"]),
        "qcow2" => Some(&["encrypt"]),
        "quorum" => Some(&["vote-threshold", "blkverify", "rewrite-corrupted", "read-pattern"]),
        "blklogwrites" => Some(&["log-append", "log-sector-size"]),
        "copy-on-read" | "preallocate" => Some(&[]),
        // Of a driver that somebody else brought, any may be.
        _ => None,
    };
    let is_weak = |name: &str| node.kind.name() == "blkdebug" && name.ends_with("-child-perms");
    node.options
        .iter()
        .filter(move |(name, _)| !is_weak(name))
        .filter(move |(name, _)| strong.is_none_or(|strong| strong.contains(&name.as_str())))
}

/// The filename that a node's image has: that of the protocol node which stands for it, empty if that has none.
pub fn image_filename(graph: &Graph, id: NodeId) -> String {
    let mut at = graph.node(id);
    while let Some(node) = at {
        if node.kind.is_protocol() {
            return node
                .facts
                .as_ref()
                .and_then(|facts| facts.filename.clone())
                .unwrap_or_default();
        }
        at = primary(graph, node).and_then(|next| graph.node(next));
    }
    String::new()
}

/// The directory that relative names in a node's image start from.
///
/// # Errors
/// The node's file has no name of its own.
pub fn directory(graph: &Graph, node: &Node) -> Result<String> {
    let filename = image_filename(graph, node.id);
    if filename.is_empty() {
        let text = format!("Cannot generate a base directory for {} nodes", node.kind.name());
        return Err(Error::new(ErrorKind::Unsupported, text));
    }
    Ok(path_combine(&filename, ""))
}

/// The backing file that a node's image names, completed.
pub fn full_backing_name(graph: &Graph, node: &Node) -> Option<String> {
    let link = node.facts.as_ref()?.backing.as_ref()?;
    full_backing_filename(&image_filename(graph, node.id), &link.filename).ok()
}
