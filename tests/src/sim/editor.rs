//! Who changes the graph of a run while it serves: overlays, commits, reopens, moves between iothreads, exports.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::time::Duration;

use fastrand::Rng;
use millpond_messages::graph::Commit;
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::time::sleep;

use super::monitor::Monitor;
use super::site::{Images, Site, file_nodes};
use super::stage::{Moment, Stage};
use super::swarm::Shape;

/// The longest chain of a run.
const LONGEST_CHAIN: usize = 6;

/// The most images of a run: jobs make the chain shorter.
const MOST_IMAGES: usize = 16;

/// What those who change a run's graph share.
pub struct Edits {
    /// The images, as many as may be in use.
    pub images: RefCell<Images>,
    /// Held during a command that changes the graph, and by who wants none.
    pub turn: Mutex<()>,
    ended: Cell<bool>,
    /// No job is to be begun any more.
    pub jobs_ended: Cell<bool>,
    /// How often the chain was about to lose images, and has settled again.
    unsettled: Cell<u64>,
    settled: Cell<u64>,
}

impl Edits {
    /// Nothing is being changed.
    #[must_use]
    pub fn new(images: Images) -> Rc<Self> {
        Rc::new(Self {
            images: RefCell::new(images),
            turn: Mutex::new(()),
            ended: Cell::new(false),
            jobs_ended: Cell::new(false),
            unsettled: Cell::new(0),
            settled: Cell::new(0),
        })
    }

    /// The chain is about to lose images.
    pub fn unsettle(&self, stage: &Stage) {
        stage.sections.unsettle();
        self.unsettled.set(self.unsettled.get() + 1);
    }

    /// It has lost them, or will not.
    pub fn settle(&self) {
        self.settled.set(self.unsettled.get());
    }

    /// Which chain there is; none while it is about to lose images.
    #[must_use]
    pub fn settled(&self) -> Option<u64> {
        let settled = self.settled.get();
        (settled == self.unsettled.get()).then_some(settled)
    }

    /// Nothing more is to be begun.
    pub fn end(&self) {
        self.ended.set(true);
    }

    /// Whether more is to be begun.
    #[must_use]
    pub fn goes_on(&self, stage: &Stage) -> bool {
        !self.ended.get() && stage.violation().is_none()
    }
}

/// Edits the graph until told to end, and gives the site back.
pub async fn edit(stage: Rc<Stage>, mut site: Site, edits: Rc<Edits>, mut random: Rng) -> Site {
    let mut overlay_ready = None;
    while stage.swarm().edits && edits.goes_on(&stage) {
        sleep(Duration::from_micros(random.u64(200..20_000))).await;
        if !edits.goes_on(&stage) {
            break;
        }
        let turn = edits.turn.lock().await;
        let edited = one_edit(&stage, &mut site, &edits, &mut random, &mut overlay_ready).await;
        drop(turn);
        if stage.is_ending() {
            break;
        }
        if let Err(error) = edited {
            stage.violated(format!("the monitor is lost: {error}"));
        }
    }
    site
}

/// Edits the graph by another monitor, beside the first editor and without regard to it, until told to end.
pub async fn edit_beside(stage: Rc<Stage>, mut monitor: Monitor, edits: Rc<Edits>, mut random: Rng) {
    while edits.goes_on(&stage) {
        sleep(Duration::from_micros(random.u64(200..20_000))).await;
        let at = (&*stage, stage.moment());
        let edited = match random.u32(0..4) {
            0 => add_and_delete(at, &mut monitor, "extra2", &mut random).await,
            1 => iothread_comes_and_goes(at, &mut monitor, &mut random).await,
            2 => export_beside(at, &mut monitor).await,
            _ => change_group(at, &mut monitor, &mut random).await,
        };
        if stage.is_ending() {
            break;
        }
        if let Err(error) = edited {
            stage.violated(format!("the second monitor is lost: {error}"));
        }
    }
}

/// An iothread is made, a node moves there and is gone, and so is the iothread.
async fn iothread_comes_and_goes(at: At<'_>, monitor: &mut Monitor, random: &mut Rng) -> io::Result<()> {
    let made = json!({"qom-type": "iothread", "id": "io9"});
    let made = monitor.run("object-add", made).await?;
    expected(at, "object-add", made);
    let node = json!({"driver": "null-co", "node-name": "guest", "size": 65536, "read-zeroes": true});
    let added = monitor.run("blockdev-add", node).await?;
    expected(at, "blockdev-add", added);
    let arguments = json!({"node-name": "guest", "iothread": "io9"});
    let moved = monitor.run("x-blockdev-set-iothread", arguments).await?;
    expected(at, "x-blockdev-set-iothread", moved);
    if random.bool() {
        let back = json!({"node-name": "guest", "iothread": any_iothread(at.0, random)});
        let moved = monitor.run("x-blockdev-set-iothread", back).await?;
        expected(at, "x-blockdev-set-iothread", moved);
    }
    let deleted = monitor.run("blockdev-del", json!({"node-name": "guest"})).await?;
    expected(at, "blockdev-del", deleted);
    let deleted = monitor.run("object-del", json!({"id": "io9"})).await?;
    expected(at, "object-del", deleted);
    Ok(())
}

async fn export_beside(at: At<'_>, monitor: &mut Monitor) -> io::Result<()> {
    let export = json!({"type": "nbd", "id": "e2", "name": "base", "node-name": "n0"});
    let added = monitor.run("block-export-add", export).await?;
    if beside(added).is_some_and(|added| expected(at, "block-export-add", added).is_some()) {
        let deleted = monitor.run("block-export-del", json!({"id": "e2"})).await?;
        expected(at, "block-export-del", deleted);
    }
    Ok(())
}

/// The limits that disks share change while requests wait for them.
async fn change_group(at @ (stage, _): At<'_>, monitor: &mut Monitor, random: &mut Rng) -> io::Result<()> {
    if !stage.swarm().throttle {
        return Ok(());
    }
    let iops = [300, 3000, 20_000][random.usize(0..3)];
    let arguments = json!({"path": "/objects/g0", "property": "limits", "value": {"iops-total": iops}});
    let set = monitor.run("qom-set", arguments).await?;
    expected(at, "qom-set", set);
    Ok(())
}

/// One of the ways in which a graph is changed, or asked about.
async fn one_edit(
    stage: &Stage,
    site: &mut Site,
    edits: &Edits,
    random: &mut Rng,
    overlay_ready: &mut Option<String>,
) -> io::Result<()> {
    let since = stage.moment();
    match random.u32(0..16) {
        // Jobs make chains shorter.
        kind if (kind < 3 || (kind > 12 && stage.swarm().jobs)) && has_room(edits) => {
            overlay((stage, since), site, edits, overlay_ready).await
        }
        3..5 => move_top((stage, since), site, edits, random).await,
        5 => add_and_delete((stage, since), &mut site.monitor, "extra", random).await,
        6..8 => export_and_remove((stage, since), site, edits).await,
        8..10 => reopen((stage, since), site, edits, random).await,
        10 if random.u32(0..3) == 0 => commit((stage, since), site, edits).await,
        11 => fewer_votes(stage, site, random).await,
        12 => check_graph(stage, site).await,
        13 => name_nodes(stage, site).await,
        _ => show_exports(stage, site).await,
    }
}

fn has_room(edits: &Edits) -> bool {
    let images = edits.images.borrow();
    images.chain.len() < LONGEST_CHAIN && images.count < MOST_IMAGES
}

/// Makes an overlay, or puts the one that was made on top. `ready` is what that one names as its backing image.
async fn overlay(
    at @ (stage, _): At<'_>,
    site: &mut Site,
    edits: &Edits,
    ready: &mut Option<String>,
) -> io::Result<()> {
    let images = edits.images.borrow().clone();
    let below = images.backing_name(images.chain.len() - 1);
    if let Some(named) = ready.take() {
        if named != below {
            // Another image has taken the place of the one that was there.
            return drop_overlay(at, site, edits).await;
        }
        if !snapshot(at, site, edits).await? {
            *ready = Some(below);
        }
        return Ok(());
    }
    let made = site.prepare_overlay(stage, &images).await?;
    *ready = expected(at, "an overlay", made.map(|()| Value::Null)).map(|_| below);
    if ready.is_none() {
        // What is left of it is in the way of the next.
        edits.end();
    }
    Ok(())
}

/// Deletes the overlay that was made; its number is not used again.
async fn drop_overlay(at @ (stage, _): At<'_>, site: &mut Site, edits: &Edits) -> io::Result<()> {
    let index = edits.images.borrow().count;
    edits.images.borrow_mut().count += 1;
    let files = file_nodes(stage.swarm(), index);
    for node in [format!("n{index}")].into_iter().chain(files) {
        let deleted = site
            .monitor
            .run("blockdev-del", json!({"node-name": node}))
            .await?;
        expected(at, "blockdev-del", deleted);
    }
    Ok(())
}

fn any_iothread(stage: &Stage, random: &mut Rng) -> Value {
    match random.usize(0..=stage.swarm().iothreads) {
        0 => Value::Null,
        index => json!(format!("io{}", index - 1)),
    }
}

async fn move_top(
    at @ (stage, _): At<'_>,
    site: &mut Site,
    edits: &Edits,
    random: &mut Rng,
) -> io::Result<()> {
    let images = edits.images.borrow().clone();
    // Jobs have images leave the chain, and be deleted.
    let index = match stage.swarm().jobs {
        true => images.chain[random.usize(0..images.chain.len())],
        false => random.usize(0..images.count),
    };
    let node = format!("n{index}");
    let arguments = json!({"node-name": node, "iothread": any_iothread(stage, random), "force": true});
    let moved = site.monitor.run("x-blockdev-set-iothread", arguments).await?;
    expected(at, "x-blockdev-set-iothread", moved);
    Ok(())
}

async fn add_and_delete(
    at @ (stage, _): At<'_>,
    monitor: &mut Monitor,
    node: &str,
    random: &mut Rng,
) -> io::Result<()> {
    let mut options = json!({"driver": "null-co", "node-name": node, "size": 65536, "read-zeroes": true});
    if random.bool() {
        options["latency-ns"] = json!(1000);
    }
    let added = monitor.run("blockdev-add", options).await?;
    expected(at, "blockdev-add", added);
    let arguments = json!({"node-name": node, "iothread": any_iothread(stage, random)});
    let moved = monitor.run("x-blockdev-set-iothread", arguments).await?;
    expected(at, "x-blockdev-set-iothread", moved);
    let deleted = monitor.run("blockdev-del", json!({"node-name": node})).await?;
    expected(at, "blockdev-del", deleted);
    Ok(())
}

async fn export_and_remove(at @ (stage, _): At<'_>, site: &mut Site, edits: &Edits) -> io::Result<()> {
    let node = edits.images.borrow().top();
    let mut export = json!({"type": "nbd", "id": "e1", "name": "other", "node-name": node});
    if stage.swarm().iothreads > 0 {
        export["iothread"] = json!("io0");
    }
    let added = site.monitor.run("block-export-add", export).await?;
    if expected(at, "block-export-add", added).is_some() {
        let deleted = site.monitor.run("block-export-del", json!({"id": "e1"})).await?;
        expected(at, "block-export-del", deleted);
    }
    Ok(())
}

/// Changes options of the last image, which stays where it is.
async fn reopen(at @ (stage, _): At<'_>, site: &mut Site, edits: &Edits, random: &mut Rng) -> io::Result<()> {
    let images = edits.images.borrow().clone();
    let (place, index) = (images.chain.len() - 1, images.chain[images.chain.len() - 1]);
    let is_votes = index == 0 && stage.swarm().shape == Shape::Quorum;
    if is_votes || images.is_raw(index, stage.swarm()) {
        return Ok(());
    }
    let file = if stage.swarm().align > 0 { "a" } else { "f" };
    let backing = place
        .checked_sub(1)
        .map_or(Value::Null, |below| json!(format!("n{}", images.chain[below])));
    let detect = ["off", "on", "unmap"][random.usize(0..3)];
    let cache = [8192, 65536, 1 << 20][random.usize(0..3)].max(stage.swarm().cluster * 2);
    let options = json!({
        "driver": "qcow2", "node-name": images.top(), "file": format!("{file}{index}"), "backing": backing,
        "discard": "unmap", "detect-zeroes": detect, "l2-cache-size": cache,
    });
    let reopened = site
        .monitor
        .run("blockdev-reopen", json!({"options": [options]}))
        .await?;
    expected(at, "blockdev-reopen", reopened);
    Ok(())
}

/// Writes the last image into the one below it, and empties it.
async fn commit(at @ (stage, _): At<'_>, site: &mut Site, edits: &Edits) -> io::Result<()> {
    let images = edits.images.borrow().clone();
    if images.chain.len() == 1 {
        return Ok(());
    }
    stage.line("editor", format_args!("commit {}", images.top()));
    let committed = {
        let _edit = (stage.sections.edit(), stage.sections.copy());
        site.graph
            .ask(Commit {
                node_name: images.top().to_owned(),
            })
            .await
    };
    let committed = committed.map(|()| Value::Null).map_err(|error| error.to_string());
    if let Some(committed) = beside(committed) {
        expected(at, "a commit", committed);
    }
    Ok(())
}

/// Takes one of three images that vote away, once in a run.
async fn fewer_votes(stage: &Stage, site: &mut Site, random: &mut Rng) -> io::Result<()> {
    let swarm = stage.swarm();
    if swarm.shape != Shape::Quorum || swarm.rot || swarm.errors > 0 || random.u32(0..4) > 0 {
        return Ok(());
    }
    let arguments = json!({"parent": "n0", "child": "children.2"});
    // It may have been taken away before.
    let _ = site.monitor.run("x-blockdev-change", arguments).await?;
    Ok(())
}

async fn name_nodes(stage: &Stage, site: &mut Site) -> io::Result<()> {
    let nodes = site
        .monitor
        .must("query-named-block-nodes", json!({"flat": true}))
        .await?;
    if nodes.as_array().is_none_or(Vec::is_empty) && !stage.is_ending() {
        stage.violated("query-named-block-nodes names no nodes".to_owned());
    }
    Ok(())
}

async fn show_exports(stage: &Stage, site: &mut Site) -> io::Result<()> {
    let exports = site.monitor.must("query-block-exports", json!({})).await?;
    if exports.as_array().is_none_or(Vec::is_empty) && !stage.is_ending() {
        stage.violated("query-block-exports shows no export".to_owned());
    }
    Ok(())
}

/// Puts the overlay that was made on top; answers whether it is of no more use for that.
async fn snapshot(at @ (stage, _): At<'_>, site: &mut Site, edits: &Edits) -> io::Result<bool> {
    let node = edits.images.borrow().top();
    // From here on the overlay may have data.
    let overlay = edits.images.borrow().count;
    let below = edits.images.borrow().chain.last().copied().unwrap_or(0);
    edits.images.borrow_mut().count += 1;
    edits.images.borrow_mut().chain.push(overlay);
    edits.images.borrow_mut().is_undecided = true;
    stage.sections.grow(below, overlay);
    let arguments = json!({"node": node, "overlay": edits.images.borrow().top()});
    let done = site.monitor.run("blockdev-snapshot", arguments).await?;
    edits.images.borrow_mut().is_undecided = false;
    let refused = done.as_ref().is_err_and(|text| is_refused(at, text));
    if expected(at, "blockdev-snapshot", done).is_none() {
        edits.images.borrow_mut().count -= 1;
        edits.images.borrow_mut().chain.pop();
        if !refused {
            edits.end();
        }
    }
    Ok(!refused)
}

/// The stage, and when the edit began.
type At<'a> = (&'a Stage, Moment);

/// What is told to who wants of a node what a job, or a user of it, does not let him do.
#[must_use]
pub fn is_refusal(text: &str) -> bool {
    let refusals = ["in use by block job", "frozen", "Permission conflict"];
    refusals.iter().any(|refusal| text.contains(refusal))
}

/// Whether a command was refused because of a job.
fn is_refused((stage, _): At<'_>, text: &str) -> bool {
    stage.swarm().jobs && is_refusal(text)
}

/// The result of a command that may fail only where disks do, or where a job is in its way.
fn expected(at @ (stage, since): At<'_>, what: &str, result: Result<Value, String>) -> Option<Value> {
    match result {
        Ok(value) => Some(value),
        Err(text) => {
            if !is_refused(at, &text) && !stage.may_fail(since, false) {
                stage.violated(format!("{what} failed: {text}"));
            }
            None
        }
    }
}

/// The result of a commit, or of an export of the image that it writes to: one refuses the other. None where that was so.
fn beside(result: Result<Value, String>) -> Option<Result<Value, String>> {
    let refused = |text: &String| text.starts_with("Permission conflict on node 'n0'");
    (!result.as_ref().is_err_and(refused)).then_some(result)
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
