//! Moving nodes and root edges between iothreads: packed up where they were, set up where they go.
//!
//! Edges between nodes are not carried: a node arrives with none connected, and the graph actor connects them once all that
//! move have arrived. The gate's sections are carried, so that a node that moves while it is still stays so.

use std::rc::Rc;
use std::sync::Arc;

use millpond_messages::{ChildSlot, Error, ErrorKind, NodeId, Result, RootId};

use super::mail::{Mail, NodeAddress};
use super::moved::{MovedNode, MovedRoot};
use super::outcome::{Event, OrderId, OrderOutcome};
use crate::iothread::IoThread;
use crate::node::cell::edge::EdgeCell;
use crate::node::cell::node::{CellParts, NodeCell};
use crate::node::entry::root::RootCell;
use crate::node::gate::sections::Gate;
use crate::node::io::port;
use crate::node::table::NodeTable;

/// Answers an order that ends on this iothread.
fn done(table: &NodeTable, order_id: OrderId, result: Result<()>) {
    table.report(Event::Ended(order_id, OrderOutcome::Done(result)));
}

/// Packs a node up and sends it off. The answer to `order_id` comes from where the node goes, or from here if it cannot go.
pub fn depart(table: &Rc<NodeTable>, order_id: OrderId, node: NodeId, to: IoThread<Mail>) {
    let Some(cell) = table.node(node) else {
        let error = Error::new(ErrorKind::NotFound, "The node to move is not in this iothread");
        done(table, order_id, Err(error));
        return;
    };
    if to.id() == table.local().id() {
        done(table, order_id, Ok(()));
        return;
    }
    let Some(driver) = cell.take_driver() else {
        let error = Error::new(ErrorKind::Closed, "The node to move is closing");
        done(table, order_id, Err(error));
        return;
    };
    table.remove_node(node);
    let home = Arc::new(to.clone());
    let roots = table
        .roots_of(&cell)
        .iter()
        .map(|root| pack_root(table, root, node, &home))
        .collect();
    let moved = MovedNode {
        order_id,
        node,
        name: cell.name().to_owned(),
        kind: Arc::clone(cell.kind()),
        driver: driver.depart(),
        numbered: cell.numbered().into_iter().map(|(slot, _)| slot).collect(),
        flags: cell.flags(),
        settings: cell.settings(),
        size: cell.size(),
        copy_on_read: cell.copy_on_read(),
        unflushed: cell.durability().unflushed().is_some(),
        write_threshold: cell.write_threshold().get(),
        bitmaps: cell.bitmaps().take(),
        counters: cell.counters().clone(),
        holds: cell.gate().holds(),
        roots,
        home: to.clone(),
    };
    cell.gate().wake_waiting();
    if to.send(Mail::Arrive(Box::new(moved))).is_err() {
        let error = Error::new(ErrorKind::Closed, "The iothread to move to has stopped");
        done(table, order_id, Err(error));
    }
}

/// Packs a root edge up. Clients go on sending to this iothread until the edge has arrived, and their requests are passed on
/// from here behind the edge: so no request arrives before it, and only the iothread that has the edge says where it is.
fn pack_root(table: &NodeTable, root: &Rc<RootCell>, node: NodeId, home: &Arc<IoThread<Mail>>) -> MovedRoot {
    let handle = root.handle().clone();
    table.remove_root(handle.id());
    table.note_moved(&handle, home);
    MovedRoot {
        order_id: None,
        parked: root.take_parked(),
        home: Arc::clone(home),
        handle,
        node,
    }
}

/// Sets a node up that comes from another iothread.
pub fn arrive(table: &Rc<NodeTable>, moved: MovedNode) {
    let edges: Vec<Rc<EdgeCell>> = moved.kind.children().iter().map(|_| Rc::default()).collect();
    let numbered: Vec<(ChildSlot, Rc<EdgeCell>)> = moved
        .numbered
        .into_iter()
        .map(|slot| (slot, Rc::default()))
        .collect();
    let all = edges.iter().chain(numbered.iter().map(|(_, edge)| edge));
    let children = all.map(|edge| port::child(Rc::clone(edge))).collect();
    let driver = moved.driver.arrive(children, table.local().ring().clone());
    let parts = CellParts {
        id: moved.node,
        name: moved.name,
        kind: moved.kind,
        driver,
        edges,
        numbered,
        gate: Gate::held(moved.holds),
        counters: moved.counters,
        flags: moved.flags,
        settings: moved.settings,
        size: moved.size,
        copy_on_read: moved.copy_on_read,
        unflushed: moved.unflushed,
        write_threshold: moved.write_threshold,
        bitmaps: moved.bitmaps,
    };
    let cell = NodeCell::new(parts, table.home());
    // The driver answered the same question before the node left, so this is not expected to fail.
    if let Err(error) = cell.refresh() {
        tracing::warn!(node = cell.name(), %error, "a node that arrived goes by other limits than its driver's");
    }
    table.insert_node(cell);
    for root in moved.roots {
        arrive_root(table, root);
    }
    tracing::debug!(node = %moved.node, iothread = %moved.home.id(), "a node arrived");
    done(table, moved.order_id, Ok(()));
}

/// Puts another node behind a root edge, which goes along if that node lives elsewhere.
pub fn move_root(table: &Rc<NodeTable>, order_id: OrderId, root: RootId, target: NodeAddress) {
    let Some(cell) = table.root(root) else {
        let error = Error::new(
            ErrorKind::NotFound,
            "The root edge to move is not in this iothread",
        );
        done(table, order_id, Err(error));
        return;
    };
    if target.iothread.id() == table.local().id() {
        let result = match table.node(target.node) {
            Some(node) => {
                cell.set_node(node);
                Ok(())
            }
            None => Err(Error::new(
                ErrorKind::NotFound,
                "The node to move to is not in this iothread",
            )),
        };
        done(table, order_id, result);
        return;
    }
    let before = cell.node();
    let home = Arc::new(target.iothread.clone());
    let mut moved = pack_root(table, &cell, target.node, &home);
    moved.order_id = Some(order_id);
    cell.leave(&before);
    if target.iothread.send(Mail::ArriveRoot(Box::new(moved))).is_err() {
        let error = Error::new(ErrorKind::Closed, "The iothread to move to has stopped");
        done(table, order_id, Err(error));
    }
}

/// Sets a root edge up that comes from another iothread; what was parked at it is parked here again, in the same order.
pub fn arrive_root(table: &Rc<NodeTable>, moved: MovedRoot) {
    let result = match table.node(moved.node) {
        Some(node) => {
            let root = RootCell::new(moved.handle, node);
            table.insert_root(Rc::clone(&root));
            root.handle().set_home(moved.home);
            for (operation, reply) in moved.parked {
                Rc::clone(&root).enter_remote(table.local(), operation, reply, None);
            }
            Ok(())
        }
        // Dropping the replies tells the clients that their requests are lost.
        None => {
            moved.handle.show_end();
            Err(Error::new(
                ErrorKind::NotFound,
                "The node to move to is not in this iothread",
            ))
        }
    };
    if let Some(order_id) = moved.order_id {
        done(table, order_id, result);
    }
}
