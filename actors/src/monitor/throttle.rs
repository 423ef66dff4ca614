//! Events that a disk or a guest can cause without end: at most one a second for each thing they are about.

use millpond_messages::qapi::{QmpEvent, TimedEvent};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How long after one event the next of its like waits.
const INTERVAL: Duration = Duration::from_secs(1);

/// What an event is about: events with the same key are told at most once in [`INTERVAL`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    QuorumFailure,
    /// A child of a quorum, by name.
    QuorumReportBad(String),
}

impl Key {
    fn of(event: &QmpEvent) -> Option<Self> {
        match event {
            QmpEvent::QuorumFailure { .. } => Some(Self::QuorumFailure),
            QmpEvent::QuorumReportBad { node_name, .. } => Some(Self::QuorumReportBad(node_name.clone())),
            _ => None,
        }
    }
}

/// Holds back what comes too soon: of what comes within an interval, the last is told at its end.
#[derive(Debug, Default)]
pub struct Throttle {
    busy: HashMap<Key, Busy>,
}

#[derive(Debug)]
struct Busy {
    until: Instant,
    held: Option<TimedEvent>,
}

impl Throttle {
    /// Takes an event; gives it back if it may be told at once.
    pub fn offer(&mut self, event: TimedEvent, now: Instant) -> Option<TimedEvent> {
        let Some(key) = Key::of(&event.event) else {
            return Some(event);
        };
        if let Some(busy) = self.busy.get_mut(&key) {
            busy.held = Some(event);
            return None;
        }
        let until = now + INTERVAL;
        self.busy.insert(key, Busy { until, held: None });
        Some(event)
    }

    /// What was held back and may be told by now.
    pub fn due(&mut self, now: Instant) -> Vec<TimedEvent> {
        let mut due = Vec::new();
        self.busy.retain(|_, busy| {
            if busy.until > now {
                return true;
            }
            let Some(event) = busy.held.take() else {
                return false;
            };
            due.push(event);
            busy.until = now + INTERVAL;
            true
        });
        due
    }

    /// When to look for due events again.
    pub fn next_due(&self) -> Option<Instant> {
        self.busy.values().map(|busy| busy.until).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use millpond_messages::qapi::QuorumOpType;

    fn bad(child: &str, sector: i64) -> TimedEvent {
        TimedEvent::now(QmpEvent::QuorumReportBad {
            operation: QuorumOpType::Read,
            error: None,
            node_name: child.into(),
            sector_num: sector,
            sectors_count: 1,
        })
    }

    #[test]
    fn the_first_and_the_last_of_a_burst_are_told_a_second_apart_for_each_child() {
        let mut throttle = Throttle::default();
        let start = Instant::now();
        assert_eq!(throttle.next_due(), None);
        assert!(throttle.offer(bad("a", 1), start).is_some());
        assert!(throttle.offer(bad("b", 1), start).is_some(), "another child");
        let (second, third) = (bad("a", 2), bad("a", 3));
        assert!(throttle.offer(second, start).is_none());
        assert!(throttle.offer(third.clone(), start).is_none());
        assert!(throttle.due(start + INTERVAL / 2).is_empty());
        assert_eq!(throttle.next_due(), Some(start + INTERVAL));
        assert_eq!(throttle.due(start + INTERVAL), [third]);
        let later = start + INTERVAL * 3 / 2;
        assert!(
            throttle.offer(bad("a", 4), later).is_none(),
            "half a second after the third"
        );
        assert!(
            throttle.offer(bad("b", 4), later).is_some(),
            "long after the first"
        );
        assert_eq!(throttle.due(start + INTERVAL * 2).len(), 1);
        assert!(throttle.due(start + INTERVAL * 4).is_empty());
        assert_eq!(throttle.next_due(), None, "nothing is kept of what is over");
    }

    #[test]
    fn other_events_are_told_at_once() {
        let mut throttle = Throttle::default();
        let event = TimedEvent::now(QmpEvent::BlockExportDeleted { id: "e".into() });
        for _ in 0..3 {
            assert!(throttle.offer(event.clone(), Instant::now()).is_some());
        }
    }
}
