//! What others are told of nodes and edges.

use std::collections::HashSet;

use millpond_drivers::api::Abilities;
use millpond_messages::graph::{EdgeFacts, EdgeParent, GraphFacts, GraphReply, NodeFacts};
use millpond_messages::{NodeId, OpenFlags, Role, RootId};

use crate::value::edge::{Edge, Parent};
use crate::value::filename;
use crate::value::graph::Graph;
use crate::value::node::Node;

/// What a node can do only if those below it can.
#[derive(Debug, Clone, Copy)]
struct Passed {
    has_zero_init: bool,
    takes_compressed: bool,
    unmaps_zeroes: bool,
}

/// What others act on.
pub fn facts(graph: &Graph, node: &Node) -> NodeFacts {
    let names = filename::Filenames::of(graph, [node.id]);
    let passed = Passed {
        has_zero_init: has_zero_init(graph, node),
        takes_compressed: takes_compressed(graph, node),
        unmaps_zeroes: has_ability(graph, node, UNMAPS_ZEROES),
    };
    facts_named(node, &names, passed)
}

/// The same with what is known of many nodes at once.
fn facts_named(node: &Node, names: &filename::Filenames, passed: Passed) -> NodeFacts {
    let open = node.facts.as_ref();
    NodeFacts {
        id: node.id,
        name: node.name.clone(),
        driver: node.kind.name().to_owned(),
        is_filter: node.kind.is_filter(),
        size: open.map_or(0, |open| open.size),
        read_only: node.flags.is_read_only(),
        flags: node.flags,
        filename: names.get(node.id).to_owned(),
        has_zero_init: passed.has_zero_init,
        limits: open.map_or_else(millpond_messages::Limits::default, |open| open.limits),
        takes_compressed: passed.takes_compressed,
        unmaps_zeroes: passed.unmaps_zeroes && node.flags.contains(OpenFlags::UNMAP),
        iothread: node.iothread,
    }
}

/// The reply to who looks for a node: its facts, or that there is none.
pub fn found(graph: &Graph, node: Option<NodeId>) -> GraphReply<RootId> {
    let node = node.and_then(|id| graph.node(id));
    GraphReply::Found(node.map(|node| facts(graph, node)))
}

/// Something that a driver can do or not.
#[derive(Clone, Copy)]
struct Ability {
    has: fn(&Abilities) -> bool,
    /// Whether a node has it only if the one below it has.
    passes: fn(&Node, &Abilities) -> bool,
}

const TAKES_COMPRESSED: Ability = Ability {
    has: |abilities| abilities.write_compressed,
    passes: |node, _| node.kind.is_filter(),
};

const UNMAPS_ZEROES: Ability = Ability {
    has: |abilities| abilities.zero_unmap,
    passes: |node, abilities| node.kind.is_filter() || abilities.transparent,
};

/// Whether compressed writes to a node are possible: a filter passes on what its child takes.
pub fn takes_compressed(graph: &Graph, node: &Node) -> bool {
    has_ability(graph, node, TAKES_COMPRESSED)
}

fn has_ability(graph: &Graph, node: &Node, ability: Ability) -> bool {
    let mut at = node;
    loop {
        let Some(abilities) = at.facts.as_ref().map(|open| &open.abilities) else {
            return false;
        };
        if !(ability.has)(abilities) || !(ability.passes)(at, abilities) {
            return (ability.has)(abilities);
        }
        let below = graph.children_of(at.id).next();
        match below.and_then(|edge| graph.node(edge.child)) {
            Some(next) => at = next,
            None => return false,
        }
    }
}

/// Whether what was never written to a node reads as zeroes.
enum ZeroInit {
    Known(bool),
    /// As with another node, which it shows.
    As(NodeId),
}

fn zero_init(graph: &Graph, node: &Node) -> ZeroInit {
    // What an overlay does not hold is its backing node's.
    if graph
        .children_of(node.id)
        .any(|edge| edge.role.contains(Role::COW))
    {
        return ZeroInit::Known(false);
    }
    let open = node.facts.as_ref();
    // Of a raw image, and through a filter, the file's own data is seen.
    let transparent = open.is_some_and(|open| open.abilities.transparent) || node.kind.is_filter();
    if !transparent {
        return ZeroInit::Known(open.is_some_and(|open| open.abilities.has_zero_init));
    }
    match graph.children_of(node.id).next() {
        Some(edge) => ZeroInit::As(edge.child),
        None => ZeroInit::Known(false),
    }
}

/// Whether what was never written to a node reads as zeroes.
pub fn has_zero_init(graph: &Graph, node: &Node) -> bool {
    let mut at = zero_init(graph, node);
    loop {
        match at {
            ZeroInit::Known(known) => return known,
            ZeroInit::As(id) => match graph.node(id) {
                Some(node) => at = zero_init(graph, node),
                None => return false,
            },
        }
    }
}

/// The nodes that have it, of all: worked out from below, one step a node.
fn with_zero_init(graph: &Graph) -> HashSet<NodeId> {
    let mut have = HashSet::new();
    let all = graph.nodes().map(|node| node.id);
    for id in graph.topological(all).into_iter().rev() {
        let Some(node) = graph.node(id) else { continue };
        let has = match zero_init(graph, node) {
            ZeroInit::Known(known) => known,
            ZeroInit::As(child) => have.contains(&child),
        };
        if has {
            have.insert(id);
        }
    }
    have
}

/// The nodes that have an ability, of all: worked out from below, one step a node.
fn with_ability(graph: &Graph, ability: Ability) -> HashSet<NodeId> {
    let mut have = HashSet::new();
    let all = graph.nodes().map(|node| node.id);
    for id in graph.topological(all).into_iter().rev() {
        let Some(node) = graph.node(id) else { continue };
        let Some(abilities) = node.facts.as_ref().map(|open| &open.abilities) else {
            continue;
        };
        let passes = (ability.passes)(node, abilities);
        let below = graph.children_of(id).next();
        if (ability.has)(abilities) && (!passes || below.is_some_and(|edge| have.contains(&edge.child))) {
            have.insert(id);
        }
    }
    have
}

/// All nodes and edges that were committed.
pub fn whole(graph: &Graph) -> GraphFacts {
    let names = filename::Filenames::of(graph, graph.live_nodes().map(|node| node.id));
    let zeroes = with_zero_init(graph);
    let [compressed, unmapping] =
        [TAKES_COMPRESSED, UNMAPS_ZEROES].map(|ability| with_ability(graph, ability));
    let mut edges: Vec<&Edge> = graph.edges().filter(|edge| is_live(graph, edge)).collect();
    edges.sort_unstable_by_key(|edge| edge.id);
    let edges = edges.into_iter().filter_map(|edge| {
        let parent = match edge.parent {
            Parent::Node(node, _) => EdgeParent::Node(node),
            Parent::Root(root) => EdgeParent::Root(root, graph.root(root)?.user.clone()),
        };
        Some(EdgeFacts {
            parent,
            child: edge.child,
            name: edge.name.clone().into_owned(),
            role: edge.role,
            permissions: edge.taken,
            shared: edge.shared,
        })
    });
    GraphFacts {
        nodes: graph
            .live_nodes()
            .map(|node| {
                let passed = Passed {
                    has_zero_init: zeroes.contains(&node.id),
                    takes_compressed: compressed.contains(&node.id),
                    unmaps_zeroes: unmapping.contains(&node.id),
                };
                facts_named(node, &names, passed)
            })
            .collect(),
        edges: edges.collect(),
    }
}

fn is_live(graph: &Graph, edge: &Edge) -> bool {
    match edge.parent {
        Parent::Node(node, _) => graph.node(node).is_some_and(|node| node.live),
        Parent::Root(root) => graph.root(root).is_some_and(|root| root.has_cell),
    }
}
