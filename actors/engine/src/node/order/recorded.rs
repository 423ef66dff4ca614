//! Messages as the flight recorder keeps them.

use millpond_messages::io::OperationKind;
use millpond_messages::record::MessageEvent;
use millpond_messages::{NodeId, RootId};

use super::hops;
use super::orders::{NodeOrder, Order};
use super::outcome::{Event, OrderId};
use crate::delay::kind;
use crate::flight::Note;

/// A request over a root edge. `number` is its place in the node's count.
#[inline]
pub fn request(
    event: MessageEvent,
    node: NodeId,
    root: RootId,
    (kind, (offset, len)): (OperationKind, (u64, u64)),
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
pub fn order(event: MessageEvent, order_id: OrderId, order: &Order) -> Note {
    let (kind, node) = hops::facts(order);
    let number = match order {
        Order::Node(_, NodeOrder::Quiesce { token, .. } | NodeOrder::Resume(token)) => token.0,
        _ => order_id.0,
    };
    plain(event, kind, node.map_or(0, |node| node.0), number)
}

/// What an iothread tells the graph actor.
pub fn event(event: MessageEvent, what: &Event) -> Note {
    let (node, number) = match what {
        Event::Ended(order_id, _) => (0, order_id.0),
        Event::Quiesced(node, token) => (node.0, token.0),
        Event::Noticed(node, _) | Event::Serialises(node, _) => (node.0, 0),
    };
    plain(event, kind_of_event(what), node, number)
}

/// What kind of message an event is.
pub fn kind_of_event(event: &Event) -> &'static crate::delay::Kind {
    match event {
        Event::Ended(..) => kind::ENDED,
        Event::Quiesced(..) => kind::QUIESCED,
        Event::Noticed(..) | Event::Serialises(..) => kind::NOTICED,
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
