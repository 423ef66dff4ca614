//! Debug events of a node: whether anybody listens, and raising them.

use std::rc::Rc;

use futures_util::future::LocalBoxFuture;
use millpond_drivers::api::Events;
use millpond_messages::DebugEvent;

use super::edge::Behind;
use super::kept::{Asked, anybody_listens};
use super::node::{Listener, NodeCell};

impl NodeCell {
    /// Whether this node, or one that it passes events to, listens to them.
    pub fn hears(&self) -> bool {
        if !anybody_listens() {
            return false;
        }
        match self.events.get() {
            Events::Ignored => false,
            Events::Heard => true,
            Events::Passed => {
                let is_there =
                    |listener: &Listener| listener.as_ref().is_some_and(|node| node.strong_count() > 0);
                let known = self.kept.look_at_listener(is_there);
                known.unwrap_or_else(|| self.listener_below().is_some())
            }
        }
    }

    /// The node below that listens to this node's events. One of another iothread does not hear them.
    fn listener_below(&self) -> Option<Rc<Self>> {
        if let Some(known) = self.kept.listener() {
            return known?.upgrade();
        }
        let asked = Asked::now();
        let mut passed: Vec<Rc<Self>> = Vec::new();
        let mut behind = self.edges().first().map(|edge| edge.behind());
        let listener: Listener = loop {
            let Some(Behind::Here(node)) = behind else {
                break None;
            };
            node.kept.rely();
            match node.events.get() {
                Events::Ignored => break None,
                Events::Heard => break Some(Rc::downgrade(&node)),
                Events::Passed => {}
            }
            if let Some(known) = node.kept.listener() {
                break known;
            }
            behind = node.edges().first().map(|edge| edge.behind());
            passed.push(node);
        };
        for node in passed.iter().map(Rc::as_ref).chain([self]) {
            node.kept.keep_listener(asked, listener.clone());
        }
        listener?.upgrade()
    }

    /// Raises an event at a node that listens, or passes it on to one that does, and waits as long as that holds it.
    /// Elsewhere it costs a comparison.
    pub async fn raise(&self, event: DebugEvent) {
        if self.hears()
            && let Some(held) = self.debug_event(event)
        {
            held.await;
        }
    }

    /// Tells whoever listens of an event. Whatever it belongs to waits for the future, where there is one.
    pub fn debug_event(&self, event: DebugEvent) -> Option<LocalBoxFuture<'static, ()>> {
        if !anybody_listens() {
            return None;
        }
        let driver = match self.events.get() {
            Events::Ignored => return None,
            Events::Heard => self.driver(),
            Events::Passed => self.listener_below()?.driver(),
        };
        driver.ok()?.debug().debug_event(event)
    }
}
