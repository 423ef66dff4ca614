//! Which node an order is about.

use millpond_messages::NodeId;

use crate::{Order, Wiring};

/// The node whose iothread must carry an order out.
pub fn subject(order: &Order) -> Option<NodeId> {
    match order {
        Order::Node(node, _) | Order::Task(node, _) => Some(*node),
        Order::Wiring(wiring) => match wiring {
            Wiring::Connect { parent: node, .. }
            | Wiring::AttachRoot { node, .. }
            | Wiring::Depart { node, .. } => Some(*node),
            Wiring::Open(_) | Wiring::MoveRoot { .. } | Wiring::DetachRoot(_) | Wiring::Create { .. } => None,
        },
        Order::Iothread(_) => None,
    }
}
