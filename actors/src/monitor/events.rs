//! One place to tell all monitors that something happened.

use messages::qapi::{Event, TimedEvent};
use tokio::sync::broadcast;

/// Events a monitor may be behind before it loses the oldest.
const BACKLOG: usize = 1024;

/// Gives every event to every monitor. Cheap to clone; may be used from any thread, and never waits:
/// a monitor whose client does not read loses events instead of making memory grow.
#[derive(Clone, Debug)]
pub struct EventBus {
    sender: broadcast::Sender<TimedEvent>,
}

impl Default for EventBus {
    fn default() -> Self {
        Self {
            sender: broadcast::channel(BACKLOG).0,
        }
    }
}

impl EventBus {
    /// Tells all who listen now that `event` happened.
    pub fn emit(&self, event: Event) {
        self.send(TimedEvent::now(event));
    }

    /// Tells all who listen now of an event that happened at some time.
    pub(crate) fn send(&self, event: TimedEvent) {
        // Nobody listening is fine: events are not kept for later monitors.
        let _ = self.sender.send(event);
    }

    /// Events from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<TimedEvent> {
        self.sender.subscribe()
    }
}
