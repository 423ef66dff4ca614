//! Orders about what leads where: nodes opened and joined, root edges begun, moved and ended.

use std::rc::Rc;

use millpond_drivers::api::{Child, CreateRequest, OpenRequest, Opened};
use millpond_messages::{ChildSlot, Error, ErrorKind, NodeId, OpenFlags, Result};

use super::answer::{done, later};
use super::mail::NodeAddress;
use super::moving;
use super::orders::{OpenOrder, Wiring};
use super::outcome::{OpenFacts, OrderId, OrderOutcome};
use super::task::{found, length_of};
use crate::node::cell::edge::EdgeCell;
use crate::node::cell::kept::AskedAt;
use crate::node::cell::node::{CellParts, NodeCell};
use crate::node::cell::stored;
use crate::node::entry::root::RootCell;
use crate::node::gate::sections::Gate;
use crate::node::gate::statistics::Counters;
use crate::node::io::port;
use crate::node::table::NodeTable;

/// Carries out an order about what leads where.
pub fn carry_out(table: &Rc<NodeTable>, order_id: OrderId, wiring: Wiring) {
    match wiring {
        Wiring::Connect { parent, slot, target } => {
            let result = connect(table, parent, slot, target);
            done(table, order_id, result);
        }
        Wiring::AttachRoot { root, node } => {
            let result = found(table, node).map(|cell| table.insert_root(RootCell::new(root, cell)));
            done(table, order_id, result);
        }
        Wiring::MoveRoot { root, target } => moving::move_root(table, order_id, root, target),
        Wiring::DetachRoot(root) => {
            if let Some(cell) = table.remove_root(root) {
                cell.end();
            }
            done(table, order_id, Ok(()));
        }
        Wiring::Depart { node, to } => moving::depart(table, order_id, node, to),
        Wiring::Open(order) => later(table, order_id, async move |table| {
            OrderOutcome::Opened(open(table, *order).await)
        }),
        Wiring::Create {
            kind,
            options,
            file,
            header,
            data_file,
        } => later(table, order_id, async move |table| {
            let child = |node: NodeAddress| port::child(EdgeCell::to(table.behind(Some(node))));
            let request = CreateRequest {
                options,
                file: file.map(child),
                header: header.map(child),
                data_file: data_file.map(child),
                ring: table.local().ring().clone(),
            };
            OrderOutcome::Done(kind.create(request).await)
        }),
    }
}

/// Puts a node behind a child's edge, or none, and tells the driver.
fn connect(table: &NodeTable, parent: NodeId, slot: ChildSlot, target: Option<NodeAddress>) -> Result<()> {
    let cell = found(table, parent)?;
    cell.set_edge(slot, table.behind(target))?;
    if let Ok(driver) = cell.driver() {
        let children: Vec<Child> = cell.all_edges().into_iter().map(port::child).collect();
        driver.children_changed(&children);
    }
    cell.refresh()
}

/// The edges of a node: those to its declared children, and the numbered ones.
type Edges = (Vec<Rc<EdgeCell>>, Vec<(ChildSlot, Rc<EdgeCell>)>);

fn edges_to(table: &NodeTable, declared: usize, children: Vec<Option<NodeAddress>>) -> Edges {
    let mut targets = children.into_iter();
    let edges: Vec<Rc<EdgeCell>> = (0..declared)
        .map(|_| EdgeCell::to(table.behind(targets.next().flatten())))
        .collect();
    let numbered = (edges.len()..)
        .filter_map(ChildSlot::at)
        .zip(targets)
        .map(|(slot, target)| (slot, EdgeCell::to(table.behind(target))))
        .collect();
    (edges, numbered)
}

async fn open(table: &Rc<NodeTable>, order: OpenOrder) -> Result<OpenFacts> {
    let (edges, numbered) = edges_to(table, order.kind.children().len(), order.children);
    let all = edges.iter().chain(numbered.iter().map(|(_, edge)| edge));
    let request = OpenRequest {
        node_name: order.name.clone(),
        options: order.options,
        flags: order.flags,
        children: all.map(|edge| port::child(Rc::clone(edge))).collect(),
        ring: table.local().ring().clone(),
        notices: table.home().notices(order.node, &order.name),
    };
    if order.flags.contains(OpenFlags::COPY_ON_READ) && order.flags.is_read_only() {
        let text = "Can't use copy-on-read on read-only device";
        return Err(Error::new(ErrorKind::InvalidArgument, text));
    }
    let Opened {
        driver,
        flags,
        backing,
    } = order.kind.open(request).await?;
    let asked = AskedAt::now();
    let size = match length_of(&*driver).await {
        Ok(size) => size,
        Err(error) => {
            drop(driver.close().await);
            return Err(error);
        }
    };
    let parts = CellParts {
        id: order.node,
        name: order.name,
        kind: order.kind,
        driver,
        edges,
        numbered,
        gate: Gate::default(),
        counters: Counters::default(),
        flags,
        settings: order.settings,
        size,
        copy_on_read: u32::from(flags.contains(OpenFlags::COPY_ON_READ)),
        // What a driver wrote to its children as it opened is for these to flush: where nothing was written, nothing that
        // fails to be flushed is lost.
        unflushed: false,
        write_threshold: 0,
        bitmaps: Vec::new(),
    };
    let cell = NodeCell::new(parts, table.home());
    if let Err(error) = cell.refresh() {
        if let Some(driver) = cell.take_driver() {
            drop(driver.close().await);
        }
        return Err(error);
    }
    cell.keep_length(asked);
    stored::keep_read(&cell);
    table.insert_node(Rc::clone(&cell));
    Ok(cell.facts(backing))
}
