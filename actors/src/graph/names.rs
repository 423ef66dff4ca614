//! The nodes by name, for any thread: found without asking the graph actor.
//!
//! Only the graph actor writes. It never waits: where a reader is just looking into the same shard, it keeps what it wanted to
//! write for its next turn, and with it all replies, in order. So by the time a reply is there, whoever asked finds what was
//! added, and nobody finds what was deleted.

use std::collections::VecDeque;
use std::sync::Arc;

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use millpond_graph::{Reply, RequestId};
use millpond_messages::NodeId;

/// What is known of a node without asking it.
pub(super) struct Known {
    pub(super) id: NodeId,
    pub(super) name: String,
    pub(super) driver: &'static str,
}

/// The nodes that can be found, as all handles see them.
///
/// A lock of dashmap's is held by a reader for as long as it takes to clone a handle; nobody does so on the path of a request.
/// The writer only ever tries for it, so no change of the graph waits for a reader.
#[derive(Clone, Default)]
pub(super) struct Names(Arc<DashMap<String, Arc<Known>>>);

impl Names {
    /// The node that has this name.
    pub(super) fn get(&self, name: &str) -> Option<Arc<Known>> {
        self.0.view(name, |_, known| Arc::clone(known))
    }
}

/// What is to be done, in order, as soon as no reader is in the way.
enum Due {
    Add(Arc<Known>),
    Remove(String),
    Reply(RequestId, Reply),
}

/// The graph actor's side: the only writer.
#[derive(Default)]
pub(super) struct NameRegistry {
    names: Names,
    due: VecDeque<Due>,
}

impl NameRegistry {
    /// What handles look names up in.
    pub(super) fn names(&self) -> Names {
        self.names.clone()
    }

    /// A node is found from now on.
    pub(super) fn add(&mut self, id: NodeId, name: String, driver: &'static str) {
        self.due.push_back(Due::Add(Arc::new(Known { id, name, driver })));
    }

    /// A node is found no more.
    pub(super) fn remove(&mut self, name: String) {
        self.due.push_back(Due::Remove(name));
    }

    /// Keeps a reply until all that came before it is written.
    pub(super) fn reply(&mut self, id: RequestId, reply: Reply) {
        self.due.push_back(Due::Reply(id, reply));
    }

    /// Does what no reader is in the way of; answers the next reply that can be given.
    pub(super) fn next_reply(&mut self) -> Option<(RequestId, Reply)> {
        loop {
            match self.due.pop_front()? {
                Due::Reply(id, reply) => return Some((id, reply)),
                write => {
                    if !self.write(&write) {
                        self.due.push_front(write);
                        return None;
                    }
                }
            }
        }
    }

    /// Whether something is left to do.
    pub(super) fn is_behind(&self) -> bool {
        !self.due.is_empty()
    }

    /// Whether it could be written: a shard that a reader is in is not waited for.
    fn write(&self, due: &Due) -> bool {
        let name = match due {
            Due::Add(known) => &known.name,
            Due::Remove(name) => name,
            Due::Reply(..) => return true,
        };
        let Some(entry) = self.names.0.try_entry(name.clone()) else {
            return false;
        };
        match (due, entry) {
            (Due::Add(known), entry) => drop(entry.insert(Arc::clone(known))),
            (_, Entry::Occupied(entry)) => drop(entry.remove()),
            (_, Entry::Vacant(_)) => {}
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use millpond_messages::graph::GraphReply;

    use super::*;

    /// The graph actor goes on while a reader is in the way, and gives no reply that would come too early.
    #[test]
    fn a_reader_in_the_way_is_not_waited_for_and_no_reply_overtakes_a_name() {
        let mut registry = NameRegistry::default();
        let names = registry.names();
        registry.add(NodeId(1), "disk".to_owned(), "raw");
        registry.reply(RequestId(1), Ok(GraphReply::Done));
        assert_eq!(registry.next_reply().map(|(id, _)| id), Some(RequestId(1)));
        let reader = names.0.get("disk").expect("the node is found");
        registry.remove("disk".to_owned());
        registry.reply(RequestId(2), Ok(GraphReply::Done));
        assert!(registry.next_reply().is_none(), "the reader still looks");
        assert!(registry.is_behind());
        drop(reader);
        assert_eq!(registry.next_reply().map(|(id, _)| id), Some(RequestId(2)));
        assert!(names.get("disk").is_none());
        assert!(!registry.is_behind());
    }
}
