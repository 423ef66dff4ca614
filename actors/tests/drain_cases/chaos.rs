//! Drains, moves and requests while delay rules hold back what passes between actors.
//!
//! A hold of an hour is one that ends when the rules are taken away: no test waits for time to pass, but for those that
//! measure it.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use millpond::delay::{Actor, Chaos, Delay, DelayRules, Rule, Window};
use millpond::node::Client;
use millpond_messages::graph::MoveNode;
use serde_json::json;

use super::world::{
    DEADLINE, Sent, World, finish, is_ready, node, on_home, read, reading, sent, subtree, wait, write,
    writing,
};
use millpond_ring::buffer::Buffers;

const HOUR: Duration = Duration::from_secs(3600);
const MS: Duration = Duration::from_millis(1);

/// A rule that holds such messages.
fn held(delay: Delay, sender: Option<Actor>, receiver: Option<Actor>, kind: Option<&'static str>) -> Rule {
    Rule {
        sender,
        receiver,
        kind,
        delay,
        ..Rule::default()
    }
}

fn put(world: &World, rules: Vec<Rule>) -> Chaos {
    put_seeded(world, 42, rules)
}

fn put_seeded(world: &World, seed: u64, rules: Vec<Rule>) -> Chaos {
    let chaos = Chaos::new(DelayRules::new(Some(seed), rules));
    wait(world.graph.set_chaos(Some(chaos.clone())));
    chaos
}

fn lift(world: &World) {
    wait(world.graph.set_chaos(None));
}

/// Waits until so many messages are held.
fn until_held(chaos: &Chaos, count: u64) {
    let end = Instant::now() + DEADLINE;
    while chaos.statistics().held < count {
        assert!(Instant::now() < end, "{:?}", chaos.statistics());
        std::thread::yield_now();
    }
}

/// The offsets of so many reads in the order in which the driver sees them.
fn seen(world: &World, name: &str, count: usize) -> Vec<u64> {
    let mut steps: Vec<_> = (0..count).map(|_| world.node(name).held_read()).collect();
    steps.drain(..).map(|step| step.offset).collect()
}

#[test]
fn requests_of_one_client_arrive_in_order_from_elsewhere_and_on_the_iothread() {
    let world = World::new(&["n"]);
    world.memory("n");
    let client = world.client("n");
    let chaos = put(
        &world,
        vec![held(
            Delay::Uniform(Duration::ZERO, 5 * MS),
            None,
            None,
            Some("request"),
        )],
    );
    world.node("n").hold(true);
    let offsets: Vec<u64> = (0..64).map(|number| number * 512).collect();
    let from_elsewhere: Vec<_> = offsets.iter().map(|offset| reading(&client, *offset)).collect();
    assert_eq!(seen(&world, "n", 64), offsets);
    let at_home = client.clone();
    let sent_at_home = offsets.clone();
    let on_iothread = on_home(&client, move || async move {
        let client = at_home.here();
        let reads = sent_at_home
            .iter()
            .map(|offset| client.read(*offset, Buffers::zeroed(512)));
        join_all(reads)
            .await
            .into_iter()
            .all(|(result, _)| result.is_ok())
    });
    assert_eq!(seen(&world, "n", 64), offsets);
    world.node("n").hold(false);
    assert!(wait(on_iothread));
    assert!(from_elsewhere.into_iter().all(|read| wait(read).is_ok()));
    assert!(chaos.statistics().delayed >= 100, "{:?}", chaos.statistics());
}

#[test]
fn a_reply_that_is_held_keeps_its_request_in_flight() {
    let world = World::new(&["n"]);
    world.memory("n");
    let client = world.client("n");
    let chaos = put(
        &world,
        vec![held(Delay::Fixed(HOUR), None, Some(Actor::Client), Some("reply"))],
    );
    let mut request = reading(&client, 0);
    until_held(&chaos, 1);
    let mut draining = world.draining(node("n"));
    assert_eq!(world.waiting(), 1, "the drain waits for the reply");
    assert!(!is_ready(&mut draining) && !is_ready(&mut request));
    lift(&world);
    drop(finish(draining));
    wait(request).unwrap();
    let statistics = chaos.statistics();
    assert_eq!((statistics.delayed, statistics.held), (1, 0));
    assert!(statistics.longest_ns > 0);
}

#[test]
fn a_request_that_has_not_arrived_is_not_in_flight() {
    let world = World::new(&["n"]);
    world.memory("n");
    let client = world.client("n");
    let chaos = put(
        &world,
        vec![held(Delay::Fixed(HOUR), Some(Actor::Client), None, Some("read"))],
    );
    let mut request = reading(&client, 0);
    until_held(&chaos, 1);
    let section = world.drain(node("n")).covers(&world, &["n"]);
    lift(&world);
    world.settle();
    assert!(!is_ready(&mut request), "it has arrived at the gate");
    drop(section);
    wait(request).unwrap();
    assert_eq!(
        world
            .node("n")
            .control
            .faults
            .load(std::sync::atomic::Ordering::SeqCst),
        0
    );
}

#[test]
fn a_request_from_node_to_node_that_is_held_is_waited_for() {
    let world = World::new(&["top", "n"]);
    world.memory("n");
    world.overlay("top", "n");
    world.iothread("io");
    wait(world.graph.ask(MoveNode {
        node_name: "n".to_owned(),
        iothread: Some("io".to_owned()),
    }))
    .unwrap();
    let client = world.client("top");
    let chaos = put(
        &world,
        vec![held(
            Delay::Fixed(HOUR),
            Some(Actor::Node),
            Some(Actor::Node),
            None,
        )],
    );
    let request = reading(&client, 0);
    until_held(&chaos, 1);
    let mut draining = world.draining(node("n"));
    assert_eq!(world.waiting(), 1);
    assert!(!is_ready(&mut draining));
    lift(&world);
    drop(finish(draining));
    wait(request).unwrap();
}

#[test]
fn a_request_to_a_child_on_the_same_iothread_can_be_held() {
    let world = World::new(&["top", "n"]);
    world.memory("n");
    world.filter("top", "n");
    let client = world.client("top");
    let chaos = put(
        &world,
        vec![Rule {
            node: Some("n".to_owned()),
            ..held(
                Delay::Fixed(HOUR),
                Some(Actor::Node),
                Some(Actor::Node),
                Some("flush"),
            )
        }],
    );
    write(&client, 0, 1);
    let flushing = client.clone();
    let flush = sent(async move { flushing.flush().await });
    until_held(&chaos, 1);
    let mut draining = world.draining(node("n"));
    assert_eq!(world.waiting(), 1);
    assert!(!is_ready(&mut draining));
    lift(&world);
    drop(finish(draining));
    wait(flush).unwrap();
}

#[test]
fn the_graph_answers_while_its_orders_or_the_events_are_held() {
    for (sender, receiver) in [(Actor::Graph, Actor::Node), (Actor::Node, Actor::Graph)] {
        let world = World::new(&["n"]);
        world.memory("n");
        let chaos = put(
            &world,
            vec![held(Delay::Fixed(HOUR), Some(sender), Some(receiver), None)],
        );
        let mut draining = world.draining(node("n"));
        until_held(&chaos, 1);
        assert_eq!(wait(world.graph.facts()).unwrap().nodes.len(), 1);
        assert!(!is_ready(&mut draining));
        lift(&world);
        drop(finish(draining));
    }
}

#[test]
fn what_users_ask_and_are_answered_can_be_held() {
    for kind in ["command", "answer"] {
        let world = World::new(&["n"]);
        world.memory("n");
        let chaos = put(&world, vec![held(Delay::Fixed(HOUR), None, None, Some(kind))]);
        let mut draining = world.draining(node("n"));
        until_held(&chaos, 1);
        assert!(!is_ready(&mut draining), "{kind}");
        lift(&world);
        drop(finish(draining));
    }
}

#[test]
fn a_stalled_iothread_holds_what_comes_and_the_others_go_on() {
    let world = World::new(&["n", "other"]);
    world.memory("n");
    world.memory("other");
    world.iothread("io");
    world.move_to("n", Some("io"));
    let (stalled, free) = (world.client("n"), world.client("other"));
    write(&stalled, 0, 7);
    let stall = Rule {
        iothread: Some("io".to_owned()),
        stall: Some(Window {
            length: HOUR,
            every: MS,
        }),
        ..Rule::default()
    };
    let chaos = put(&world, vec![stall]);
    // It begins within milliseconds: what is sent before is answered.
    let mut request = reading(&stalled, 0);
    while chaos.statistics().held == 0 {
        if is_ready(&mut request) {
            request = reading(&stalled, 0);
        }
        std::thread::yield_now();
    }
    write(&free, 0, 9);
    assert_eq!(read(&free, 0), [9; 512]);
    assert!(!is_ready(&mut request));
    lift(&world);
    assert_eq!(wait(request).unwrap(), [7; 512]);
}

#[test]
fn a_policy_is_in_force_from_the_start() {
    let rule = Rule {
        kind: Some("command"),
        delay: Delay::Fixed(100 * MS),
        ..Rule::default()
    };
    let world = World::under(&["n"], Some(DelayRules::new(None, vec![rule])));
    let begun = Instant::now();
    world.memory("n");
    assert!(begun.elapsed() >= 100 * MS, "{:?}", begun.elapsed());
    lift(&world);
}

#[test]
fn iothreads_made_later_have_the_policy_too() {
    let world = World::new(&["n"]);
    world.memory("n");
    let chaos = put(
        &world,
        vec![Rule {
            iothread: Some("late".to_owned()),
            ..held(Delay::Fixed(HOUR), None, None, Some("read"))
        }],
    );
    world.iothread("late");
    world.move_to("n", Some("late"));
    let request = reading(&world.client("n"), 0);
    until_held(&chaos, 1);
    lift(&world);
    wait(request).unwrap();
}

#[test]
fn a_drain_takes_as_long_as_its_messages_are_held() {
    let world = World::new(&["top", "n"]);
    world.memory("n");
    world.overlay("top", "n");
    let each = 100 * MS;
    put(
        &world,
        vec![
            held(Delay::Fixed(each), None, None, Some("order")),
            held(Delay::Fixed(each), None, None, Some("event")),
        ],
    );
    let begun = Instant::now();
    drop(world.drain(subtree("top")));
    let elapsed = begun.elapsed();
    // Both levels are asked at once, and answer one after the other.
    assert!(elapsed >= 2 * each, "{elapsed:?}");
    // What a busy machine adds, far less than one message more than explained would make of it in every case.
    assert!(elapsed < 2 * each + Duration::from_secs(5), "{elapsed:?}");
    lift(&world);
}

/// Rules of every kind, drawn from a seed, each short enough for many of them to come.
fn drawn(rng: &mut fastrand::Rng) -> Vec<Rule> {
    let kinds = [
        None,
        Some("request"),
        Some("reply"),
        Some("order"),
        Some("event"),
        Some("command"),
        Some("answer"),
    ];
    (0..rng.usize(1..4))
        .map(|_| {
            let time = Duration::from_micros(rng.u64(0..2000));
            let window = |rng: &mut fastrand::Rng| {
                rng.bool().then(|| Window {
                    length: Duration::from_micros(rng.u64(0..10_000)),
                    every: Duration::from_micros(rng.u64(1000..30_000)),
                })
            };
            Rule {
                kind: kinds[rng.usize(..kinds.len())],
                delay: match rng.u8(0..3) {
                    0 => Delay::Fixed(time),
                    1 => Delay::Uniform(Duration::ZERO, time),
                    _ => Delay::Exponential(time / 4),
                },
                burst: window(rng),
                stall: window(rng),
                ..Rule::default()
            }
        })
        .collect()
}

/// Writes with a growing fill to one sector, each after the one before was answered and some reads beside.
fn writer(client: &Client, sector: u64, count: u8) -> Sent<usize> {
    let client = client.clone();
    sent(async move {
        let mut answered = 0;
        for fill in 1..=count {
            wait_all(&client, sector, fill).await;
            answered += 2;
        }
        answered
    })
}

async fn wait_all(client: &Client, sector: u64, fill: u8) {
    writing(client, sector * 512, fill)
        .await
        .expect("the write succeeds");
    let read = reading(client, sector * 512).await.expect("the read succeeds");
    assert_eq!(read, [fill; 512], "what was written last");
}

#[test]
fn nothing_is_lost_while_the_graph_changes_under_random_policies() {
    let seed = std::env::var("MILLPOND_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    eprintln!("MILLPOND_SEED={seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    for _ in 0..6 {
        let world = World::new(&["base", "top", "other"]);
        world.memory("base");
        world.overlay("top", "base");
        world.memory("other");
        world.iothread("one");
        world.iothread("two");
        let clients = [world.client("top"), world.client("top"), world.client("base")];
        let rules = drawn(&mut rng);
        let longest: Duration = rules.iter().map(Rule::longest).sum();
        let chaos = put_seeded(&world, rng.u64(..), rules);
        let writers: Vec<_> = (0..12)
            .map(|sector| (sector, on_thread(clients[sector as usize % 3].clone(), sector)))
            .collect();
        for step in 0..12 {
            let begun = Instant::now();
            match step % 4 {
                0 => drop(world.drain(subtree("top"))),
                1 => world.move_to("top", [None, Some("one"), Some("two")][step % 3]),
                2 => wait(world.graph.ask(MoveNode {
                    node_name: "base".to_owned(),
                    iothread: [Some("two"), None, Some("one")][step % 3].map(ToOwned::to_owned),
                }))
                .expect("the node moves"),
                _ => wait(
                    world.reopening(json!({"driver": "test-overlay", "node-name": "top", "backing": "base"})),
                )
                .expect("it is reopened"),
            }
            // A change takes some dozens of messages one after the other, each held for the longest at most.
            let elapsed = begun.elapsed();
            assert!(
                elapsed < 100 * longest + Duration::from_secs(10),
                "{elapsed:?} for {longest:?}"
            );
        }
        for (sector, thread) in writers {
            assert_eq!(thread.join().expect("a writer ends well"), 80, "sector {sector}");
        }
        lift(&world);
        for sector in 0..12_u64 {
            assert_eq!(read(&clients[sector as usize % 3], sector * 512), [40; 512]);
        }
        assert_eq!(chaos.statistics().held, 0, "{:?}", chaos.statistics());
    }
}

fn on_thread(client: Client, sector: u64) -> std::thread::JoinHandle<usize> {
    std::thread::spawn(move || wait(writer(&client, sector, 40)))
}
