//! Who drains sections of a run's graph, nested and in any order, sees to it that they are still, and that queries are
//! answered meanwhile.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use fastrand::Rng;
use millpond::graph::{DrainGuard, GraphHandle};
use millpond_messages::graph::{DrainScope, FindOverlay, ReopenKeeping};
use serde_json::json;
use tokio::time::sleep;

use super::editor::Edits;
use super::section::Cover;
use super::side;
use super::stage::Stage;

/// Far more virtual time than passes while the control thread alone is busy.
const PATIENCE: Duration = Duration::from_millis(15);

/// A section that is held, and looked after.
struct Held {
    stage: Rc<Stage>,
    section: usize,
    /// Empty once it was given back.
    guard: Option<DrainGuard>,
}

impl Held {
    /// Drains; nobody else's section has to end for that. None where the node is gone.
    async fn begin(
        (stage, edits): (&Rc<Stage>, &Edits),
        graph: &GraphHandle,
        user: &'static str,
        (scope, cover): (DrainScope, Cover),
    ) -> Option<Self> {
        stage.line(user, format_args!("drains {scope:?}"));
        let settled = edits.settled();
        let guard = graph.drain(scope, user).await.ok()?;
        let cover = match cover == Cover::ALL || (settled.is_some() && settled == edits.settled()) {
            true => cover,
            // The chain has lost images meanwhile.
            false => Cover::of([], cover.side),
        };
        let section = stage.begin_section(user, cover);
        Some(Self {
            stage: Rc::clone(stage),
            section,
            guard: Some(guard),
        })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.stage.sections.end(self.section);
        self.guard.take();
    }
}

/// Drains sections until told to end.
pub async fn drain(stage: Rc<Stage>, graph: GraphHandle, edits: Rc<Edits>, mut random: Rng) {
    let waits: Rc<Cell<Option<&'static str>>> = Rc::default();
    let seen = Rc::clone(&waits);
    stage.add_witness(Box::new(move || seen.get().map(str::to_owned)));
    while edits.goes_on(&stage) {
        sleep(Duration::from_micros(random.u64(100..10_000))).await;
        let strict = random.bool();
        let turn = if strict {
            Some(edits.turn.lock().await)
        } else {
            None
        };
        let scope = if strict {
            (DrainScope::All, Cover::ALL)
        } else {
            any_scope(&stage, &edits, &mut random)
        };
        waits.set(Some("the drainer waits for a section to be still"));
        let first = Held::begin((&stage, &edits), &graph, "drainer", scope).await;
        waits.set(None);
        let Some(first) = first else { continue };
        let parks = stage.sections.hold();
        sleep(Duration::from_micros(random.u64(1..5000))).await;
        let second = if random.bool() {
            let scope = any_scope(&stage, &edits, &mut random);
            Held::begin((&stage, &edits), &graph, "nested", scope).await
        } else {
            None
        };
        if !strict && random.u32(0..4) == 0 {
            // A change inside a section: it needs one of its own, and waits for nobody else's. It may be refused.
            let top = edits.images.borrow().top();
            stage.line("drainer", format_args!("reopens {top}"));
            let detect = ["off", "on"][random.usize(0..2)];
            let options = json!({"node-name": top, "detect-zeroes": detect});
            let options = options.as_object().cloned().unwrap_or_default();
            let _edit = stage.sections.edit();
            let _ = graph.ask(ReopenKeeping(vec![options])).await;
        }
        // In either order.
        let mut held = vec![Some(first), second];
        random.shuffle(&mut held);
        stage.line("drainer", format_args!("lets go"));
        for section in held {
            drop(section);
            sleep(Duration::from_micros(random.u64(0..2000))).await;
        }
        drop(parks);
        drop(turn);
    }
}

/// Asks the graph actor something that it knows by itself, again and again: it answers at once, whatever waits.
pub async fn watch(stage: Rc<Stage>, graph: GraphHandle, edits: Rc<Edits>, mut random: Rng) {
    // Where messages are held back on purpose, so is this.
    while stage.swarm().hops.is_empty() && edits.goes_on(&stage) {
        sleep(Duration::from_micros(random.u64(100..20_000))).await;
        let asked = stage.now();
        // It may be that there is no such node at that moment.
        let _ = graph
            .ask(FindOverlay {
                active: "n0".to_owned(),
                node_name: None,
            })
            .await;
        let took = stage.now().saturating_duration_since(asked);
        if took > PATIENCE && !stage.is_ending() {
            stage.violated(format!("the graph actor took {took:?} to answer a query"));
        }
    }
}

/// A part of the graph, and what is still below it when that is.
fn any_scope(stage: &Stage, edits: &Edits, random: &mut Rng) -> (DrainScope, Cover) {
    let images = edits.images.borrow();
    let chain = &images.chain;
    let with_side = stage.swarm().side;
    // What is below an overlay whose snapshot may still fail is not known.
    let known = chain.len() - usize::from(images.is_undecided);
    let place = random.usize(0..known);
    let node = format!("n{}", chain[place]);
    let whole = |side| Cover::of(chain.iter().copied(), side);
    match random.u32(0..4) {
        0 => (DrainScope::All, whole(with_side)),
        // Overlays of the node are drained with it.
        1 => (
            DrainScope::Node(node),
            Cover::of(chain[place..].iter().copied(), false),
        ),
        2 if with_side => (DrainScope::Node(side::NODE.to_owned()), Cover::of([], true)),
        _ => (DrainScope::Subtree(node), whole(false)),
    }
}
