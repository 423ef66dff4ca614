//! The policy, model-checked as it is: in every order in which messages can come, over small graphs, exhaustively.
//!
//! The model has no policy of its own. It holds the real [`Policy`](crate::Policy), and for the nodes' side of the
//! handshake the real [`Gate`](millpond_engine::node::Gate) and [`WaitQueue`](millpond_engine::node::WaitQueue). What is modelled ([`site`]) is the
//! rest: iothreads, whose mailboxes keep the order of each pair and interleave freely otherwise, orders that take time,
//! clients' requests that enter over root edges, are passed down to children and end in any order, and drivers' background
//! work. Users ([`live::Do`]) drain, change the graph, and die. What must hold is listed at [`Breach`]; besides, no steps
//! that need nobody outside may lead round in a circle, so that whatever is under way ends.
//!
//! # Why states may be merged
//!
//! A policy cannot be copied, so a state is the trace that leads to it, replayed. Two traces are taken for one state when
//! their fingerprints ([`print`]) are the same. That is sound if equal fingerprints have equal futures:
//!
//! - Everything outside procedures is in the fingerprint: the graph, sections with their stages, answers that nobody has
//!   taken yet, the queue, mailboxes both ways, tasks, cells with their gates and queues, requests, and what users and
//!   clients have still to do.
//! - A procedure is an async function: where it stands and what it remembers cannot be seen. But it runs only when it is
//!   polled, nothing in it is random, and it is polled after every request and event. So it is a function of what it was
//!   asked, of the graph when it began, and of what its awaits have given it since, in order: an answer, or that a
//!   condition held. What else it reads, it reads from the graph, which only procedures change. All of that is chained
//!   into one number ([`live::Live::past`]), for all procedures together, since the last moment at which there was none.
//! - Tokens and order ids come from counters, so they would differ between orders of the same events. They are given out in
//!   growing order and only compared, and are kept in ordered maps or looked up by key: states that differ by a renaming
//!   that keeps the order behave alike. The fingerprint has their rank among those in use. Order ids that nobody waits for
//!   are ignored by the policy, and by the fingerprint.
//! - The time is always zero. The slab's keys of what is in flight only name their entries.
//!
//! The policy must do the same in each replay: a test replays traces twice.
//!
//! # What it finds
//!
//! Each of these was broken by hand in the policy, the gate or the queue, and put back:
//!
//! | broken | fails | for example in |
//! | --- | --- | --- |
//! | `Quiesced` is answered with requests in flight | stillness | a chain of three |
//! | `Quiesced` is answered while the driver's background work stops | stillness | background work |
//! | a driver is told to go on before it has stopped | stillness | one after the other |
//! | children are asked before their parents | stillness | a diamond |
//! | the queue lets the last in first | order | two roots on one node |
//! | what leaves the queue does not wake the next | progress | nested |
//! | what is parked is dropped when its edge moves | no loss | iothread move |
//! | what is parked is turned round when its edge moves | order | iothread move |
//! | a gate arrives open from another iothread | restoration | iothread move |
//! | `may_link` does not grow sections | stillness | reopen, snapshot |
//! | `settle_new` does not cover new nodes | stillness | add and use inside drain-all |
//! | an edge that goes does not shrink sections | restoration | reopen |
//! | a section whose user dies while it waits is not ended | restoration | a user dies |
//! | a section's end resumes all nodes but one | progress | a chain of three |
//! | a node that is gone is not forgotten | progress | detach and delete |
//! | a child that lost a parent is not looked at again | progress | a reopen that fails |
//! | a node is closed without being drained | stillness | detach and delete |
//! | work of the graph actor's own begins inside a section | stillness | create |
//! | a redirected edge is not put back | restoration | replace |
//! | a root edge is not put back | cells agree | a snapshot that fails |
//! | a connected edge is not put back | cells agree | a reopen that fails |
//! | permissions are not put back | restoration | a snapshot that fails |
mod checks;
pub mod live;
mod print;
mod quiet;
mod requests;
mod scenarios;
mod site;

use std::fmt;
use std::hash::{Hash, Hasher};

use crossbeam_channel::Sender;
use stateright::{Checker, HasDiscoveries, Model, Property};

use live::{Action, Live, Scenario};

/// What must hold. A breach is a bit in [`Breaches`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Breach {
    /// Inside a still section no node of it has anything in flight, and what is changed is not in use.
    Stillness,
    /// Every request is answered exactly once.
    Loss,
    /// Requests of one root edge are admitted in order of arrival.
    Order,
    /// When nothing is left to be delivered or to end, nothing waits but for a section that somebody holds.
    Progress,
    /// At the end all gates are open and all counts are zero; a change that failed has left the graph as it was.
    Restoration,
    /// Orders reach the nodes they are for, and the cells agree with the graph.
    Cells,
}

/// Which of them have been broken.
pub type Breaches = u8;

/// A state: how it was reached, what of it can matter as a number, and what can happen next.
#[derive(Clone)]
pub struct State {
    trace: Vec<Action>,
    print: u64,
    next: Vec<Action>,
    breaches: Breaches,
    /// Somebody is told that a section is still; a request is parked.
    seen: (bool, bool),
}

impl State {
    fn of(live: &Live, trace: Vec<Action>) -> Self {
        Self {
            trace,
            print: print::print(live),
            next: live.actions(),
            breaches: live.site.breaches,
            seen: live.seen(),
        }
    }

    fn keeps(&self, breach: Breach) -> bool {
        self.breaches & 1 << breach as u8 == 0
    }
}

impl Hash for State {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.print.hash(hasher);
    }
}

impl PartialEq for State {
    fn eq(&self, other: &Self) -> bool {
        self.print == other.print
    }
}

impl fmt::Debug for State {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:016x} after {:?}", self.print, self.trace)
    }
}

/// A scenario, explored.
struct Exploration {
    scenario: Scenario,
    /// Steps that need nobody outside, from state to state.
    steps: Sender<(u64, u64)>,
}

impl Model for Exploration {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State::of(&Live::new(&self.scenario), Vec::new())]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        // Nothing is learnt from what comes after a breach.
        if state.breaches == 0 {
            actions.extend(&state.next);
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut live = live::replayed(&self.scenario, &state.trace);
        live.apply(action);
        let mut trace = state.trace.clone();
        trace.push(action);
        let next = State::of(&live, trace);
        if !action.is_external() {
            self.steps
                .send((state.print, next.print))
                .expect("the explorer listens");
        }
        live::keep(live, &next.trace);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("stillness", |_, state: &State| state.keeps(Breach::Stillness)),
            Property::always("no loss", |_, state: &State| state.keeps(Breach::Loss)),
            Property::always("order", |_, state: &State| state.keeps(Breach::Order)),
            Property::always("progress", |_, state: &State| state.keeps(Breach::Progress)),
            Property::always("restoration", |_, state: &State| state.keeps(Breach::Restoration)),
            Property::always("cells agree", |_, state: &State| state.keeps(Breach::Cells)),
            Property::sometimes("a section is still", |_, state: &State| state.seen.0),
            Property::sometimes("a request is parked", |_, state: &State| state.seen.1),
        ]
    }
}

/// Explores a scenario whole, and prints how many states it has.
fn explore(scenario: Scenario) {
    let name = scenario.name;
    let begun = std::time::Instant::now();
    let (steps, taken) = crossbeam_channel::unbounded();
    let model = Exploration { scenario, steps };
    let checker = model
        .checker()
        .finish_when(HasDiscoveries::AnyFailures)
        .spawn_dfs()
        .join();
    println!(
        "{name}: {} states, {} steps, at most {} deep, {:.1} s",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth(),
        begun.elapsed().as_secs_f32()
    );
    let failed: Vec<_> = checker
        .discoveries()
        .into_iter()
        .filter(|(property, _)| !property.starts_with("a "))
        .map(|(property, path)| (property, path.last_state().clone()))
        .collect();
    assert!(failed.is_empty(), "{name}: what fails, and where: {failed:#?}");
    checker.assert_properties();
    assert_ends(name, taken.try_iter());
}

/// Whatever is under way ends: no steps that need nobody outside lead round in a circle.
fn assert_ends(name: &str, steps: impl Iterator<Item = (u64, u64)>) {
    let mut ways: std::collections::HashMap<u64, Vec<u64>> = std::collections::HashMap::new();
    let mut arrivals: std::collections::HashMap<u64, usize> = std::collections::HashMap::new();
    for (from, to) in steps {
        ways.entry(from).or_default().push(to);
        *arrivals.entry(to).or_default() += 1;
        arrivals.entry(from).or_default();
    }
    let mut open: Vec<u64> = arrivals
        .iter()
        .filter(|(_, count)| **count == 0)
        .map(|(state, _)| *state)
        .collect();
    let mut left = arrivals.len();
    while let Some(state) = open.pop() {
        left -= 1;
        for to in ways.remove(&state).unwrap_or_default() {
            let count = arrivals.entry(to).or_default();
            *count -= 1;
            if *count == 0 {
                open.push(to);
            }
        }
    }
    assert_eq!(left, 0, "{name}: messages go round in a circle");
}
