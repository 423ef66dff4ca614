//! Those who change the graph of a run while it serves: overlays, reopens, moves between iothreads, and drained sections.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::time::Duration;

use fastrand::Rng;
use messages::global_state::DrainScope;
use millpond::graph::{DrainGuard, GraphHandle};
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::time::sleep;

use super::site::{Images, Site};
use super::stage::Stage;

/// The longest chain of a run.
const LONGEST_CHAIN: usize = 6;

/// What those who change a run's graph share.
pub struct Edits {
    /// The images, as many as may be in use.
    pub images: RefCell<Images>,
    /// Held during a command that changes the graph, and by who wants none.
    turn: Mutex<()>,
    ended: Cell<bool>,
}

impl Edits {
    /// Nothing is being changed.
    #[must_use]
    pub fn new(images: Images) -> Rc<Self> {
        Rc::new(Self {
            images: RefCell::new(images),
            turn: Mutex::new(()),
            ended: Cell::new(false),
        })
    }

    /// Nothing more is to be begun.
    pub fn end(&self) {
        self.ended.set(true);
    }

    fn goes_on(&self, stage: &Stage) -> bool {
        !self.ended.get() && stage.violation().is_none()
    }
}

/// Edits the graph until told to end, and gives the site back.
pub async fn edit(stage: Rc<Stage>, mut site: Site, edits: Rc<Edits>, mut random: Rng) -> Site {
    let mut overlay_ready = false;
    while edits.goes_on(&stage) {
        sleep(Duration::from_micros(random.u64(200..20_000))).await;
        if !edits.goes_on(&stage) {
            break;
        }
        let turn = edits.turn.lock().await;
        let edited = one_edit(&stage, &mut site, &edits, &mut random, &mut overlay_ready).await;
        drop(turn);
        if stage.power_is_off() {
            break;
        }
        if let Err(error) = edited {
            stage.violated(format!("the monitor is lost: {error}"));
        }
    }
    site
}

async fn one_edit(
    stage: &Stage,
    site: &mut Site,
    edits: &Edits,
    random: &mut Rng,
    overlay_ready: &mut bool,
) -> io::Result<()> {
    let images = edits.images.borrow().clone();
    let top = images.top();
    match random.u32(0..12) {
        0..3 if images.count < LONGEST_CHAIN => {
            if !*overlay_ready {
                let made = site.prepare_overlay(stage, &images).await?;
                *overlay_ready = expected(stage, "an overlay", made.map(|()| Value::Null)).is_some();
                if !*overlay_ready {
                    // What is left of it is in the way of the next.
                    edits.end();
                }
                return Ok(());
            }
            snapshot(stage, site, edits, overlay_ready).await?;
        }
        3 => {
            let iothread = match random.usize(0..=stage.swarm().iothreads) {
                0 => Value::Null,
                index => json!(format!("io{}", index - 1)),
            };
            let arguments = json!({"node-name": top, "iothread": iothread, "force": true});
            // An export may hold the node where it is: then this is refused.
            let _ = site.monitor.run("x-blockdev-set-iothread", arguments).await?;
        }
        4..6 => {
            let mut options =
                json!({"driver": "null-co", "node-name": "extra", "size": 65536, "read-zeroes": true});
            if random.bool() && stage.swarm().iothreads > 0 {
                options["latency-ns"] = json!(1000);
            }
            let added = site.monitor.run("blockdev-add", options).await?;
            expected(stage, "blockdev-add", added);
            let deleted = site
                .monitor
                .run("blockdev-del", json!({"node-name": "extra"}))
                .await?;
            expected(stage, "blockdev-del", deleted);
        }
        6..8 => {
            let mut export = json!({"type": "nbd", "id": "e1", "name": "other", "node-name": top});
            if stage.swarm().iothreads > 0 {
                export["iothread"] = json!("io0");
            }
            if expected(
                stage,
                "block-export-add",
                site.monitor.run("block-export-add", export).await?,
            )
            .is_some()
            {
                let deleted = site.monitor.run("block-export-del", json!({"id": "e1"})).await?;
                expected(stage, "block-export-del", deleted);
            }
        }
        8 => {
            let nodes = site
                .monitor
                .must("query-named-block-nodes", json!({"flat": true}))
                .await?;
            if nodes.as_array().is_none_or(Vec::is_empty) {
                stage.violated("query-named-block-nodes names no nodes".to_owned());
            }
        }
        9 => check_graph(stage, site).await?,
        _ => {
            let export = site.monitor.must("query-block-exports", json!({})).await?;
            let shown = export.as_array().and_then(|exports| exports.first());
            if shown.is_none() {
                stage.violated("query-block-exports shows no export".to_owned());
            }
        }
    }
    Ok(())
}

async fn snapshot(stage: &Stage, site: &mut Site, edits: &Edits, overlay_ready: &mut bool) -> io::Result<()> {
    let node = edits.images.borrow().top();
    // From here on the overlay may have data.
    edits.images.borrow_mut().count += 1;
    let arguments = json!({"node": node, "overlay": edits.images.borrow().top()});
    let done = site.monitor.run("blockdev-snapshot", arguments).await?;
    *overlay_ready = false;
    if expected(stage, "blockdev-snapshot", done).is_none() {
        edits.images.borrow_mut().count -= 1;
        edits.end();
    }
    Ok(())
}

/// The result of a command that may fail only where disks do.
fn expected(stage: &Stage, what: &str, result: Result<Value, String>) -> Option<Value> {
    match result {
        Ok(value) => Some(value),
        Err(text) => {
            if stage.swarm().errors == 0 && !stage.power_is_off() {
                stage.violated(format!("{what} failed: {text}"));
            }
            None
        }
    }
}

/// Holds the permissions of all edges against each other.
///
/// # Errors
/// The connection is lost.
pub async fn check_graph(stage: &Stage, site: &mut Site) -> io::Result<()> {
    let graph = site.monitor.must("x-debug-query-block-graph", json!({})).await?;
    let edges = graph["edges"].as_array().cloned().unwrap_or_default();
    let names = |value: &Value| -> Vec<String> {
        let names = value.as_array().cloned().unwrap_or_default();
        names
            .iter()
            .filter_map(|name| name.as_str().map(str::to_owned))
            .collect()
    };
    for one in &edges {
        for other in &edges {
            if one["child"] != other["child"] || one == other {
                continue;
            }
            let shared = names(&other["shared-perm"]);
            if let Some(taken) = names(&one["perm"])
                .into_iter()
                .find(|taken| !shared.contains(taken))
            {
                stage.violated(format!("{one} takes '{taken}', which {other} does not share"));
            }
        }
    }
    Ok(())
}

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
