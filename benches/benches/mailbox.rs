//! What a message to an iothread costs: sent and received, and with the wake-up of a receiver that sleeps.
#![allow(missing_docs, reason = "criterion's macro makes a public function")]

#[allow(dead_code, reason = "other benches use other parts of it")]
#[path = "support/meter.rs"]
mod meter;

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use criterion::measurement::Measurement;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use millpond::iothread::{Core, IoThread, IoThreadConfig, PollParams, Progress, Scheduler};
use millpond_ring::{Ring, RingConfig, Wait, Wake};

use meter::{Meter, meter};

/// A message, with the mailbox that it is to be sent back to. Counts down.
struct Ball {
    left: u64,
    back: Option<IoThread<Ball>>,
    done: Option<crossbeam_channel::Sender<()>>,
}

fn ring() -> Ring {
    let wake = Arc::new(Wake::new().expect("an eventfd"));
    Ring::new(RingConfig::new(wake)).expect("a ring")
}

/// Sent and received on one thread, so many at a time: no wake-up, no other processor's cache.
fn one_thread(criterion: &mut Criterion<Meter>) {
    let mut group = criterion.benchmark_group("mailbox, one thread");
    let config = IoThreadConfig::default();
    let handled = Rc::new(std::cell::Cell::new(0_u64));
    let (mut core, handle) = {
        let handled = Rc::clone(&handled);
        Core::new(&config, ring(), Scheduler::default(), move |_| {
            Box::new(move |message: u64| handled.set(handled.get() + message))
        })
    };
    group.bench_function("a turn with nothing to do", |b| b.iter(|| core.turn(false)));
    for batch in [1, 16, 256] {
        group.throughput(Throughput::Elements(batch));
        group.bench_function(BenchmarkId::new("send and receive in a turn", batch), |b| {
            b.iter(|| {
                for _ in 0..batch {
                    assert!(handle.send(1).is_ok());
                }
                let before = handled.get();
                while handled.get() < before + batch {
                    assert_eq!(core.turn(false), Progress::Worked);
                }
            });
        });
    }
    group.finish();
}

fn player(name: &str, processor: usize, poll: PollParams) -> IoThread<Ball> {
    let processors = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let config = IoThreadConfig {
        name: name.to_owned(),
        poll,
        // Two that look for work without sleeping are not to wait for each other's time on one processor.
        cpus: Some(vec![processor % processors]),
        ..IoThreadConfig::default()
    };
    let own: Arc<std::sync::OnceLock<IoThread<Ball>>> = Arc::default();
    let known = Arc::clone(&own);
    let thread = IoThread::start(config, move |_| {
        Box::new(move |mut ball: Ball| {
            if ball.left == 0 {
                // Whoever served waits for it.
                ball.done.take().map(|done| done.send(()));
                return;
            }
            ball.left -= 1;
            if let Some(to) = ball.back.take() {
                ball.back = known.get().cloned();
                drop(to.send(ball));
            }
        })
    })
    .expect("an iothread starts");
    own.set(thread.clone()).expect("set once");
    thread
}

/// A message there and one back.
fn two_threads(criterion: &mut Criterion<Meter>) {
    let mut group = criterion.benchmark_group("mailbox, there and back");
    for (name, max_ns) in [("both awake", 10_000_000), ("both asleep", 0)] {
        if meter().counts() && max_ns > 0 {
            continue;
        }
        let poll = PollParams {
            max_ns,
            ..PollParams::default()
        };
        let (one, other) = (player("one", 0, poll), player("other", 1, poll));
        group.bench_function(name, |b| {
            b.iter_custom(|count| {
                let (done, ended) = crossbeam_channel::bounded(1);
                let begun = meter().start();
                let ball = Ball {
                    left: 2 * count,
                    back: Some(other.clone()),
                    done: Some(done),
                };
                assert!(one.send(ball).is_ok());
                ended.recv().expect("the ball comes to rest");
                meter().end(begun)
            });
        });
        for thread in [one, other] {
            thread.stop();
            thread.join();
        }
    }
    group.finish();
}

/// How long a sleeper is left alone before it is woken: it goes to sleep in much less.
const TO_SLEEP: Duration = Duration::from_micros(50);

/// What waking costs whoever wakes.
fn wake_word(criterion: &mut Criterion<Meter>) {
    let mut group = criterion.benchmark_group("wake word");
    let wake = Arc::new(Wake::new().expect("an eventfd"));
    group.bench_function("wake one that is awake", |b| b.iter(|| wake.wake()));
    let (ended, turns) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let sleeper = {
        let (wake, ended, turns) = (Arc::clone(&wake), Arc::clone(&ended), Arc::clone(&turns));
        thread::spawn(move || {
            let ring = Ring::new(RingConfig::new(wake)).expect("a ring");
            while !ended.load(Ordering::Acquire) {
                ring.turn(Wait::Until(None));
                turns.fetch_add(1, Ordering::Release);
            }
        })
    };
    group.bench_function("wake one that sleeps", |b| {
        b.iter_custom(|count| {
            let mut total = 0;
            for _ in 0..count {
                loop {
                    let rest = Instant::now();
                    while rest.elapsed() < TO_SLEEP {
                        std::hint::spin_loop();
                    }
                    let (rung, before) = (wake.rung(), turns.load(Ordering::Acquire));
                    let begun = meter().start();
                    wake.wake();
                    let took = meter().end(begun);
                    while turns.load(Ordering::Acquire) == before {
                        thread::yield_now();
                    }
                    // One that was not asleep yet does not count.
                    if wake.rung() > rung {
                        total += took;
                        break;
                    }
                }
            }
            total
        });
    });
    ended.store(true, Ordering::Release);
    wake.wake();
    sleeper.join().expect("the sleeper ends");
    group.finish();
}

criterion_group! {
    name = benches;
    config = meter::criterion();
    targets = one_thread, two_threads, wake_word
}
criterion_main!(benches);
