//! The names that nodes are shown by: the file's name where that alone would open the same node, else `json:{...}`.

use std::borrow::Cow;
use std::collections::HashMap;
use std::rc::Rc;

use millpond_messages::path::{full_backing_filename, path_combine};
use millpond_messages::qapi::{bucket, push_string, to_compact};
use millpond_messages::{Error, ErrorKind, NodeId, OpenFlags, Result};
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
            // Whoever only looks at an image opens nothing that it names, and means what it names all the same.
            None => named.is_some() && !node.flags.contains(OpenFlags::NO_IO),
        }
    }

    /// The options that open the node, as JSON, cut off where no name shows more.
    fn options(&self, graph: &Graph, node: &Node) -> String {
        let mut members = Members::default();
        members.insert("driver".into(), Text::Word(node.kind.name()));
        for (name, value) in strong_options(node) {
            members.insert_flat(name.into(), value);
        }
        let overridden = self.backing_overridden(graph, node);
        for edge in graph.children_of(node.id) {
            let skipped = edge.name == "backing" && !overridden;
            if let Some(child) = self.0.get(&edge.child).filter(|_| !skipped) {
                match node.kind.numbered().filter(|_| is_numbered(node, edge)) {
                    Some(numbered) => members.push(numbered.name.into(), &child.options),
                    None => members.insert((&*edge.name).into(), Text::One(&child.options)),
                }
            }
        }
        if overridden && graph.child_named(node.id, "backing").is_none() {
            members.insert("backing".into(), Text::Value(&Value::Null));
        }
        let mut text = members.into_text();
        cut(&mut text, NAME_MAX);
        text
    }
}

/// The members of the options of a node, as they came.
#[derive(Debug, Default)]
struct Members<'a>(Vec<(Cow<'a, str>, Text<'a>)>);

/// What a member is.
#[derive(Debug)]
enum Text<'a> {
    Word(&'a str),
    Value(&'a Value),
    /// The options of a child.
    One(&'a str),
    /// Those of children with numbers. The numbers have gaps once a child was deleted, but the list that opens the same
    /// again has none.
    List(Vec<&'a str>),
}

impl<'a> Members<'a> {
    /// Adds a member. One of this name that is there gets the new value.
    fn insert(&mut self, name: Cow<'a, str>, text: Text<'a>) {
        match self.0.iter_mut().find(|(has, _)| *has == name) {
            Some((_, had)) => *had = text,
            None => self.0.push((name, text)),
        }
    }

    /// Adds the options of a child to the list of this name.
    fn push(&mut self, name: Cow<'a, str>, options: &'a str) {
        match self.0.iter_mut().find(|(has, _)| *has == name) {
            Some((_, Text::List(list))) => list.push(options),
            _ => self.insert(name, Text::List(vec![options])),
        }
    }

    /// Adds an option of a driver's own. Lists and objects are shown by dotted keys, as QEMU has them, one for each of what is
    /// in them.
    fn insert_flat(&mut self, name: Cow<'a, str>, value: &'a Value) {
        match value {
            Value::Array(items) => (0..).zip(items).for_each(|(number, item): (usize, _)| {
                self.insert_flat(format!("{name}.{number}").into(), item);
            }),
            Value::Object(members) => members
                .iter()
                .for_each(|(member, value)| self.insert_flat(format!("{name}.{member}").into(), value)),
            _ => self.insert(name, Text::Value(value)),
        }
    }

    /// All of them as an object, in QEMU's order.
    fn into_text(mut self) -> String {
        self.0.reverse();
        self.0.sort_by_cached_key(|(name, _)| bucket(name));
        let mut out = String::with_capacity(64);
        out.push('{');
        for (index, (name, text)) in self.0.iter().enumerate() {
            if index > 0 {
                out.push_str(", ");
            }
            push_string(&mut out, name);
            out.push_str(": ");
            match text {
                Text::Word(text) => push_string(&mut out, text),
                Text::Value(Value::String(text)) => push_string(&mut out, text),
                Text::Value(value) => out.push_str(&to_compact(value)),
                Text::One(options) => out.push_str(options),
                Text::List(list) => {
                    out.push('[');
                    out.push_str(&list.join(", "));
                    out.push(']');
                }
            }
        }
        out.push('}');
        out
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
fn strong_options(node: &Node) -> impl Iterator<Item = (&str, &Value)> {
    let strong: Option<&'static [&'static str]> = match node.kind.name() {
        "file" | "host_device" | "host_cdrom" => Some(&["filename"]),
        "raw" => Some(&["offset", "size"]),
        "nbd" => Some(&[
            "path",
            "host",
            "port",
            "export",
            "tls-creds",
            "tls-hostname",
            "server",
        ]),
        "null-co" | "null-aio" => Some(&["size", "read-zeroes"]),
        "luks" => Some(&["key-secret"]),
        "qcow2" => Some(&["encrypt.key-secret"]),
        "quorum" => Some(&["vote-threshold", "blkverify", "rewrite-corrupted", "read-pattern"]),
        "blklogwrites" => Some(&["log-append", "log-sector-size"]),
        "copy-on-read" | "preallocate" | "commit_top" | "vdi" => Some(&[]),
        // Of a driver that somebody else brought, any may be.
        _ => None,
    };
    let is_weak = |name: &str| node.kind.name() == "blkdebug" && name.ends_with("-child-perms");
    node.options
        .iter()
        .filter(move |(name, _)| !is_weak(name))
        .filter_map(move |(name, value)| match strong {
            Some(strong) => strong.iter().find_map(|strong| strong_part(strong, name, value)),
            None => Some((name.as_str(), value)),
        })
}

/// What an option has of the strong one of this name: all of it, or a member.
fn strong_part<'a>(strong: &'static str, name: &str, value: &'a Value) -> Option<(&'a str, &'a Value)> {
    match strong.split_once('.') {
        Some((whole, member)) if whole == name => Some((strong, value.get(member)?)),
        _ => (strong == name).then_some((strong, value)),
    }
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
