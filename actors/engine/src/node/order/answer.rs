//! Answers to orders: each is given once, come what may.

use std::rc::Rc;

use millpond_messages::{Error, ErrorKind, Result};

use super::outcome::{Event, OrderOutcome, Ticket};
use crate::node::table::NodeTable;

/// Has a task carry an order out.
pub fn later<F>(table: &Rc<NodeTable>, ticket: Ticket, work: F)
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

/// The answer to an order that takes time. It is given when this is dropped, come what may.
struct Owed {
    table: Rc<NodeTable>,
    ticket: Ticket,
    outcome: Option<OrderOutcome>,
}

impl Drop for Owed {
    fn drop(&mut self) {
        match self.outcome.take() {
            Some(outcome) => self.table.report(Event::Ended(self.ticket, outcome)),
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

/// Answers that an order was carried out, or why not.
pub fn done(table: &NodeTable, ticket: Ticket, result: Result<()>) {
    table.report(Event::Ended(ticket, OrderOutcome::Done(result)));
}
