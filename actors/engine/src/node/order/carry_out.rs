//! The graph actor's orders, carried out on the node's iothread.

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use millpond_drivers::api::{CreateRequest, OpenRequest};
use millpond_messages::error::errno::EFBIG;
use millpond_messages::graph::Options;
use millpond_messages::{
    CheckResult, ChildSlot, DebugOrder, Error, ErrorKind, IoError, IoResult, MAX_LENGTH, NodeId, OpenFlags,
    Repair, Result,
};

use crate::node::cell::edge::{self, EdgeCell};
use crate::node::cell::kept::Asked;
use crate::node::cell::node::{CellParts, NodeCell};
use crate::node::entry::root::RootCell;
use crate::node::gate::sections::Gate;
use crate::node::gate::statistics::Counters;
use crate::node::io;
use crate::node::order::commit;
use crate::node::order::mail::{Description, Event, OpenFacts, OrderOutcome, Ticket};
use crate::node::order::moving;
use crate::node::order::orders::{IothreadOrder, NodeOrder, NodeTask, OpenOrder, Order, Wiring};
use crate::node::table::NodeTable;

/// Carries out an order. What takes time goes on as a task; the rest is done in the order in which it came.
pub fn carry_out(table: &Rc<NodeTable>, ticket: Ticket, order: Order) {
    match order {
        Order::Node(node, order) => carry_out_at_once(table, ticket, node, order),
        Order::Task(node, task) => later(table, ticket, async move |table| {
            carry_out_task(table, node, task).await
        }),
        Order::Iothread(order) => carry_out_here(table, ticket, order),
        Order::Wiring(wiring) => wire(table, ticket, wiring),
    }
}

/// Has a task carry an order out.
fn later<F>(table: &Rc<NodeTable>, ticket: Ticket, work: F)
where
    F: AsyncFnOnce(&Rc<NodeTable>) -> OrderOutcome + 'static,
{
    let owed = Owed {
        table: Rc::clone(table),
        ticket,
        outcome: None,
    };
    table.local().spawn(async move {
        let mut owed = owed;
        owed.outcome = Some(work(&owed.table).await);
    });
}

fn carry_out_at_once(table: &Rc<NodeTable>, ticket: Ticket, node: NodeId, order: NodeOrder) {
    match order {
        NodeOrder::Quiesce(token) => match table.node(node) {
            Some(cell) => cell.quiesce(token),
            // A node that is gone is as still as can be.
            None => table.tell(Event::Quiesced(node, token)),
        },
        NodeOrder::Resume(token) => with_node(table, node, |cell| cell.resume(token)),
        NodeOrder::PermissionsCommit => with_driver(table, node, |driver| driver.permissions_commit()),
        NodeOrder::PermissionsAbort => with_driver(table, node, |driver| driver.permissions_abort()),
        NodeOrder::ReopenCommit => opened(table, ticket, reopen_commit(table, node)),
        NodeOrder::ReopenAbort => {
            with_driver(table, node, |driver| driver.reopen_abort());
            with_node(table, node, NodeCell::abort_reopen);
        }
        NodeOrder::ExchangeCommit => with_node(table, node, NodeCell::commit_exchange),
        NodeOrder::ExchangeAbort => with_node(table, node, NodeCell::abort_exchange),
        NodeOrder::CancelInFlight => {
            with_driver(table, node, |driver| driver.cancel_in_flight());
            done(table, ticket, Ok(()));
        }
        NodeOrder::Pending => {
            let now = table.local().look_at_time();
            let pending = table
                .node(node)
                .map(|cell| cell.gate().pending(now, table))
                .unwrap_or_default();
            table.tell(Event::Ended(ticket, OrderOutcome::Pending(pending)));
        }
        NodeOrder::SetHistograms { histograms } => {
            let result = found(table, node).map(|cell| cell.counters().set_histograms(histograms));
            done(table, ticket, result);
        }
        NodeOrder::CopyOnRead { on } => {
            let result = found(table, node).and_then(|cell| cell.change_copy_on_read(on));
            done(table, ticket, result);
        }
        NodeOrder::Serialise { root } => {
            // A root that has moved or ended meanwhile has nothing to wait for here.
            if let Some(root) = table.root(root).filter(|root| root.node().id() == node) {
                root.serialise();
            }
            done(table, ticket, Ok(()));
        }
        NodeOrder::Debug { order } => {
            let result = driver(table, node).and_then(|driver| debug(&*driver, &order));
            table.tell(Event::Ended(ticket, OrderOutcome::Debugged(result)));
        }
    }
}

fn wire(table: &Rc<NodeTable>, ticket: Ticket, wiring: Wiring) {
    match wiring {
        Wiring::Connect { parent, slot, target } => {
            let result = found(table, parent).and_then(|cell| cell.connect(slot, target, table));
            done(table, ticket, result);
        }
        Wiring::AttachRoot { root, node } => {
            let result = found(table, node).map(|cell| table.insert_root(RootCell::new(root, cell)));
            done(table, ticket, result);
        }
        Wiring::MoveRoot { root, target } => moving::move_root(table, ticket, root, target),
        Wiring::DetachRoot(root) => {
            if let Some(cell) = table.remove_root(root) {
                cell.end();
            }
            done(table, ticket, Ok(()));
        }
        Wiring::Depart { node, to } => moving::depart(table, ticket, node, to),
        Wiring::Open(order) => later(table, ticket, async move |table| {
            OrderOutcome::Opened(open(table, *order).await)
        }),
        Wiring::Create { kind, options, file } => later(table, ticket, async move |table| {
            let file = file.map(|file| edge::child(EdgeCell::connected(Some(file), table)));
            let ring = table.local().ring().clone();
            OrderOutcome::Done(kind.create(CreateRequest { options, file, ring }).await)
        }),
    }
}

fn carry_out_here(table: &Rc<NodeTable>, ticket: Ticket, order: IothreadOrder) {
    match order {
        IothreadOrder::Counters => {
            let counters = OrderOutcome::Counters(Box::new(table.counters()));
            table.tell(Event::Ended(ticket, counters));
        }
        IothreadOrder::Statistics(nodes) => {
            let now = table.local().look_at_time();
            let nodes = nodes.into_iter().filter_map(|id| Some((id, table.node(id)?)));
            let statistics = nodes.map(|(id, cell)| (id, cell.counters().get(now))).collect();
            table.tell(Event::Ended(ticket, OrderOutcome::Statistics(statistics)));
        }
        IothreadOrder::DescribeMany(nodes) => later(table, ticket, async move |table| {
            OrderOutcome::DescribedMany(describe_many(table, nodes).await)
        }),
        IothreadOrder::RealPaths(paths) => later(table, ticket, async move |table| {
            let ring = table.local().ring();
            OrderOutcome::RealPaths(ring.blocking(move || real_paths(&paths)).await)
        }),
        IothreadOrder::NewTemporary => later(table, ticket, async move |table| {
            let ring = table.local().ring();
            let made = ring.blocking(millpond_drivers::protocol::file::create_temporary);
            OrderOutcome::Named(made.await)
        }),
    }
}

/// The answer to an order that takes time. It is given when this is dropped, come what may.
struct Owed {
    table: Rc<NodeTable>,
    ticket: Ticket,
    outcome: Option<OrderOutcome>,
}

impl Drop for Owed {
    fn drop(&mut self) {
        match self.outcome.take() {
            Some(outcome) => self.table.tell(Event::Ended(self.ticket, outcome)),
            None => lost(&self.table, self.ticket),
        }
    }
}

/// Answers an order that panicked, or that the iothread ended under.
pub fn lost(table: &NodeTable, ticket: Ticket) {
    let error = Error::new(
        ErrorKind::Closed,
        "The iothread broke off what it was asked to do",
    );
    done(table, ticket, Err(error));
}

async fn carry_out_task(table: &Rc<NodeTable>, node: NodeId, task: NodeTask) -> OrderOutcome {
    match task {
        NodeTask::Close => OrderOutcome::Done(close(table, node).await),
        NodeTask::PermissionsPrepare { taken, shared } => {
            OrderOutcome::Done(async { driver(table, node)?.permissions_prepare(taken, shared).await }.await)
        }
        NodeTask::ReopenPrepare { request, settings } => OrderOutcome::Done(
            async {
                let cell = found(table, node)?;
                let flags = request.flags;
                if flags.is_read_only() && cell.copy_on_read() > 0 {
                    let text = format!(
                        "Can't set node '{}' to r/o with copy-on-read enabled",
                        cell.name()
                    );
                    return Err(Error::new(ErrorKind::InvalidArgument, text));
                }
                // A node that is read-only from then on is not flushed any more.
                io::flush(&cell)
                    .await
                    .map_err(|error| Error::io("Error flushing drive", error))?;
                driver(table, node)?.reopen_prepare(request).await?;
                cell.prepare_reopen(settings, flags);
                Ok(())
            }
            .await,
        ),
        NodeTask::ExchangePrepare { slots } => {
            OrderOutcome::Done(exchange_prepare(table, node, &slots).await)
        }
        NodeTask::Exchange { slots } => OrderOutcome::Opened(exchange(table, node, &slots).await),
        NodeTask::Truncate {
            size,
            exact,
            preallocation,
            flags,
        } => OrderOutcome::Done(
            async { io::truncate(&found(table, node)?, size, exact, preallocation, flags).await }.await,
        ),
        NodeTask::Check { repair } => OrderOutcome::Checked(check(table, node, repair).await),
        NodeTask::DeleteFile => OrderOutcome::Done(delete_file(table, node).await),
        NodeTask::Flush => OrderOutcome::Done(
            async {
                io::flush(&found(table, node)?)
                    .await
                    .map_err(|error| Error::io("Could not flush", error))
            }
            .await,
        ),
        NodeTask::Describe => OrderOutcome::Described(describe(table, node).await.map(Box::new)),
        NodeTask::ReadHead { len } => OrderOutcome::Head(read_head(table, node, len).await),
        NodeTask::Invalidate => OrderOutcome::Opened(invalidate(table, node).await),
        NodeTask::Commit { offset, len } => OrderOutcome::Done(
            async {
                let copied = commit::commit(&found(table, node)?, offset, len).await;
                copied.map_err(|error| Error::io("Could not commit", error))
            }
            .await,
        ),
        NodeTask::MakeEmpty => OrderOutcome::Done(make_empty(table, node).await),
        NodeTask::Amend { options } => OrderOutcome::Done(amend(table, node, &options).await),
        NodeTask::ChangeBackingFile { link } => {
            OrderOutcome::Done(async { driver(table, node)?.image().change_backing_file(link).await }.await)
        }
    }
}

/// The texts are those that QEMU's monitor gives.
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

fn done(table: &NodeTable, ticket: Ticket, result: Result<()>) {
    table.tell(Event::Ended(ticket, OrderOutcome::Done(result)));
}

fn opened(table: &NodeTable, ticket: Ticket, result: Result<OpenFacts>) {
    table.tell(Event::Ended(ticket, OrderOutcome::Opened(result)));
}

fn found(table: &NodeTable, node: NodeId) -> Result<Rc<NodeCell>> {
    table
        .node(node)
        .ok_or_else(|| Error::new(ErrorKind::NotFound, "The node is not in this iothread"))
}

fn driver(table: &NodeTable, node: NodeId) -> Result<Rc<dyn millpond_drivers::api::Driver>> {
    found(table, node)?
        .driver()
        .map_err(|error| Error::io("The node is closing", error))
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

async fn open(table: &Rc<NodeTable>, order: OpenOrder) -> Result<OpenFacts> {
    let OpenOrder {
        node,
        name,
        kind,
        options,
        flags,
        settings,
        children,
    } = order;
    let mut targets = children.into_iter();
    let edges: Vec<Rc<EdgeCell>> = kind
        .children()
        .iter()
        .map(|_| EdgeCell::connected(targets.next().flatten(), table))
        .collect();
    // What is left are the numbered children.
    let numbered: Vec<(ChildSlot, Rc<EdgeCell>)> = (edges.len()..)
        .filter_map(ChildSlot::at)
        .zip(targets)
        .map(|(slot, target)| (slot, EdgeCell::connected(target, table)))
        .collect();
    let all = edges.iter().chain(numbered.iter().map(|(_, edge)| edge));
    let request = OpenRequest {
        node_name: name.clone(),
        options,
        flags,
        children: all.map(|edge| edge::child(Rc::clone(edge))).collect(),
        ring: table.local().ring().clone(),
        notices: table.notices(node),
    };
    if flags.contains(OpenFlags::COPY_ON_READ) && flags.is_read_only() {
        let text = "Can't use copy-on-read on read-only device";
        return Err(Error::new(ErrorKind::InvalidArgument, text));
    }
    let opened = kind.open(request).await?;
    let asked = Asked::now();
    let size = match length_of(&*opened.driver).await {
        Ok(size) => size,
        Err(error) => {
            drop(opened.driver.close().await);
            return Err(error);
        }
    };
    let parts = CellParts {
        id: node,
        name,
        kind,
        driver: opened.driver,
        edges,
        numbered,
        gate: Gate::default(),
        counters: Counters::default(),
        flags: opened.flags,
        settings,
        size,
        copy_on_read: u32::from(opened.flags.contains(OpenFlags::COPY_ON_READ)),
        // What a driver wrote to its children as it opened is for these to flush: where nothing was written, nothing that
        // fails to be flushed is lost.
        unflushed: false,
    };
    let cell = NodeCell::new(parts, table);
    if let Err(error) = cell.refresh() {
        if let Some(driver) = cell.take_driver() {
            drop(driver.close().await);
        }
        return Err(error);
    }
    cell.keep_length(asked);
    table.insert_node(Rc::clone(&cell));
    Ok(cell.facts(opened.backing))
}

/// A driver's length. Every range check relies on a node no longer than the limit.
async fn length_of(driver: &dyn millpond_drivers::api::Driver) -> Result<u64> {
    match driver.length().await {
        Ok(size) if size > MAX_LENGTH => Err(IoError::from_errno(EFBIG)),
        other => other,
    }
    .map_err(|error| Error::io("Could not refresh total sector count", error))
}

async fn exchange_prepare(table: &NodeTable, node: NodeId, slots: &[ChildSlot]) -> Result<()> {
    let cell = found(table, node)?;
    driver(table, node)?.exchange_prepare(slots).await?;
    // What was acknowledged cannot be made durable from here any more once it is other data that is flushed.
    io::flush(&cell)
        .await
        .map_err(|error| Error::io("Error flushing drive", error))
}

async fn exchange(table: &NodeTable, node: NodeId, slots: &[ChildSlot]) -> Result<OpenFacts> {
    let cell = found(table, node)?;
    let driver = driver(table, node)?;
    if slots.is_empty() {
        cell.refresh()?;
        return Ok(cell.facts(None));
    }
    let exchanged = Rc::clone(&driver).exchange(slots).await?;
    match length_of(&*driver).await {
        Ok(size) => {
            let backing = exchanged.backing.clone();
            cell.exchange(exchanged, size)?;
            Ok(cell.facts(backing))
        }
        Err(error) => {
            exchanged.put_back();
            Err(error)
        }
    }
}

async fn invalidate(table: &NodeTable, node: NodeId) -> Result<OpenFacts> {
    let cell = found(table, node)?;
    let driver = driver(table, node)?;
    driver.invalidate().await?;
    let size = length_of(&*driver).await?;
    cell.set_size(size);
    cell.refresh()?;
    Ok(cell.facts(None))
}

async fn close(table: &NodeTable, node: NodeId) -> Result<()> {
    let Some(cell) = table.remove_node(node) else {
        return Ok(());
    };
    // What it has passed on is its children's to flush when they close: each node of a chain is flushed once.
    let flushed = match cell.unflushed() {
        Some(_) => io::flush(&cell).await,
        None => Ok(()),
    };
    let flushed = flushed.map_err(|error| Error::io("Could not flush", error));
    let Some(driver) = cell.take_driver() else {
        return flushed;
    };
    let closed = driver.close().await;
    for edge in cell.all_edges() {
        edge.connect(None, table);
    }
    flushed.and(closed)
}

async fn make_empty(table: &NodeTable, node: NodeId) -> Result<()> {
    let cell = found(table, node)?;
    let emptied = driver(table, node)?.image().make_empty().await;
    // The next flush is not skipped: what was forgotten is so in memory only.
    cell.wrote(0);
    emptied
}

async fn check(table: &NodeTable, node: NodeId, repair: Repair) -> Result<CheckResult> {
    let cell = found(table, node)?;
    let checked = driver(table, node)?.image().check(repair).await;
    if repair.is_wanted() {
        // The next flush is not skipped: what was mended may be so in memory only.
        cell.wrote(0);
    }
    checked
}

async fn delete_file(table: &NodeTable, node: NodeId) -> Result<()> {
    let kind = Arc::clone(found(table, node)?.kind());
    let deleted = driver(table, node)?.image().delete_file().await;
    deleted.map_err(|error| match error.kind() {
        ErrorKind::Unsupported => {
            let text = format!("Driver '{}' does not support image deletion", kind.name());
            Error::new(ErrorKind::Unsupported, text)
        }
        _ => error,
    })
}

/// Where paths lead when all links in them are followed. It blocks.
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

async fn amend(table: &NodeTable, node: NodeId, options: &Options) -> Result<()> {
    let cell = found(table, node)?;
    let driver = driver(table, node)?;
    let amended = driver.image().amend(options).await;
    // Of several changes some may have been made before one failed.
    let length = driver.length().await;
    if let Ok(size) = length {
        cell.set_size(size);
    }
    cell.wrote(0);
    let refreshed = cell.refresh();
    amended?;
    length.map_err(|error| Error::io("Could not refresh total sector count", error))?;
    refreshed
}

async fn describe(table: &NodeTable, node: NodeId) -> IoResult<Description> {
    let cell = table.node(node).ok_or(IoError::NoMedium)?;
    let driver = cell.driver()?;
    Ok(Description {
        facts: cell.facts(None),
        own_allocated_size: driver.allocated_size().await,
        info: driver.image().info(),
        block_sizes: driver.device().block_sizes().await.ok(),
        geometry: driver.device().geometry().await.ok(),
        specific: driver.image().specific_info(),
    })
}

async fn describe_many(table: &NodeTable, nodes: Vec<NodeId>) -> Vec<(NodeId, Description)> {
    let mut described = Vec::with_capacity(nodes.len());
    for node in nodes {
        if let Ok(description) = describe(table, node).await {
            described.push((node, description));
        }
        // A turn of the iothread makes so many polls at most: requests do not wait for all the nodes.
        yield_once().await;
    }
    described
}

/// Ends this poll; the task is polled again after what else is ready.
async fn yield_once() {
    let mut yielded = false;
    poll_fn(|context| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

async fn read_head(table: &NodeTable, node: NodeId, len: usize) -> IoResult<Vec<u8>> {
    let cell = table.node(node).ok_or(IoError::NoMedium)?;
    let len = u64::try_from(len).unwrap_or(u64::MAX).min(cell.size());
    if len == 0 {
        return Ok(Vec::new());
    }
    io::read_whole(&cell, 0, len)
        .await
        .map(|buffers| buffers.to_vec())
}
