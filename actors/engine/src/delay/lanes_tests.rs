use std::time::{Duration, Instant};

use millpond_messages::{NodeId, RootId};
use proptest::prelude::*;

use super::super::{Chaos, Delay, DelayRules, Dying, Rule, Window, kind};
use super::*;

const MS: Duration = Duration::from_millis(1);

fn lanes<T>(rules: Vec<Rule>, now: Instant) -> Lanes<T> {
    let chaos = Chaos::new(DelayRules::new(Some(42), rules));
    Lanes::new(chaos, Some("main".to_owned()), now)
}

fn client(number: u64) -> Pair {
    Pair {
        from: End::Client(RootId(number)),
        to: End::Nodes,
    }
}

fn hop(pair: Pair) -> Hop<'static> {
    Hop {
        pair,
        kind: kind::READ,
        node: "disk",
    }
}

fn delayed(delay: Delay) -> Rule {
    Rule {
        delay,
        ..Rule::default()
    }
}

/// What comes out up to `until`, with when.
fn drained<T>(lanes: &mut Lanes<T>, until: Instant) -> Vec<(Instant, T)> {
    let mut out = Vec::new();
    while let Some(due) = lanes.next_due().filter(|due| *due <= until) {
        while let Some(message) = lanes.pop_due(due) {
            out.push((due, message));
        }
    }
    out
}

fn random_rule() -> impl Strategy<Value = Rule> {
    let time = (0..5_000_u64).prop_map(Duration::from_micros);
    let delay = prop_oneof![
        Just(Delay::None),
        time.clone().prop_map(Delay::Fixed),
        (time.clone(), time.clone()).prop_map(|(a, b)| Delay::Uniform(a.min(b), a.max(b))),
        time.clone().prop_map(Delay::Exponential),
    ];
    let window = prop::option::of((time.clone(), time).prop_map(|(length, every)| Window {
        length,
        every: every + MS,
    }));
    let kind = prop::option::of(prop::sample::select(vec!["request", "read", "write"]));
    (delay, window.clone(), window, kind).prop_map(|(delay, burst, stall, kind)| Rule {
        delay,
        burst,
        stall,
        kind,
        ..Rule::default()
    })
}

proptest! {
    #[test]
    fn each_pair_stays_in_order_and_nothing_is_lost_or_held_too_long(
        rules in prop::collection::vec(random_rule(), 0..4),
        sent in prop::collection::vec((0..4_u64, 0..2_000_u64, any::<bool>()), 1..200),
    ) {
        let begin = Instant::now();
        let mut lanes = lanes(rules, begin);
        let longest = lanes.chaos.rules().longest();
        let mut now = begin;
        let mut out: Vec<(Instant, (u64, usize, Instant))> = Vec::new();
        for (number, (pair, gap, write)) in sent.iter().enumerate() {
            now += Duration::from_micros(*gap);
            out.extend(drained(&mut lanes, now));
            let hop = Hop { kind: if *write { kind::WRITE } else { kind::READ }, ..hop(client(*pair)) };
            out.extend(lanes.pass(&hop, now, (*pair, number, now)).map(|message| (now, message)));
        }
        out.extend(drained(&mut lanes, now + longest));
        prop_assert_eq!(out.len(), sent.len(), "all have come out once");
        prop_assert_eq!(lanes.chaos.statistics().held, 0);
        for pair in 0..4 {
            let of_pair = out.iter().filter(|(_, (of, ..))| *of == pair);
            let numbers: Vec<usize> = of_pair.map(|(_, (_, number, _))| *number).collect();
            prop_assert!(numbers.is_sorted(), "{numbers:?} of pair {pair}");
        }
        for (due, (_, number, since)) in &out {
            let held = *due - *since;
            prop_assert!(held <= longest, "{number} was held for {held:?} of {longest:?}");
        }
    }
}

/// When each of `count` messages of a pair is due, sent a millisecond apart among those of other pairs.
fn decisions(seed: u64, pair: Pair, others: &[Pair]) -> Vec<Duration> {
    let rule = Rule {
        burst: Some(Window {
            length: 20 * MS,
            every: 50 * MS,
        }),
        ..delayed(Delay::Exponential(5 * MS))
    };
    let begin = Instant::now();
    let chaos = Chaos::new(DelayRules::new(Some(seed), vec![rule]));
    let mut lanes = Lanes::new(chaos, Some("main".to_owned()), begin);
    let mut due = Vec::new();
    for step in 0..200 {
        let now = begin + step * MS;
        drained(&mut lanes, now);
        for pair in others {
            lanes.pass(&hop(*pair), now, ());
        }
        due.push(lanes.due(&hop(pair), now) - now);
    }
    due
}

#[test]
fn the_same_seed_decides_the_same_whatever_other_pairs_do() {
    let alone = decisions(42, client(7), &[]);
    assert_eq!(alone, decisions(42, client(7), &[client(1), client(2)]));
    assert_ne!(alone, decisions(43, client(7), &[]), "another seed");
    assert_ne!(alone, decisions(42, client(8), &[]), "another pair");
}

#[test]
fn a_pair_without_delay_overtakes_one_with() {
    let now = Instant::now();
    let only_reads = Rule {
        kind: Some("read"),
        ..delayed(Delay::Fixed(5 * MS))
    };
    let mut lanes = lanes(vec![only_reads], now);
    let write = |pair| Hop {
        kind: kind::WRITE,
        ..hop(pair)
    };
    assert_eq!(lanes.pass(&hop(client(1)), now, "held"), None);
    assert_eq!(lanes.pass(&write(client(1)), now, "behind it"), None);
    assert_eq!(lanes.pass(&write(client(2)), now, "free"), Some("free"));
    let due = now + 5 * MS;
    assert_eq!(lanes.pop_due(due - MS), None);
    assert_eq!(drained(&mut lanes, due), [(due, "held"), (due, "behind it")]);
    assert_eq!(lanes.pass(&write(client(1)), due, "later"), Some("later"));
}

#[test]
fn a_burst_holds_one_pair_and_a_stall_all_of_an_iothread() {
    let begin = Instant::now();
    let window = Some(Window {
        length: 20 * MS,
        every: 20 * MS,
    });
    let burst = Rule {
        burst: window,
        ..Rule::default()
    };
    let stall = Rule {
        stall: window,
        iothread: Some("main".to_owned()),
        ..Rule::default()
    };
    let held_apart = |rule: Rule, thread: Option<String>| {
        let chaos = Chaos::new(DelayRules::new(Some(42), vec![rule]));
        let mut lanes = Lanes::<()>::new(chaos, thread, begin);
        let steps = (0..1000).map(|step| begin + step * MS);
        let held = steps.map(|now| [1, 2].map(|pair| lanes.due(&hop(client(pair)), now) > now));
        held.collect::<Vec<_>>()
    };
    let main = || Some("main".to_owned());
    let apart = |held: &[[bool; 2]]| held.iter().filter(|[one, other]| one != other).count();
    let bursts = held_apart(burst, main());
    assert!(apart(&bursts) > 100, "each pair has bursts of its own");
    let stalls = held_apart(stall.clone(), main());
    assert_eq!(apart(&stalls), 0, "a stall holds all pairs");
    assert!(stalls.iter().filter(|[one, _]| *one).count() > 200);
    for other in [None, Some("other".to_owned())] {
        assert!(
            held_apart(stall.clone(), other)
                .iter()
                .all(|held| *held == [false; 2])
        );
    }
}

#[test]
fn rules_apply_by_sender_receiver_kind_node_and_iothread() {
    let order = Hop {
        pair: Pair {
            from: End::Graph,
            to: End::Nodes,
        },
        kind: kind::QUIESCE,
        node: "disk",
    };
    let applies = |change: &dyn Fn(&mut Rule)| {
        let mut rule = Rule::default();
        change(&mut rule);
        rule.applies(&order, Some("io"))
    };
    assert!(applies(&|_| ()));
    assert!(applies(&|rule| rule.sender = Some(Actor::Graph)));
    assert!(!applies(&|rule| rule.sender = Some(Actor::Client)));
    assert!(applies(&|rule| rule.receiver = Some(Actor::Node)));
    assert!(!applies(&|rule| rule.receiver = Some(Actor::Graph)));
    assert!(applies(&|rule| rule.kind = Some("order")));
    assert!(applies(&|rule| rule.kind = Some("quiesce")));
    assert!(!applies(&|rule| rule.kind = Some("resume")));
    assert!(applies(&|rule| rule.node = Some("disk".to_owned())));
    assert!(!applies(&|rule| rule.node = Some("other".to_owned())));
    assert!(applies(&|rule| rule.iothread = Some("io".to_owned())));
    assert!(!applies(&|rule| rule.iothread = Some("main".to_owned())));
}

#[test]
fn closing_lets_all_go_in_order_and_delays_nothing_more() {
    let now = Instant::now();
    let mut lanes = lanes(vec![delayed(Delay::Uniform(5 * MS, 50 * MS))], now);
    for number in 0..6 {
        assert_eq!(lanes.pass(&hop(client(number % 2)), now, number), None);
    }
    let mut out = vec![lanes.close_and_pop(now).unwrap()];
    // What is sent meanwhile comes behind what is held of its pair.
    assert_eq!(lanes.pass(&hop(client(0)), now, 6), None);
    assert_eq!(lanes.pass(&hop(client(2)), now, 99), Some(99));
    out.extend(std::iter::from_fn(|| lanes.close_and_pop(now)));
    let of = |pair| {
        out.iter()
            .copied()
            .filter(|number| number % 2 == pair)
            .collect::<Vec<u64>>()
    };
    assert_eq!((of(0), of(1)), (vec![0, 2, 4, 6], vec![1, 3, 5]));
    assert_eq!(lanes.chaos.statistics().held, 0);
}

#[test]
fn only_clients_are_slow_and_die() {
    let now = Instant::now();
    let rule = Rule {
        slow_client: Delay::Fixed(5 * MS),
        dying_client: Some(Dying::After(2)),
        ..Rule::default()
    };
    let mut lanes = lanes(vec![rule], now);
    assert_eq!(lanes.pass(&hop(client(1)), now, 1), Some(1));
    let connection = hop(Pair {
        from: End::Connection(1),
        to: End::Session(1),
    });
    assert_eq!(lanes.pass(&connection, now, 2), None);
    let cut: Vec<bool> = (0..3).map(|_| lanes.cuts(&connection, now)).collect();
    assert_eq!(cut, [false, false, true]);
    assert_eq!(lanes.chaos.statistics().cut, 1);
}

#[test]
fn pairs_that_hold_nothing_are_forgotten() {
    let now = Instant::now();
    let mut lanes = lanes(vec![delayed(Delay::Fixed(MS))], now);
    let to = |node| Pair {
        from: End::Elsewhere,
        to: End::Node(NodeId(node)),
    };
    lanes.pass(&hop(client(1)), now, 0);
    for node in 0..10_000 {
        lanes.pass(&hop(to(node)), now, node);
        if node % 100 == 0 {
            drained(&mut lanes, now + MS);
            lanes.pass(&hop(client(1)), now, 0);
        }
    }
    assert!(lanes.lanes.len() <= PAIRS + 100, "{}", lanes.lanes.len());
    assert!(lanes.lanes.contains_key(&client(1)), "it holds something");
}
