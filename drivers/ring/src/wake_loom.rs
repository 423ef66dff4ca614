//! The wake word under loom, as iothreads use it: `tests/loom` runs this.
//!
//! The word is the real one. What is around it is a model: a queue of which only the length counts, a bell for the
//! eventfd, and the order in which an iothread's turn looks at its queue and its flags. All that is modelled is relaxed
//! where the real thing may be no stronger, so that only the word and the flags order anything.

use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

use super::wake::Word;

/// How many messages a turn handles at most; less than are sent, so that turns end with some left.
const BUDGET: usize = 1;

struct Model {
    word: Word,
    sent: AtomicUsize,
    stop: AtomicBool,
    retire: AtomicBool,
    bell: Mutex<bool>,
    rung: Condvar,
}

impl Model {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            word: Word::new(),
            sent: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            retire: AtomicBool::new(false),
            bell: Mutex::new(false),
            rung: Condvar::new(),
        })
    }

    fn wake(&self) {
        if self.word.wake() {
            *self.bell.lock().unwrap() = true;
            self.rung.notify_one();
        }
    }

    fn send(&self) {
        self.sent.fetch_add(1, Ordering::Relaxed);
        self.wake();
    }

    fn set(&self, flag: &AtomicBool) {
        flag.store(true, Ordering::Release);
        self.wake();
    }
}

/// The side of the iothread, which sleeps.
struct Sleeper {
    model: Arc<Model>,
    handled: usize,
    /// Once asked to stop: how many messages are left of those that were there.
    last: Option<usize>,
    /// What senders hold; nobody can send once this is the only one.
    reach: Arc<()>,
}

impl Sleeper {
    fn new(model: &Arc<Model>) -> Self {
        Self {
            model: Arc::clone(model),
            handled: 0,
            last: None,
            reach: Arc::new(()),
        }
    }

    fn waiting(&self) -> usize {
        self.model.sent.load(Ordering::Relaxed) - self.handled
    }

    /// As `Core::turn`: true if the iothread is to end.
    fn turn(&mut self) -> bool {
        if self.last.is_none() && self.model.stop.load(Ordering::Acquire) {
            self.last = Some(self.waiting());
        }
        let most = self.last.map_or(BUDGET, |last| last.min(BUDGET));
        let count = self.waiting().min(most);
        self.handled += count;
        if let Some(last) = &mut self.last {
            *last -= count;
        }
        if self.last == Some(0) {
            return true;
        }
        if count == 0 {
            if self.model.retire.load(Ordering::Acquire) && self.may_retire() {
                return true;
            }
            self.park();
        }
        false
    }

    fn may_retire(&self) -> bool {
        let unreachable = Arc::strong_count(&self.reach) == 1;
        fence(Ordering::Acquire);
        unreachable && self.waiting() == 0
    }

    /// As `Core::park` and `Ring::turn`.
    fn park(&self) {
        let looks_again = self.model.retire.load(Ordering::Acquire);
        if !self.model.word.try_park() {
            return;
        }
        if looks_again {
            // A sleep of a fixed length.
            thread::yield_now();
        } else {
            let mut bell = self.model.bell.lock().unwrap();
            while !*bell {
                bell = self.model.rung.wait(bell).unwrap();
            }
            *bell = false;
        }
        self.model.word.unpark();
    }
}

fn check(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

/// A wake that is lost shows as a deadlock, which loom reports.
fn all_is_handled(senders: usize, each: usize) {
    check(move || {
        let model = Model::new();
        let mut sleeper = Sleeper::new(&model);
        for _ in 0..senders {
            let model = Arc::clone(&model);
            thread::spawn(move || (0..each).for_each(|_| model.send()));
        }
        while sleeper.handled < senders * each {
            assert!(!sleeper.turn(), "nobody asked it to end");
        }
    });
}

#[test]
fn loom_one_sender_twice() {
    all_is_handled(1, 2);
}

#[test]
fn loom_two_senders() {
    all_is_handled(2, 1);
}

#[test]
fn loom_a_stop_comes_after_what_was_sent_before_it() {
    check(|| {
        let model = Model::new();
        let mut sleeper = Sleeper::new(&model);
        let asker = Arc::clone(&model);
        thread::spawn(move || {
            asker.send();
            asker.send();
            asker.set(&asker.stop);
        });
        while !sleeper.turn() {}
        assert_eq!(sleeper.handled, 2);
    });
}

#[test]
fn loom_a_stop_is_seen_beside_a_sender() {
    check(|| {
        let model = Model::new();
        let mut sleeper = Sleeper::new(&model);
        let (sender, asker) = (Arc::clone(&model), Arc::clone(&model));
        thread::spawn(move || sender.send());
        thread::spawn(move || asker.set(&asker.stop));
        while !sleeper.turn() {}
    });
}

#[test]
fn loom_an_iothread_retires_after_the_last_sender_let_go() {
    check(|| {
        let model = Model::new();
        let mut sleeper = Sleeper::new(&model);
        let (sender, reach) = (Arc::clone(&model), Arc::clone(&sleeper.reach));
        thread::spawn(move || {
            sender.send();
            drop(reach);
        });
        let asker = Arc::clone(&model);
        thread::spawn(move || asker.set(&asker.retire));
        while !sleeper.turn() {}
        assert_eq!(
            sleeper.handled, 1,
            "it retired before it had handled what was sent"
        );
    });
}
