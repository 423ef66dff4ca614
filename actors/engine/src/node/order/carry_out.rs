//! The graph actor's orders, carried out on the node's iothread.

use std::rc::Rc;

use millpond_messages::{BitmapId, ChunkSet, DebugOrder, Error, NodeId, Result};

use super::answer::{done, later};
use super::orders::{BitmapOrder, IothreadOrder, NodeOrder, Order};
use super::outcome::{Description, Event, OpenFacts, OrderId, OrderOutcome};
use super::task::{self, driver, found};
use super::wiring;
use crate::iothread::yield_once;
use crate::node::cell::node::NodeCell;
use crate::node::cell::stored;
use crate::node::table::NodeTable;

/// Carries out an order. What takes time goes on as a task; the rest is done in the order in which it came.
pub fn carry_out(table: &Rc<NodeTable>, order_id: OrderId, order: Order) {
    match order {
        Order::Node(node, order) => carry_out_at_once(table, order_id, node, order),
        Order::Task(node, task) => later(table, order_id, async move |table| {
            task::carry_out(table, node, task).await
        }),
        Order::Iothread(order) => carry_out_here(table, order_id, order),
        Order::Wiring(order) => wiring::carry_out(table, order_id, order),
    }
}

fn carry_out_at_once(table: &Rc<NodeTable>, order_id: OrderId, node: NodeId, order: NodeOrder) {
    match order {
        NodeOrder::Quiesce { token, after } => table.quiesce(node, token, after),
        NodeOrder::Resume(token) => table.resume(node, token),
        NodeOrder::PermissionsCommit => with_driver(table, node, |driver| driver.permissions_commit()),
        NodeOrder::PermissionsAbort => with_driver(table, node, |driver| driver.permissions_abort()),
        NodeOrder::ReopenCommit => opened(table, order_id, reopen_commit(table, node)),
        NodeOrder::ReopenAbort => {
            with_driver(table, node, |driver| driver.reopen_abort());
            with_node(table, node, NodeCell::abort_reopen);
        }
        NodeOrder::ExchangeCommit => with_node(table, node, NodeCell::commit_exchange),
        NodeOrder::ExchangeAbort => with_node(table, node, NodeCell::abort_exchange),
        NodeOrder::CancelInFlight => {
            with_driver(table, node, |driver| driver.cancel_in_flight());
            done(table, order_id, Ok(()));
        }
        NodeOrder::Pending => {
            let now = table.local().look_at_time();
            let pending = table
                .node(node)
                .map(|cell| cell.gate().pending(now, |id| table.name_of(id)))
                .unwrap_or_default();
            table.report(Event::Ended(order_id, OrderOutcome::Pending(pending)));
        }
        NodeOrder::SetHistograms { histograms } => {
            let result = found(table, node).map(|cell| cell.counters().set_histograms(histograms));
            done(table, order_id, result);
        }
        NodeOrder::SetWriteThreshold { offset } => {
            let result = found(table, node).map(|cell| cell.write_threshold().set(offset));
            done(table, order_id, result);
        }
        NodeOrder::LimitMoment(set) => done(table, order_id, limit_moment(table, node, &set)),
        NodeOrder::LeftOfMoment => {
            let left = OrderOutcome::Bits(left_of_moment(table, node));
            table.report(Event::Ended(order_id, left));
        }
        NodeOrder::Bitmap { bitmap, order } => {
            let outcome = bitmap_order(table, node, bitmap, order);
            table.report(Event::Ended(order_id, outcome));
        }
        NodeOrder::CopyOnRead { on } => {
            let result = found(table, node).and_then(|cell| cell.change_copy_on_read(on));
            done(table, order_id, result);
        }
        NodeOrder::Serialise { root } => {
            // A root that has moved or ended meanwhile has nothing to wait for here.
            if let Some(root) = table.root(root).filter(|root| root.node().id() == node) {
                root.serialise();
            }
            done(table, order_id, Ok(()));
        }
        NodeOrder::Debug { order } => {
            let result = driver(table, node).and_then(|driver| debug(&*driver, &order));
            table.report(Event::Ended(order_id, OrderOutcome::Debugged(result)));
        }
    }
}

fn limit_moment(table: &NodeTable, node: NodeId, set: &ChunkSet) -> Result<()> {
    let limited = driver(table, node)?.snapshot_access().limit(set);
    limited.map_err(|error| Error::io("The moment cannot be limited", error))
}

fn left_of_moment(table: &NodeTable, node: NodeId) -> Result<Box<ChunkSet>> {
    let left = driver(table, node)?.snapshot_access().left();
    left.map(Box::new)
        .map_err(|error| Error::io("The node keeps no moment", error))
}

fn bitmap_order(table: &NodeTable, node: NodeId, id: BitmapId, order: BitmapOrder) -> OrderOutcome {
    let cell = match found(table, node) {
        Ok(cell) => cell,
        Err(error) => return OrderOutcome::Done(Err(error)),
    };
    let (bitmaps, len) = (cell.bitmaps(), cell.size());
    match order {
        BitmapOrder::Add(new) => OrderOutcome::Done(stored::add(&cell, id, new)),
        BitmapOrder::Adopt { name } => OrderOutcome::Done(bitmaps.adopt(id, &name, len)),
        BitmapOrder::Remove => {
            bitmaps.remove(id);
            OrderOutcome::Done(Ok(()))
        }
        BitmapOrder::Record(on) => OrderOutcome::Done(bitmaps.set_recording(id, on)),
        BitmapOrder::Split => OrderOutcome::Done(bitmaps.split(id, len)),
        BitmapOrder::Join { keeps, more } => OrderOutcome::Done(bitmaps.join(id, keeps, more.as_deref())),
        BitmapOrder::Copy => OrderOutcome::Bits(bitmaps.copy(id).map(Box::new)),
        BitmapOrder::Clear => OrderOutcome::Bits(bitmaps.clear(id, len).map(Box::new)),
        BitmapOrder::Replace(set) => OrderOutcome::Bits(bitmaps.replace(id, *set, len).map(Box::new)),
        BitmapOrder::Read { range, most } => OrderOutcome::DirtyRuns(bitmaps.runs(id, range, most)),
    }
}

fn carry_out_here(table: &Rc<NodeTable>, order_id: OrderId, order: IothreadOrder) {
    match order {
        IothreadOrder::Counters => {
            let counters = OrderOutcome::Counters(Box::new(table.counters()));
            table.report(Event::Ended(order_id, counters));
        }
        IothreadOrder::Statistics(nodes) => table.report(Event::Ended(order_id, table.counted(nodes))),
        IothreadOrder::Save(nodes) => table.report(Event::Ended(order_id, table.saved(nodes))),
        IothreadOrder::DescribeMany(nodes) => later(table, order_id, async move |table| {
            OrderOutcome::DescribedMany(describe_many(table, nodes).await)
        }),
        IothreadOrder::RealPaths(paths) => later(table, order_id, async move |table| {
            let ring = table.local().ring();
            OrderOutcome::RealPaths(ring.blocking(move || real_paths(&paths)).await)
        }),
        IothreadOrder::NewTemporary => later(table, order_id, async move |table| {
            let ring = table.local().ring();
            let made = ring.blocking(millpond_drivers::protocol::file::create_temporary);
            OrderOutcome::Named(made.await)
        }),
    }
}

/// Carries out an order about debug events. The errors have the texts of QEMU's monitor.
fn debug(driver: &dyn millpond_drivers::api::Driver, order: &DebugOrder) -> Result<bool> {
    driver.debug().debug_order(order).map_err(|error| match order {
        DebugOrder::Breakpoint { .. } => Error::io("Could not set a breakpoint", error),
        DebugOrder::RemoveBreakpoint { tag } => {
            Error::io(&format!("Could not remove breakpoint {tag}"), error)
        }
        DebugOrder::Resume { .. } => Error::io("Could not resume request", error),
        DebugOrder::IsSuspended { .. } => Error::io("Could not look for the request", error),
    })
}

fn opened(table: &NodeTable, order_id: OrderId, result: Result<OpenFacts>) {
    table.report(Event::Ended(order_id, OrderOutcome::Opened(result)));
}

fn with_node(table: &NodeTable, node: NodeId, act: impl FnOnce(&NodeCell)) {
    if let Some(cell) = table.node(node) {
        act(&cell);
    }
}

fn with_driver(table: &NodeTable, node: NodeId, act: impl FnOnce(&dyn millpond_drivers::api::Driver)) {
    if let Ok(driver) = driver(table, node) {
        act(&*driver);
    }
}

fn reopen_commit(table: &NodeTable, node: NodeId) -> Result<OpenFacts> {
    let cell = found(table, node)?;
    driver(table, node)?.reopen_commit();
    cell.commit_reopen()?;
    Ok(cell.facts(None))
}

/// Where paths lead when all links in them are followed. This blocks, so it runs on the pool.
fn real_paths(paths: &[String]) -> Vec<Option<String>> {
    let real = |path: &String| {
        std::fs::canonicalize(path)
            .ok()?
            .into_os_string()
            .into_string()
            .ok()
    };
    paths.iter().map(real).collect()
}

async fn describe_many(table: &NodeTable, nodes: Vec<NodeId>) -> Vec<(NodeId, Description)> {
    let mut described = Vec::with_capacity(nodes.len());
    for node in nodes {
        if let Ok(description) = task::describe(table, node).await {
            described.push((node, description));
        }
        // Requests must not wait until all the nodes are described.
        yield_once().await;
    }
    described
}
