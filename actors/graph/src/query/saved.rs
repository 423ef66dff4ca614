//! The graph written down, with what each node's iothread keeps of it.

use std::collections::HashMap;

use millpond_engine::node::{DetectZeroes, OrderOutcome};
use millpond_messages::saved::{
    SavedBitmap, SavedBlocker, SavedCell, SavedCommon, SavedEdge, SavedFreeze, SavedGiven, SavedGraph,
    SavedIothread, SavedNode, SavedOptions, SavedParent, SavedRoot, SavedSection, SavedSectionCover,
};
use millpond_messages::{Error, ErrorKind, IoThreadId, NodeId, Result, RootId};

use crate::order::IothreadOrder;
use crate::query::nodes::by_iothread;
use crate::sections::Cover;
use crate::state::{IothreadEntry, PolicyState};
use crate::value::bitmap::Bitmap;
use crate::value::common::{Common, GivenOptions};
use crate::value::edge::{Edge, Parent, Root};
use crate::value::graph::Graph;
use crate::value::node::Node;
use crate::world::World;

/// How many nodes one order asks, as with statistics.
const AT_ONCE: usize = 256;

/// The whole graph. Whoever wants a record that another daemon can go on from has everything drained before, and changes
/// nothing until it has the record.
///
/// # Errors
/// A change is under way, so that there is no state to be saved; or the state of a node cannot be.
pub async fn graph(world: &World) -> Result<SavedGraph> {
    world.graph(|graph| check_settled(graph))?;
    let mut cells = cells(world).await?;
    world.with(|state| {
        check_settled(&state.graph)?;
        Ok(whole(state, &mut cells))
    })
}

/// A node that is coming, going or moving is half of something.
fn check_settled(graph: &Graph) -> Result<()> {
    match graph
        .nodes()
        .find(|node| !node.live || node.closing || node.moving)
    {
        None => Ok(()),
        Some(node) => {
            let text = format!(
                "The state cannot be saved while node '{}' is being changed",
                node.name
            );
            Err(Error::new(ErrorKind::InUse, text))
        }
    }
}

/// Cells answer from memory: this waits for no storage.
async fn cells(world: &World) -> Result<HashMap<NodeId, SavedCell>> {
    let (at_home, _) = by_iothread(world);
    let mut answers = Vec::new();
    for (iothread, nodes) in at_home {
        for some in nodes.chunks(AT_ONCE) {
            answers.push(world.ask_iothread(iothread, IothreadOrder::Save(some.to_vec())));
        }
    }
    let mut cells = HashMap::new();
    for answer in answers {
        if let OrderOutcome::Saved(some) = answer.await {
            for (node, cell) in some {
                cells.insert(node, cell?);
            }
        }
    }
    Ok(cells)
}

fn whole(state: &PolicyState, cells: &mut HashMap<NodeId, SavedCell>) -> SavedGraph {
    let graph = &state.graph;
    let mut edges: Vec<&Edge> = graph.edges().collect();
    edges.sort_unstable_by_key(|edge| edge.id);
    let (last_id, last_name) = graph.last_numbers();
    SavedGraph {
        iothreads: state.iothreads.iter().map(iothread).collect(),
        main_iothread: state.main,
        nodes: graph
            .nodes()
            .map(|entry| node(entry, cells.remove(&entry.id)))
            .collect(),
        edges: edges.into_iter().map(edge).collect(),
        roots: graph.roots().map(root).collect(),
        blockers: blockers(graph),
        frozen: graph
            .freezes()
            .map(|(token, freeze)| SavedFreeze {
                token,
                root: freeze.root,
                node: freeze.node,
                edges: freeze.edges.clone(),
            })
            .collect(),
        sections: sections(state),
        last_id,
        last_name,
        last_section: state.sections.last(),
    }
}

fn iothread((number, entry): (&IoThreadId, &IothreadEntry)) -> SavedIothread {
    let options = entry.options.as_ref();
    let of = |value: fn(&millpond_messages::graph::IothreadOptions) -> i64| options.map_or(0, value);
    SavedIothread {
        number: *number,
        id: options.map(|options| options.id.clone()),
        poll_max_ns: of(|options| options.poll_max_ns),
        poll_grow: of(|options| options.poll_grow),
        poll_shrink: of(|options| options.poll_shrink),
        aio_max_batch: of(|options| options.aio_max_batch),
        thread_pool_min: of(|options| options.thread_pool_min),
        thread_pool_max: of(|options| options.thread_pool_max),
        cpu_affinity: options
            .map(|options| options.cpu_affinity.clone())
            .unwrap_or_default(),
    }
}

fn node(node: &Node, cell: Option<SavedCell>) -> SavedNode {
    SavedNode {
        id: node.id,
        name: node.name.clone(),
        driver: node.kind.name().to_owned(),
        iothread: node.iothread,
        options: SavedOptions::of(&node.options),
        common: common(&node.common),
        given: given(&node.given),
        inherits_from: node.inherits_from,
        flags: node.flags,
        children: node.children.iter().map(|(slot, edge)| (*slot, *edge)).collect(),
        parents: node.parents.clone(),
        next_numbered: node.next_numbered,
        taken: node.granted.taken,
        shared: node.granted.shared,
        owned: node.owned,
        implicit_backing: node.implicit_backing,
        bitmaps: node.bitmaps.iter().map(bitmap).collect(),
        cell,
    }
}

fn bitmap(bitmap: &Bitmap) -> SavedBitmap {
    SavedBitmap {
        id: bitmap.id,
        name: bitmap.name.clone(),
        granularity: bitmap.granularity,
        is_recording: bitmap.is_recording,
        is_persistent: bitmap.is_persistent,
        is_inconsistent: bitmap.is_inconsistent,
        is_read_only: bitmap.is_read_only,
        holder: bitmap.holder,
    }
}

/// Every field is named, so that a new one cannot be left out.
fn common(common: &Common) -> SavedCommon {
    let Common {
        read_only,
        auto_read_only,
        direct,
        no_flush,
        force_share,
        discard,
        detect_zeroes,
        inactive,
        copy_on_read,
        extra,
    } = *common;
    SavedCommon {
        read_only,
        auto_read_only,
        direct,
        no_flush,
        force_share,
        discard,
        detect_zeroes: detect_zeroes.into(),
        inactive,
        copy_on_read,
        extra,
    }
}

fn given(given: &GivenOptions) -> SavedGiven {
    let GivenOptions {
        read_only,
        auto_read_only,
        direct,
        no_flush,
        force_share,
        discard,
        detect_zeroes,
        active,
        copy_on_read,
    } = *given;
    SavedGiven {
        read_only,
        auto_read_only,
        direct,
        no_flush,
        force_share,
        discard,
        detect_zeroes: detect_zeroes.map(|option: DetectZeroes| option.into()),
        active,
        copy_on_read,
    }
}

fn edge(edge: &Edge) -> SavedEdge {
    let Edge {
        id,
        parent,
        child,
        since,
        name,
        role,
        taken,
        shared,
        frozen,
        suspended,
    } = edge;
    SavedEdge {
        id: *id,
        parent: match *parent {
            Parent::Node(node, slot) => SavedParent::Node(node, slot),
            Parent::Root(root) => SavedParent::Root(root),
        },
        child: *child,
        since: *since,
        name: name.clone().into_owned(),
        role: *role,
        taken: *taken,
        shared: *shared,
        frozen: *frozen,
        suspended: *suspended,
    }
}

fn root((id, root): (RootId, &Root)) -> SavedRoot {
    let Root {
        user,
        edge,
        wants,
        pinned,
        // The user writes that down.
        serves: _,
        has_cell,
        allows_inactive,
        suspended,
    } = root;
    SavedRoot {
        id,
        user: user.clone(),
        edge: *edge,
        wants: *wants,
        pinned: *pinned,
        has_cell: *has_cell,
        allows_inactive: *allows_inactive,
        suspended: *suspended,
    }
}

fn blockers(graph: &Graph) -> Vec<SavedBlocker> {
    let all = graph
        .blockers
        .holders()
        .map(|(token, reason, root)| SavedBlocker {
            token,
            reason: reason.to_owned(),
            root,
            nodes: graph
                .nodes()
                .filter_map(|node| {
                    let mut here = graph.blockers.on(node.id);
                    let (_, _, operations) = here.find(|(other, ..)| *other == token)?;
                    Some((node.id, operations.iter().copied().collect()))
                })
                .collect(),
        });
    all.collect()
}

fn sections(state: &PolicyState) -> Vec<SavedSection> {
    let all = state.sections.iter().map(|(token, section)| SavedSection {
        token,
        cover: match &section.cover {
            Cover::Nodes(nodes) => SavedSectionCover::Nodes(nodes.clone()),
            Cover::Subtree(nodes) => SavedSectionCover::Subtree(nodes.clone()),
            Cover::All => SavedSectionCover::All,
        },
        user: section.user.clone(),
    });
    all.collect()
}
