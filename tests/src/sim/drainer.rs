//! Who drains sections of a run's graph, nested and in any order, sees to it that they are still, and that queries are
//! answered meanwhile.

use std::rc::Rc;
use std::time::Duration;

use fastrand::Rng;
use messages::global_state::DrainScope;
use millpond::graph::{DrainGuard, GraphHandle};
use serde_json::json;
use tokio::time::sleep;

use super::editor::Edits;
use super::stage::Stage;

/// Far more virtual time than passes while the control thread alone is busy.
const PATIENCE: Duration = Duration::from_millis(15);

/// Drains sections until told to end.
pub async fn drain(stage: Rc<Stage>, graph: GraphHandle, edits: Rc<Edits>, mut random: Rng) {
    while edits.goes_on(&stage) {
        sleep(Duration::from_micros(random.u64(100..10_000))).await;
        let strict = random.bool();
        let turn = if strict {
            Some(edits.turn.lock().await)
        } else {
            None
        };
        let scope = if strict {
            DrainScope::All
        } else {
            any_scope(&edits, &mut random)
        };
        stage.line("drainer", format_args!("drains {scope:?}"));
        let Ok(first) = graph.drain(scope, "drainer").await else {
            // The node is gone by now.
            continue;
        };
        if strict {
            stage.set_still(true);
        }
        sleep(Duration::from_micros(random.u64(1..5000))).await;
        let second = if random.bool() {
            nested(&graph, &edits, &mut random).await
        } else {
            None
        };
        if strict {
            stage.set_still(false);
        } else if random.u32(0..4) == 0 {
            // A change inside a section: it needs one of its own, and waits for nobody else's. It may be refused.
            let top = edits.images.borrow().top();
            stage.line("drainer", format_args!("reopens {top}"));
            let detect = ["off", "on"][random.usize(0..2)];
            let options = json!({"node-name": top, "detect-zeroes": detect});
            let options = options.as_object().cloned().unwrap_or_default();
            let _ = graph.reopen_keeping(vec![options]).await;
        }
        // In either order.
        let mut held = vec![Some(first), second];
        random.shuffle(&mut held);
        stage.line("drainer", format_args!("lets go"));
        for guard in held {
            drop(guard);
            sleep(Duration::from_micros(random.u64(0..2000))).await;
        }
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
        let _ = graph.find_base("n0").await;
        let took = stage.now().saturating_duration_since(asked);
        if took > PATIENCE && !stage.is_ending() {
            stage.violated(format!("the graph actor took {took:?} to answer a query"));
        }
    }
}

async fn nested(graph: &GraphHandle, edits: &Edits, random: &mut Rng) -> Option<DrainGuard> {
    let scope = any_scope(edits, random);
    graph.drain(scope, "nested").await.ok()
}

fn any_scope(edits: &Edits, random: &mut Rng) -> DrainScope {
    let images = edits.images.borrow();
    let node = format!("n{}", random.usize(0..images.count));
    match random.u32(0..3) {
        0 => DrainScope::All,
        1 => DrainScope::Node(node),
        _ => DrainScope::Subtree(node),
    }
}
