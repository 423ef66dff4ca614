//! The way down: a request that a parent sends over one of its edges.
//!
//! The child carries it out as it would any other request: this is where the path of a request comes back to its
//! beginning.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use futures_util::future::LocalBoxFuture;
use millpond_drivers::api::Answer;
use millpond_messages::IoError;
use millpond_messages::io::{Operation, Outcome};
use millpond_ring::buffer::Buffers;

use super::elsewhere::send_there;
use super::execute::execute;
use super::fast_path::{self, Attempt, Transferring};
use super::passage::By;
use crate::iothread::{Local, is_delaying};
use crate::node::cell::delayed;
use crate::node::cell::edge::{Behind, EdgeCell};
use crate::node::cell::node::NodeCell;
use crate::node::gate::stack_depth::{self, is_deep};

impl EdgeCell {
    /// Sends the child a request that serves one of the parent's. It runs to its end whatever becomes of the parent.
    pub fn pass_down(&self, operation: Operation<Buffers>) -> Answer<'static, Outcome<Buffers>> {
        match self.behind() {
            Behind::None => Answer::ready(Outcome::plain(Err(IoError::NoMedium))),
            Behind::Here(cell) => pass_to(cell, operation),
            Behind::There(address) => Answer::wait(async move { send_there(&address, operation).await }),
        }
    }
}

fn pass_to(cell: Rc<NodeCell>, operation: Operation<Buffers>) -> Answer<'static, Outcome<Buffers>> {
    if is_delaying() {
        let passed = stack_depth::bounded(async move {
            delayed::pass_down(&cell, &operation).await;
            execute(&cell, operation, By::PARENT).await
        });
        return Answer::lasting(passed, go_on_alone);
    }
    let attempt = if is_deep() {
        Attempt::Later(operation)
    } else {
        fast_path::begin(&cell, operation, By::PARENT)
    };
    match attempt {
        Attempt::Ended(outcome) => Answer::ready(outcome),
        Attempt::Transfer(transfer) => Answer::Wait(stack_depth::bounded(Passed(Some(transfer)))),
        Attempt::Later(operation) => {
            let passed = stack_depth::bounded(async move { execute(&cell, operation, By::PARENT).await });
            Answer::lasting(passed, go_on_alone)
        }
    }
}

/// A parent's read or write that the child's driver is at work on. Dropped before its end it goes on by itself, because a
/// driver must not be left half-way by a parent that broke or gave up waiting.
struct Passed(Option<Transferring>);

impl Future for Passed {
    type Output = Outcome<Buffers>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Outcome<Buffers>> {
        let Some(transfer) = &mut self.0 else {
            return Poll::Pending;
        };
        let outcome = ready!(transfer.poll(context));
        self.0 = None;
        Poll::Ready(outcome)
    }
}

impl Drop for Passed {
    fn drop(&mut self) {
        if let Some(mut transfer) = self.0.take() {
            go_on_alone(Box::pin(poll_fn(move |context| transfer.poll(context))));
        }
    }
}

/// Runs a request to its end that nobody waits for any more.
fn go_on_alone(future: LocalBoxFuture<'static, Outcome<Buffers>>) {
    if let Some(local) = Local::current() {
        local.spawn(async move { drop(future.await) });
    }
}
