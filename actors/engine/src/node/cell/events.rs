//! Debug events of a node: which node observes them, and raising them.

use std::rc::Rc;

use futures_util::future::LocalBoxFuture;
use millpond_drivers::api::DebugEvents;
use millpond_messages::DebugEvent;

use super::edge::Behind;
use super::kept::{AskedAt, anybody_observes};
use super::node::{NodeCell, Observer};

impl NodeCell {
    /// Whether this node observes debug events, or forwards them to one that does.
    pub fn observes(&self) -> bool {
        if !anybody_observes() {
            return false;
        }
        match self.events.get() {
            DebugEvents::Ignore => false,
            DebugEvents::Handle => true,
            DebugEvents::Forward => {
                let is_there =
                    |observer: &Observer| observer.as_ref().is_some_and(|node| node.strong_count() > 0);
                let known = self.kept.look_at_observer(is_there);
                known.unwrap_or_else(|| self.observer_below().is_some())
            }
        }
    }

    /// The node below that observes this node's events. A node of another iothread does not.
    fn observer_below(&self) -> Option<Rc<Self>> {
        if let Some(known) = self.kept.observer() {
            return known?.upgrade();
        }
        let asked = AskedAt::now();
        let mut passed: Vec<Rc<Self>> = Vec::new();
        let mut behind = self.edges().first().map(|edge| edge.behind());
        let observer: Observer = loop {
            let Some(Behind::Here(node)) = behind else {
                break None;
            };
            node.kept.rely();
            match node.events.get() {
                DebugEvents::Ignore => break None,
                DebugEvents::Handle => break Some(Rc::downgrade(&node)),
                DebugEvents::Forward => {}
            }
            if let Some(known) = node.kept.observer() {
                break known;
            }
            behind = node.edges().first().map(|edge| edge.behind());
            passed.push(node);
        };
        for node in passed.iter().map(Rc::as_ref).chain([self]) {
            node.kept.keep_observer(asked, observer.clone());
        }
        observer?.upgrade()
    }

    /// Raises an event, and waits as long as the node that observes it holds it. Where none does, it costs a comparison.
    pub async fn raise(&self, event: DebugEvent) {
        if self.observes()
            && let Some(held) = self.debug_event(event)
        {
            held.await;
        }
    }

    /// Hands an event to the driver of the node that observes it. What the event belongs to waits for the future, where
    /// there is one.
    pub fn debug_event(&self, event: DebugEvent) -> Option<LocalBoxFuture<'static, ()>> {
        if !anybody_observes() {
            return None;
        }
        let driver = match self.events.get() {
            DebugEvents::Ignore => return None,
            DebugEvents::Handle => self.driver(),
            DebugEvents::Forward => self.observer_below()?.driver(),
        };
        driver.ok()?.debug().debug_event(event)
    }
}
