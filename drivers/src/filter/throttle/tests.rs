//! The arithmetic and the order of requests, in a time that only the tests move on.
#![allow(
    clippy::unwrap_used,
    reason = "a test ends at the first thing that is not as it must be"
)]

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::future::LocalBoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::task::ArcWake;
use proptest::prelude::*;

use super::group::{Admission, Group, Groups, Waiter};
use super::limits::{Direction, Limits};
use super::wait_queue::WaitQueues;
use millpond_ring::{
    Backend, Clock, Completion, Engine, Op, Ring, RingConfig, RingStats, SleepFor, SlotId, Slots, Wait, Wake,
};

const SECOND: u128 = 1_000_000_000;

/// Runs nothing: the tests only sleep.
struct Idle;

impl Backend for Idle {
    fn engine(&self) -> Engine {
        Engine::Threads
    }
    fn submit(&mut self, _id: SlotId, _op: &mut Op) {}
    fn cancel(&mut self, _id: SlotId, _op: &mut Op) {}
    fn has_work(&mut self) -> bool {
        false
    }
    fn turn(&mut self, _slots: &mut Slots, _sleep_for: SleepFor, _done: &mut Vec<Completion>) {}
    fn stats(&self) -> RingStats {
        RingStats::default()
    }
}

struct Virtual(Cell<Instant>);

impl Clock for Virtual {
    fn now(&self) -> Instant {
        self.0.get()
    }
}

/// A ring in a time of its own.
struct World {
    ring: Ring,
    clock: Rc<Virtual>,
    begun: Instant,
}

impl World {
    fn new() -> Self {
        let begun = Instant::now();
        let clock = Rc::new(Virtual(Cell::new(begun)));
        let wake = Arc::new(Wake::new().unwrap());
        let ring = Ring::with_backend(Box::new(Idle), wake, Rc::clone(&clock) as Rc<dyn Clock>);
        Self { ring, clock, begun }
    }

    fn elapsed(&self) -> Duration {
        self.ring.now() - self.begun
    }

    /// Runs all tasks to their ends, from timer to timer. A task that is not woken shows by there being no timer.
    fn run<'a>(&self, tasks: impl IntoIterator<Item = LocalBoxFuture<'a, ()>>) {
        let mut tasks: FuturesUnordered<_> = tasks.into_iter().collect();
        while !tasks.is_empty() {
            match tasks.poll_next_unpin(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(_) => {}
                Poll::Pending => {
                    let next = self.ring.next_timer().expect("a task waits for nothing");
                    self.clock.0.set(next.max(self.ring.now()));
                    self.ring.turn(Wait::No);
                }
            }
        }
    }
}

/// What was served when.
type Log = RefCell<Vec<(Duration, usize, u64)>>;

fn limits(values: &[(&str, u64)]) -> Limits {
    let all = values.iter().fold(Limits::default(), |limits, (name, value)| {
        limits.with(name, *value)
    });
    all.check().unwrap();
    all
}

fn group(values: &[(&str, u64)]) -> Arc<Group> {
    let groups = Groups::default();
    groups.add("g", limits(values)).unwrap();
    groups.find("g").unwrap()
}

/// A request of member `who` that arrives after a time.
fn request<'a>(
    world: &'a World,
    (group, queues): (&'a Group, &'a WaitQueues),
    log: &'a Log,
    who: usize,
    (arrival, bytes): (Duration, u64),
) -> LocalBoxFuture<'a, ()> {
    Box::pin(async move {
        world.ring.sleep_until(world.begun + arrival).await;
        let passed = queues.pass(group, &world.ring, Direction::Read, bytes).await;
        passed.unwrap();
        log.borrow_mut().push((world.elapsed(), who, bytes));
    })
}

/// So many requests of one size that are all there at once.
fn backlog(group: &Group, count: usize, bytes: u64) -> Vec<(Duration, usize, u64)> {
    let (world, queues, log) = (World::new(), WaitQueues::default(), Log::default());
    let one = |_| request(&world, (group, &queues), &log, 0, (Duration::ZERO, bytes));
    world.run((0..count).map(one));
    log.into_inner()
}

fn millis(served: &[(Duration, usize, u64)]) -> Vec<u128> {
    served.iter().map(|(time, ..)| time.as_millis()).collect()
}

#[test]
fn a_tenth_of_a_second_goes_at_once_and_the_rest_at_its_rate() {
    // The bucket holds 1: two requests find it no fuller than that.
    let served = backlog(&group(&[("iops-total", 10)]), 6, 512);
    assert_eq!(millis(&served), [0, 0, 100, 200, 300, 400]);
}

#[test]
fn a_burst_goes_at_once() {
    let served = backlog(&group(&[("iops-read", 10), ("iops-read-max", 20)]), 23, 512);
    assert!(millis(&served)[..21].iter().all(|time| *time == 0));
    assert_eq!(millis(&served)[21..], [100, 200]);
}

#[test]
fn a_long_burst_keeps_to_its_rate_for_its_length() {
    let burst = [
        ("iops-total", 10),
        ("iops-total-max", 100),
        ("iops-total-max-length", 2),
    ];
    let served = millis(&backlog(&group(&burst), 400, 512));
    // 10 of the burst's bucket and one more; then one every 10 ms, until 200 and what leaked meanwhile are gone.
    assert!(served[..11].iter().all(|time| *time == 0));
    assert_eq!(served[11..14], [10, 20, 30]);
    let steps: Vec<u128> = served.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let end = steps.iter().rposition(|step| *step == 10).unwrap();
    assert!((2000..2300).contains(&served[end]), "{}", served[end]);
    assert!(steps[end + 2..].iter().all(|step| *step == 100));
}

#[test]
fn a_large_request_counts_as_several() {
    let sized = [("iops-total", 10), ("iops-size", 4096)];
    let large = backlog(&group(&sized), 4, 8192);
    assert_eq!(millis(&large), [0, 100, 300, 500]);
    let small = backlog(&group(&sized), 4, 512);
    assert_eq!(millis(&small), [0, 0, 100, 200]);
}

#[test]
fn bytes_are_counted() {
    let served = backlog(&group(&[("bps-total", 10_000)]), 4, 5_000);
    assert_eq!(millis(&served), [0, 400, 900, 1400]);
}

#[test]
fn members_take_turns_however_much_each_wants() {
    let group = group(&[("iops-total", 10)]);
    let (world, log) = (World::new(), Log::default());
    let (greedy, modest) = (WaitQueues::default(), WaitQueues::default());
    let many = (0..60).map(|_| request(&world, (&group, &greedy), &log, 0, (Duration::ZERO, 512)));
    let few = (0..20).map(|_| request(&world, (&group, &modest), &log, 1, (Duration::ZERO, 512)));
    world.run(many.chain(few));
    let served = log.into_inner();
    let of_modest = served[..40].iter().filter(|(_, who, _)| *who == 1).count();
    assert!((18..=20).contains(&of_modest), "{of_modest}");
    assert_eq!(served.len(), 80);
}

#[test]
fn nobody_goes_before_who_waits_longer() {
    let group = group(&[("iops-total", 10)]);
    let (now, step) = (Instant::now(), Duration::from_millis(100));
    let [first, second] = [Arc::new(Waiter::default()), Arc::new(Waiter::default())];
    let admit = |who, after| group.admit(who, Direction::Read, 512, now + after);
    assert_eq!(admit(None, Duration::ZERO), Admission::Go);
    assert_eq!(admit(None, Duration::ZERO), Admission::Go);
    assert_eq!(admit(Some(&first), Duration::ZERO), Admission::After(step));
    assert_eq!(admit(Some(&second), step), Admission::Queued);
    assert_eq!(admit(None, step), Admission::Queued);
    assert_eq!(admit(Some(&first), step), Admission::Go);
    assert_eq!(admit(Some(&second), step), Admission::After(step));
}

#[test]
fn a_direction_without_limits_is_not_held_back() {
    let group = group(&[("iops-write", 1)]);
    assert!(millis(&backlog(&group, 50, 512)).iter().all(|time| *time == 0));
}

#[test]
fn draining_lets_all_go_and_counts_them() {
    let group = group(&[("iops-total", 1)]);
    let (world, queues, log) = (World::new(), WaitQueues::default(), Log::default());
    let one = |_| request(&world, (&group, &queues), &log, 0, (Duration::ZERO, 512));
    let drain: LocalBoxFuture<'_, ()> = Box::pin(async {
        world.ring.sleep(Duration::from_millis(100)).await;
        queues.set_open(true);
    });
    world.run((0..20).map(one).chain([drain]));
    assert_eq!(world.elapsed().as_millis(), 100);
    queues.set_open(false);
    // Nobody is left in the queue, and the twenty are to be made up for.
    let late = request(&world, (&group, &queues), &log, 0, (Duration::ZERO, 512));
    world.run([late]);
    assert!(world.elapsed() > Duration::from_secs(19));
}

#[test]
fn requests_that_wait_look_at_new_limits() {
    let group = group(&[("iops-total", 1)]);
    let (world, log) = (World::new(), Log::default());
    let all = [
        WaitQueues::default(),
        WaitQueues::default(),
        WaitQueues::default(),
    ];
    let change: LocalBoxFuture<'_, ()> = Box::pin(async {
        world.ring.sleep(Duration::from_millis(50)).await;
        group.configure(limits(&[])).unwrap();
    });
    let requests = (0..30).map(|n| request(&world, (&group, &all[n % 3]), &log, n, (Duration::ZERO, 512)));
    world.run(requests.chain([change]));
    assert_eq!(world.elapsed().as_millis(), 50);
    assert_eq!(log.borrow().len(), 30);
}

#[test]
fn who_is_given_up_holds_up_nobody() {
    let group = group(&[("iops-total", 1)]);
    let (world, log) = (World::new(), Log::default());
    let (first, second) = (WaitQueues::default(), WaitQueues::default());
    let ask = |queues| request(&world, (&group, queues), &log, 0, (Duration::ZERO, 512));
    world.run([ask(&first), ask(&first)]);
    let mut given_up = ask(&first);
    let mut context = Context::from_waker(Waker::noop());
    assert!(given_up.as_mut().poll(&mut context).is_pending());
    let mut behind = ask(&first);
    assert!(behind.as_mut().poll(&mut context).is_pending());
    drop(given_up);
    world.run([ask(&second), behind]);
    assert_eq!(log.borrow().len(), 4);
}

#[test]
fn threads_share_what_there_is_to_the_last_request() {
    let group = group(&[("iops-total", 1_000)]);
    let (now, let_through) = (Instant::now(), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..200 {
                    if group.admit(None, Direction::Write, 1, now) == Admission::Go {
                        let_through.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    assert_eq!(let_through.into_inner(), 101);
}

struct Bell(Arc<Wake>);

impl ArcWake for Bell {
    fn wake_by_ref(bell: &Arc<Self>) {
        bell.0.wake();
    }
}

/// Runs so many requests of a member on a thread of its own, in real time.
fn on_a_thread(group: &Group, count: usize) {
    const PATIENCE: Duration = Duration::from_secs(30);
    let wake = Arc::new(Wake::new().unwrap());
    let config = RingConfig {
        engine: Engine::Threads,
        ..RingConfig::new(Arc::clone(&wake))
    };
    let (ring, queues) = (Ring::new(config).unwrap(), WaitQueues::default());
    let waker = futures_util::task::waker(Arc::new(Bell(wake)));
    let requests = (0..count).map(|_| queues.pass(group, &ring, Direction::Write, 512));
    let mut requests: FuturesUnordered<_> = requests.collect();
    let deadline = ring.now() + PATIENCE;
    while !requests.is_empty() {
        assert!(ring.now() < deadline, "nobody woke a request whose turn it was");
        let polled = requests.poll_next_unpin(&mut Context::from_waker(&waker));
        if polled.is_pending() {
            ring.turn(Wait::Until(Some(deadline)));
        }
    }
}

#[test]
fn members_on_several_threads_wake_each_other() {
    let group = group(&[("iops-total", 2_000)]);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| on_a_thread(&group, 200));
        }
    });
    // 201 go at once, 599 at the rate.
    assert!(begun.elapsed() >= Duration::from_millis(299));
}

#[test]
fn a_group_with_members_stays() {
    let groups = Groups::default();
    groups.add("g", Limits::default()).unwrap();
    let member = groups.join("g").unwrap();
    assert_eq!(
        groups.remove("g").unwrap_err().to_string(),
        "object 'g' is in use, can not be deleted"
    );
    drop(member);
    let held = groups.find("g").unwrap();
    groups.remove("g").unwrap();
    assert!(groups.join("g").is_err());
    groups.add("g", Limits::default()).unwrap();
    drop(held);
    assert!(groups.join("g").is_ok());
}

/// How much was served from one to another, that other not included, beyond what its rate gives in that time.
fn excess(served: &[(u128, u128)], rate: u64) -> Option<u128> {
    let mut most = None;
    for first in 0..served.len() {
        let mut sum = 0;
        for last in first + 1..served.len() {
            sum += served[last - 1].1 * SECOND;
            let given = u128::from(rate) * (served[last].0 - served[first].0);
            most = most.max(Some(sum.saturating_sub(given)));
        }
    }
    most
}

fn rates() -> impl Strategy<Value = (u64, u64, u64)> {
    (1_u64..500, 1_u64..5, 1_u64..4, any::<bool>()).prop_map(|(average, times, length, burst)| {
        if burst {
            (average, average * times, length)
        } else {
            (average, 0, 1)
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// In no window is more served than the bucket holds and the rate gives, nor does a long burst exceed its rate.
    #[test]
    fn no_window_has_more_than_burst_and_rate(
        ops in rates(),
        bytes in rates(),
        requests in proptest::collection::vec((0_u64..3_000, 1_u64..400, 0_usize..3), 1..60),
    ) {
        let group = group(&[
            ("iops-total", ops.0), ("iops-total-max", ops.1), ("iops-total-max-length", ops.2),
            ("bps-read", bytes.0), ("bps-read-max", bytes.1), ("bps-read-max-length", bytes.2),
        ]);
        let (world, log) = (World::new(), Log::default());
        let members = [WaitQueues::default(), WaitQueues::default(), WaitQueues::default()];
        world.run(requests.iter().map(|(arrival, bytes, who)| {
            request(&world, (&group, &members[*who]), &log, *who, (Duration::from_millis(*arrival), *bytes))
        }));
        let served = log.into_inner();
        prop_assert_eq!(served.len(), requests.len());
        let counted = |cost: fn(u64) -> u128| -> Vec<_> {
            served.iter().map(|(time, _, bytes)| (time.as_nanos(), cost(*bytes))).collect()
        };
        for (served, (average, max, length)) in [(counted(|_| 1), ops), (counted(u128::from), bytes)] {
            let size = if max == 0 { u128::from(average) * SECOND / 10 } else { u128::from(max * length) * SECOND };
            prop_assert!(excess(&served, average) <= Some(size));
            if length > 1 {
                prop_assert!(excess(&served, max) <= Some(u128::from(max) * SECOND / 10));
            }
        }
    }

    /// While requests wait, no less is served than the rate gives, up to one request.
    #[test]
    fn a_backlog_is_served_at_its_rate((average, max, length) in rates(), count in 1_usize..200) {
        let group = group(&[
            ("iops-read", average), ("iops-read-max", max), ("iops-read-max-length", length),
        ]);
        let served = backlog(&group, count, 512);
        for (index, (time, ..)) in served.iter().enumerate() {
            let due = u128::from(average) * time.as_nanos() / SECOND;
            prop_assert!(index as u128 + 1 >= due);
        }
    }
}
