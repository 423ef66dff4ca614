//! The handles by which a driver reaches its children: edges as [`Child`] shows them.

use std::rc::Rc;

use futures_util::future::LocalBoxFuture;
use millpond_drivers::api::{Answer, Child, ChildPort};
use millpond_messages::io::{Operation, Outcome};
use millpond_messages::{DebugEvent, DriverInfo, Limits};
use millpond_ring::buffer::Buffers;

use crate::node::cell::edge::{Behind, EdgeCell};

/// What a driver sees of an edge.
struct Port(Rc<EdgeCell>);

/// A driver's handle on an edge.
pub fn child(edge: Rc<EdgeCell>) -> Child {
    Child::new(Rc::new(Port(edge)))
}

impl ChildPort for Port {
    fn request(&self, operation: Operation<Buffers>) -> Answer<'static, Outcome<Buffers>> {
        self.0.pass_down(operation)
    }

    fn limits(&self) -> Limits {
        self.0.limits().unwrap_or_default()
    }

    fn is_connected(&self) -> bool {
        self.0.is_connected()
    }

    fn node_name(&self) -> String {
        match self.0.behind() {
            Behind::Here(cell) => cell.name().to_owned(),
            Behind::None | Behind::There(_) => String::new(),
        }
    }

    fn filename(&self) -> String {
        let mut behind = self.0.behind();
        while let Behind::Here(cell) = behind {
            if let Some(name) = cell.driver().ok().and_then(|driver| driver.image().filename()) {
                return name;
            }
            // A node without data of its own is known by the filename of the child that it shows.
            let shown = cell.edges().first().filter(|_| cell.abilities().transparent);
            behind = shown.map(|edge| edge.behind()).unwrap_or_default();
        }
        String::new()
    }

    fn takes_compressed(&self) -> bool {
        self.0.takes_compressed()
    }

    fn driver_name(&self) -> Option<&'static str> {
        match self.0.behind() {
            Behind::Here(cell) => Some(cell.kind().name()),
            Behind::None | Behind::There(_) => None,
        }
    }

    fn info(&self) -> Option<DriverInfo> {
        let mut behind = self.0.behind();
        loop {
            let Behind::Here(cell) = behind else { return None };
            if !cell.kind().is_filter() {
                return Some(cell.driver().ok()?.image().info());
            }
            behind = cell.edges().first()?.behind();
        }
    }

    fn chain_index(&self, name: &str) -> Option<u32> {
        let mut behind = self.0.behind();
        let mut index = 1;
        loop {
            let Behind::Here(cell) = behind else { return None };
            if cell.name() == name {
                return Some(index);
            }
            let next = if cell.kind().is_filter() {
                cell.edges().first()
            } else {
                cell.backing_edge()
            };
            behind = next?.behind();
            index += 1;
        }
    }

    fn observes(&self) -> bool {
        self.0.observes()
    }

    fn debug_event(&self, event: DebugEvent) -> Option<LocalBoxFuture<'static, ()>> {
        self.0.debug_event(event)
    }
}
