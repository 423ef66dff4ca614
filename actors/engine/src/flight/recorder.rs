//! The flight recorder of one thread: a ring of its last messages, written by that thread alone and read by any.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use arc_swap::ArcSwap;
use millpond_messages::record::{MessageEvent, MessageRecord};

use crate::delay::{KINDS, Kind};

/// How many messages a thread remembers: 96 KiB of them.
pub const RECORDS: usize = 2048;

/// Words of a record: when; event, kind and length; node; offset; number; sender.
const WORDS: usize = 6;

/// The moment from which records count their time.
static BEGUN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// The rings of all threads. It changes only as threads come and go.
static RECORDERS: LazyLock<ArcSwap<Vec<Arc<Recorder>>>> = LazyLock::new(ArcSwap::default);

/// A time as records have it: nanoseconds since they began to count.
#[inline]
pub fn nanoseconds(now: Instant) -> u64 {
    u64::try_from(now.saturating_duration_since(*BEGUN).as_nanos()).unwrap_or(u64::MAX)
}

/// A ring that its thread writes and any may read.
#[derive(Debug)]
pub struct Recorder {
    name: String,
    begun: Instant,
    slots: Box<[[AtomicU64; WORDS]]>,
    /// How many records have been written.
    written: AtomicU64,
}

/// A message to be recorded.
#[derive(Debug, Clone, Copy)]
pub struct Note {
    /// What happened to the message.
    pub event: MessageEvent,
    /// What kind of message it was.
    pub kind: &'static Kind,
    /// The node; 0 for none.
    pub node: u64,
    /// The first byte of its range.
    pub offset: u64,
    /// The length of its range in bytes.
    pub len: u64,
    /// The number that joins the message with its answer.
    pub number: u64,
    /// The sender's root edge, or 0.
    pub from: u64,
}

impl Recorder {
    /// A thread's ring, known to all from now on.
    pub fn register(name: &str) -> Arc<Self> {
        let recorder = Arc::new(Self {
            name: name.to_owned(),
            begun: *BEGUN,
            slots: (0..RECORDS).map(|_| Default::default()).collect(),
            written: AtomicU64::new(0),
        });
        RECORDERS.rcu(|known| {
            let mut known = Vec::clone(known);
            known.push(Arc::clone(&recorder));
            known
        });
        recorder
    }

    /// Forgets the ring of a thread that ends.
    pub fn unregister(self: &Arc<Self>) {
        RECORDERS.rcu(|known| {
            let mut known = Vec::clone(known);
            known.retain(|other| !Arc::ptr_eq(other, self));
            known
        });
    }

    /// The rings of all threads.
    pub fn all() -> Arc<Vec<Arc<Self>>> {
        RECORDERS.load_full()
    }

    /// The name of the thread that writes here.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many records have been written.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Acquire)
    }

    /// A time as records have it: nanoseconds since they began to count.
    #[inline]
    pub fn since_begin(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.begun).as_nanos()).unwrap_or(u64::MAX)
    }

    /// Writes a record over the oldest. Only the ring's own thread does.
    #[inline]
    pub fn note(&self, at_ns: u64, note: Note) {
        let number = self.written.load(Ordering::Relaxed);
        if let Some(slot) = self.slots.get(number as usize % RECORDS) {
            let what = note.event as u64 | u64::from(note.kind.number) << 8 | note.len << 16;
            slot[0].store(at_ns, Ordering::Relaxed);
            slot[1].store(what, Ordering::Relaxed);
            slot[2].store(note.node, Ordering::Relaxed);
            slot[3].store(note.offset, Ordering::Relaxed);
            slot[4].store(note.number, Ordering::Relaxed);
            slot[5].store(note.from, Ordering::Relaxed);
        }
        self.written.store(number.wrapping_add(1), Ordering::Release);
    }

    /// The last messages, oldest first, and how many there were in all. Those that were written over meanwhile are left
    /// out.
    pub fn read(&self) -> (Vec<MessageRecord>, u64) {
        let end = self.written();
        let first = end.saturating_sub(RECORDS as u64);
        let mut records: Vec<(u64, MessageRecord)> = (first..end)
            .filter_map(|number| Some((number, self.slot(number)?)))
            .collect();
        std::sync::atomic::fence(Ordering::Acquire);
        let now = self.written();
        // The one after the last may be half written too.
        records.retain(|(number, _)| number + RECORDS as u64 > now || now == end);
        (records.into_iter().map(|(_, record)| record).collect(), end)
    }

    fn slot(&self, number: u64) -> Option<MessageRecord> {
        let slot = self.slots.get(number as usize % RECORDS)?;
        let [at_ns, what, node, offset, number, from] =
            std::array::from_fn(|word| slot[word].load(Ordering::Relaxed));
        Some(MessageRecord {
            at_ns,
            event: *MessageEvent::ALL.get(usize::from(what as u8))?,
            kind: (what >> 8) as u8,
            node,
            offset,
            len: what >> 16,
            number,
            from,
        })
    }
}

/// The names of the kinds, by number.
pub fn kind_names() -> Vec<String> {
    KINDS.iter().map(|kind| kind.name.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delay::kind;

    fn note(number: u64) -> Note {
        Note {
            event: MessageEvent::Admitted,
            kind: kind::WRITE,
            node: 7,
            offset: u64::MAX,
            len: (1 << 40) + 3,
            number,
            from: 9,
        }
    }

    #[test]
    fn the_last_records_are_read_as_they_were_written() {
        let recorder = Recorder::register("a test's");
        let count = RECORDS as u64 + 100;
        for number in 0..count {
            recorder.note(number * 2, note(number));
        }
        let (records, written) = recorder.read();
        assert_eq!((records.len(), written), (RECORDS, count));
        for (place, record) in records.iter().enumerate() {
            let number = place as u64 + 100;
            let expected = MessageRecord {
                at_ns: number * 2,
                event: MessageEvent::Admitted,
                kind: kind::WRITE.number,
                node: 7,
                offset: u64::MAX,
                len: (1 << 40) + 3,
                number,
                from: 9,
            };
            assert_eq!(*record, expected);
        }
        assert!(Recorder::all().iter().any(|known| Arc::ptr_eq(known, &recorder)));
        recorder.unregister();
        assert!(!Recorder::all().iter().any(|known| Arc::ptr_eq(known, &recorder)));
    }
}
