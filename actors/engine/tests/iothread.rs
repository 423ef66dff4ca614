//! The iothread's behaviour, on both engines.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::cell::{Cell, RefCell};
use std::future::{pending, poll_fn};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use futures_channel::{mpsc, oneshot};
use futures_util::StreamExt;
use millpond_engine::iothread::{
    Core, IoThread, IoThreadConfig, IoThreadId, Local, PollParams, Progress, Scheduler, Watched,
};
use millpond_ring::buffer::Buffer;
use millpond_ring::{Engine, Fd, Ring, RingConfig, Wake};

/// What the mailbox of a test's iothread takes: code to run there.
type Call = Box<dyn FnOnce(&Rc<Local>) + Send>;

fn config(engine: Engine) -> IoThreadConfig {
    IoThreadConfig {
        name: "test".to_owned(),
        engine,
        ..IoThreadConfig::default()
    }
}

fn handler(local: Rc<Local>) -> Box<dyn Fn(Call)> {
    Box::new(move |call| call(&local))
}

fn start(engine: Engine) -> IoThread<Call> {
    IoThread::start(config(engine), handler).unwrap()
}

fn tell(thread: &IoThread<Call>, call: impl FnOnce(&Rc<Local>) + Send + 'static) {
    assert!(thread.send(Box::new(call)).is_ok(), "the iothread has ended");
}

/// Runs code on the iothread and waits for its value.
fn ask<T: Send + 'static>(thread: &IoThread<Call>, code: impl FnOnce(&Rc<Local>) -> T + Send + 'static) -> T {
    let (send, receive) = unbounded();
    tell(thread, move |local| send.send(code(local)).unwrap());
    get(&receive)
}

/// What comes over the channel; failing is better than hanging.
fn get<T>(receive: &Receiver<T>) -> T {
    receive
        .recv_timeout(Duration::from_secs(30))
        .expect("an answer within 30 s")
}

/// Sends when dropped.
struct Tattle(Sender<IoThreadId>);

impl Drop for Tattle {
    fn drop(&mut self) {
        self.0
            .send(Local::current_id().expect("dropped on an iothread"))
            .unwrap();
    }
}

macro_rules! on_each_engine {
    ($($name:ident)*) => {
        mod uring {
            $(#[test] fn $name() { super::$name(super::Engine::Uring); })*
        }
        mod threads {
            $(#[test] fn $name() { super::$name(super::Engine::Threads); })*
        }
    };
}

on_each_engine! {
    messages_are_handled_in_order_and_refused_after_the_end
    messages_before_the_stop_are_handled
    tasks_know_where_they_are
    tasks_wake_each_other_across_threads
    a_storm_of_wakes_loses_none
    a_panic_ends_its_task_alone
    stopping_drops_tasks_on_their_thread
    stopping_ends_operations_in_flight
    a_task_s_output_comes_back_and_dropping_it_cancels
    per_thread_tables_are_made_once
    a_sleeper_is_woken_once_for_all_that_is_sent_in_a_turn
    an_idle_iothread_makes_no_system_call
    timers_work_with_polling_and_without
    io_goes_on_under_a_flood_of_messages
}

fn messages_are_handled_in_order_and_refused_after_the_end(engine: Engine) {
    let thread = start(engine);
    let (send, receive) = unbounded();
    for i in 0..10_000 {
        let send = send.clone();
        tell(&thread, move |_| send.send(i).unwrap());
    }
    (0..10_000).for_each(|i| assert_eq!(get(&receive), i));
    thread.stop();
    thread.join();
    assert!(thread.send(Box::new(|_| unreachable!())).is_err());
}

fn messages_before_the_stop_are_handled(engine: Engine) {
    let thread = start(engine);
    let handled = Arc::new(AtomicUsize::new(0));
    for _ in 0..2000 {
        let handled = handled.clone();
        tell(&thread, move |_| {
            handled.fetch_add(1, Ordering::Relaxed);
        });
    }
    thread.stop();
    thread.join();
    assert_eq!(handled.load(Ordering::Relaxed), 2000);
}

fn tasks_know_where_they_are(engine: Engine) {
    let (a, b) = (start(engine), start(engine));
    assert_ne!(a.id(), b.id());
    assert_eq!(Local::current_id(), None);
    assert!(Local::current().is_none());
    for thread in [&a, &b] {
        let (id, name, engine_there) = ask(thread, |local| {
            assert_eq!(Local::current().unwrap().id(), local.id());
            (
                Local::current_id().unwrap(),
                local.name().to_owned(),
                local.ring().engine(),
            )
        });
        assert_eq!((id, name.as_str(), engine_there), (thread.id(), "test", engine));
    }
    [a, b].iter().for_each(IoThread::stop);
}

fn tasks_wake_each_other_across_threads(engine: Engine) {
    let (a, b) = (start(engine), start(engine));
    let (done, receive) = unbounded();
    let (to_b, mut from_a) = mpsc::unbounded::<u32>();
    let (to_a, mut from_b) = mpsc::unbounded::<u32>();
    tell(&a, move |local| {
        local.spawn(async move {
            for i in 0..2000 {
                to_b.unbounded_send(i).unwrap();
                assert_eq!(from_b.next().await, Some(i + 1));
            }
            done.send(()).unwrap();
        });
    });
    tell(&b, move |local| {
        local.spawn(async move {
            while let Some(i) = from_a.next().await {
                to_a.unbounded_send(i + 1).unwrap();
            }
        });
    });
    get(&receive);
    [a, b].iter().for_each(IoThread::stop);
}

fn a_storm_of_wakes_loses_none(engine: Engine) {
    let thread = start(engine);
    let (done, receive) = unbounded();
    let senders: Vec<_> = (0..4)
        .map(|_| {
            let (thread, done) = (thread.clone(), done.clone());
            std::thread::spawn(move || {
                for i in 0..2000 {
                    let (fire, fired) = oneshot::channel::<()>();
                    let done = done.clone();
                    tell(&thread, move |local| {
                        local.spawn(async move {
                            fired.await.unwrap();
                            done.send(()).unwrap();
                        });
                    });
                    // Now and then the iothread gets the time to fall asleep in between.
                    if i % 50 == 0 {
                        std::thread::yield_now();
                    }
                    fire.send(()).unwrap();
                }
            })
        })
        .collect();
    senders.into_iter().for_each(|sender| sender.join().unwrap());
    (0..8000).for_each(|_| get(&receive));
    thread.stop();
    thread.join();
}

fn a_panic_ends_its_task_alone(engine: Engine) {
    let thread = start(engine);
    let (send, dropped) = unbounded();
    tell(&thread, move |local| {
        let ring = local.ring().clone();
        local.spawn(async move {
            let _guard = Tattle(send);
            ring.sleep(Duration::from_millis(1)).await;
            panic!("in a task, as a test");
        });
    });
    assert_eq!(get(&dropped), thread.id(), "the guard was released");
    tell(&thread, |_| panic!("in a handler, as a test"));
    assert_eq!(ask(&thread, |_| 7), 7);
    thread.stop();
    thread.join();
}

fn stopping_drops_tasks_on_their_thread(engine: Engine) {
    let thread = start(engine);
    let (send, dropped) = unbounded();
    tell(&thread, move |local| {
        let other = Tattle(send.clone());
        let inner = local.clone();
        local.spawn(async move {
            let _guard = Tattle(send);
            // A task that spawned another holds the iothread's inside from within it.
            inner.spawn(async move {
                let _guard = other;
                pending::<()>().await;
            });
            pending::<()>().await;
        });
    });
    ask(&thread, |_| ());
    thread.stop();
    thread.join();
    assert_eq!((get(&dropped), get(&dropped)), (thread.id(), thread.id()));
}

fn stopping_ends_operations_in_flight(engine: Engine) {
    let thread = start(engine);
    let (mut peer, socket) = UnixStream::pair().unwrap();
    let socket: Fd = Arc::new(socket.into());
    let weak = Arc::downgrade(&socket);
    tell(&thread, move |local| {
        let ring = local.ring().clone();
        local.spawn(async move {
            let _ = ring.recv(&socket, Buffer::alloc(4096)).await;
        });
    });
    ask(&thread, |_| ());
    thread.stop();
    thread.join();
    assert!(weak.upgrade().is_none());
    assert_eq!(std::io::Read::read(&mut peer, &mut [0; 1]).unwrap(), 0);
}

fn a_task_s_output_comes_back_and_dropping_it_cancels(engine: Engine) {
    let thread = start(engine);
    let (send, dropped) = unbounded();
    let (answer, answered) = unbounded();
    tell(&thread, move |local| {
        let cancelled = local.spawn_task(async move {
            let _guard = Tattle(send);
            pending::<()>().await;
        });
        let ring = local.ring().clone();
        let task = local.spawn_task(async move {
            ring.sleep(Duration::from_millis(1)).await;
            drop(cancelled);
            6 * 7
        });
        local.spawn(async move { answer.send(task.await).unwrap() });
    });
    assert_eq!(get(&answered), 42);
    assert_eq!(get(&dropped), thread.id());
    thread.stop();
}

/// Whoever sleeps elsewhere is not woken between two pieces of mail, only to find the first alone.
fn a_sleeper_is_woken_once_for_all_that_is_sent_in_a_turn(engine: Engine) {
    let thread = start(engine);
    let sleeper = Arc::new(Wake::new().unwrap());
    assert!(sleeper.try_park());
    let here = Arc::clone(&sleeper);
    let is_asleep = ask(&thread, move |_| {
        Local::wake_later(&here);
        Local::wake_later(&here);
        here.is_parked()
    });
    assert!(is_asleep, "the turn goes on");
    until(|| !sleeper.is_parked());
    assert_eq!(sleeper.rung(), 1);
    // Off an iothread there is no turn that could end.
    sleeper.unpark();
    assert!(sleeper.try_park());
    Local::wake_later(&sleeper);
    assert!(!sleeper.is_parked());
    thread.stop();
}

#[derive(Default)]
struct Table(Cell<u32>);

fn per_thread_tables_are_made_once(engine: Engine) {
    let (a, b) = (start(engine), start(engine));
    ask(&a, |local| local.ext::<Table>().0.set(5));
    assert_eq!(ask(&a, |local| local.ext::<Table>().0.get()), 5);
    assert_eq!(ask(&a, |local| local.ext::<Cell<u32>>().get()), 0);
    assert_eq!(ask(&b, |local| local.ext::<Table>().0.get()), 0);
    [a, b].iter().for_each(IoThread::stop);
}

/// The state and the number of voluntary context switches of a thread of this process.
fn sleeps(tid: u32) -> (String, String) {
    let status = std::fs::read_to_string(format!("/proc/self/task/{tid}/status")).unwrap();
    let field = |name: &str| {
        status
            .lines()
            .find(|line| line.starts_with(name))
            .unwrap()
            .to_owned()
    };
    (field("State:"), field("voluntary_ctxt_switches:"))
}

fn until(mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "not within 30 s");
        std::thread::yield_now();
    }
}

fn an_idle_iothread_makes_no_system_call(engine: Engine) {
    let (idle, clock) = (start(engine), start(engine));
    let (peer, socket) = UnixStream::pair().unwrap();
    let tid = ask(&idle, |local| {
        // Idle is with clients connected that say nothing.
        let (ring, socket): (Ring, Fd) = (local.ring().clone(), Arc::new(socket.into()));
        local.spawn(async move {
            let _ = ring.recv(&socket, Buffer::alloc(4096)).await;
        });
        rustix::thread::gettid().as_raw_nonzero().get() as u32
    });
    until(|| {
        let parks = idle.stats().parks;
        let asleep = sleeps(tid).0.contains('S');
        asleep && parks > 0 && idle.stats().parks == parks
    });
    let before = (idle.stats(), sleeps(tid));
    // Not a wait for the idle one to get somewhere: the length of the time watched.
    let (send, ended) = unbounded();
    tell(&clock, move |local| {
        let ring = local.ring().clone();
        local.spawn(async move {
            ring.sleep(Duration::from_millis(300)).await;
            send.send(()).unwrap();
        });
    });
    get(&ended);
    assert_eq!((idle.stats(), sleeps(tid)), before);
    drop(peer);
    until(|| idle.stats().turns > before.0.turns);
    [idle, clock].iter().for_each(IoThread::stop);
}

fn timers_work_with_polling_and_without(engine: Engine) {
    for max_ns in [0, 32_768, 50_000_000] {
        let poll = PollParams {
            max_ns,
            ..PollParams::default()
        };
        let thread: IoThread<Call> = IoThread::start(
            IoThreadConfig {
                poll,
                ..config(engine)
            },
            handler,
        )
        .unwrap();
        let (send, ended) = unbounded();
        tell(&thread, move |local| {
            let ring = local.ring().clone();
            local.spawn(async move {
                let start = Instant::now();
                for _ in 0..10 {
                    ring.sleep(Duration::from_millis(1)).await;
                }
                send.send(start.elapsed()).unwrap();
            });
        });
        assert!(get(&ended) >= Duration::from_millis(10));
        assert_eq!(thread.poll_params(), poll);
        thread.set_poll(PollParams {
            max_ns: 1,
            grow: 2,
            shrink: 3,
        });
        assert_eq!(
            thread.poll_params(),
            PollParams {
                max_ns: 1,
                grow: 2,
                shrink: 3
            }
        );
        thread.stop();
    }
}

fn io_goes_on_under_a_flood_of_messages(engine: Engine) {
    let thread = start(engine);
    let (send, ended) = unbounded();
    let (a, b) = UnixStream::pair().unwrap();
    // A task that is always ready, and a message that always sends itself again.
    fn again(thread: IoThread<Call>) -> Call {
        Box::new(move |_| drop(thread.clone().send(again(thread))))
    }
    assert!(thread.send(again(thread.clone())).is_ok());
    tell(&thread, move |local| {
        let (ring, a, b): (Ring, Fd, Fd) = (local.ring().clone(), Arc::new(a.into()), Arc::new(b.into()));
        local.spawn(poll_fn(|cx| {
            cx.waker().wake_by_ref();
            Poll::Pending
        }));
        local.spawn(async move {
            for _ in 0..100 {
                let received = ring.recv(&a, Buffer::alloc(16));
                ring.send(&b, Buffer::from_slice(b"ping").into()).await.0.unwrap();
                assert_eq!(received.await.0.unwrap(), 4);
            }
            send.send(()).unwrap();
        });
    });
    get(&ended);
    thread.stop();
    thread.join();
}

#[test]
fn a_core_can_be_stepped_and_its_next_task_chosen() {
    let wake = Arc::new(Wake::new().unwrap());
    let ring = Ring::new(RingConfig {
        engine: Engine::Threads,
        ..RingConfig::new(wake)
    })
    .unwrap();
    let last = Scheduler::Choose(Box::new(|ready| ready - 1));
    let (mut core, thread) = Core::<Call>::new(&config(Engine::Threads), ring, last, handler);
    let order = Rc::new(RefCell::new(Vec::new()));
    for i in 0..5 {
        let order = order.clone();
        core.local().spawn(async move { order.borrow_mut().push(i) });
    }
    assert_eq!(
        Local::current_id(),
        None,
        "a core is current only during its turns"
    );
    assert_eq!(core.turn(false), Progress::Worked);
    assert_eq!(*order.borrow(), [4, 3, 2, 1, 0]);
    assert_eq!(core.turn(false), Progress::Idle);
    tell(&thread, |local| assert_eq!(Local::current_id(), Some(local.id())));
    assert_eq!(core.turn(false), Progress::Worked);
    thread.stop();
    assert_eq!(core.turn(true), Progress::Stopped);
}

/// Something that comes when it is told to, and what it was asked.
#[derive(Default)]
struct Coming {
    comes: Cell<bool>,
    comes_as_it_rests: Cell<bool>,
    asked: RefCell<Vec<&'static str>>,
}

impl Watched for Coming {
    fn look(&self) -> bool {
        self.asked.borrow_mut().push("look");
        self.comes.take()
    }

    fn rest(&self) -> bool {
        self.asked.borrow_mut().push("rest");
        self.comes_as_it_rests.take()
    }
}

#[test]
fn what_is_watched_is_looked_at_in_each_turn_and_told_before_the_core_may_sleep() {
    let ring = Ring::new(RingConfig {
        engine: Engine::Threads,
        ..RingConfig::new(Arc::new(Wake::new().unwrap()))
    });
    let (mut core, thread) = Core::<Call>::new(
        &config(Engine::Threads),
        ring.unwrap(),
        Scheduler::default(),
        handler,
    );
    let coming = Rc::new(Coming::default());
    let watching = core.local().look_at(coming.clone());
    assert_eq!(core.turn(false), Progress::Idle);
    assert_eq!(*coming.asked.take(), ["look", "rest"]);
    coming.comes.set(true);
    assert_eq!(core.turn(false), Progress::Worked);
    assert_eq!(
        *coming.asked.take(),
        ["look"],
        "there is something to do: nobody sleeps"
    );
    // A core that would sleep does not if something has come by then.
    coming.comes_as_it_rests.set(true);
    core.turn(true);
    assert_eq!(coming.asked.take().last(), Some(&"rest"));
    drop(watching);
    assert_eq!(core.turn(false), Progress::Idle);
    assert!(coming.asked.take().is_empty());
    thread.stop();
}

#[test]
fn the_set_up_s_errors_come_back() {
    let bad = IoThreadConfig {
        cpus: Some(vec![100_000]),
        ..config(Engine::Threads)
    };
    assert!(IoThread::<Call>::start(bad, handler).is_err());
    let panics = IoThread::<Call>::start(config(Engine::Threads), |_| {
        panic!("while it is set up, as a test")
    });
    assert!(panics.is_err());
}

#[test]
fn processors_are_respected() {
    let one = IoThreadConfig {
        cpus: Some(vec![0]),
        ..config(Engine::Auto)
    };
    let thread = IoThread::start(one, handler).unwrap();
    let allowed = ask(&thread, |_| rustix::thread::sched_getaffinity(None).unwrap());
    assert_eq!((allowed.count(), allowed.is_set(0)), (1, true));
    thread.stop();
}
