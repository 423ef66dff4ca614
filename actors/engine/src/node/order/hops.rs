//! Messages as the rules of a delay see them: between whom they pass, of what kind they are, which node they concern.

use millpond_messages::NodeId;

use super::orders::{NodeOrder, NodeTask, Order, Wiring};
pub use crate::delay::End;
use crate::delay::{Hop, Kind, Pair, kind};

/// A message on its way.
pub fn hop<'a>(from: End, to: End, kind: &'static Kind, node: &'a str) -> Hop<'a> {
    Hop {
        pair: Pair { from, to },
        kind,
        node,
    }
}

/// What kind of message an order is, and the node that it concerns.
pub fn facts(order: &Order) -> (&'static Kind, Option<NodeId>) {
    let other = kind::OTHER_ORDER;
    match order {
        Order::Node(node, order) => {
            let kind = match order {
                NodeOrder::Quiesce { .. } => kind::QUIESCE,
                NodeOrder::Resume(_) => kind::RESUME,
                _ => other,
            };
            (kind, Some(*node))
        }
        Order::Task(node, task) => {
            let kind = match task {
                NodeTask::Close => kind::CLOSE,
                _ => other,
            };
            (kind, Some(*node))
        }
        Order::Iothread(_) => (other, None),
        Order::Wiring(wiring) => match wiring {
            Wiring::Open(open) => (kind::OPEN, Some(open.node)),
            Wiring::Connect { parent, .. } => (kind::CONNECT, Some(*parent)),
            Wiring::AttachRoot { node, .. } => (kind::ATTACH_ROOT, Some(*node)),
            Wiring::MoveRoot { target, .. } => (kind::MOVE_ROOT, Some(target.node)),
            Wiring::DetachRoot(_) => (kind::DETACH_ROOT, None),
            Wiring::Depart { node, .. } => (kind::DEPART, Some(*node)),
            Wiring::Create { .. } => (other, None),
        },
    }
}
