//! Where a node lives, as the node sees it: the iothread, and the way back to the graph actor.

use std::cell::Cell;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use millpond_drivers::api::Notices;
use millpond_messages::record::MessageEvent;
use millpond_messages::{NodeId, Token};

use crate::iothread::{Local, is_delaying};
use crate::node::order::hops::{self, End};
use crate::node::order::outcome::Event;
use crate::node::order::recorded;

/// Takes events to the graph actor. It is called on the iothread, and must not block.
pub type EventSink = Arc<dyn Fn(Event) + Send + Sync>;

/// Whoever knows all nodes of an iothread.
pub trait Neighbours {
    /// A node is quiet for a section, or has left it: nodes below it may have waited for that.
    fn passed(&self, node: NodeId, token: Token);
}

/// What all nodes of an iothread share.
pub struct Home {
    local: Rc<Local>,
    events: EventSink,
    neighbours: Weak<dyn Neighbours>,
    /// How many requests were admitted on this iothread.
    requests: Cell<u64>,
}

impl Home {
    pub fn new(local: Rc<Local>, events: EventSink, neighbours: Weak<dyn Neighbours>) -> Rc<Self> {
        Rc::new(Self {
            local,
            events,
            neighbours,
            requests: Cell::new(0),
        })
    }

    pub fn local(&self) -> &Rc<Local> {
        &self.local
    }

    /// Tells that a node is quiet for a section.
    pub fn passed(&self, node: NodeId, token: Token) {
        if let Some(neighbours) = self.neighbours.upgrade() {
            neighbours.passed(node, token);
        }
    }

    /// Counts a request that enters the graph here.
    #[inline]
    pub fn count_request(&self) {
        self.requests.set(self.requests.get().wrapping_add(1));
    }

    /// How many requests have entered the graph here.
    pub fn requests(&self) -> u64 {
        self.requests.get()
    }

    /// Reports an event to the graph actor. `node` is the name of the node that it is about, or empty.
    pub fn report(&self, node: &str, event: Event) {
        self.local.note(recorded::event(MessageEvent::Told, &event));
        report(&self.events, node, event);
    }

    /// The sink for notices of a node's driver. It stays valid when the node moves to another iothread.
    pub fn notices(&self, node: NodeId, name: &str) -> Notices {
        let (events, name) = (Arc::clone(&self.events), name.to_owned());
        Notices::new(move |posted| report(&events, &name, Event::Noticed(node, posted)))
    }
}

/// Reports an event to the graph actor, delayed where a rule of this iothread says so.
fn report(events: &EventSink, node: &str, event: Event) {
    let Some(local) = is_delaying().then(Local::current).flatten() else {
        return events(event);
    };
    let hop = hops::hop(End::Nodes, End::Graph, recorded::kind_of_event(&event), node);
    let events = Arc::clone(events);
    local.chaos().pass(&local, &hop, move || events(event));
}
