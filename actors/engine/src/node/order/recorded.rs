//! Messages as the flight recorder keeps them.

use millpond_messages::io::OperationKind;
use millpond_messages::record::MessageEvent;
use millpond_messages::{NodeId, RootId};

use crate::delay::kind;
use crate::flight::Note;
use crate::node::order::late;
use crate::node::order::mail::{Event, Ticket};
use crate::node::order::orders::{NodeOrder, Order};

/// A request over a root edge. `number` is its place in the node's count.
#[inline]
pub fn request(
    event: MessageEvent,
    node: NodeId,
    root: RootId,
    (kind, offset, len): (OperationKind, u64, u64),
    number: usize,
) -> Note {
    Note {
        event,
        kind: kind::of_request(kind),
        node: node.0,
        offset,
        len,
        number: number as u64,
        from: root.0,
    }
}

/// The end of a request that was counted.
#[inline]
pub fn answered(node: NodeId, number: usize) -> Note {
    plain(MessageEvent::Answered, kind::REPLY, node.0, number as u64)
}

/// An order of the graph actor.
pub fn order(event: MessageEvent, ticket: Ticket, order: &Order) -> Note {
    let (kind, node) = late::facts(order);
    let number = match order {
        Order::Node(_, NodeOrder::Quiesce(token) | NodeOrder::Resume(token)) => token.0,
        _ => ticket.0,
    };
    plain(event, kind, node.map_or(0, |node| node.0), number)
}

/// What an iothread tells the graph actor.
pub fn event(event: MessageEvent, what: &Event) -> Note {
    match what {
        Event::Ended(ticket, _) => plain(event, kind::ENDED, 0, ticket.0),
        Event::Quiesced(node, token) => plain(event, kind::QUIESCED, node.0, token.0),
        Event::Noticed(node, _) | Event::Serialises(node, _) => plain(event, kind::NOTICED, node.0, 0),
    }
}

fn plain(event: MessageEvent, kind: &'static crate::delay::Kind, node: u64, number: u64) -> Note {
    Note {
        event,
        kind,
        node,
        offset: 0,
        len: 0,
        number,
        from: 0,
    }
}
