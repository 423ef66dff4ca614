//! Messages that may come in floods: the first ones of a time are told, the rest are counted.

use std::cell::RefCell;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How many are told in each [`TIME`].
const MOST: u32 = 5;

/// The time that they are counted over.
const TIME: Duration = Duration::from_secs(10);

/// Keeps one kind of message from flooding a log.
#[derive(Debug, Default)]
struct Limit {
    begun: Option<Instant>,
    told: u32,
    kept_back: u64,
}

impl Limit {
    /// Whether a message is to be told now, and how many were kept back since the last one that was.
    fn admit(&mut self, now: Instant) -> Option<u64> {
        let is_over = |begun: Instant| now.saturating_duration_since(begun) >= TIME;
        if self.begun.is_none_or(is_over) {
            self.begun = Some(now);
            self.told = 0;
        }
        if self.told == MOST {
            self.kept_back = self.kept_back.saturating_add(1);
            return None;
        }
        self.told += 1;
        Some(std::mem::take(&mut self.kept_back))
    }
}

/// What may come in floods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Flood {
    /// Errors that clients of an export are told of.
    IoError,
    /// Clients that are refused.
    Refused,
    /// Connections that break in the middle.
    Broken,
}

/// The most sources of floods that a thread tells apart.
const SOURCES: usize = 256;

thread_local! {
    static LIMITS: RefCell<HashMap<(Flood, String), Limit>> = RefCell::default();
}

/// Whether a message about `source` is to be told now on this thread, and how many of its kind were kept back since the last
/// one that was.
pub fn admit(flood: Flood, source: &str) -> Option<u64> {
    LIMITS.with_borrow_mut(|limits| {
        let key = (flood, source.to_owned());
        if limits.len() >= SOURCES && !limits.contains_key(&key) {
            // Names that clients make up must not fill the memory; who floods is soon known again.
            limits.clear();
        }
        limits.entry(key).or_default().admit(Instant::now())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_told_of_by_its_beginning_and_its_size() {
        let (mut limit, begin) = (Limit::default(), Instant::now());
        let told: Vec<_> = (0..20).filter_map(|_| limit.admit(begin)).collect();
        assert_eq!(told, [0; 5]);
        let soon = begin + TIME - Duration::from_nanos(1);
        assert_eq!(limit.admit(soon), None);
        assert_eq!(limit.admit(begin + TIME), Some(16));
        assert_eq!(limit.admit(begin + TIME), Some(0));
    }
}
