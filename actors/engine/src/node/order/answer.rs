//! Answers to orders: the graph actor gets exactly one for each order, come what may.

use std::rc::Rc;

use millpond_messages::{Error, ErrorKind, Result};

use super::outcome::{Event, OrderId, OrderOutcome};
use crate::node::table::NodeTable;

/// Has a task carry an order out, and answers the order when the task ends.
pub fn later<F>(table: &Rc<NodeTable>, order_id: OrderId, work: F)
where
    F: AsyncFnOnce(&Rc<NodeTable>) -> OrderOutcome + 'static,
{
    let owed = Owed {
        table: Rc::clone(table),
        order_id,
        outcome: None,
    };
    table.local().spawn(async move {
        let mut owed = owed;
        owed.outcome = Some(work(&owed.table).await);
    });
}

/// The answer that is owed to an order whose task runs. It is given when this is dropped, come what may.
struct Owed {
    table: Rc<NodeTable>,
    order_id: OrderId,
    outcome: Option<OrderOutcome>,
}

impl Drop for Owed {
    fn drop(&mut self) {
        match self.outcome.take() {
            Some(outcome) => self.table.report(Event::Ended(self.order_id, outcome)),
            None => lost(&self.table, self.order_id),
        }
    }
}

/// Answers an order that panicked, or that the iothread ended under.
pub fn lost(table: &NodeTable, order_id: OrderId) {
    let error = Error::new(
        ErrorKind::Closed,
        "The iothread broke off what it was asked to do",
    );
    done(table, order_id, Err(error));
}

/// Answers that an order was carried out, or why not.
pub fn done(table: &NodeTable, order_id: OrderId, result: Result<()>) {
    table.report(Event::Ended(order_id, OrderOutcome::Done(result)));
}
