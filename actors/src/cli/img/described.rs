//! An image with the nodes below it, described for people and for programs.

use super::human;
use crate::cli::tool::{Failure, Tool};
use crate::node::Client;
use millpond_messages::graph::{EdgeParent, FindRoot, ListDrivers, NamedNodes, WholeGraph};
use millpond_messages::qapi::{ImageInfo, Object};
use millpond_messages::{Limits, NodeId};
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet};

/// The most nodes that one image is described with: where nodes share others, each is described under all of them.
const MOST_NODES: usize = 4096;

/// A node, and what is below it, the newest child first.
pub(super) struct Described {
    /// What is known of it.
    pub info: ImageInfo,
    /// It stores bytes itself, and has no image in it.
    is_protocol: bool,
    /// What it asks of requests, where that is wanted.
    limits: Option<Value>,
    children: Vec<(String, Described)>,
}

/// What the graph says of all nodes.
struct Known {
    infos: HashMap<NodeId, ImageInfo>,
    protocols: HashSet<NodeId>,
    limits: HashMap<NodeId, Value>,
    children: HashMap<NodeId, Vec<(String, NodeId)>>,
    left: usize,
}

/// Describes the image behind a hold.
///
/// # Errors
/// It is too many nodes.
pub(super) async fn describe(
    tool: &Tool<'_>,
    client: &Client,
    with_limits: bool,
) -> Result<Described, Failure> {
    let graph = tool.graph();
    let top = graph.ask(FindRoot(client.root())).await?;
    let facts = graph.ask(WholeGraph).await?;
    let nodes = graph.ask(NamedNodes { flat: true }).await?;
    let drivers = graph.ask(ListDrivers { read_only: true }).await?;
    let mut infos: HashMap<String, ImageInfo> = nodes
        .into_iter()
        .filter_map(|node| Some((node.node_name?, node.image)))
        .collect();
    let is_protocol = |name: &str| {
        let mut drivers = drivers.iter();
        drivers.any(|driver| driver.has_filenames && driver.name == name)
    };
    let mut known = Known {
        infos: HashMap::new(),
        protocols: HashSet::new(),
        limits: HashMap::new(),
        children: HashMap::new(),
        left: MOST_NODES,
    };
    for node in &facts.nodes {
        known
            .infos
            .extend(infos.remove(&node.name).map(|info| (node.id, info)));
        if is_protocol(&node.driver) {
            known.protocols.insert(node.id);
        }
        if with_limits {
            known.limits.insert(node.id, limits(&node.limits));
        }
    }
    for edge in facts.edges {
        if let EdgeParent::Node(parent) = edge.parent {
            let children = known.children.entry(parent).or_default();
            children.insert(0, (edge.name, edge.child));
        }
    }
    known.describe(top.id)
}

impl Known {
    fn describe(&mut self, id: NodeId) -> Result<Described, Failure> {
        let left = self.left.checked_sub(1);
        self.left = left.ok_or_else(|| Failure::new("The image consists of too many nodes"))?;
        let mut children = Vec::new();
        for (name, child) in self.children.get(&id).cloned().unwrap_or_default() {
            children.push((name, self.describe(child)?));
        }
        Ok(Described {
            // A node that has gone meanwhile has nothing to show.
            info: self.infos.get(&id).cloned().unwrap_or_default(),
            is_protocol: self.protocols.contains(&id),
            limits: self.limits.get(&id).cloned(),
            children,
        })
    }
}

/// What a node asks of requests, as programs read it: what is not limited is left out.
fn limits(limits: &Limits) -> Value {
    let mut value = json!({
        "request-alignment": limits.request_alignment,
        "max-iov": libc::UIO_MAXIOV,
        "min-mem-alignment": limits.mem_alignment,
        "opt-mem-alignment": limits.opt_mem_alignment,
    });
    let optional = [
        ("max-discard", limits.max_discard),
        ("discard-alignment", limits.discard_alignment.into()),
        ("max-write-zeroes", limits.max_write_zeroes),
        ("write-zeroes-alignment", limits.write_zeroes_alignment.into()),
        ("opt-transfer", limits.opt_transfer.into()),
        ("max-transfer", limits.max_transfer.into()),
    ];
    if let Value::Object(members) = &mut value {
        let given = optional.into_iter().filter(|(_, limit)| *limit != 0);
        members.extend(given.map(|(name, limit)| (name.to_owned(), limit.into())));
    }
    value
}

impl Described {
    /// As programs read it.
    pub fn to_json(&self) -> Value {
        let children = self.children.iter().map(|(name, child)| {
            json!({
                "name": name,
                "info": child.to_json(),
            })
        });
        let mut members = Object::new();
        // Every member of the type has a form in JSON.
        if let Ok(Value::Object(info)) = serde_json::to_value(&self.info) {
            members.extend(info);
        }
        members.extend(self.limits.clone().map(|limits| ("limits".to_owned(), limits)));
        members.insert("children".to_owned(), children.collect());
        Value::Object(members)
    }

    /// As people read it.
    pub fn to_text(&self) -> String {
        self.text("", 0, false)
    }

    /// The node at `path` below the top, behind `indent` levels of four spaces.
    fn text(&self, path: &str, indent: usize, is_protocol: bool) -> String {
        let space = " ".repeat(4 * indent);
        let mut text = String::new();
        let mut line = |name: &str, value: &str| text.push_str(&format!("{space}{name}: {value}\n"));
        self.head(is_protocol, &mut line);
        self.backing(&mut line);
        if let Some(list) = &self.info.snapshots {
            text.push_str(&format!(
                "{space}Snapshot list:\n{}",
                human::snapshots(list, &space)
            ));
        }
        let specific = serde_json::to_value(&self.info.format_specific).unwrap_or_default();
        let parts = [
            ("Format specific information", specific.get("data")),
            ("Block limits", self.limits.as_ref()),
        ];
        for (title, value) in parts {
            let tree = value
                .map(|value| human::tree(value, indent + 1))
                .unwrap_or_default();
            if !tree.is_empty() {
                text.push_str(&format!("{space}{title}:\n{tree}"));
            }
        }
        for (name, child) in &self.children {
            let path = format!("{path}/{name}");
            text.push_str(&format!("{space}Child node '{path}':\n"));
            text.push_str(&child.text(&path, indent + 1, child.is_protocol));
        }
        text
    }

    fn head(&self, is_protocol: bool, line: &mut impl FnMut(&str, &str)) {
        let info = &self.info;
        let bytes = info.virtual_size.cast_unsigned();
        let length = format!("{} ({bytes} bytes)", human::size(bytes));
        let on_disk = match info.actual_size {
            Some(size) => human::size(size.cast_unsigned()),
            None => "unavailable".to_owned(),
        };
        let names = match is_protocol {
            true => ["filename", "protocol type", "file length"],
            false => ["image", "file format", "virtual size"],
        };
        let values = [&info.filename, &info.format, &length];
        names
            .iter()
            .zip(values)
            .for_each(|(name, value)| line(name, value));
        line("disk size", &on_disk);
        if info.encrypted == Some(true) {
            line("encrypted", "yes");
        }
        if let Some(size) = info.cluster_size {
            line("cluster_size", &size.to_string());
        }
        if info.dirty_flag == Some(true) {
            line("cleanly shut down", "no");
        }
    }

    fn backing(&self, line: &mut impl FnMut(&str, &str)) {
        let info = &self.info;
        let Some(name) = &info.backing_filename else {
            return;
        };
        match &info.full_backing_filename {
            None => line("backing file", &format!("{name} (cannot determine actual path)")),
            Some(full) if full != name => line("backing file", &format!("{name} (actual path: {full})")),
            Some(_) => line("backing file", name),
        }
        if let Some(format) = &info.backing_filename_format {
            line("backing file format", format);
        }
    }
}
