//! Moving nodes and root edges between iothreads: packed up where they were, set up where they go.
//!
//! Edges between nodes are not carried: a node arrives with none connected, and the graph actor connects them once all that
//! move have arrived. The gate's sections are carried, so that a node that moves while it is still stays so.

use std::rc::Rc;
use std::sync::Arc;

use futures_channel::oneshot;
use millpond_drivers::api::{DriverKind, Moved};
use millpond_messages::io::{Operation, Outcome};
use millpond_messages::{ChildSlot, Error, ErrorKind, NodeId, OpenFlags, Token};
use millpond_ring::buffer::Buffers;

use crate::iothread::IoThread;
use crate::node::cell::edge::{self, EdgeCell};
use crate::node::cell::node::{CellParts, NodeCell};
use crate::node::entry::client::RootHandle;
use crate::node::entry::root::RootCell;
use crate::node::gate::sections::Gate;
use crate::node::gate::statistics::Counters;
use crate::node::order::mail::{Event, Mail, NodeAddress, NodeSettings, OrderOutcome, Ticket};
use crate::node::table::NodeTable;

/// A node on its way.
pub struct MovedNode {
    ticket: Ticket,
    node: NodeId,
    name: String,
    kind: Arc<dyn DriverKind>,
    driver: Moved,
    /// The slots of its numbered children.
    numbered: Vec<ChildSlot>,
    flags: OpenFlags,
    settings: NodeSettings,
    size: u64,
    copy_on_read: u32,
    unflushed: bool,
    counters: Counters,
    holds: Vec<Token>,
    roots: Vec<MovedRoot>,
    home: IoThread<Mail>,
}

/// A root edge on its way, with what is parked at it.
pub struct MovedRoot {
    ticket: Option<Ticket>,
    handle: RootHandle,
    node: NodeId,
    parked: Vec<(Operation<Buffers>, oneshot::Sender<Outcome<Buffers>>)>,
    /// The handle by which clients send to it where it goes.
    home: Arc<IoThread<Mail>>,
}

/// Packs a node up and sends it off. The answer to `ticket` comes from where it goes, or from here if it cannot go.
pub fn depart(table: &Rc<NodeTable>, ticket: Ticket, node: NodeId, to: IoThread<Mail>) {
    let Some(cell) = table.node(node) else {
        let error = Error::new(ErrorKind::NotFound, "The node to move is not in this iothread");
        table.tell(Event::Ended(ticket, OrderOutcome::Done(Err(error))));
        return;
    };
    if to.id() == table.local().id() {
        table.tell(Event::Ended(ticket, OrderOutcome::Done(Ok(()))));
        return;
    }
    let Some(driver) = cell.take_driver() else {
        let error = Error::new(ErrorKind::Closed, "The node to move is closing");
        table.tell(Event::Ended(ticket, OrderOutcome::Done(Err(error))));
        return;
    };
    table.remove_node(node);
    let home = Arc::new(to.clone());
    let roots = cell
        .roots()
        .iter()
        .map(|root| pack_root(table, root, node, &home))
        .collect();
    let moved = MovedNode {
        ticket,
        node,
        name: cell.name().to_owned(),
        kind: Arc::clone(cell.kind()),
        driver: driver.depart(),
        numbered: cell.numbered().into_iter().map(|(slot, _)| slot).collect(),
        flags: cell.flags(),
        settings: cell.settings(),
        size: cell.size(),
        copy_on_read: cell.copy_on_read(),
        unflushed: cell.unflushed().is_some(),
        counters: cell.counters().clone(),
        holds: cell.gate().holds(),
        roots,
        home: to.clone(),
    };
    cell.gate().wake_waiting();
    if to.send(Mail::Arrive(Box::new(moved))).is_err() {
        let error = Error::new(ErrorKind::Closed, "The iothread to move to has stopped");
        table.tell(Event::Ended(ticket, OrderOutcome::Done(Err(error))));
    }
}

/// Clients go on sending to this iothread until the edge has arrived, and what they send is passed on from here behind it
/// on its way: so nothing comes before the edge, and only who has the edge says where it is.
fn pack_root(table: &NodeTable, root: &Rc<RootCell>, node: NodeId, home: &Arc<IoThread<Mail>>) -> MovedRoot {
    let handle = root.handle().clone();
    table.remove_root(handle.id());
    table.note_moved(&handle, home);
    MovedRoot {
        ticket: None,
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
    let children = all.map(|edge| edge::child(Rc::clone(edge))).collect();
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
    };
    let cell = NodeCell::new(parts, table);
    // It was asked the same before it left.
    if let Err(error) = cell.refresh() {
        tracing::warn!(node = cell.name(), %error, "a node that arrived goes by other limits than its driver's");
    }
    table.insert_node(cell);
    for root in moved.roots {
        arrive_root(table, root);
    }
    tracing::debug!(node = %moved.node, iothread = %moved.home.id(), "a node arrived");
    table.tell(Event::Ended(moved.ticket, OrderOutcome::Done(Ok(()))));
}

/// Puts another node behind a root edge, which goes along if that node lives elsewhere.
pub fn move_root(
    table: &Rc<NodeTable>,
    ticket: Ticket,
    root: millpond_messages::RootId,
    target: NodeAddress,
) {
    let Some(cell) = table.root(root) else {
        let error = Error::new(
            ErrorKind::NotFound,
            "The root edge to move is not in this iothread",
        );
        table.tell(Event::Ended(ticket, OrderOutcome::Done(Err(error))));
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
        table.tell(Event::Ended(ticket, OrderOutcome::Done(result)));
        return;
    }
    let before = cell.node();
    let home = Arc::new(target.iothread.clone());
    let mut moved = pack_root(table, &cell, target.node, &home);
    moved.ticket = Some(ticket);
    before.remove_root(&cell);
    before.gate().wake_waiting();
    if target.iothread.send(Mail::ArriveRoot(Box::new(moved))).is_err() {
        let error = Error::new(ErrorKind::Closed, "The iothread to move to has stopped");
        table.tell(Event::Ended(ticket, OrderOutcome::Done(Err(error))));
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
                Rc::clone(&root).enter_remote(table.local(), operation, reply);
            }
            Ok(())
        }
        // Dropping the replies tells the askers.
        None => Err(Error::new(
            ErrorKind::NotFound,
            "The node to move to is not in this iothread",
        )),
    };
    if let Some(ticket) = moved.ticket {
        table.tell(Event::Ended(ticket, OrderOutcome::Done(result)));
    }
}
