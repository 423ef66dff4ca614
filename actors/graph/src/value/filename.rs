//! The names that nodes are shown by: the file's name where that alone would open the same node, else `json:{...}`.

use std::collections::HashMap;
use std::fmt;
use std::rc::Rc;

use millpond_messages::graph::Options;
use millpond_messages::path::{full_backing_filename, path_combine};
use millpond_messages::qapi::{in_qdict_order, to_compact};
use millpond_messages::{Error, ErrorKind, NodeId, Result};
use serde_json::Value;

use crate::value::edge::{Edge, Parent};
use crate::value::graph::Graph;
use crate::value::node::Node;

/// The longest name shown, in bytes.
const NAME_MAX: usize = 4095;

/// The filename of a node, as it was worked out.
#[derive(Debug, Clone)]
struct Name {
    shown: Rc<str>,
    /// A plain filename opens the node.
    is_plain: bool,
    /// The options that open the node, as JSON; no more of them than a name can show.
    options: Rc<str>,
}

/// The names of many nodes. They are built from below: a node's is made of those of its children, which are there, so that
/// what all take is one step for each node and edge however deep the graph is.
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

    /// The filename of a node; empty if it has none.
    pub fn get(&self, id: NodeId) -> &str {
        self.0.get(&id).map_or("", |name| &name.shown)
    }

    fn name(&self, graph: &Graph, node: &Node) -> Name {
        let options: Rc<str> = self.options(graph, node).into();
        match self.plain(graph, node) {
            Some(shown) => Name {
                shown,
                is_plain: true,
                options,
            },
            None => Name {
                shown: shown(&options).into(),
                is_plain: false,
                options,
            },
        }
    }

    /// The plain filename, where one does.
    fn plain(&self, graph: &Graph, node: &Node) -> Option<Rc<str>> {
        if node.kind.borrows_filename() {
            let shown = self.0.get(&primary(graph, node)?)?;
            return shown.is_plain.then(|| Rc::clone(&shown.shown));
        }
        if node.kind.has_filenames() && !node.kind.children().is_empty() {
            let edges = node.children.values().map(|edge| graph.edge(*edge));
            let names = edges.map(|edge| self.0.get(&edge?.child).filter(|name| name.is_plain));
            let names: Vec<&str> = names.map(|name| Some(&*name?.shown)).collect::<Option<_>>()?;
            return node.kind.filename_over(&node.options, &names).map(Into::into);
        }
        if node.kind.has_filenames() {
            let filename = node.facts.as_ref()?.filename.as_deref()?;
            return (!filename.is_empty()).then(|| filename.into());
        }
        // That of a job is nothing that anybody who opens the image asks for.
        if node.kind.never_freeze() {
            let below = self.0.get(&primary(graph, node)?)?;
            return below.is_plain.then(|| Rc::clone(&below.shown));
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

    /// The options that open the node, as JSON, cut off where no name shows more.
    fn options(&self, graph: &Graph, node: &Node) -> String {
        let mut options = Options::new();
        options.insert("driver".to_owned(), Value::String(node.kind.name().to_owned()));
        for (name, value) in strong_options(node) {
            insert_flat(&mut options, name, value);
        }
        let overridden = self.backing_overridden(graph, node);
        // Those of children are there as text already; among the others they are nulls.
        let mut children: HashMap<&str, Text> = HashMap::new();
        for edge in graph.children_of(node.id) {
            let skipped = edge.name == "backing" && !overridden;
            if let Some(child) = self.0.get(&edge.child).filter(|_| !skipped) {
                let (name, text) = match node.kind.numbered().filter(|_| is_numbered(node, edge)) {
                    Some(numbered) => (numbered.name, children.entry(numbered.name).or_default()),
                    None => (&*edge.name, children.entry(&edge.name).or_insert(Text::One(""))),
                };
                text.push(&child.options);
                options.insert(name.to_owned(), Value::Null);
            }
        }
        if overridden && graph.child_named(node.id, "backing").is_none() {
            options.insert("backing".to_owned(), Value::Null);
        }
        let members = in_qdict_order(&options).map(|(name, value)| {
            let value = match children.get(name.as_str()) {
                Some(text) => text.to_string(),
                None => to_compact(value),
            };
            format!("{}: {value}", to_compact(&Value::String(name.clone())))
        });
        let mut text = format!("{{{}}}", members.collect::<Vec<_>>().join(", "));
        cut(&mut text, NAME_MAX);
        text
    }
}

/// The options of a child, or of those that are a list.
#[derive(Debug)]
enum Text<'a> {
    One(&'a str),
    /// Numbers have gaps once a child was deleted, but the list that opens the same again has none.
    List(Vec<&'a str>),
}

impl Default for Text<'_> {
    fn default() -> Self {
        Self::List(Vec::new())
    }
}

impl<'a> Text<'a> {
    fn push(&mut self, options: &'a str) {
        match self {
            Self::One(text) => *text = options,
            Self::List(list) => list.push(options),
        }
    }
}

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(text) => f.write_str(text),
            Self::List(list) => write!(f, "[{}]", list.join(", ")),
        }
    }
}

/// A name made of options.
fn shown(options: &str) -> String {
    let mut text = format!("json:{options}");
    if text.len() > NAME_MAX {
        cut(&mut text, NAME_MAX - 3);
        text.push_str("...");
    }
    text
}

/// Cuts a text down to so many bytes, between two characters.
fn cut(text: &mut String, most: usize) {
    let most = most.min(text.len());
    let end = (0..=most).rev().find(|end| text.is_char_boundary(*end));
    text.truncate(end.unwrap_or(0));
}

/// Adds an option of a driver's own. Lists and objects are shown by dotted keys, as QEMU has them, one for each of what is in
/// them.
fn insert_flat(options: &mut Options, name: &str, value: &Value) {
    match value {
        Value::Array(items) => (0..)
            .zip(items)
            .for_each(|(number, item): (usize, _)| insert_flat(options, &format!("{name}.{number}"), item)),
        Value::Object(members) => members
            .iter()
            .for_each(|(member, value)| insert_flat(options, &format!("{name}.{member}"), value)),
        _ => drop(options.insert(name.to_owned(), value.clone())),
    }
}

fn is_numbered(node: &Node, edge: &Edge) -> bool {
    matches!(edge.parent, Parent::Node(_, slot) if slot.index() >= node.kind.children().len())
}

/// The child that stands for a node.
fn primary(graph: &Graph, node: &Node) -> Option<NodeId> {
    let by_role = graph
        .children_of(node.id)
        .find(|edge| edge.role.contains(millpond_messages::Role::PRIMARY));
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
        "copy-on-read" | "preallocate" | "commit_top" => Some(&[]),
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
