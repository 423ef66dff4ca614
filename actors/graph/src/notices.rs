//! What drivers tell, with nodes' names in place of ids.

use millpond_drivers::api::Notice;
use millpond_messages::qapi::QmpEvent;
use millpond_messages::{ChildSlot, NodeId, SECTOR_SIZE};

use crate::effect::{Announcement, Effect};
use crate::state::PolicyState;
use crate::value::graph::Graph;
use crate::value::node::Node;

/// Passes on what a driver tells. What it told before an edge changed is heard before that, so that the names are those
/// of the nodes then.
pub fn noticed(state: &mut PolicyState, node: NodeId, notice: &Notice) {
    let Some(node) = state.graph.node(node) else {
        return;
    };
    let announcement = match notice {
        Notice::Corrupted {
            message,
            offset,
            size,
            fatal,
        } => Announcement::Event(QmpEvent::BlockImageCorrupted {
            device: String::new(),
            node_name: Some(node.name.clone()),
            msg: message.clone(),
            offset: *offset,
            size: *size,
            fatal: *fatal,
        }),
        Notice::NoQuorum { offset, len } => {
            let (sector_num, sectors_count) = sectors(*offset, *len);
            Announcement::Event(QmpEvent::QuorumFailure {
                reference: node.name.clone(),
                sector_num,
                sectors_count,
            })
        }
        Notice::BadChild {
            operation,
            error,
            child,
            offset,
            len,
        } => {
            let (sector_num, sectors_count) = sectors(*offset, *len);
            Announcement::Event(QmpEvent::QuorumReportBad {
                operation: *operation,
                error: error.map(|error| error.to_string()),
                node_name: child_name(&state.graph, node, *child),
                sector_num,
                sectors_count,
            })
        }
        Notice::PassedThreshold { exceeded, threshold } => {
            Announcement::Event(QmpEvent::BlockWriteThreshold {
                node_name: node.name.clone(),
                amount_exceeded: *exceeded,
                write_threshold: *threshold,
            })
        }
        Notice::Mismatch { message } => Announcement::Mismatch(message.clone()),
        Notice::Broken { message } => Announcement::Event(QmpEvent::BlockNodeBroken {
            node_name: node.name.clone(),
            driver: node.kind.name().to_owned(),
            msg: message.clone(),
        }),
    };
    state.push(Effect::Announce(announcement));
}

/// The first sector of a range, and how many it touches.
fn sectors(offset: u64, len: u64) -> (i64, i64) {
    let first = offset / SECTOR_SIZE;
    let end = offset.saturating_add(len).div_ceil(SECTOR_SIZE);
    let signed = |sectors: u64| i64::try_from(sectors).unwrap_or(i64::MAX);
    (signed(first), signed(end.saturating_sub(first)))
}

/// The name of the node behind the edge that has this index among a driver's handles.
fn child_name(graph: &Graph, node: &Node, index: usize) -> String {
    let declared = node.kind.children().len();
    let edge = match index.checked_sub(declared) {
        None => ChildSlot::at(index).and_then(|slot| node.child(slot)),
        Some(number) => node.numbered().nth(number).map(|(_, edge)| edge),
    };
    let child = edge
        .and_then(|edge| graph.edge(edge))
        .and_then(|edge| graph.node(edge.child));
    child.map_or_else(String::new, |child| child.name.clone())
}
