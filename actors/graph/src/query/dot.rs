//! `x-millpond-query-dot`: the graph in the DOT language, for graphviz and for people.

use std::collections::BTreeMap;
use std::fmt::Write;

use millpond_messages::graph::{EdgeFacts, EdgeParent, GraphFacts, NodeFacts, RootUser};
use millpond_messages::{IoThreadId, Role};

/// Draws a graph: a box for each node with its driver and iothread, an ellipse for each user, and the edges between
/// them with name, role and permissions. `iothreads` are the names of iothreads.
pub fn dot(facts: &GraphFacts, iothreads: &BTreeMap<IoThreadId, String>) -> String {
    let mut text =
        String::from("digraph millpond {\n    node [fontname=monospace];\n    edge [fontname=monospace];\n");
    for node in &facts.nodes {
        let label = node_label(node, iothreads);
        line(
            &mut text,
            format_args!("n{} [shape=box, label={}];", node.id.0, quoted(&label)),
        );
    }
    for edge in &facts.edges {
        let parent = match &edge.parent {
            EdgeParent::Node(node) => format!("n{}", node.0),
            EdgeParent::Root(root, user) => {
                let label = quoted(&user_label(user));
                line(
                    &mut text,
                    format_args!("r{} [shape=ellipse, label={label}];", root.0),
                );
                format!("r{}", root.0)
            }
        };
        let label = quoted(&edge_label(edge));
        line(
            &mut text,
            format_args!("{parent} -> n{} [label={label}];", edge.child.0),
        );
    }
    text.push_str("}\n");
    text
}

fn line(text: &mut String, content: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "    {content}");
}

fn node_label(node: &NodeFacts, iothreads: &BTreeMap<IoThreadId, String>) -> String {
    let mut label = format!("{}\n{}", node.name, node.driver);
    if node.read_only {
        label.push_str(", read-only");
    }
    match iothreads.get(&node.iothread) {
        Some(name) => label.push_str(&format!("\niothread {name}")),
        None => label.push_str(&format!("\niothread #{}", node.iothread)),
    }
    label
}

fn user_label(user: &RootUser) -> String {
    match user {
        RootUser::Export(id) => format!("export {id}"),
        RootUser::Job(id) => format!("job {id}"),
        RootUser::Embedder(name) => format!("embedder {name}"),
    }
}

fn edge_label(edge: &EdgeFacts) -> String {
    format!(
        "{}\n{}\ntakes {}\nshares {}",
        edge.name,
        roles(edge.role),
        edge.permissions.names(),
        edge.shared.names()
    )
}

fn roles(role: Role) -> String {
    let names: Vec<String> = role.iter_names().map(|(name, _)| name.to_lowercase()).collect();
    names.join(", ")
}

/// A string of the DOT language. Besides the quote, the backslash means something in a label.
fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for character in text.chars() {
        match character {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            other if other.is_control() => quoted.push(char::REPLACEMENT_CHARACTER),
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}
